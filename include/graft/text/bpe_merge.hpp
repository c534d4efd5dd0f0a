// SPDX-License-Identifier: Apache-2.0
// The merging at the heart of every BPE tokenizer: join the adjacent pair of lowest rank until no pair is left.
#pragma once

#include <graft/core/error.hpp>
#include <graft/io/checked.hpp>
#include <graft/text/tokenizer_spec.hpp>
#include <graft/text/vocabulary.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace graft {

/// What two adjacent symbols become.
struct Merge {
  std::int32_t rank = -1;  ///< lower merges first; -1: they do not merge
  std::int32_t symbol = -1;
};

/// (left, right) -> Merge, as an open-addressing hash table: this lookup is most of what encoding costs.
class MergeTable {
 public:
  explicit MergeTable(std::size_t count = 0)
      : shift_(64 - static_cast<int>(std::bit_width(2 * count + 2))), slots_(std::size_t{1} << (64 - shift_)) {}

  /// A later entry for the same pair replaces the earlier. No more pairs than the constructor's `count`.
  void insert(std::int32_t left, std::int32_t right, Merge merge) {
    slots_[find(key(left, right))] = {key(left, right), merge};
  }
  Merge operator()(std::int32_t left, std::int32_t right) const { return slots_[find(key(left, right))].merge; }

 private:
  struct Slot {
    std::uint64_t key = 0;
    Merge merge;
  };
  static std::uint64_t key(std::int32_t left, std::int32_t right) {
    return std::uint64_t{static_cast<std::uint32_t>(left)} << 32 | static_cast<std::uint32_t>(right);
  }
  std::size_t find(std::uint64_t key) const {
    std::size_t k = (key * 0x9E3779B97F4A7C15u) >> shift_;
    while (slots_[k].merge.rank >= 0 && slots_[k].key != key) k = (k + 1) & (slots_.size() - 1);
    return k;
  }

  int shift_;
  std::vector<Slot> slots_;
};

/// The table of `spec.merges`, the first of rank 0. FormatError where a pair or what it makes is no token.
inline MergeTable merge_table(TokenizerSpec const& spec, Vocabulary const& ids) {
  MergeTable table(spec.merges.size());
  std::int32_t rank = 0;
  auto const id_of = [&](std::string const& token) {
    std::int32_t const id = ids.find(token);
    if (id < 0)
      raise<FormatError>(spec.source, ": merge ", rank, " needs token ", in_quotes(token),
                         ", which is not in the vocabulary");
    return id;
  };
  for (auto const& [left, right] : spec.merges) {
    std::int32_t const a = id_of(left), b = id_of(right);
    table.insert(a, b, {rank, id_of(left + right)});
    ++rank;
  }
  return table;
}

/// Merges the symbols of one word; keeps its memory between words. One per thread.
class Merger {
 public:
  /// Replaces `symbols` by what they merge to: always the pair of lowest rank, of equal ones the leftmost.
  /// O(n log n).
  void merge(MergeTable const& table, std::vector<std::int32_t>& symbols) {
    if (symbols.size() < 2) return;
    auto const count = static_cast<std::int32_t>(symbols.size());
    nodes_.clear();
    queue_.clear();
    for (std::int32_t k = 0; k < count; ++k) nodes_.push_back({symbols[static_cast<std::size_t>(k)], k - 1, k + 1});
    nodes_.back().next = -1;
    for (std::int32_t k = 0; k + 1 < count; ++k) offer(table, k, false);
    std::make_heap(queue_.begin(), queue_.end(), std::greater<>{});

    while (!queue_.empty()) {
      Candidate const best = queue_.front();
      std::pop_heap(queue_.begin(), queue_.end(), std::greater<>{});
      queue_.pop_back();
      Node& left = node(best.position);
      // One of the two has since merged with a neighbour: the entry is out of date.
      if (left.symbol < 0 || left.next < 0 || table(left.symbol, node(left.next).symbol).symbol != best.symbol)
        continue;
      Node& right = node(left.next);
      left.symbol = best.symbol;
      left.next = right.next;
      right.symbol = -1;
      if (left.next >= 0) {
        node(left.next).previous = best.position;
        offer(table, best.position, true);
      }
      if (left.previous >= 0) offer(table, left.previous, true);
    }

    symbols.clear();
    for (std::int32_t k = 0; k >= 0; k = node(k).next) symbols.push_back(node(k).symbol);
  }

 private:
  struct Node {
    std::int32_t symbol, previous, next;
  };
  struct Candidate {
    std::int32_t rank, position, symbol;
    bool operator>(Candidate const& other) const {
      return rank != other.rank ? rank > other.rank : position > other.position;
    }
  };
  Node& node(std::int32_t k) { return nodes_[static_cast<std::size_t>(k)]; }
  void offer(MergeTable const& table, std::int32_t position, bool keep_heap) {
    Node const& left = node(position);
    Merge const merge = table(left.symbol, node(left.next).symbol);
    if (merge.rank < 0) return;
    queue_.push_back({merge.rank, position, merge.symbol});
    if (keep_heap) std::push_heap(queue_.begin(), queue_.end(), std::greater<>{});
  }

  std::vector<Node> nodes_;
  std::vector<Candidate> queue_;
};

}  // namespace graft
