// SPDX-License-Identifier: Apache-2.0
// Affine row maps on the CPU.
#pragma once

#include <graft/backend/cpu/cpu_backend.hpp>
#include <graft/backend/row_map.hpp>

#include <algorithm>
#include <span>

namespace graft {
namespace cpu {

/// Columns [first, last), whole groups, of all rows of y.
template <class Act, class T>
void map_columns(CpuBackend<Act> const& be, RowMapRow<Act const> const& map, MatrixView<T> y, index_t first,
                 index_t last) {
  if constexpr (std::same_as<T, Act>)
    be.adapter_kernels().map_rows(map, y.data, y.rows, y.stride, first, last);
  else
    map_rows(map, y.data, y.rows, y.stride, first, last);
}

}  // namespace cpu

/// Applies one map to the listed rows in place. y [n, size]
template <class Act, class T>
void apply_row_map(CpuBackend<Act>& be, RowMapRow<typename CpuBackend<Act>::Real const> const& map,
                   std::span<std::int32_t const> rows, MatrixView<T> y) {
  auto const count = static_cast<index_t>(rows.size());
  be.executor().run(ceil_div(count, 8), [&](index_t chunk) {
    for (index_t k = 8 * chunk; k < count && k < 8 * chunk + 8; ++k)
      cpu::map_columns(be, map, y.row_range(rows[static_cast<std::size_t>(k)], 1), index_t{0}, y.cols);
  });
}

/// Applies each batch row's map in place. y [n, size]; T may be f64, f32, bf16 or f16.
template <class Act, class T>
void apply_row_map(CpuBackend<Act>& be, RowMapBatch<typename CpuBackend<Act>::Real> const& maps,
                   MatrixView<T> y) noexcept {
  be.executor().run(ceil_div(y.rows, 8), [&](index_t chunk) {
    for_map_runs(maps, 8 * chunk, std::min(y.rows, 8 * chunk + 8), [&](auto const* map, index_t n, index_t count) {
      if (map != nullptr) cpu::map_columns(be, *map, y.row_range(n, count), index_t{0}, y.cols);
    });
  });
}

}  // namespace graft
