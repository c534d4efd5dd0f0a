// SPDX-License-Identifier: Apache-2.0
// Norms, activations, residual sums and rotary position embedding on the CPU. Rows are independent of each other.
#pragma once

#include <graft/backend/activation.hpp>
#include <graft/backend/cpu/cpu_backend.hpp>
#include <graft/backend/cpu/lanes.hpp>
#include <graft/backend/weight.hpp>

#include <algorithm>
#include <cmath>

namespace graft {
namespace cpu {

/// Runs f(first, last) over blocks of rows. 8 rows of a few hundred elements outweigh handing a chunk out.
template <class Act>
void for_row_blocks(CpuBackend<Act>& be, index_t rows, FunctionRef<void(index_t, index_t)> f) {
  be.executor().run(ceil_div(rows, 8), [&](index_t k) { f(8 * k, std::min(rows, 8 * k + 8)); });
}

/// sum of f(x[k]) over k, in lanes first; the order depends on the length alone.
template <class R, class F>
R sum_of(R const* x, index_t count, F f) {
  Lanes<R> acc{};
  index_t k = 0;
  for (; k + lane_count<R> <= count; k += lane_count<R>) acc += f(load(x + k));
  R total = sum(acc);
  for (; k < count; ++k) total += f(x[k]);
  return total;
}

/// The largest of count >= 1 values; several running maxima, because one would wait for itself at every element.
template <class Act>
Act highest_of(Act const* x, index_t count) {
  constexpr index_t width = 16;
  Act best[width];
  std::fill(best, best + width, x[0]);
  index_t k = 0;
  for (; k + width <= count; k += width)
    for (index_t j = 0; j < width; ++j) best[j] = x[k + j] > best[j] ? x[k + j] : best[j];
  for (; k < count; ++k) best[0] = std::max(best[0], x[k]);
  return *std::max_element(best, best + width);
}

template <class R>
R dot(R const* x, R const* y, index_t count) {
  Lanes<R> acc{};
  index_t k = 0;
  for (; k + lane_count<R> <= count; k += lane_count<R>) acc += load(x + k) * load(y + k);
  R total = sum(acc);
  for (; k < count; ++k) total += x[k] * y[k];
  return total;
}

template <class R>
void rms_norm_row(R const* x, R const* weight, R eps, index_t count, R* y) {
  R const mean = sum_of(x, count, [](auto v) { return v * v; }) / static_cast<R>(count);
  R const scale = 1 / std::sqrt(mean + eps);
  for (index_t k = 0; k < count; ++k) y[k] = x[k] * scale * weight[k];
}

}  // namespace cpu

/// y = x / rms(x) * weight per row. x, y [n, d] (may be the same), weight [d].
template <class Act>
void rms_norm(CpuBackend<Act>& be, MatrixView<Act const> x, VectorView<Act const> weight, double eps,
              MatrixView<Act> y) {
  cpu::for_row_blocks(be, x.rows, [&](index_t first, index_t last) {
    for (index_t n = first; n < last; ++n)
      cpu::rms_norm_row(x.row(n), weight.data, static_cast<Act>(eps), x.cols, y.row(n));
  });
}

/// RMS norm of every head of every row on its own, in place. x [n, heads * head_dim], weight [head_dim].
template <class Act>
void rms_norm_heads(CpuBackend<Act>& be, MatrixView<Act> x, VectorView<Act const> weight, double eps) {
  cpu::for_row_blocks(be, x.rows, [&](index_t first, index_t last) {
    for (index_t n = first; n < last; ++n)
      for (index_t h = 0; h < x.cols; h += weight.size)
        cpu::rms_norm_row(x.row(n) + h, weight.data, static_cast<Act>(eps), weight.size, x.row(n) + h);
  });
}

/// y = (x - mean) / sqrt(var + eps) * weight + bias per row. x, y [n, d] (may be the same); weight, bias [d].
template <class Act>
void layer_norm(CpuBackend<Act>& be, MatrixView<Act const> x, VectorView<Act const> weight, VectorView<Act const> bias,
                double eps, MatrixView<Act> y) {
  cpu::for_row_blocks(be, x.rows, [&](index_t first, index_t last) {
    for (index_t n = first; n < last; ++n) {
      Act const* const from = x.row(n);
      Act* const to = y.row(n);
      Act const count = static_cast<Act>(x.cols);
      Act const mean = cpu::sum_of(from, x.cols, [](auto v) { return v; }) / count;
      Act const variance = cpu::sum_of(from, x.cols, [&](auto v) { return (v - mean) * (v - mean); }) / count;
      Act const scale = 1 / std::sqrt(variance + static_cast<Act>(eps));
      for (index_t k = 0; k < x.cols; ++k) to[k] = (from[k] - mean) * scale * weight[k] + bias[k];
    }
  });
}

/// x = f(x), in place. x [n, f]
template <class Act>
void activate(CpuBackend<Act>& be, Activation f, MatrixView<Act> x) {
  cpu::for_row_blocks(be, x.rows, [&](index_t first, index_t last) {
    for (index_t n = first; n < last; ++n)
      for (index_t k = 0; k < x.cols; ++k) x(n, k) = activate(f, x(n, k));
  });
}

/// gate = f(gate) * up, in place. gate, up [n, f]
template <class Act>
void activate_gated(CpuBackend<Act>& be, Activation f, MatrixView<Act> gate, MatrixView<Act const> up) {
  cpu::for_row_blocks(be, gate.rows, [&](index_t first, index_t last) {
    for (index_t n = first; n < last; ++n) {
      Act* const g = gate.row(n);
      Act const* const u = up.row(n);
      if (f == Activation::silu)  // a constant argument lets the compiler vectorise the usual case
        for (index_t k = 0; k < gate.cols; ++k) g[k] = activate(Activation::silu, g[k]) * u[k];
      else
        for (index_t k = 0; k < gate.cols; ++k) g[k] = activate(f, g[k]) * u[k];
    }
  });
}

/// h += x. h, x [n, d]
template <class Act>
void add(CpuBackend<Act>& be, MatrixView<Act const> x, MatrixView<Act> h) {
  cpu::for_row_blocks(be, h.rows, [&](index_t first, index_t last) {
    for (index_t n = first; n < last; ++n)
      for (index_t k = 0; k < h.cols; ++k) h(n, k) += x(n, k);
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
      if (accumulate)
        for (index_t k = 0; k < h.cols; ++k) h(n, k) += to[k];
    }
  });
}

/// Rotates the first 2 * angles columns of every head: k with k + angles (Hugging Face's half-split pairing), in place.
/// x [n, heads * head_dim]; cosine, sine [n, angles].
template <class Act>
void rotate(CpuBackend<Act>& be, MatrixView<Act const> cosine, MatrixView<Act const> sine, index_t head_dim,
            MatrixView<Act> x) {
  cpu::for_row_blocks(be, x.rows, [&](index_t first, index_t last) {
    index_t const half = cosine.cols;
    for (index_t n = first; n < last; ++n) {
      Act const* const c = cosine.row(n);
      Act const* const s = sine.row(n);
      for (Act* head = x.row(n); head < x.row(n) + x.cols; head += head_dim)
        for (index_t k = 0; k < half; ++k) {
          Act const u = head[k], v = head[k + half];
          head[k] = u * c[k] - v * s[k];
          head[k + half] = v * c[k] + u * s[k];
        }
    }
  });
}

}  // namespace graft
