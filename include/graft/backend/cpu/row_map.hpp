// SPDX-License-Identifier: Apache-2.0
// Affine row maps on the CPU.
#pragma once

#include <graft/backend/cpu/cpu_backend.hpp>
#include <graft/backend/row_map.hpp>

#include <span>

namespace graft {
namespace cpu {

/// y'[j] = y[j] + (c1[j] y[j] + d[j] y[p(j)]) + e[j] for j in [first, last), multiples of the map's group.
/// y points at element 0. T is the buffer's type, arithmetic is in R.
template <class T, class R>
void map_once(RowMapRow<R const> const& map, T* y, index_t first, index_t last) {
  R const* const c1 = map.c1;
  R const* const d = map.d;
  R const* const e = map.e;
  if (d != nullptr) {
    index_t const half = map.group / 2;
    for (index_t start = first; start < last; start += map.group)
      for (index_t j = start, p = start + half; j < start + half; ++j, ++p) {
        R const u = static_cast<R>(y[j]), v = static_cast<R>(y[p]);
        R const cu = c1 != nullptr ? c1[j] : R{0}, cv = c1 != nullptr ? c1[p] : R{0};
        R const eu = e != nullptr ? e[j] : R{0}, ev = e != nullptr ? e[p] : R{0};
        y[j] = static_cast<T>(u + (cu * u + d[j] * v) + eu);
        y[p] = static_cast<T>(v + (cv * v + d[p] * u) + ev);
      }
    return;
  }
  // one pass, so that a 16-bit buffer is rounded once
  auto const each = [&](auto&& mapped) {
    for (index_t j = first; j < last; ++j) y[j] = static_cast<T>(mapped(static_cast<R>(y[j]), j));
  };
  if (c1 != nullptr && e != nullptr)
    each([&](R u, index_t j) { return u + c1[j] * u + e[j]; });
  else if (c1 != nullptr)
    each([&](R u, index_t j) { return u + c1[j] * u; });
  else if (e != nullptr)
    each([&](R u, index_t j) { return u + e[j]; });
}

template <class T, class R>
void map_row(RowMapRow<R const> const& map, T* y, index_t first, index_t last) {
  for (auto const* m = &map; m != nullptr; m = m->next) map_once(*m, y, first, last);
}

}  // namespace cpu

/// Applies one map to the listed rows in place. y [n, size]
template <class Act, class T>
void apply_row_map(CpuBackend<Act>& be, RowMapRow<typename CpuBackend<Act>::Real const> const& map,
                   std::span<std::int32_t const> rows, MatrixView<T> y) {
  auto const count = static_cast<index_t>(rows.size());
  be.executor().run(ceil_div(count, 8), [&](index_t chunk) {
    for (index_t k = 8 * chunk; k < count && k < 8 * chunk + 8; ++k)
      cpu::map_row(map, y.row(rows[static_cast<std::size_t>(k)]), index_t{0}, y.cols);
  });
}

/// Applies each batch row's map in place. y [n, size]; T may be f64, f32, bf16 or f16.
template <class Act, class T>
void apply_row_map(CpuBackend<Act>& be, RowMapBatch<typename CpuBackend<Act>::Real> const& maps,
                   MatrixView<T> y) noexcept {
  be.executor().run(ceil_div(y.rows, 8), [&](index_t chunk) {
    for (index_t n = 8 * chunk; n < y.rows && n < 8 * chunk + 8; ++n)
      if (auto const* map = maps.row(n)) cpu::map_row(*map, y.row(n), index_t{0}, y.cols);
  });
}

}  // namespace graft
