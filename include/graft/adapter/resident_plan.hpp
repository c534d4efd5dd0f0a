// SPDX-License-Identifier: Apache-2.0
// A plan where a backend's kernels read it: on the host the plan's own arrays, on a device a parcel, sent once per
// step.
#pragma once

#include <graft/adapter/sequence_state.hpp>
#include <graft/core/parcel.hpp>

#include <algorithm>
#include <array>
#include <concepts>
#include <utility>
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
  using Space = typename B::Space;
  static constexpr bool on_host = std::same_as<Space, HostSpace>;

  void copy(B&, PlanArrays<B> const&) requires on_host {}

  /// Ordered on the backend's queue; memory is taken only where a plan is larger than all before it.
  void copy(B& be, PlanArrays<B> const& plan) requires(!on_host) {
    auto const count = static_cast<index_t>(plan.group_rows.size());
    own_.start(bytes(static_cast<index_t>(plan.requests.size()), static_cast<index_t>(plan.request.size())) +
               Parcel<Space>::template bytes_of<std::int32_t>(count));
    pack(own_, plan);
    auto const groups = own_.template take<std::int32_t>(count);
    std::copy(plan.group_rows.begin(), plan.group_rows.end(), groups.host);
    group_rows_ = groups.resident;
    own_.send(be);
  }

  /// What `pack` takes of a parcel.
  static index_t bytes(index_t requests, index_t rows) {
    using P = Parcel<Space>;
    return stage_count * P::template bytes_of<Table>(requests) + 3 * P::template bytes_of<std::int32_t>(rows) +
           P::template bytes_of<LowRankTile<R>>(rows) + P::template bytes_of<GeneratedPrompt<R>>(requests);
  }
  /// Takes and fills pieces of a parcel. Where they lie depends on the numbers of requests and rows alone; behind the
  /// last tile follow empty ones, up to one per row.
  void pack(Parcel<Space>& parcel, PlanArrays<B> const& plan) requires(!on_host) {
    auto const requests = static_cast<index_t>(plan.requests.size()), rows = static_cast<index_t>(plan.request.size());
    for (std::size_t s = 0; s < stage_count; ++s) {
      auto const tables = parcel.template take<Table>(requests);
      for (std::size_t q = 0; q < plan.requests.size(); ++q)
        if (auto const* state = plan.requests[q].state) tables.host[q] = state->resident_table(static_cast<Stage>(s));
      tables_[s] = tables.resident;
    }
    auto const copy_of = [&](std::vector<std::int32_t> const& values) {
      auto const piece = parcel.template take<std::int32_t>(rows);
      std::copy(values.begin(), values.end(), piece.host);
      return piece.resident;
    };
    request_ = copy_of(plan.request);
    positioned_ = copy_of(plan.positioned);
    std::int32_t const* order = copy_of(plan.order);
    auto const tiles = parcel.template take<LowRankTile<R>>(rows);
    for (std::size_t k = 0; k < plan.tiles.size(); ++k) {
      auto tile = plan.tiles[k];
      auto const request = static_cast<std::size_t>(plan.request[static_cast<std::size_t>(tile.rows[0])]);
      tile.terms = plan.requests[request].state->adapters()->resident_terms();
      tile.rows = std::exchange(order, order + tile.row_count);
      tiles.host[k] = tile;
    }
    tiles_ = tiles.resident;
    auto const prompts = parcel.template take<GeneratedPrompt<R>>(requests);
    prompts_ = {prompts.resident};
    for (std::size_t q = 0; q < plan.requests.size(); ++q)
      if (auto const& request = plan.requests[q]; request.makes_vectors()) {
        prompts.host[prompts_.size++] = {request.state->resident_layers(), plan.first[q], request.prompt_rows};
        prompts_.scored_terms = std::max(prompts_.scored_terms, request.state->scored_terms());
      }
  }

  RowMapRow<R const> const* const* tables(Stage stage) const { return tables_[static_cast<std::size_t>(stage)]; }
  std::int32_t const* request() const { return request_; }
  std::int32_t const* positioned() const { return positioned_; }
  std::int32_t const* group_rows() const { return group_rows_; }
  LowRankTile<R> const* tiles() const { return tiles_; }
  GeneratedPrompts<R> const& prompts() const { return prompts_; }

 private:
  using Table = RowMapRow<R const> const*;

  Parcel<Space> own_;
  std::array<Table const*, stage_count> tables_{};
  std::int32_t const *request_ = nullptr, *positioned_ = nullptr, *group_rows_ = nullptr;
  LowRankTile<R> const* tiles_ = nullptr;
  GeneratedPrompts<R> prompts_;
};

}  // namespace graft
