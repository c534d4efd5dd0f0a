// SPDX-License-Identifier: Apache-2.0
// Norms, activations, residual sums and rotary position embedding on the CPU. Rows are independent of each other.
#pragma once

#include <graft/backend/activation.hpp>
#include <graft/backend/cpu/cpu_backend.hpp>
#include <graft/backend/weight.hpp>

#include <algorithm>

namespace graft {
namespace cpu {

/// Runs f(first, last) over blocks of rows. 8 rows of a few hundred elements outweigh handing a chunk out.
template <class Act>
void for_row_blocks(CpuBackend<Act>& be, index_t rows, FunctionRef<void(index_t, index_t)> f) {
  be.executor().run(ceil_div(rows, 8), [&](index_t k) { f(8 * k, std::min(rows, 8 * k + 8)); });
}

}  // namespace cpu

/// y = x / rms(x) * weight per row. x, y [n, d] (may be the same), weight [d].
template <class Act>
void rms_norm(CpuBackend<Act>& be, MatrixView<Act const> x, VectorView<Act const> weight, double eps,
              MatrixView<Act> y) {
  cpu::for_row_blocks(be, x.rows, [&](index_t first, index_t last) {
    for (index_t n = first; n < last; ++n)
      be.layer_kernels().rms_norm_row(x.row(n), weight.data, static_cast<Act>(eps), x.cols, y.row(n));
  });
}

/// RMS norm of every head of every row on its own, in place. x [n, heads * head_dim], weight [head_dim].
template <class Act>
void rms_norm_heads(CpuBackend<Act>& be, MatrixView<Act> x, VectorView<Act const> weight, double eps) {
  cpu::for_row_blocks(be, x.rows, [&](index_t first, index_t last) {
    for (index_t n = first; n < last; ++n)
      for (index_t h = 0; h < x.cols; h += weight.size)
        be.layer_kernels().rms_norm_row(x.row(n) + h, weight.data, static_cast<Act>(eps), weight.size, x.row(n) + h);
  });
}

/// y = (x - mean) / sqrt(var + eps) * weight + bias per row. x, y [n, d] (may be the same); weight, bias [d].
template <class Act>
void layer_norm(CpuBackend<Act>& be, MatrixView<Act const> x, VectorView<Act const> weight, VectorView<Act const> bias,
                double eps, MatrixView<Act> y) {
  cpu::for_row_blocks(be, x.rows, [&](index_t first, index_t last) {
    for (index_t n = first; n < last; ++n)
      be.layer_kernels().layer_norm_row(x.row(n), weight.data, bias.data, static_cast<Act>(eps), x.cols, y.row(n));
  });
}

/// x = f(x), in place. x [n, f]
template <class Act>
void activate(CpuBackend<Act>& be, Activation f, MatrixView<Act> x) {
  cpu::for_row_blocks(be, x.rows, [&](index_t first, index_t last) {
    for (index_t n = first; n < last; ++n) be.layer_kernels().activate_row(f, x.cols, x.row(n));
  });
}

/// gate = f(gate) * up, in place. gate, up [n, f]
template <class Act>
void activate_gated(CpuBackend<Act>& be, Activation f, MatrixView<Act> gate, MatrixView<Act const> up) {
  cpu::for_row_blocks(be, gate.rows, [&](index_t first, index_t last) {
    for (index_t n = first; n < last; ++n) be.layer_kernels().activate_gated_row(f, up.row(n), gate.cols, gate.row(n));
  });
}

/// h += x. h, x [n, d]
template <class Act>
void add(CpuBackend<Act>& be, MatrixView<Act const> x, MatrixView<Act> h) {
  cpu::for_row_blocks(be, h.rows, [&](index_t first, index_t last) {
    for (index_t n = first; n < last; ++n) be.layer_kernels().add_row(x.row(n), h.cols, h.row(n));
  });
}

/// h[n] = table[index[n]], or += with `accumulate`. h [n, d]
template <class Act>
void gather_rows(CpuBackend<Act>& be, Weight const& table, std::int32_t const* index, MatrixView<Act> h,
                 bool accumulate = false) {
  ArenaScope scope(be.arena());
  auto const decoded = be.arena().template matrix<Act>(accumulate ? h.rows : 0, h.cols);
  cpu::for_row_blocks(be, h.rows, [&](index_t first, index_t last) {
    for (index_t n = first; n < last; ++n) {
      Act* const to = accumulate ? decoded.row(n) : h.row(n);
      table.row(index[n], to);
      if (accumulate) be.layer_kernels().add_row(to, h.cols, h.row(n));
    }
  });
}

/// Rotates the first 2 * angles columns of every head: k with k + angles (Hugging Face's half-split pairing), in place.
/// x [n, heads * head_dim]; cosine, sine [n, angles].
template <class Act>
void rotate(CpuBackend<Act>& be, MatrixView<Act const> cosine, MatrixView<Act const> sine, index_t head_dim,
            MatrixView<Act> x) {
  cpu::for_row_blocks(be, x.rows, [&](index_t first, index_t last) {
    for (index_t n = first; n < last; ++n)
      be.layer_kernels().rotate_row(cosine.row(n), sine.row(n), cosine.cols, head_dim, x.cols, x.row(n));
  });
}

}  // namespace graft
