// SPDX-License-Identifier: Apache-2.0
// A frozen linear layer with the adapters of a batch on it.
#pragma once

#include <graft/adapter/apply.hpp>
#include <graft/backend/weight.hpp>

#include <algorithm>

namespace graft {

/// y = x W^T + b at a site.
template <class B>
struct Linear {
  Weight weight;                                      ///< W [o, i]
  VectorView<Real<B> const, typename B::Space> bias;  ///< [o] or empty
  Site site;
};

/// y = W, its bias and every adapter of the batch applied to x. x [n, i] is left alone, y [n, o] written.
/// Output maps and deltas are applied to each chunk of outputs while it is in cache, where all maps fit chunks.
template <class B>
void linear(B& be, Linear<B> const& layer, Plan<B> const& plan, MatrixView<typename B::Act const, typename B::Space> x,
            MatrixView<typename B::Act, typename B::Space> y) {
  using Act = typename B::Act;
  using View = MatrixView<Act const, typename B::Space>;
  index_t const site = layer.site.index;
  auto const inner = plan.maps(Stage::output_inner, site), outer = plan.maps(Stage::output_outer, site);
  auto const deltas = plan.low_rank(site);
  bool const has_inner = inner.any(), has_outer = outer.any(), has_deltas = deltas.any();

  ArenaScope scope(be.arena());
  View x_delta = x, x_base = x;
  if (has_input_maps(layer.site, plan)) {
    auto const copy_of = [&](View from) {
      auto const to = be.arena().template matrix<Act>(from.rows, from.cols);
      copy(be, from, to);
      return to;
    };
    auto const changed = copy_of(x);
    auto const base = has_deltas ? copy_of(x) : changed;
    apply_input(be, layer.site, plan, changed, base);
    x_delta = changed, x_base = base;
  }
  fused_product(be, layer.weight, layer.bias, x_base, x_delta, has_inner ? &inner : nullptr,
                has_deltas ? &deltas : nullptr, has_outer ? &outer : nullptr, y);
}

}  // namespace graft
