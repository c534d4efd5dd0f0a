// SPDX-License-Identifier: Apache-2.0
// Gradients of one affine row map on the CPU.
#pragma once

#include <graft/backend/cpu/cpu_backend.hpp>
#include <graft/backend/cpu/weight_backward.hpp>
#include <graft/backend/row_map.hpp>

#include <cstdint>
#include <span>

namespace graft {

/// The backward of y' [j] = c[j] z[j] + d[j] z[p(j)] + e[j] for the listed rows, one map (`next` is not followed):
///     dc[j] += dy'[j] z[j]     dd[j] += dy'[j] z[p(j)]     de[j] += dy'[j]     dz[j] = c[j] dy'[j] + d[p(j)] dy'[p(j)]
/// z [n, size]; dy holds dL/dy' and gets dL/dz, in place. grad: dL/dc (into c1), dL/dd and dL/de, each may be null.
/// Sums over rows run in the listed order. Elements may be f64, f32, bf16 or f16.
template <class Act, class Z, class G>
void row_map_backward(CpuBackend<Act>& be, RowMapRow<typename CpuBackend<Act>::Real const> const& map,
                      std::span<std::int32_t const> rows, MatrixView<Z const> z, MatrixView<G> dy,
                      RowMapRow<typename CpuBackend<Act>::Real> const& grad) noexcept {
  using R = typename CpuBackend<Act>::Real;
  index_t const group = map.group != 0 ? map.group : grad.group;
  auto const parameters = [&](Z const* input, G const* slope, index_t first, index_t last) {
    if (grad.c1 != nullptr)
      for (index_t j = first; j < last; ++j) grad.c1[j] += static_cast<R>(slope[j]) * static_cast<R>(input[j]);
    if (grad.e != nullptr)
      for (index_t j = first; j < last; ++j) grad.e[j] += static_cast<R>(slope[j]);
    if (grad.d == nullptr) return;
    for (index_t start = first; start < last; start += group)
      for (index_t j = start, p = start + group / 2; j < start + group / 2; ++j, ++p) {
        grad.d[j] += static_cast<R>(slope[j]) * static_cast<R>(input[p]);
        grad.d[p] += static_cast<R>(slope[p]) * static_cast<R>(input[j]);
      }
  };
  auto const input = [&](G* slope, index_t first, index_t last) {
    if (map.d != nullptr) {
      for (index_t start = first; start < last; start += group)
        for (index_t j = start, p = start + group / 2; j < start + group / 2; ++j, ++p) {
          R const u = static_cast<R>(slope[j]), v = static_cast<R>(slope[p]);
          R const cu = map.c1 != nullptr ? map.c1[j] : R{0}, cv = map.c1 != nullptr ? map.c1[p] : R{0};
          slope[j] = static_cast<G>(u + (cu * u + map.d[p] * v));
          slope[p] = static_cast<G>(v + (cv * v + map.d[j] * u));
        }
    } else if (map.c1 != nullptr) {
      for (index_t j = first; j < last; ++j) {
        R const u = static_cast<R>(slope[j]);
        slope[j] = static_cast<G>(u + map.c1[j] * u);
      }
    }
  };
  cpu::for_columns(
      be, map.size,
      [&](index_t first, index_t last) {
        for (std::int32_t const n : rows) {
          if constexpr (std::same_as<Z, R> && std::same_as<G, R>) {
            be.backward_kernels().map_row(map, group, z.row(n), dy.row(n), first, last, grad);
          } else {
            parameters(z.row(n), dy.row(n), first, last);
            input(dy.row(n), first, last);
          }
        }
      },
      group == 0 ? 64 : round_up(64, group));
}

}  // namespace graft
