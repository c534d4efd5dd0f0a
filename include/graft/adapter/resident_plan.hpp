// SPDX-License-Identifier: Apache-2.0
// A plan where a backend's kernels read it: on the host the plan's own arrays, on a device one block of memory that one
// copy per step fills.
#pragma once

#include <graft/adapter/sequence_state.hpp>
#include <graft/core/memory.hpp>

#include <algorithm>
#include <array>
#include <concepts>
#include <cstring>
#include <span>
#include <vector>

namespace graft {

/// The rows one request brings to a step; rows of a request stand together, requests follow each other.
template <class B>
struct RequestRows {
  SequenceState<B>* state = nullptr;  ///< null: no adapters
  index_t rows = 0;
  index_t prompt_rows = 0;  ///< of these, from the first on, the prompt that vectors are made from; 0: no prompt here
  // where its rows are in the sequence: asked by adapters that act at listed positions only
  index_t position = 0;     ///< of the first row, 0 for the sequence's first token
  index_t prompt_end = -1;  ///< of the first token behind the prompt, -1: not known

  /// Whether vectors are made from these rows.
  bool makes_vectors() const { return prompt_rows > 0 && state != nullptr && state->generates(); }
};

/// A plan's arrays in host memory.
template <class B>
struct PlanArrays {
  using R = Real<B>;
  std::vector<RequestRows<B>> const& requests;
  std::array<std::vector<RowMapRow<R const> const*>, stage_count> const& tables;  ///< [requests] each
  std::vector<std::int32_t> const &request, &positioned;                          ///< [n]
  std::vector<std::int32_t> const& order;                                         ///< the tiles' rows
  std::vector<LowRankTile<R>> const& tiles;
  std::vector<index_t> const& first;            ///< [requests] first row
  std::vector<std::int32_t> const& group_rows;  ///< rows that gradients are summed over; of a plan for training
};

template <class B>
class ResidentPlan {
 public:
  using R = Real<B>;
  static constexpr bool on_host = std::same_as<typename B::Space, HostSpace>;

  void copy(B&, PlanArrays<B> const&) requires on_host {}

  /// Ordered on the backend's queue; memory is taken only where a plan is larger than all before it.
  void copy(B& be, PlanArrays<B> const& plan) requires(!on_host) {
    packed_.clear();
    std::array<std::size_t, stage_count> tables;
    for (std::size_t s = 0; s < stage_count; ++s) {
      tables[s] = packed_.size();
      for (auto const& request : plan.requests)
        append(request.state != nullptr ? request.state->resident_table(static_cast<Stage>(s)) : nullptr);
    }
    std::size_t const prompts = align();
    prompt_count_ = 0;
    for (std::size_t q = 0; q < plan.requests.size(); ++q)
      if (plan.requests[q].makes_vectors()) {
        append(
            GeneratedPrompt<R>{plan.requests[q].state->resident_layers(), plan.first[q], plan.requests[q].prompt_rows});
        ++prompt_count_;
      }
    std::size_t const request = append_all(plan.request), positioned = append_all(plan.positioned),
                      order = append_all(plan.order), groups = append_all(plan.group_rows), tiles = align();
    std::size_t const size = tiles + plan.tiles.size() * sizeof(LowRankTile<R>);
    if (static_cast<std::size_t>(memory_.size()) < size)
      memory_ = Storage<std::byte, typename B::Space>(static_cast<index_t>(std::max(2 * size, std::size_t{4096})));
    std::byte* const base = memory_.data();
    std::size_t done = 0;
    for (auto tile : plan.tiles) {  // tiles point into the copy
      auto const& state =
          *plan.requests[static_cast<std::size_t>(plan.request[static_cast<std::size_t>(tile.rows[0])])].state;
      tile.terms = state.adapters()->resident_terms();
      tile.rows = reinterpret_cast<std::int32_t const*>(base + order) + done;
      done += static_cast<std::size_t>(tile.row_count);
      append(tile);
    }
    copy_to_device(be, packed_.data(), base, static_cast<index_t>(packed_.size()));
    for (std::size_t s = 0; s < stage_count; ++s)
      tables_[s] = reinterpret_cast<RowMapRow<R const> const* const*>(base + tables[s]);
    prompts_ = reinterpret_cast<GeneratedPrompt<R> const*>(base + prompts);
    request_ = reinterpret_cast<std::int32_t const*>(base + request);
    positioned_ = reinterpret_cast<std::int32_t const*>(base + positioned);
    group_rows_ = reinterpret_cast<std::int32_t const*>(base + groups);
    tiles_ = reinterpret_cast<LowRankTile<R> const*>(base + tiles);
  }

  RowMapRow<R const> const* const* tables(Stage stage) const { return tables_[static_cast<std::size_t>(stage)]; }
  std::int32_t const* request() const { return request_; }
  std::int32_t const* positioned() const { return positioned_; }
  std::int32_t const* group_rows() const { return group_rows_; }
  LowRankTile<R> const* tiles() const { return tiles_; }
  std::span<GeneratedPrompt<R> const> prompts() const { return {prompts_, prompt_count_}; }

 private:
  std::size_t align() {
    packed_.resize((packed_.size() + 15) / 16 * 16);
    return packed_.size();
  }
  template <class T>
  void append(T const& value) {
    auto const at = packed_.size();
    packed_.resize(at + sizeof(T));
    std::memcpy(packed_.data() + at, &value, sizeof(T));
  }
  template <class T>
  std::size_t append_all(std::vector<T> const& values) {
    auto const at = align();
    packed_.resize(at + values.size() * sizeof(T));
    if (!values.empty()) std::memcpy(packed_.data() + at, values.data(), values.size() * sizeof(T));
    return at;
  }

  std::vector<std::byte> packed_;
  Storage<std::byte, typename B::Space> memory_;
  std::array<RowMapRow<R const> const* const*, stage_count> tables_{};
  std::int32_t const *request_ = nullptr, *positioned_ = nullptr, *group_rows_ = nullptr;
  LowRankTile<R> const* tiles_ = nullptr;
  GeneratedPrompt<R> const* prompts_ = nullptr;
  std::size_t prompt_count_ = 0;
};

}  // namespace graft
