// SPDX-License-Identifier: Apache-2.0
// The plan of a step: which batch row belongs to which request, built once and used by every layer.
#pragma once

#include <graft/adapter/resident_plan.hpp>
#include <graft/adapter/sequence_state.hpp>

#include <algorithm>
#include <array>
#include <span>
#include <utility>
#include <vector>

namespace graft {

/// Rows that share their adapters, and their vectors where those are made from a prompt: what gradients are summed
/// over.
template <class B>
struct RowGroup {
  AdapterSet<B> const* set = nullptr;
  std::size_t request = 0;                     ///< the first of its requests; the only one where the set generates
  std::vector<std::int32_t> rows, positioned;  ///< ascending; those that maps on the residual stream act on
  std::span<std::int32_t const> listed, listed_positioned;  ///< the same where kernels read them
};

enum class PlanUse : std::uint8_t { forward, training };

/// What a plan says of all steps that its operations are recorded for, whatever the step at hand has.
struct PlanMaxima {
  std::span<Mechanisms const> mechanisms;  ///< [sites] or fewer
  index_t rank = 0;                        ///< sum of ranks of a row at any site
};

/// Reusable: after warm-up, building a plan does not allocate. It keeps the adapters of its requests alive.
template <class B>
class Plan {
 public:
  using R = Real<B>;
  using Tile = LowRankTile<R>;

  /// ContractError where a request's rows do not add up, or modules to be trained are kept in bf16. For training, the
  /// plan also knows what the way back needs.
  void build(B& be, std::span<RequestRows<B> const> requests, PlanUse use = PlanUse::forward);
  void build(std::span<RequestRows<B> const> requests, PlanUse use = PlanUse::forward);

  /// A plan of operations that are recorded once and then done for other steps with as many requests and rows: what the
  /// host reads of it comes from the maxima, which include what the requests bring, and what kernels read lies in the
  /// parcel, at places that depend on the two numbers alone. `parcel_bytes` of it; whoever owns the parcel sends it.
  void build(Parcel<typename B::Space>& parcel, std::span<RequestRows<B> const> requests, PlanMaxima const& maxima) {
    arrange(requests, PlanUse::forward);
    expects(max_rank_ <= maxima.rank, "graft: a plan of ranks up to ", max_rank_, " for operations recorded for ",
            maxima.rank);
    max_rank_ = maxima.rank;
    mechanisms_.assign(maxima.mechanisms.begin(), maxima.mechanisms.end());
    tile_count_ = rows();
    resident_.pack(parcel, arrays());
  }
  static index_t parcel_bytes(index_t requests, index_t rows) { return ResidentPlan<B>::bytes(requests, rows); }

  /// In the order of their first rows; only of a plan built for training.
  std::span<RowGroup<B> const> groups() const { return groups_; }

  index_t rows() const { return static_cast<index_t>(request_.size()); }
  index_t max_rank() const { return max_rank_; }
  std::span<RequestRows<B> const> requests() const { return requests_; }
  index_t first_row(std::size_t request) const { return first_[request]; }

  /// The maps of a stage at a site, for every row, where kernels read them.
  RowMapBatch<R> maps(Stage stage, index_t site) const { return resident(host_maps(stage, site), stage, false); }
  /// The maps on the residual stream, at the positions their modules ask for.
  RowMapBatch<R> positioned_maps(Stage stage, index_t site) const {
    auto maps = host_maps(stage, site);
    maps.request = positioned_.data();
    return resident(maps, stage, true);
  }
  LowRankBatch<R> low_rank(index_t site) const {
    auto deltas = host_low_rank(site);
    if constexpr (!std::same_as<typename B::Space, HostSpace>) {
      deltas.present = does(low_rank_deltas, site);
      deltas.tiles = resident_.tiles();
      deltas.tile_count = tile_count_;
    }
    return deltas;
  }
  /// Prompts that vectors are made from in this step, where kernels read them.
  GeneratedPrompts<R> const& prompts() const { return resident_.prompts(); }

  /// The same in host memory.
  RowMapBatch<R> host_maps(Stage stage, index_t site) const {
    auto const& tables = tables_[static_cast<std::size_t>(stage)];
    return {tables.data(), request_.data(), static_cast<index_t>(tables.size()), site};
  }
  LowRankBatch<R> host_low_rank(index_t site) const {
    return {tiles_.data(), static_cast<index_t>(tiles_.size()), rows(), max_rank_, site};
  }

 private:
  RowMapBatch<R> resident(RowMapBatch<R> maps, Stage stage, bool positioned) const {
    if constexpr (!std::same_as<typename B::Space, HostSpace>) {
      maps.present = does(row_maps_of(stage), maps.site);
      maps.tables = resident_.tables(stage);
      maps.request = positioned ? resident_.positioned() : resident_.request();
    }
    return maps;
  }

  PlanArrays<B> arrays() const {
    return {requests_, tables_, request_, positioned_, order_, tiles_, first_, group_rows_};
  }

  bool does(Mechanisms what, index_t site) const {
    auto const at = static_cast<std::size_t>(site);
    return at < mechanisms_.size() && (mechanisms_[at] & what) != 0;
  }

  // Sets know it, so that no step walks the tables of all its requests.
  void find_mechanisms() {
    mechanisms_.clear();
    for (auto const& request : requests_)
      if (request.state != nullptr) merge_mechanisms(request.state->mechanisms(), mechanisms_);
    tile_count_ = static_cast<index_t>(tiles_.size());
  }

  void arrange(std::span<RequestRows<B> const> requests, PlanUse use) {
    for (auto const& r : requests)
      expects(r.rows >= 0 && r.prompt_rows >= 0 && r.prompt_rows <= r.rows && r.position >= 0 && r.prompt_end >= -1,
              "graft: a request brings ", r.rows, " rows from position ", r.position, " on; its first ", r.prompt_rows,
              " cannot be prompt, nor can the prompt end before position ", r.prompt_end);
    requests_.assign(requests.begin(), requests.end());
    auto const count = requests_.size();
    index_t n = 0;
    for (auto const& request : requests_) n += request.rows;
    request_.resize(static_cast<std::size_t>(n));
    positioned_.assign(static_cast<std::size_t>(n), -1);
    order_.resize(static_cast<std::size_t>(n));
    first_.resize(count);
    pins_.assign(count, nullptr);
    for (auto& tables : tables_) tables.assign(count, nullptr);
    max_rank_ = 0;
    index_t row = 0;
    for (std::size_t q = 0; q < count; ++q) {
      auto const& request = requests_[q];
      first_[q] = row;
      if (request.state != nullptr) {
        pins_[q] = request.state->adapters();
        for (std::size_t s = 0; s < stage_count; ++s) tables_[s][q] = request.state->table(static_cast<Stage>(s));
        if (pins_[q] != nullptr) max_rank_ = std::max(max_rank_, pins_[q]->max_rank);
      }
      for (index_t k = 0; k < request.rows; ++k) {
        request_[static_cast<std::size_t>(row + k)] = static_cast<std::int32_t>(q);
        if (pins_[q] == nullptr || pins_[q]->positions.contain(request.position + k, request.prompt_end))
          positioned_[static_cast<std::size_t>(row + k)] = static_cast<std::int32_t>(q);
      }
      row += request.rows;
    }
    build_tiles();
    if constexpr (!std::same_as<typename B::Space, HostSpace>) find_mechanisms();
    groups_.clear(), group_rows_.clear();
    if (use == PlanUse::training) build_groups();
  }

  void build_groups() {
    for (std::size_t q = 0; q < requests_.size(); ++q) {
      auto const* const set = pins_[q].get();
      if (set == nullptr || requests_[q].rows == 0) continue;
      expects(set->storage.as() == AdapterStorage::full, "graft: adapter ", set->members[0].module->name,
              " is kept in bf16; to train, load it into a bank of AdapterStorage::full");
      auto group = std::find_if(groups_.begin(), groups_.end(),
                                [&](auto const& g) { return g.set == set && !set->generates(); });
      if (group == groups_.end()) group = groups_.insert(group, RowGroup<B>{set, q, {}, {}, {}, {}});
      for (index_t k = 0; k < requests_[q].rows; ++k) {
        auto const row = static_cast<std::int32_t>(first_[q] + k);
        group->rows.push_back(row);
        if (positioned_[static_cast<std::size_t>(row)] >= 0) group->positioned.push_back(row);
      }
    }
    if constexpr (!std::same_as<typename B::Space, HostSpace>)
      for (auto const& group : groups_)
        for (auto const* rows : {&group.rows, &group.positioned})
          group_rows_.insert(group_rows_.end(), rows->begin(), rows->end());
  }

  void list_groups() {
    if constexpr (std::same_as<typename B::Space, HostSpace>) {
      for (auto& group : groups_) group.listed = group.rows, group.listed_positioned = group.positioned;
    } else {
      auto const* next = resident_.group_rows();
      for (auto& group : groups_)
        for (auto [rows, listed] :
             {std::pair(&group.rows, &group.listed), std::pair(&group.positioned, &group.listed_positioned)})
          *listed = {std::exchange(next, next + rows->size()), rows->size()};
    }
  }

  // Rows that share adapters stand together in tiles, so that a module's factors are read once per tile.
  void build_tiles() {
    for (std::size_t k = 0; k < order_.size(); ++k) order_[k] = static_cast<std::int32_t>(k);
    auto const set_of = [&](std::int32_t row) {
      return pins_[static_cast<std::size_t>(request_[static_cast<std::size_t>(row)])].get();
    };
    std::erase_if(order_, [&](std::int32_t row) { return set_of(row) == nullptr; });
    std::sort(order_.begin(), order_.end(), [&](std::int32_t a, std::int32_t b) {
      return set_of(a) != set_of(b) ? std::less<>{}(set_of(a), set_of(b)) : a < b;
    });
    tiles_.clear();
    for (std::size_t k = 0; k < order_.size();) {
      auto const* const set = set_of(order_[k]);
      std::size_t end = k;
      while (end < order_.size() && end < k + Tile::max_rows && set_of(order_[end]) == set) ++end;
      tiles_.push_back({set->low_rank.data(), static_cast<index_t>(set->low_rank.size()), order_.data() + k,
                        static_cast<index_t>(end - k)});
      k = end;
    }
  }

  std::vector<RequestRows<B>> requests_;
  std::vector<std::shared_ptr<AdapterSet<B> const>> pins_;  ///< [requests]
  std::vector<std::int32_t> request_, positioned_;          ///< [n] request of each row
  std::vector<index_t> first_;                              ///< [requests]
  std::array<std::vector<RowMapRow<R const> const*>, stage_count> tables_;
  std::vector<std::int32_t> order_;
  std::vector<Tile> tiles_;
  std::vector<RowGroup<B>> groups_;
  std::vector<std::int32_t> group_rows_;  ///< rows, positioned of each group, to be copied to where kernels read them
  index_t max_rank_ = 0;
  ResidentPlan<B> resident_;
  // not on the host
  std::vector<Mechanisms> mechanisms_;  ///< [sites] or fewer, of all requests
  index_t tile_count_ = 0;              ///< at most; tiles behind the last are empty
};

template <class B>
void Plan<B>::build(B& be, std::span<RequestRows<B> const> requests, PlanUse use) {
  arrange(requests, use);
  resident_.copy(be, arrays());
  list_groups();
}

template <class B>
void Plan<B>::build(std::span<RequestRows<B> const> requests, PlanUse use) {
  static_assert(std::same_as<typename B::Space, HostSpace>,
                "graft: a plan for this backend is copied to its memory; call build(backend, requests)");
  arrange(requests, use);
  list_groups();
}

}  // namespace graft
