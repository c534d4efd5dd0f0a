// SPDX-License-Identifier: Apache-2.0
// Low-rank deltas on the CPU: shrink t = w s x A^T per tile of rows, expand y += t B^T along the outputs.
#pragma once

#include <graft/backend/cpu/product.hpp>
#include <graft/backend/low_rank.hpp>

namespace graft {
namespace cpu {

/// t[row, :] = the tile's scaled x A^T, the ranks of its terms side by side. x is padded, row n of t is batch row n.
template <class R>
void shrink(LowRankTile<R> const& tile, index_t site, index_t inputs, MatrixView<R const> x, MatrixView<R> t) {
  index_t offset = 0;
  alignas(64) R buffer[tile_outputs][panel_depth];
  for (index_t k = 0; k < tile.term_count; ++k) {
    auto const& f = tile.terms[k].table[site];
    for (index_t r = 0; r < f.rank; r += tile_outputs) {
      index_t const used = std::min<index_t>(tile_outputs, f.rank - r);
      for (index_t first = 0; first < inputs; first += panel_depth) {
        index_t const count = std::min(panel_depth, inputs - first), depth = padded<R>(count);
        R const* panel[tile_outputs];
        for (index_t p = 0; p < tile_outputs; ++p) {
          R const* const row = f.a + (r + std::min(p, used - 1)) * inputs + first;
          panel[p] = row;
          if (count != depth) {  // the row's end: pad with zeros
            std::copy(row, row + count, buffer[p]);
            std::fill(buffer[p] + count, buffer[p] + depth, R{0});
            panel[p] = buffer[p];
          }
        }
        for (index_t m = 0; m < tile.row_count; ++m) {
          index_t const n = tile.rows[m];
          R const* const xs[1] = {x.row(n) + first};
          R out[tile_outputs];
          dot_tile<1, tile_outputs, R>(xs, panel, depth, out);
          for (index_t p = 0; p < used; ++p) {
            R& sum = t(n, offset + r + p);
            sum = (first == 0 ? R{0} : sum) + out[p];
          }
        }
      }
    }
    R const scale = tile.terms[k].weight * f.scale;
    for (index_t m = 0; m < tile.row_count; ++m)
      for (index_t r = 0; r < f.rank; ++r) t(tile.rows[m], offset + r) *= scale;
    offset += f.rank;
  }
}

/// y[row, first:last] += t[row] B[first:last]^T for the tile's rows.
template <class T, class R>
void expand(LowRankTile<R> const& tile, index_t site, index_t outputs, MatrixView<R const> t, index_t first,
            index_t last, MatrixView<T> y) {
  constexpr index_t width = 64;  // a strip of outputs whose sums stay in registers or the first-level cache
  for (index_t m = 0; m < tile.row_count; ++m) {
    index_t const n = tile.rows[m];
    for (index_t o = first; o < last; o += width) {
      index_t const count = std::min(width, last - o);
      R sum[width] = {};
      index_t offset = 0;
      for (index_t k = 0; k < tile.term_count; ++k) {
        auto const& f = tile.terms[k].table[site];
        for (index_t r = 0; r < f.rank; ++r) {
          R const scaled = t(n, offset + r);
          R const* const b = f.b_transposed + r * outputs + o;
          for (index_t j = 0; j < count; ++j) sum[j] += scaled * b[j];
        }
        offset += f.rank;
      }
      if (offset == 0) break;  // nothing at this site
      for (index_t j = 0; j < count; ++j) y(n, o + j) = static_cast<T>(static_cast<R>(y(n, o + j)) + sum[j]);
    }
  }
}

/// What the deltas of a batch need in the arena before its tiles run. Rows are padded by the task that reads them.
template <class X, class R>
class DeltaScratch {
 public:
  DeltaScratch(Arena& arena, MatrixView<X const> x, index_t max_rank)
      : x_(x), t_(arena.template matrix<R>(x.rows, max_rank)) {
    if (!is_padded<X, R>(x)) copy_ = arena.template matrix<R>(x.rows, padded<R>(x.cols));
  }

  /// y += deltas for the tile's rows.
  template <class Y>
  void add(LowRankTile<R> const& tile, index_t site, MatrixView<Y> y) const {
    shrink<R>(tile, site, x_.cols, rows_of(tile), t_);
    expand<Y, R>(tile, site, y.cols, t_, 0, y.cols, y);
  }

 private:
  MatrixView<R const> rows_of(LowRankTile<R> const& tile) const {
    if constexpr (std::same_as<X, R>)
      if (copy_.data == nullptr) return x_;
    for (index_t m = 0; m < tile.row_count; ++m) pad_row(x_.row(tile.rows[m]), x_.cols, copy_.row(tile.rows[m]));
    return copy_;
  }
  MatrixView<X const> x_;
  MatrixView<R> copy_, t_;
};

/// The most a DeltaScratch takes.
template <class R>
std::size_t delta_scratch_bytes(index_t rows, index_t inputs, index_t max_rank) {
  return Arena::bytes_of<R>(rows * max_rank) + Arena::bytes_of<R>(rows * padded<R>(inputs));
}

}  // namespace cpu

/// Adds each batch row's low-rank deltas in place. x [n, i], y [n, o]; elements may be f64, f32, bf16 or f16.
template <class Act, class X, class Y>
void apply_low_rank(CpuBackend<Act>& be, LowRankBatch<typename CpuBackend<Act>::Real> const& deltas,
                    MatrixView<X const> x, MatrixView<Y> y) noexcept {
  ArenaScope scope(be.arena());
  cpu::DeltaScratch<X, typename CpuBackend<Act>::Real> const scratch(be.arena(), x, deltas.max_rank);
  be.executor().run(deltas.tile_count, [&](index_t k) { scratch.add(deltas.tiles[k], deltas.site, y); });
}

/// The same on an embedding, where x is a one-hot token: y[n] += sum_k w_k s_k B_k A_k[:, token[n]].
template <class Act>
void apply_low_rank_embedding(CpuBackend<Act>& be, LowRankBatch<Act> const& deltas, std::int32_t const* tokens,
                              index_t vocabulary, MatrixView<Act> y) noexcept {
  ArenaScope scope(be.arena());
  auto const t = be.arena().template matrix<Act>(y.rows, deltas.max_rank);
  be.executor().run(deltas.tile_count, [&](index_t k) {
    auto const& tile = deltas.tiles[k];
    for (index_t m = 0; m < tile.row_count; ++m) {
      index_t const n = tile.rows[m];
      index_t offset = 0;
      for (index_t term = 0; term < tile.term_count; ++term) {
        auto const& f = tile.terms[term].table[deltas.site];
        Act const scale = tile.terms[term].weight * f.scale;
        for (index_t r = 0; r < f.rank; ++r) t(n, offset + r) = scale * f.a[r * vocabulary + tokens[n]];
        offset += f.rank;
      }
    }
    cpu::expand<Act, Act>(tile, deltas.site, y.cols, t, 0, y.cols, y);
  });
}

}  // namespace graft
