// SPDX-License-Identifier: Apache-2.0
// A product with both mechanisms applied to its outputs while they are in cache.
#pragma once

#include <graft/backend/cpu/low_rank.hpp>
#include <graft/backend/cpu/product.hpp>
#include <graft/backend/cpu/row_map.hpp>

namespace graft {

/// y = outer(inner(x W^T + b) + deltas(x_delta)); null means absent. x, x_delta [n, i], y [n, o].
/// Equal, bit for bit, to product, apply_row_map, apply_low_rank, apply_row_map one after the other. It runs several
/// grids that wait for each other: for executors that return when all is done, not for a SliceExecutor.
template <class Act>
void fused_product(CpuBackend<Act>& be, Weight const& weight, VectorView<Act const> bias, MatrixView<Act const> x,
                   MatrixView<Act const> x_delta, RowMapBatch<Act> const* inner, LowRankBatch<Act> const* deltas,
                   RowMapBatch<Act> const* outer, MatrixView<Act> y) {
  constexpr index_t chunk = cpu::product_chunk_outputs;
  if ((inner != nullptr && !inner->fits(chunk)) || (outer != nullptr && !outer->fits(chunk))) {
    product(be, x, weight, bias, y);  // a group reaches over chunks: one pass each after the product
    if (inner != nullptr) apply_row_map(be, *inner, y);
    if (deltas != nullptr) apply_low_rank(be, *deltas, x_delta, y);
    if (outer != nullptr) apply_row_map(be, *outer, y);
    return;
  }
  ArenaScope scope(be.arena());
  MatrixView<Act> t{};
  if (deltas != nullptr) {
    auto const padded = cpu::pad_rows<Act, Act>(be.arena(), x_delta);
    t = be.arena().template matrix<Act>(x.rows, deltas->max_rank);
    // few tiles are split by ranks; the number of parts depends on the batch alone
    index_t const shares = deltas->tile_count < 8 ? 4 : 1;
    be.executor().run(deltas->tile_count * shares, [&](index_t k) {
      be.kernels().shrink(deltas->tiles[k / shares], deltas->site, x_delta.cols, padded, k % shares, shares, t);
    });
  }
  auto const map_columns = [&](RowMapBatch<Act> const& maps, index_t first, index_t last) {
    for (index_t n = 0; n < y.rows; ++n)
      if (auto const* map = maps.row(n)) be.kernels().map_row(*map, y.row(n), first, last);
  };
  product(be, x, weight, bias, y, [&](index_t first, index_t last) {
    if (inner != nullptr) map_columns(*inner, first, last);
    if (deltas != nullptr)
      for (index_t k = 0; k < deltas->tile_count; ++k)
        be.kernels().expand(deltas->tiles[k], k + 1 < deltas->tile_count ? deltas->tiles + k + 1 : nullptr,
                            deltas->site, y.cols, t, first, last, y);
    if (outer != nullptr) map_columns(*outer, first, last);
  });
}

/// to = from. Both [n, d].
template <class Act>
void copy(CpuBackend<Act>& be, MatrixView<Act const> from, MatrixView<Act> to) {
  be.executor().run(ceil_div(from.rows, 8), [&](index_t k) {
    for (index_t n = 8 * k; n < std::min(from.rows, 8 * k + 8); ++n)
      std::copy(from.row(n), from.row(n) + from.cols, to.row(n));
  });
}

}  // namespace graft
