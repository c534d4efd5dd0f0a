// SPDX-License-Identifier: Apache-2.0
// dX += dY W for a weight in any storage format: columns of W are decoded panel by panel into the first-level cache and
// meet rows of dY there. No copy of the weight.
#pragma once

#include <graft/backend/cpu/cpu_backend.hpp>
#include <graft/backend/cpu/outer_products.hpp>
#include <graft/backend/cpu/product.hpp>
#include <graft/backend/weight.hpp>

#include <algorithm>

namespace graft {
namespace cpu {

/// Rows of dY that meet a panel: few enough that threads finish together, many enough that panels cost little.
inline constexpr index_t transposed_rows = 256;
/// Columns of dY rounded at a time: a vocabulary's would be as large as the logits.
inline constexpr index_t rounded_columns = 4096;

/// Runs f(n, count, first, columns) for blocks of rows [n, n + count) by columns [first, first + columns) of dX.
template <class Act>
void for_blocks(CpuBackend<Act>& be, MatrixView<Act> dx, index_t columns,
                FunctionRef<void(index_t, index_t, index_t, index_t)> f) {
  index_t const down = ceil_div(dx.rows, transposed_rows);
  be.executor().run(ceil_div(dx.cols, columns) * down, [&](index_t task) {
    index_t const n = task % down * transposed_rows, first = task / down * columns;
    f(n, std::min(transposed_rows, dx.rows - n), first, std::min(columns, dx.cols - first));
  });
}

/// dX += dY W with dY rounded to bf16; Act is float. A template, because whoever reads another function of a backend
/// compiles its kernels.
template <class Act>
void product_transposed_in_bf16(CpuBackend<Act>& be, MatrixView<Act const> dy, Weight const& w, MatrixView<Act> dx) {
  for (index_t o = 0; o < w.rows; o += rounded_columns) {
    ArenaScope scope(be.arena());
    auto const part = dy.col_range(o, std::min(rounded_columns, w.rows - o));
    auto const rounded = be.arena().template matrix<bf16>(part.rows, padded<bf16>(part.cols));
    prepare_rows(be, part.rows, 1, [&](index_t n) {
      be.layer_kernels().narrow_row(part.row(n), part.cols, rounded.row(n));
      std::fill(rounded.row(n) + part.cols, rounded.row(n) + rounded.cols, bf16{});
    });
    for_blocks(be, dx, transposed_columns, [&](index_t n, index_t count, index_t first, index_t columns) {
      be.native_kernels().bf16_transposed(rounded.row_range(n, count).col_range(0, part.cols), w, o, first,
                                          dx.row_range(n, count).col_range(first, columns));
    });
  }
}

}  // namespace cpu

/// The gradient of x in y = x W^T + b: dx += dy W.  dy [n, o], w [o, i], dx [n, i]. In native precision dy is rounded
/// to bf16 where the processor multiplies weights in bf16. Each row's result depends on that row alone, bit for bit.
template <class Act>
void product_transposed(CpuBackend<Act>& be, MatrixView<Act const> dy, Weight const& w, MatrixView<Act> dx) {
  if constexpr (std::same_as<Act, float>)
    if (cpu::rounding_of(be, w.format) == cpu::Rounding::bf16) return cpu::product_transposed_in_bf16(be, dy, w, dx);
  // one task's columns: whole blocks of the format
  index_t const columns = std::max<index_t>(cpu::transposed_columns, format_info(w.format).block);
  constexpr index_t panel_values = cpu::transposed_columns * cpu::outer_tile_depth;
  index_t const depth = panel_values / columns;
  cpu::for_blocks(be, dx, columns, [&](index_t n, index_t count, index_t first, index_t some) {
    alignas(64) Act panel[panel_values];
    for (index_t o = 0; o < w.rows; o += depth) {
      index_t const used = std::min(depth, w.rows - o);
      MatrixView<Act> const decoded{panel, used, some, columns};
      be.backward_kernels().decode_rows(w, o, used, first, some, decoded);
      be.backward_kernels().add_product(cpu::as_is(dy.row_range(n, count).col_range(o, used)),
                                        MatrixView<Act const>(decoded), dx.row_range(n, count).col_range(first, some));
    }
  });
}

}  // namespace graft
