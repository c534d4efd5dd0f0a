// SPDX-License-Identifier: Apache-2.0
// Y = X W^T + b for a weight in any storage format: rows of W are decoded panel by panel into the first-level cache
// and meet all rows of X there. One simple portable kernel; no allocation, no copy of the weight.
#pragma once

#include <graft/backend/cpu/cpu_backend.hpp>
#include <graft/backend/cpu/lanes.hpp>
#include <graft/backend/weight.hpp>

#include <algorithm>
#include <cstdint>

namespace graft {
namespace cpu {

template <class R>
inline constexpr index_t padded(index_t count) {
  return round_up(count, lane_count<R>);
}

/// Whether rows of X can be read as they are: right type, width and alignment. (Register loads that straddle cache
/// lines would halve the speed of the product.)
template <class T, class R>
bool is_padded(MatrixView<T const> x) {
  return std::same_as<T, R> && x.cols == padded<R>(x.cols) && (x.rows == 1 || x.stride % lane_count<R> == 0) &&
         reinterpret_cast<std::uintptr_t>(x.data) % register_bytes == 0;
}

template <class T, class R>
void pad_row(T const* from, index_t cols, R* to) {
  for (index_t k = 0; k < cols; ++k) to[k] = static_cast<R>(from[k]);
  std::fill(to + cols, to + padded<R>(cols), R{0});
}

/// X itself where its rows can be read as they are, else a padded copy in the arena.
template <class T, class R>
MatrixView<R const> pad_rows(Arena& arena, MatrixView<T const> x) {
  if constexpr (std::same_as<T, R>)
    if (is_padded<T, R>(x)) return x;
  auto const copy = arena.matrix<R>(x.rows, padded<R>(x.cols));
  for (index_t n = 0; n < x.rows; ++n) pad_row(x.row(n), x.cols, copy.row(n));
  return copy;
}

// A tile is 4 outputs by 4 (2) rows of X: 16 (8) accumulators, in registers. Two tiles side by side use each row of X
// they read from the second-level cache twice, without which that cache would be the limit.
inline constexpr int tile_outputs = 4;
inline constexpr int tile_rows = register_count >= 32 ? 4 : 2;
inline constexpr index_t panel_rows = 8;      // rows of W decoded together
inline constexpr index_t panel_depth = 1024;  // values decoded of each: 32 KiB of f32, most of a first-level cache

/// Adds x[n, first:first+depth] . panel[r, 0:depth] to y[n, r] for r < used rows of the panel, or starts from the bias.
template <class R>
void multiply_panel(MatrixView<R const> x, index_t first, index_t depth, R const* const* panel, index_t used,
                    bool start, R const* bias, MatrixView<R> y) {
  auto const tile = [&]<int M>(index_t n) {
    R const* xs[M];
    for (int m = 0; m < M; ++m) xs[m] = x.row(n + m) + first;
    for (index_t r0 = 0; r0 < used; r0 += tile_outputs) {
      R out[M * tile_outputs];
      dot_tile<M, tile_outputs, R>(xs, panel + r0, depth, out);
      for (int m = 0; m < M; ++m)
        for (index_t r = r0; r < std::min(used, r0 + tile_outputs); ++r) {
          R const before = !start ? y(n + m, r) : bias != nullptr ? bias[r] : R{0};
          y(n + m, r) = before + out[m * tile_outputs + r - r0];
        }
    }
  };
  index_t n = 0;
  for (; n + tile_rows <= x.rows; n += tile_rows) tile.template operator()<tile_rows>(n);
  for (; n < x.rows; ++n) tile.template operator()<1>(n);
}

/// Y[:, o0:o1] = X W[o0:o1]^T + b. x is padded; y's column 0 is output 0.
template <class R>
void product_chunk(MatrixView<R const> x, Weight const& w, VectorView<R const> bias, index_t o0, index_t o1,
                   MatrixView<R> y) {
  alignas(64) R buffer[panel_rows][panel_depth];
  bool constexpr native_f32 = std::same_as<R, float>;
  for (index_t o = o0; o < o1; o += panel_rows) {
    index_t const used = std::min(panel_rows, o1 - o);
    for (index_t first = 0; first < w.cols; first += panel_depth) {
      index_t const count = std::min(panel_depth, w.cols - first), depth = padded<R>(count);
      R const* panel[panel_rows];
      for (index_t r = 0; r < panel_rows; ++r) {
        std::byte const* const stored = w.row_data(o + std::min(r, used - 1));
        if (native_f32 && w.format == Format::f32 && count == depth) {
          panel[r] = reinterpret_cast<R const*>(stored) + first;
        } else {
          if (r < used) {
            decode_row(w.format, stored, first, count, buffer[r]);
            std::fill(buffer[r] + count, buffer[r] + depth, R{0});
          }
          panel[r] = buffer[std::min(r, used - 1)];
        }
      }
      multiply_panel<R>(x, first, depth, panel, used, first == 0, bias.empty() ? nullptr : bias.data + o,
                        y.col_range(o, used));
    }
  }
}

/// Outputs one task computes. A multiple of 64, the usual group of a row map, so that maps are applied while the
/// chunk is in cache; depends on the shape alone.
inline constexpr index_t product_chunk_outputs = 64;

}  // namespace cpu

/// Called with (o0, o1) once columns [o0, o1) of y hold x W^T + b, still in cache.
struct NoEpilogue {
  void operator()(index_t, index_t) const {}
};

/// Y = X W^T + b.  x [n, i], w [o, i], bias [o] or empty, y [n, o]; then `epilogue(o0, o1)` on every chunk of
/// cpu::product_chunk_outputs columns.
template <class Act, class Epilogue = NoEpilogue>
void product(CpuBackend<Act>& be, MatrixView<Act const> x, Weight const& w, VectorView<Act const> bias,
             MatrixView<Act> y, Epilogue const& epilogue = {}) {
  ArenaScope scope(be.arena());
  auto const padded = cpu::pad_rows<Act, Act>(be.arena(), x);
  be.executor().run(ceil_div(w.rows, cpu::product_chunk_outputs), [&](index_t chunk) {
    index_t const o0 = chunk * cpu::product_chunk_outputs;
    index_t const o1 = std::min(w.rows, o0 + cpu::product_chunk_outputs);
    cpu::product_chunk(padded, w, bias, o0, o1, y);
    epilogue(o0, o1);
  });
}

}  // namespace graft
