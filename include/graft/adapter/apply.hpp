// SPDX-License-Identifier: Apache-2.0
// What an engine calls around its own linear layers, on buffers it owns. The graft model uses the same calls.
//
//     apply_input (be, site, plan, x, x_base);        before the product, where input-side maps exist
//     <the engine's own y = x_base W^T + b>
//     apply_output(be, site, plan, x, y);             after it, in place
//     observe_prompt(be, layer, plan, normalized, raw);   once per layer, before q, v and up
//     apply_block_output(be, site, plan, h);          the residual stream behind a layer
//
// Shapes are checked when a site is bound and when a plan is built; the calls do not throw, do not allocate after
// warm-up, and run as slice i of n when the backend holds a SliceExecutor.
#pragma once

#include <graft/adapter/plan.hpp>
#include <graft/core/arena.hpp>

#include <algorithm>
#include <cassert>

namespace graft {

/// Whether any row of the batch has a map on its input at this site; without one apply_input need not be called.
template <class B>
bool has_input_maps(Site site, Plan<B> const& plan) {
  return plan.maps(Stage::input_outer, site.index).any() || plan.maps(Stage::input_inner, site.index).any();
}

/// Whether some row has both an inner input map and a low-rank delta at this site, so that the two read different
/// inputs.
template <class B>
bool needs_two_inputs(Site site, Plan<B> const& plan) {
  auto const inner = plan.maps(Stage::input_inner, site.index);
  auto const deltas = plan.low_rank(site.index);
  for (index_t k = 0; inner.any() && k < deltas.tile_count; ++k) {
    auto const& tile = deltas.tiles[k];
    bool delta = false;
    for (index_t t = 0; t < tile.term_count; ++t) delta = delta || tile.terms[t].table[site.index].rank != 0;
    for (index_t m = 0; delta && m < tile.row_count; ++m)
      if (inner.row(tile.rows[m]) != nullptr) return true;
  }
  return false;
}

/// Applies input-side maps. x [n, i], in place, becomes what low-rank deltas see; x_base [n, i] what the weight is
/// multiplied with. x_base may be x unless `needs_two_inputs`; otherwise the engine copies x to x_base first.
template <class B, class T>
void apply_input(B& be, Site site, Plan<B> const& plan, MatrixView<T, typename B::Space> x,
                 MatrixView<T, typename B::Space> x_base) {
  assert(x.rows == plan.rows() && x.cols == site.in && x_base.rows == x.rows && x_base.cols == x.cols);
  auto const outer = plan.maps(Stage::input_outer, site.index), inner = plan.maps(Stage::input_inner, site.index);
  if (outer.any()) {
    apply_row_map(be, outer, x);
    if (x_base.data != x.data) apply_row_map(be, outer, x_base);
  }
  if (inner.any()) apply_row_map(be, inner, x_base);
}

/// In place, where base and deltas may read the same x.
template <class B, class T>
void apply_input(B& be, Site site, Plan<B> const& plan, MatrixView<T, typename B::Space> x) {
  assert(!needs_two_inputs(site, plan));
  apply_input(be, site, plan, x, x);
}

/// Applies output maps and low-rank deltas in place. x [n, i] as apply_input left it; y [n, o] holds x_base W^T + b.
template <class B, class X, class Y>
void apply_output(B& be, Site site, Plan<B> const& plan, MatrixView<X, typename B::Space> x,
                  MatrixView<Y, typename B::Space> y) {
  assert(x.rows == plan.rows() && x.cols == site.in && y.rows == plan.rows() && y.cols == site.out);
  apply_maps_and_deltas(be, plan.maps(Stage::output_inner, site.index), plan.low_rank(site.index),
                        plan.maps(Stage::output_outer, site.index), MatrixView<X const, typename B::Space>(x), y);
}

/// Lets requests whose prompt is in this step make their vectors for one layer. normalized [n, d]: what q_proj sees;
/// raw [n, d]: the residual stream.
template <class B>
void observe_prompt(B& be, index_t layer, Plan<B> const& plan,
                    MatrixView<typename B::Act const, typename B::Space> normalized,
                    MatrixView<typename B::Act const, typename B::Space> raw) {
  auto const requests = plan.requests();
  index_t scratch_size = 0;
  bool any = false;
  for (auto const& request : requests)
    if (request.prompt_rows > 0 && request.state != nullptr && request.state->generates()) {
      scratch_size = std::max(scratch_size, request.state->scratch_size(layer, request.prompt_rows));
      any = true;
    }
  if (!any) return;
  ArenaScope scope(be.arena());
  auto const scratch = be.arena().template matrix<Real<B>>(static_cast<index_t>(requests.size()), scratch_size);
  be.executor().run(static_cast<index_t>(requests.size()), [&](index_t q) {
    auto const& request = requests[static_cast<std::size_t>(q)];
    if (request.prompt_rows == 0 || request.state == nullptr || !request.state->generates()) return;
    index_t const first = plan.first_row(static_cast<std::size_t>(q));
    request.state->observe(be, layer, normalized.row_range(first, request.prompt_rows),
                           raw.row_range(first, request.prompt_rows), {scratch.row(q), scratch_size});
  });
}

/// Applies interventions on the residual stream behind a layer. h [n, d], in place; site is the layer's hidden site.
template <class B, class T>
void apply_block_output(B& be, Site site, Plan<B> const& plan, MatrixView<T, typename B::Space> h) {
  assert(h.rows == plan.rows() && h.cols == site.out);
  for (Stage stage : {Stage::output_inner, Stage::output_outer})
    if (auto const maps = plan.positioned_maps(stage, site.index); maps.any()) apply_row_map(be, maps, h);
}

/// Applies maps on the query behind RoPE (PEDRO's q_scaling after_rope). q [n, q], in place.
template <class B, class T>
void apply_rotated(B& be, Site site, Plan<B> const& plan, MatrixView<T, typename B::Space> q) {
  assert(q.rows == plan.rows() && q.cols == site.out);
  for (Stage stage : {Stage::output_inner, Stage::output_outer})
    if (auto const maps = plan.maps(stage, site.index); maps.any()) apply_row_map(be, maps, q);
}

}  // namespace graft
