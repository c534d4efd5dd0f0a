// SPDX-License-Identifier: Apache-2.0
// Gradients of dense weights, biases and embedding tables on the CPU.
#pragma once

#include <graft/backend/cpu/cpu_backend.hpp>
#include <graft/backend/cpu/outer_products.hpp>

#include <algorithm>
#include <cstdint>

namespace graft {
namespace cpu {

/// Runs f(first, last) over chunks of columns. A task that owns columns may sum over rows in order.
template <class Act>
void for_columns(CpuBackend<Act>& be, index_t columns, FunctionRef<void(index_t, index_t)> f, index_t chunk = 64) {
  be.executor().run(ceil_div(columns, chunk), [&](index_t k) { f(chunk * k, std::min(columns, chunk * (k + 1))); });
}

}  // namespace cpu

/// The gradient of W in y = x W^T + b: dw += dy^T x.  dy [n, o], x [n, i], dw [o, i]
template <class Act>
void weight_gradient(CpuBackend<Act>& be, MatrixView<Act const> dy, MatrixView<Act const> x, MatrixView<Act> dw) {
  cpu::for_columns(be, dy.cols, [&](index_t first, index_t last) {
    alignas(64) Act panel[cpu::outer_tile_depth * 64];  // dy's rows lie pages apart where o is large
    for (index_t n = 0; n < dy.rows; n += cpu::outer_tile_depth) {
      index_t const used = std::min(cpu::outer_tile_depth, dy.rows - n), count = last - first;
      for (index_t k = 0; k < used; ++k) std::copy_n(dy.row(n + k) + first, count, panel + k * count);
      be.backward_kernels().add_product(cpu::transposed(matrix_view(panel, used, count)), x.row_range(n, used),
                                        dw.row_range(first, count));
    }
  });
}

/// The gradient of b: db += sum_n dy[n].  dy [n, o], db [o]
template <class Act>
void bias_gradient(CpuBackend<Act>& be, MatrixView<Act const> dy, VectorView<Act> db) {
  cpu::for_columns(be, dy.cols, [&](index_t first, index_t last) {
    for (index_t n = 0; n < dy.rows; ++n)
      for (index_t k = first; k < last; ++k) db[k] += dy(n, k);
  });
}

/// The gradient of the table in h[n] = table[index[n]]: dtable[index[n]] += dh[n], in the order of n.  dh [n, d]
template <class Act>
void gather_rows_backward(CpuBackend<Act>& be, std::int32_t const* index, MatrixView<Act const> dh,
                          MatrixView<Act> dtable) {
  cpu::for_columns(be, dh.cols, [&](index_t first, index_t last) {
    for (index_t n = 0; n < dh.rows; ++n)
      for (index_t k = first; k < last; ++k) dtable(index[n], k) += dh(n, k);
  });
}

}  // namespace graft
