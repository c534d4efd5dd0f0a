// SPDX-License-Identifier: Apache-2.0
// dX += dY W for a weight in any storage format: columns of W are decoded panel by panel into the first-level cache and
// meet all rows of dY there. No copy of the weight.
#pragma once

#include <graft/backend/cpu/cpu_backend.hpp>
#include <graft/backend/cpu/outer_products.hpp>
#include <graft/backend/weight.hpp>

#include <algorithm>

namespace graft {

/// The gradient of x in y = x W^T + b: dx += dy W.  dy [n, o], w [o, i], dx [n, i]. Each row's result depends on that
/// row alone, bit for bit.
template <class Act>
void product_transposed(CpuBackend<Act>& be, MatrixView<Act const> dy, Weight const& w, MatrixView<Act> dx) {
  // one task's columns: whole blocks of the format
  index_t const columns = std::max<index_t>(64, format_info(w.format).block);
  constexpr index_t panel_values = 64 * cpu::outer_tile_depth;
  index_t const depth = panel_values / columns;
  be.executor().run(ceil_div(w.cols, columns), [&](index_t chunk) {
    alignas(64) Act panel[panel_values];
    index_t const first = chunk * columns, count = std::min(columns, w.cols - first);
    for (index_t o = 0; o < w.rows; o += depth) {
      index_t const used = std::min(depth, w.rows - o);
      MatrixView<Act> const decoded{panel, used, count, columns};
      be.backward_kernels().decode_rows(w, o, used, first, count, decoded);
      be.backward_kernels().add_product(cpu::as_is(dy.col_range(o, used)), MatrixView<Act const>(decoded),
                                        dx.col_range(first, count));
    }
  });
}

}  // namespace graft
