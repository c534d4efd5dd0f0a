// SPDX-License-Identifier: Apache-2.0
// Gradients of norms, activations and rotary position embedding on the CPU.
#pragma once

#include <graft/backend/activation.hpp>
#include <graft/backend/cpu/cpu_backend.hpp>
#include <graft/backend/cpu/elementwise.hpp>
#include <graft/backend/cpu/weight_backward.hpp>

#include <algorithm>
#include <cmath>

namespace graft {
namespace cpu {

/// The gradient of a vector that every row reads: each block of rows sums into a row of its own, and the blocks are
/// added in order. Does nothing where nobody wants the sum.
template <class Act>
class SumOverRows {
 public:
  SumOverRows(CpuBackend<Act>& be, index_t rows, VectorView<Act> out)
      : be_(be), out_(out), parts_(be.arena().template matrix<Act>(out.empty() ? 0 : ceil_div(rows, 8), out.size)) {}

  /// Where the block that starts at row `first` adds its part, zeroed; null when nobody wants it.
  Act* block(index_t first) const {
    if (out_.empty()) return nullptr;
    Act* const part = parts_.row(first / 8);
    std::fill_n(part, out_.size, Act{0});
    return part;
  }
  void add() const {
    for_columns(be_, out_.size, [&](index_t first, index_t last) {
      for (index_t b = 0; b < parts_.rows; ++b)
        for (index_t k = first; k < last; ++k) out_[k] += parts_(b, k);
    });
  }

 private:
  CpuBackend<Act>& be_;
  VectorView<Act> out_;
  MatrixView<Act> parts_;
};

}  // namespace cpu

/// The backward of rms_norm. x, dy [n, d], weight [d]; dx += the gradient of x, or is replaced by it where dx and dy
/// are the same memory; dweight [d] +=, or empty.
template <class Act>
void rms_norm_backward(CpuBackend<Act>& be, MatrixView<Act const> x, VectorView<Act const> weight, double eps,
                       MatrixView<Act const> dy, MatrixView<Act> dx, VectorView<Act> dweight) {
  ArenaScope scope(be.arena());
  cpu::SumOverRows<Act> const weights(be, x.rows, dweight);
  cpu::for_row_blocks(be, x.rows, [&](index_t first, index_t last) {
    Act* const part = weights.block(first);
    for (index_t n = first; n < last; ++n)
      be.backward_kernels().rms_norm_row(x.row(n), weight.data, static_cast<Act>(eps), x.cols, dy.row(n),
                                         dx.data == dy.data, dx.row(n), part);
  });
  weights.add();
}

/// The backward of rms_norm_heads. x [n, heads * head_dim] before the norm, weight [head_dim]; dx holds the gradient of
/// the output and gets that of x, in place; dweight [head_dim] +=, or empty.
template <class Act>
void rms_norm_heads_backward(CpuBackend<Act>& be, MatrixView<Act const> x, VectorView<Act const> weight, double eps,
                             MatrixView<Act> dx, VectorView<Act> dweight) {
  ArenaScope scope(be.arena());
  cpu::SumOverRows<Act> const weights(be, x.rows, dweight);
  cpu::for_row_blocks(be, x.rows, [&](index_t first, index_t last) {
    Act* const part = weights.block(first);
    for (index_t n = first; n < last; ++n)
      for (index_t h = 0; h < x.cols; h += weight.size)
        be.backward_kernels().rms_norm_row(x.row(n) + h, weight.data, static_cast<Act>(eps), weight.size, dx.row(n) + h,
                                           true, dx.row(n) + h, part);
  });
  weights.add();
}

/// The backward of layer_norm, with z = (x - mean) / sqrt(var + eps) and g = dy w:
///     dx = (g - mean(g) - z mean(g z)) / sqrt(var + eps)      dweight += dy z      dbias += dy
/// x, dy [n, d], weight [d]; dx += or, where dx and dy are the same memory, replaced; dweight, dbias [d] +=, or empty.
template <class Act>
void layer_norm_backward(CpuBackend<Act>& be, MatrixView<Act const> x, VectorView<Act const> weight, double eps,
                         MatrixView<Act const> dy, MatrixView<Act> dx, VectorView<Act> dweight, VectorView<Act> dbias) {
  ArenaScope scope(be.arena());
  cpu::SumOverRows<Act> const weights(be, x.rows, dweight), biases(be, x.rows, dbias);
  bool const replace = dx.data == dy.data;
  cpu::for_row_blocks(be, x.rows, [&](index_t first, index_t last) {
    Act* const weight_part = weights.block(first);
    Act* const bias_part = biases.block(first);
    for (index_t n = first; n < last; ++n) {
      Act const* const v = x.row(n);
      Act const* const g = dy.row(n);
      Act* const to = dx.row(n);
      Act const count = static_cast<Act>(x.cols);
      Act const mean = cpu::sum_of(v, x.cols, [](auto u) { return u; }) / count;
      Act const variance = cpu::sum_of(v, x.cols, [&](auto u) { return (u - mean) * (u - mean); }) / count;
      Act const scale = 1 / std::sqrt(variance + static_cast<Act>(eps));
      Act const level = cpu::dot(g, weight.data, x.cols) / count;
      auto const along_z = [&](auto a, auto w, auto u) { return a * w * ((u - mean) * scale); };
      Act const along = cpu::sum_of(g, weight.data, v, x.cols, along_z) / count;
      if (weight_part != nullptr)
        for (index_t k = 0; k < x.cols; ++k) weight_part[k] += g[k] * ((v[k] - mean) * scale);
      if (bias_part != nullptr)
        for (index_t k = 0; k < x.cols; ++k) bias_part[k] += g[k];
      for (index_t k = 0; k < x.cols; ++k)
        to[k] = (replace ? Act{0} : to[k]) + scale * (g[k] * weight[k] - level - (v[k] - mean) * scale * along);
    }
  });
  weights.add();
  biases.add();
}

/// The backward of activate: dy = dy f'(x), in place. x, dy [n, f]
template <class Act>
void activate_backward(CpuBackend<Act>& be, Activation f, MatrixView<Act const> x, MatrixView<Act> dy) {
  cpu::for_row_blocks(be, x.rows, [&](index_t first, index_t last) {
    for (index_t n = first; n < last; ++n) be.backward_kernels().activate_row(f, x.row(n), x.cols, dy.row(n));
  });
}

/// The backward of activate_gated, y = f(gate) * up: dgate holds dL/dy and gets dL/dgate, in place; dup += dL/dup.
/// gate is the value before the activation. All [n, f].
template <class Act>
void activate_gated_backward(CpuBackend<Act>& be, Activation f, MatrixView<Act const> gate, MatrixView<Act const> up,
                             MatrixView<Act> dgate, MatrixView<Act> dup) {
  cpu::for_row_blocks(be, gate.rows, [&](index_t first, index_t last) {
    for (index_t n = first; n < last; ++n)
      be.backward_kernels().activate_gated_row(f, gate.row(n), up.row(n), gate.cols, dgate.row(n), dup.row(n));
  });
}

/// The backward of rotate: the transposed rotation, in place. dx [n, heads * head_dim]; cosine, sine [n, angles].
template <class Act>
void rotate_backward(CpuBackend<Act>& be, MatrixView<Act const> cosine, MatrixView<Act const> sine, index_t head_dim,
                     MatrixView<Act> dx) {
  cpu::for_row_blocks(be, dx.rows, [&](index_t first, index_t last) {
    index_t const half = cosine.cols;
    for (index_t n = first; n < last; ++n) {
      Act const* const c = cosine.row(n);
      Act const* const s = sine.row(n);
      for (Act* head = dx.row(n); head < dx.row(n) + dx.cols; head += head_dim)
        for (index_t k = 0; k < half; ++k) {
          Act const u = head[k], v = head[k + half];
          head[k] = u * c[k] + v * s[k];
          head[k + half] = v * c[k] - u * s[k];
        }
    }
  });
}

}  // namespace graft
