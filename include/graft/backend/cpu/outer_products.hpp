// SPDX-License-Identifier: Apache-2.0
// The two dense products that backward passes are made of, on rows of activations: sums of outer products, whose sums
// stay in registers while rows are added, and dots of rows with rows.
#pragma once

#include <graft/backend/cpu/lanes.hpp>
#include <graft/core/view.hpp>

#include <algorithm>
#include <type_traits>

namespace graft::cpu {

/// A matrix that is read element by element, a(m, k) = data[m * row + k * step]: a view, or its transpose.
template <class R>
struct Strided {
  R const* data;
  index_t row, step;
};
template <class R>
Strided<std::remove_const_t<R>> as_is(MatrixView<R> m) {
  return {m.data, m.stride, 1};
}
template <class R>
Strided<std::remove_const_t<R>> transposed(MatrixView<R> m) {
  return {m.data, 1, m.stride};
}

inline constexpr int outer_tile_rows = 4;
inline constexpr int outer_tile_registers = register_count >= 32 ? 4 : 2;  // with the rows: 16 (8) accumulators
inline constexpr index_t outer_tile_depth = 128;  // rows of b between two visits of out: 32 KiB of f32

/// A register of columns, or the first `count` and zeros.
template <bool Whole, class R>
[[gnu::always_inline]] inline Lanes<R> load_columns(R const* from, index_t count) {
  if constexpr (Whole) return load(from);
  Lanes<R> v{};
  for (index_t j = 0; j < count; ++j) v[j] = from[j];
  return v;
}

/// out[m, j] += sum_k a(m, k) b[k, j] for m < M and j < `count`: N registers, the last of them not full unless Whole.
template <int M, int N, bool Whole, class R>
[[gnu::always_inline]] inline void outer_tile(Strided<R> a, MatrixView<R const> b, MatrixView<R> out, index_t count) {
  Lanes<R> acc[M][N] = {};
  for (index_t k = 0; k < b.rows; ++k) {
    R const* const column = a.data + k * a.step;
    Lanes<R> bv[N];
    GRAFT_UNROLL
    for (int n = 0; n < N; ++n) bv[n] = load_columns<Whole>(b.row(k) + n * lane_count<R>, count);
    GRAFT_UNROLL
    for (int m = 0; m < M; ++m) {
      GRAFT_UNROLL
      for (int n = 0; n < N; ++n) acc[m][n] += column[m * a.row] * bv[n];
    }
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n)
      for (index_t j = 0; j < (Whole ? lane_count<R> : count); ++j) out(m, n * lane_count<R> + j) += acc[m][n][j];
}

/// out += a b.  a [m, k], b [k, j], out [m, j]. A row of out does not depend on the other rows of a, bit for bit.
template <class R>
void add_product(Strided<R> a, MatrixView<R const> b, MatrixView<R> out) {
  alignas(64) R packed[outer_tile_depth * outer_tile_registers * lane_count<R>];
  auto const columns = [&]<int N, bool Whole>(index_t first, index_t count) {
    for (index_t k = 0; k < b.rows; k += outer_tile_depth) {
      auto part = b.row_range(k, std::min(outer_tile_depth, b.rows - k)).col_range(first, count);
      if (out.rows >= 32 && part.stride != count) {  // rows at some strides would chase each other from the cache
        for (index_t r = 0; r < part.rows; ++r) std::copy_n(part.row(r), count, packed + r * count);
        part = {packed, part.rows, count, count};
      }
      auto const rows = [&]<int M>(index_t m) {
        Strided<R> const from{a.data + m * a.row + k * a.step, a.row, a.step};
        outer_tile<M, N, Whole>(from, part, out.row_range(m, M).col_range(first, count), count);
      };
      index_t m = 0;
      for (; m + outer_tile_rows <= out.rows; m += outer_tile_rows) rows.template operator()<outer_tile_rows>(m);
      for (; m < out.rows; ++m) rows.template operator()<1>(m);
    }
  };
  constexpr index_t lanes = lane_count<R>, wide = outer_tile_registers * lanes;
  index_t j = 0;
  for (; j + wide <= out.cols; j += wide) columns.template operator()<outer_tile_registers, true>(j, wide);
  for (; j + lanes <= out.cols; j += lanes) columns.template operator()<1, true>(j, lanes);
  if (j < out.cols) columns.template operator()<1, false>(j, out.cols - j);
}

/// out[m, n] = scale * x[m] . w[n].  x [m, k], w [n, k], out [m, n]. Sums do not depend on the rows beside them.
template <class R>
void dots(MatrixView<R const> x, MatrixView<R const> w, R scale, MatrixView<R> out) {
  constexpr int tile = 4;
  index_t const whole = x.cols / lane_count<R> * lane_count<R>;
  auto const rows = [&]<int M>(index_t m) {
    R const* xs[M];
    for (int k = 0; k < M; ++k) xs[k] = x.row(m + k);
    for (index_t n = 0; n < w.rows; n += tile) {
      R const* ws[tile];
      for (index_t k = 0; k < tile; ++k) ws[k] = w.row(std::min(n + k, w.rows - 1));
      R sums[M * tile];
      dot_tile<M, tile, R>(xs, ws, whole, sums);
      for (int i = 0; i < M; ++i)
        for (index_t j = 0; j < std::min<index_t>(tile, w.rows - n); ++j) {
          R sum = sums[i * tile + j];
          for (index_t k = whole; k < x.cols; ++k) sum += xs[i][k] * ws[j][k];
          out(m + i, n + j) = scale * sum;
        }
    }
  };
  index_t m = 0;
  for (; m + 2 <= x.rows; m += 2) rows.template operator()<2>(m);
  for (; m < x.rows; ++m) rows.template operator()<1>(m);
}

}  // namespace graft::cpu
