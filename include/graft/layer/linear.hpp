// SPDX-License-Identifier: Apache-2.0
// A frozen linear layer with the adapters of a batch on it.
#pragma once

#include <graft/adapter/apply.hpp>
#include <graft/backend/fused_rows.hpp>
#include <graft/backend/weight.hpp>

#include <array>
#include <cstddef>
#include <span>
#include <utility>

namespace graft {

/// y = x W^T + b at a site.
template <class B>
struct Linear {
  Weight weight;                                      ///< W [o, i]
  VectorView<Real<B> const, typename B::Space> bias;  ///< [o] or empty
  Site site;
};

/// What a product at a site reads, both [n, i]: x itself, or copies behind the batch's input-side maps.
template <class B>
struct AdaptedInput {
  MatrixView<typename B::Act const, typename B::Space> delta;  ///< what low-rank deltas see
  MatrixView<typename B::Act const, typename B::Space> base;   ///< what the weight is multiplied with
};
/// Copies live in the arena, in the caller's scope.
template <class B>
AdaptedInput<B> adapted_input(B& be, Site site, Plan<B> const& plan,
                              MatrixView<typename B::Act const, typename B::Space> x) {
  if (!has_input_maps(site, plan)) return {x, x};
  auto const copy_of_x = [&] {
    auto const to = be.arena().template matrix<typename B::Act>(x.rows, x.cols);
    copy(be, x, to);
    return to;
  };
  auto const delta = copy_of_x();
  auto const base = plan.low_rank(site.index).any() ? copy_of_x() : delta;
  apply_input(be, site, plan, delta, base);
  return {delta, base};
}

/// What a backend that fuses products needs to know of one. A copy of x that low-rank deltas see lives in the arena, in
/// the caller's scope.
template <class B>
AdaptedProduct<B> adapted_product(B& be, Linear<B> const& layer, Plan<B> const& plan,
                                  MatrixView<typename B::Act const, typename B::Space> x,
                                  MatrixView<typename B::Act, typename B::Space> y) {
  index_t const site = layer.site.index;
  auto const outer = plan.maps(Stage::input_outer, site), inner = plan.maps(Stage::input_inner, site);
  AdaptedProduct<B> product{&layer.weight,
                            layer.bias,
                            x,
                            x,
                            plan.maps(Stage::output_inner, site),
                            plan.low_rank(site),
                            plan.maps(Stage::output_outer, site),
                            y,
                            inner};
  if (!outer.any()) return product;
  if (!inner.any() && !product.deltas.any()) {
    product.input = outer;
  } else {
    auto const mapped = be.arena().template matrix<typename B::Act>(x.rows, x.cols);
    copy(be, x, mapped);
    apply_row_map(be, outer, mapped);
    product.x = product.x_delta = mapped;
  }
  return product;
}

/// y = W, its bias and every adapter of the batch applied to x. x [n, i] is left alone, y [n, o] written.
/// Output maps and deltas are applied to each chunk of outputs while it is in cache, where all maps fit chunks.
template <class B>
void linear(B& be, Linear<B> const& layer, Plan<B> const& plan, MatrixView<typename B::Act const, typename B::Space> x,
            MatrixView<typename B::Act, typename B::Space> y) {
  ArenaScope scope(be.arena());
  if constexpr (FusesProducts<B>) {
    auto const product = adapted_product(be, layer, plan, x, y);
    fused_products(be, std::span(&product, 1));
  } else {
    index_t const site = layer.site.index;
    auto const inner = plan.maps(Stage::output_inner, site), outer = plan.maps(Stage::output_outer, site);
    auto const deltas = plan.low_rank(site);
    auto const input = adapted_input(be, layer.site, plan, x);
    fused_product(be, layer.weight, layer.bias, input.base, input.delta, inner.any() ? &inner : nullptr,
                  deltas.any() ? &deltas : nullptr, outer.any() ? &outer : nullptr, y);
  }
}

/// The same into memory of the caller's scope, but for row maps that the operation reading y can apply as well: inner
/// ones come before the deltas and cannot wait for longer, outer ones are last and can.
template <class B>
Unmapped<B> linear_unmapped(B& be, Linear<B> const& layer, Plan<B> const& plan,
                            MatrixView<typename B::Act const, typename B::Space> x) {
  auto const y = be.arena().template matrix<typename B::Act>(x.rows, layer.site.out);
  if constexpr (!maps_can_wait<B>) {
    linear(be, layer, plan, x, y);
    return {y};
  } else {
    index_t const site = layer.site.index;
    auto const inner = plan.maps(Stage::output_inner, site), outer = plan.maps(Stage::output_outer, site);
    auto const deltas = plan.low_rank(site);
    bool const inner_waits = !deltas.any() && !outer.any();
    ArenaScope scope(be.arena());
    auto const input = adapted_input(be, layer.site, plan, x);
    fused_product(be, layer.weight, layer.bias, input.base, input.delta, inner.any() && !inner_waits ? &inner : nullptr,
                  deltas.any() ? &deltas : nullptr, nullptr, y);
    return {y, inner_waits ? inner : outer};
  }
}

/// The weights of several layers as one, where they lie one behind the other and no layer has a bias; else empty.
template <class B, std::size_t N>
Weight joined_weight(std::array<Linear<B> const*, N> const& layers) {
  Weight all = layers[0]->weight;
  all.rows = 0;
  for (auto const* layer : layers) {
    Weight const& w = layer->weight;
    if (w.data != all.data + all.bytes() || w.format != all.format || w.cols != all.cols || w.row_order != nullptr ||
        !layer->bias.empty())
      return {};
    all.rows += w.rows;
  }
  return all;
}

/// y of several layers that read one x, by one product; false where the backend, the weights or maps of their inputs
/// do not allow it.
template <class B, std::size_t N>
bool joined_unmapped(B& be, std::array<Linear<B> const*, N> const& layers, Plan<B> const& plan,
                     MatrixView<typename B::Act const, typename B::Space> x, std::array<Unmapped<B>, N>& y) {
  if constexpr (JoinsProducts<B> && maps_can_wait<B>) {
    Weight const weight = joined_weight(layers);
    if (weight.empty()) return false;
    for (auto const* layer : layers)
      if (has_input_maps(layer->site, plan)) return false;
    auto const all = be.arena().template matrix<typename B::Act>(x.rows, weight.rows);
    std::array<JoinedProduct<B>, N> products;
    index_t first = 0;
    for (std::size_t k = 0; k < N; ++k) {
      index_t const site = layers[k]->site.index, outputs = layers[k]->site.out;
      auto const inner = plan.maps(Stage::output_inner, site), outer = plan.maps(Stage::output_outer, site);
      auto const deltas = plan.low_rank(site);
      bool const inner_waits = !deltas.any() && !outer.any();
      y[k] = {all.col_range(std::exchange(first, first + outputs), outputs), inner_waits ? inner : outer};
      products[k] = {inner_waits ? RowMapBatch<Real<B>>{} : inner, deltas, y[k].x};
    }
    joined_products(be, weight, x, products, all);
    return true;
  }
  return false;
}

/// The same for several layers that read one x: as one product, or side by side, where the backend can.
template <class B, std::size_t N>
std::array<Unmapped<B>, N> linear_unmapped(B& be, std::array<Linear<B> const*, N> const& layers, Plan<B> const& plan,
                                           MatrixView<typename B::Act const, typename B::Space> x) {
  std::array<Unmapped<B>, N> y;
  if constexpr (FusesProducts<B>) {
    for (std::size_t k = 0; k < N; ++k)
      y[k].x = be.arena().template matrix<typename B::Act>(x.rows, layers[k]->site.out);
    ArenaScope scope(be.arena());
    std::array<AdaptedProduct<B>, N> products;
    for (std::size_t k = 0; k < N; ++k) products[k] = adapted_product(be, *layers[k], plan, x, y[k].x);
    fused_products(be, std::span<AdaptedProduct<B> const>(products));
  } else if (!joined_unmapped(be, layers, plan, x, y)) {
    for (std::size_t k = 0; k < N; ++k) y[k] = linear_unmapped(be, *layers[k], plan, x);
  }
  return y;
}

}  // namespace graft
