// SPDX-License-Identifier: Apache-2.0
// Tables of row maps and of factors where a backend's kernels read them: on the host the tables themselves, on a device
// copies of them and of everything they point to, made once, when they are published.
#pragma once

#include <graft/backend/low_rank.hpp>
#include <graft/backend/numbers.hpp>
#include <graft/backend/row_map.hpp>
#include <graft/core/memory.hpp>

#include <cstddef>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

namespace graft {

/// Vectors gathered in host memory to be copied to a space at once; each begins at a multiple of 64 bytes.
template <class R, MemorySpace S>
class VectorGathering {
 public:
  /// Remembers [v, v + size); null stays null.
  void add(Numbers<R> const& v, index_t size) {
    if (v == nullptr) return;
    auto const* const first = static_cast<std::byte const*>(v.data());
    bytes_.insert(bytes_.end(), first, first + v.bytes(size));
    bytes_.resize(static_cast<std::size_t>(round_up(static_cast<index_t>(bytes_.size()), alignment)));
  }
  Storage<std::byte, S> copy() const { return Storage<std::byte, S>(std::span<std::byte const>(bytes_)); }

  /// Where the vectors lie in the copy; asked in the order of `add`.
  class Places {
   public:
    explicit Places(std::byte const* data) : next_(data) {}
    Numbers<R> next(Numbers<R> const& v, index_t size) {
      if (v == nullptr) return nullptr;
      return v.moved_to(std::exchange(next_, next_ + round_up(v.bytes(size), alignment)));
    }

   private:
    std::byte const* next_;
  };

 private:
  static constexpr index_t alignment = 64;
  std::vector<std::byte> bytes_;
};

/// Copies of tables of row maps, chains included, in a space.
template <class R, MemorySpace S>
class ResidentMaps {
 public:
  using Row = RowMapRow<R const>;
  using Table = std::vector<Row>;
  /// Where vectors lie in the space already, by their address in host memory.
  using Known = std::unordered_map<void const*, void const*>;

  ResidentMaps() = default;
  /// tables: [sites] each, or empty. What is known is not copied again.
  explicit ResidentMaps(std::span<Table const* const> tables, Known const& known = {}) {
    VectorGathering<R, S> gathering;
    index_t links = 0;
    auto const find = [&](Numbers<R> const& v) {
      auto const found = known.find(v.data());
      return found == known.end() ? Numbers<R>{} : v.moved_to(found->second);
    };
    auto const gather = [&](Numbers<R> const& v, index_t size) {
      if (find(v) == nullptr) gathering.add(v, size);
    };
    for (auto const* table : tables)
      for (auto const& first : *table)
        for (Row const* map = &first; map != nullptr; map = map->next, ++links) {
          gather(map->c1, map->size);
          gather(map->d, map->size);
          gather(map->e, map->size);
        }
    coefficients_ = gathering.copy();
    typename VectorGathering<R, S>::Places places(coefficients_.data());
    auto const place = [&](Numbers<R> const& v, index_t size) {
      auto const at = find(v);
      return at == nullptr ? places.next(v, size) : at;
    };

    // one array: all tables, then the successors in chains
    nodes_ = Storage<Row, S>(links);
    std::vector<Row> nodes(static_cast<std::size_t>(links));
    std::size_t entry = 0, successor = 0;
    for (auto const* table : tables) successor += table->size();
    for (auto const* table : tables) {
      starts_.push_back(table->empty() ? nullptr : nodes_.data() + entry);
      auto& rows = rows_.emplace_back();
      for (auto const& first : *table) {
        Row* to = &nodes[entry];
        for (Row const* map = &first; map != nullptr; map = map->next) {
          *to = {place(map->c1, map->size),
                 place(map->d, map->size),
                 place(map->e, map->size),
                 map->size,
                 map->group,
                 map->next != nullptr ? nodes_.data() + successor : nullptr};
          if (map->next != nullptr) to = &nodes[successor++];
        }
        rows.push_back(nodes[entry++]);
      }
    }
    if (links > 0) Memory<S>::copy_from_host(nodes_.data(), nodes.data(), nodes.size() * sizeof(Row));
  }

  /// Whether it has coefficients of its own.
  bool copied() const { return coefficients_.size() > 0; }
  /// Table k in the space, or null when it is empty.
  Row const* table(std::size_t k) const { return starts_[k]; }
  /// The same in host memory, with pointers into the space.
  Table const& rows(std::size_t k) const { return rows_[k]; }

 private:
  Storage<std::byte, S> coefficients_;
  Storage<Row, S> nodes_;
  std::vector<Row const*> starts_;
  std::vector<Table> rows_;
};

/// On the host the tables themselves, which must outlive this.
template <class R>
class ResidentMaps<R, HostSpace> {
 public:
  using Table = std::vector<RowMapRow<R const>>;
  ResidentMaps() = default;
  explicit ResidentMaps(std::span<Table const* const> tables) : tables_(tables.begin(), tables.end()) {}
  RowMapRow<R const> const* table(std::size_t k) const { return tables_[k]->empty() ? nullptr : tables_[k]->data(); }
  Table const& rows(std::size_t k) const { return *tables_[k]; }

 private:
  std::vector<Table const*> tables_;
};

/// A copy of a module's factors in a space.
template <class R, MemorySpace S>
class ResidentFactors {
 public:
  ResidentFactors() = default;
  /// sizes(site) gives {i, o}.
  ResidentFactors(std::vector<LowRankFactors<R>> const& host, auto&& sizes) {
    VectorGathering<R, S> gathering;
    auto const each = [&](auto&& f) {
      for (std::size_t s = 0; s < host.size(); ++s) {
        auto const [in, out] = sizes(static_cast<index_t>(s));
        f(host[s], in * host[s].rank, out * host[s].rank, s);
      }
    };
    each([&](auto const& f, index_t a, index_t b, std::size_t) {
      gathering.add(f.a, a), gathering.add(f.b_transposed, b);
    });
    values_ = gathering.copy();
    typename VectorGathering<R, S>::Places places(values_.data());
    rows_.resize(host.size());
    each([&](auto const& f, index_t a, index_t b, std::size_t s) {
      rows_[s].a = places.next(f.a, a);
      rows_[s].b_transposed = places.next(f.b_transposed, b);
      rows_[s].rank = f.rank, rows_[s].scale = f.scale;
    });
    table_ = Storage<LowRankFactors<R>, S>(std::span<LowRankFactors<R> const>(rows_));
  }
  LowRankFactors<R> const* table() const { return table_.data(); }
  /// The same in host memory, with pointers into the space.
  LowRankFactors<R> const* rows() const { return rows_.data(); }

 private:
  Storage<std::byte, S> values_;
  Storage<LowRankFactors<R>, S> table_;
  std::vector<LowRankFactors<R>> rows_;
};

template <class R>
class ResidentFactors<R, HostSpace> {
 public:
  ResidentFactors() = default;
  ResidentFactors(std::vector<LowRankFactors<R>> const& host, auto&&) : table_(host.data()) {}
  LowRankFactors<R> const* table() const { return table_; }
  LowRankFactors<R> const* rows() const { return table_; }

 private:
  LowRankFactors<R> const* table_ = nullptr;
};

}  // namespace graft
