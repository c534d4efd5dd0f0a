// SPDX-License-Identifier: Apache-2.0
// Both mechanisms behind a linear layer, row by row.
#pragma once

#include <graft/backend/cpu/low_rank.hpp>
#include <graft/backend/cpu/row_map.hpp>

namespace graft {

/// Bytes of the arena that `apply_maps_and_deltas` takes at most for x [rows, inputs], whatever its type and alignment.
template <class Act>
std::size_t maps_and_deltas_workspace(CpuBackend<Act> const&, index_t rows, index_t inputs, index_t max_rank) {
  return cpu::delta_scratch_bytes<typename CpuBackend<Act>::Real>(rows, inputs, max_rank);
}

/// y = outer(inner(y) + deltas(x)) in place, for every batch row. x [n, i], y [n, o]; elements may be f64, f32, bf16 or
/// f16. The task that owns a tile of rows does all three steps, so slices of a foreign pool need not wait in between.
template <class Act, class X, class Y>
void apply_maps_and_deltas(CpuBackend<Act>& be, RowMapBatch<typename CpuBackend<Act>::Real> const& inner,
                           LowRankBatch<typename CpuBackend<Act>::Real> const& deltas,
                           RowMapBatch<typename CpuBackend<Act>::Real> const& outer, MatrixView<X const> x,
                           MatrixView<Y> y) noexcept {
  using R = typename CpuBackend<Act>::Real;
  bool const any_inner = inner.any(), any_delta = deltas.any(), any_outer = outer.any();
  if (!any_inner && !any_delta && !any_outer) return;
  ArenaScope scope(be.arena());
  cpu::DeltaScratch<X, R> const scratch(be, any_delta ? x : x.row_range(0, 0), deltas.max_rank);
  auto const map_rows = [&](RowMapBatch<R> const& maps, LowRankTile<R> const& tile) {
    for (index_t m = 0; m < tile.row_count; ++m)
      if (auto const* map = maps.row(tile.rows[m]))
        cpu::map_columns(be, *map, y.row_range(tile.rows[m], 1), index_t{0}, y.cols);
  };
  be.executor().run(deltas.tile_count, [&](index_t k) {
    if (any_inner) map_rows(inner, deltas.tiles[k]);
    if (any_delta) scratch.add(deltas.tiles[k], deltas.site, y);
    if (any_outer) map_rows(outer, deltas.tiles[k]);
  });
}

}  // namespace graft
