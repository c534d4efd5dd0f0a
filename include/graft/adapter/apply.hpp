// SPDX-License-Identifier: Apache-2.0
// What an engine calls around its own linear layers, on buffers it owns. The graft model uses the same calls.
//
//     apply_input (be, site, plan, x, x_base);        before the product, where input-side maps exist
//     <the engine's own y = x_base W^T + b>
//     apply_output(be, site, plan, x, y);             after it, in place
//     observe_prompt(be, layer, plan, normalized, raw);   once per layer, before q, v and up
//     apply_block_output(be, site, plan, h);          the residual stream behind a layer
//
// Shapes are checked when a site is bound and when a plan is built; the calls are noexcept, assert in debug builds, and
// run as slice i of n when the backend holds a SliceExecutor. They take scratch from the backend's arena:
//     be.arena().reserve(workspace_size<T>(be, sites, plan));
// before them, and none allocates. Without it the arena grows while a program warms up, and no memory ends the program.
#pragma once

#include <graft/adapter/plan.hpp>
#include <graft/backend/backend.hpp>
#include <graft/core/arena.hpp>
#include <graft/core/scalar.hpp>

#include <algorithm>
#include <cassert>
#include <span>
#include <type_traits>

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
  auto const inner = plan.host_maps(Stage::input_inner, site.index);
  auto const deltas = plan.host_low_rank(site.index);
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
                 MatrixView<T, typename B::Space> x_base) noexcept {
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
void apply_input(B& be, Site site, Plan<B> const& plan, MatrixView<T, typename B::Space> x) noexcept {
  assert(!needs_two_inputs(site, plan));
  apply_input(be, site, plan, x, x);
}

/// Applies output maps and low-rank deltas in place. x [n, i] as apply_input left it; y [n, o] holds x_base W^T + b.
template <class B, class X, class Y>
void apply_output(B& be, Site site, Plan<B> const& plan, MatrixView<X, typename B::Space> x,
                  MatrixView<Y, typename B::Space> y) noexcept {
  static_assert(AdapterBackend<B>,
                "graft: adapters cannot be applied by this type, which is not an AdapterBackend; an operation that "
                "graft/backend/backend.hpp lists is missing, or its header is not included");
  assert(x.rows == plan.rows() && x.cols == site.in && y.rows == plan.rows() && y.cols == site.out);
  apply_maps_and_deltas(be, plan.maps(Stage::output_inner, site.index), plan.low_rank(site.index),
                        plan.maps(Stage::output_outer, site.index), MatrixView<X const, typename B::Space>(x), y);
}

namespace detail {

/// What the requests of a plan that make vectors need for it, together.
struct PromptScratch {
  index_t rows = 0;      ///< of prompts
  index_t elements = 0;  ///< of the policies' scratch
};
template <class B>
PromptScratch prompt_scratch(index_t layer, std::span<RequestRows<B> const> requests) {
  PromptScratch sum;
  for (auto const& request : requests)
    if (request.makes_vectors()) {
      sum.rows += request.prompt_rows;
      sum.elements += request.state->scratch_size(layer, request.prompt_rows);
    }
  return sum;
}

template <class B, class T>
inline constexpr bool is_activation = std::same_as<std::remove_const_t<T>, typename B::Act>;

/// The rows as the backend's activations: themselves, or converted into `space`.
template <class Act, class T, class Space>
MatrixView<Act const, Space> as_activations(MatrixView<T const, Space> rows, MatrixView<Act, Space> space) {
  if constexpr (std::same_as<T, Act>) {
    return rows;
  } else {
    for (index_t n = 0; n < rows.rows; ++n)
      for (index_t k = 0; k < rows.cols; ++k) space(n, k) = static_cast<Act>(static_cast<real_of<T>>(rows(n, k)));
    return space;
  }
}

/// Every request's state makes its vectors; a request is one chunk of work.
template <class B, class X, class H>
void observe_on_host(B& be, index_t layer, Plan<B> const& plan, MatrixView<X const, HostSpace> normalized,
                     MatrixView<H const, HostSpace> raw) {
  using Act = typename B::Act;
  auto const requests = plan.requests();
  auto const all = prompt_scratch(layer, requests);
  if (all.rows == 0) return;
  index_t const d = normalized.cols;
  ArenaScope scope(be.arena());
  auto const scratch = be.arena().template vector<Real<B>>(all.elements);
  auto const x = be.arena().template matrix<Act>(is_activation<B, X> ? 0 : all.rows, d);
  auto const h = be.arena().template matrix<Act>(is_activation<B, H> ? 0 : all.rows, d);
  be.executor().run(static_cast<index_t>(requests.size()), [&](index_t q) {
    auto const& request = requests[static_cast<std::size_t>(q)];
    if (!request.makes_vectors()) return;
    index_t const first = plan.first_row(static_cast<std::size_t>(q)), p = request.prompt_rows;
    auto const before = prompt_scratch(layer, requests.first(static_cast<std::size_t>(q)));
    request.state->observe(be, layer, as_activations(normalized.row_range(first, p), x.row_range(before.rows, p)),
                           as_activations(raw.row_range(first, p), h.row_range(before.rows, p)),
                           scratch.part(before.elements, request.state->scratch_size(layer, p)));
  });
}

}  // namespace detail

/// Lets requests whose prompt is in this step make their vectors for one layer. normalized [n, d]: what q_proj sees;
/// raw [n, d]: the residual stream; elements may be f64, f32, bf16 or f16. Only rows of prompts that vectors are made
/// from are read.
template <class B, class X, class H>
void observe_prompt(B& be, index_t layer, Plan<B> const& plan, MatrixView<X, typename B::Space> normalized,
                    MatrixView<H, typename B::Space> raw) noexcept {
  using ConstX = MatrixView<std::remove_const_t<X> const, typename B::Space>;
  using ConstH = MatrixView<std::remove_const_t<H> const, typename B::Space>;
  assert(normalized.rows == plan.rows() && raw.rows == plan.rows() && normalized.cols == raw.cols);
  if constexpr (!std::same_as<typename B::Space, HostSpace>) {
    if (plan.prompts().empty()) return;
    make_vectors(be, layer, plan.prompts(), ConstX(normalized), ConstH(raw));
    for (auto const& request : plan.requests())
      if (request.makes_vectors()) request.state->set_made(layer);
  } else {
    detail::observe_on_host(be, layer, plan, ConstX(normalized), ConstH(raw));
  }
}

/// Applies interventions on the residual stream behind a layer. h [n, d], in place; site is the layer's hidden site.
template <class B, class T>
void apply_block_output(B& be, Site site, Plan<B> const& plan, MatrixView<T, typename B::Space> h) noexcept {
  assert(h.rows == plan.rows() && h.cols == site.out);
  for (Stage stage : {Stage::output_inner, Stage::output_outer})
    if (auto const maps = plan.positioned_maps(stage, site.index); maps.any()) apply_row_map(be, maps, h);
}

/// Applies maps on the query behind RoPE (PEDRO's q_scaling after_rope). q [n, q], in place.
template <class B, class T>
void apply_rotated(B& be, Site site, Plan<B> const& plan, MatrixView<T, typename B::Space> q) noexcept {
  assert(q.rows == plan.rows() && q.cols == site.out);
  for (Stage stage : {Stage::output_inner, Stage::output_outer})
    if (auto const maps = plan.maps(stage, site.index); maps.any()) apply_row_map(be, maps, q);
}

/// Adds the low-rank deltas of an embedding, where x is a one-hot token. tokens [n], h [n, out], in place.
template <class B>
void apply_embedding(B& be, Site site, Plan<B> const& plan, std::int32_t const* tokens,
                     MatrixView<typename B::Act, typename B::Space> h) noexcept {
  assert(h.rows == plan.rows() && h.cols == site.out);
  if (auto const deltas = plan.low_rank(site.index); deltas.any())
    apply_low_rank_embedding(be, deltas, tokens, site.in, h);
}

/// Bytes of the backend's arena that any one of the calls above needs for a plan, whatever its site or layer. T: the
/// elements of the prompt rows, which are converted unless they are the backend's activations.
template <class T, class B>
std::size_t workspace_size(B const& be, SiteTable const& sites, Plan<B> const& plan) {
  index_t inputs = 0;
  for (auto const& site : sites.all())
    if (site.kind == SiteKind::linear) inputs = std::max(inputs, site.in);
  std::size_t size = maps_and_deltas_workspace(be, plan.rows(), inputs, plan.max_rank());
  for (index_t l = 0; l < static_cast<index_t>(sites.layers().size()); ++l) {
    auto const all = detail::prompt_scratch(l, plan.requests());
    if (all.rows == 0) break;  // in no layer
    index_t const d = sites[sites.layers()[static_cast<std::size_t>(l)].block].out;
    index_t const converted = detail::is_activation<B, T> ? 0 : all.rows * d;
    size = std::max(size, Arena::bytes_of<Real<B>>(all.elements) + 2 * Arena::bytes_of<typename B::Act>(converted));
  }
  return size;
}

}  // namespace graft
