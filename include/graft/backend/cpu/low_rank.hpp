// SPDX-License-Identifier: Apache-2.0
// Low-rank deltas on the CPU: shrink t = w s x A^T per tile of rows, expand y += t B^T along the outputs.
#pragma once

#include <graft/backend/cpu/product.hpp>
#include <graft/backend/low_rank.hpp>

namespace graft {
namespace cpu {

/// What the deltas of a batch need in the arena before its tiles run. Rows are padded by the task that reads them.
template <class X, class R>
class DeltaScratch {
 public:
  DeltaScratch(CpuBackend<R>& be, MatrixView<X const> x, index_t max_rank)
      : kernels_(be.adapter_kernels()), x_(x), t_(be.arena().template matrix<R>(x.rows, max_rank)) {
    if (!is_padded<X, R>(x)) copy_ = be.arena().template matrix<R>(x.rows, padded<R>(x.cols));
  }

  /// y += deltas for the tile's rows.
  template <class Y>
  void add(LowRankTile<R> const& tile, index_t site, MatrixView<Y> y) const {
    kernels_.shrink(tile, site, x_.cols, rows_of(tile), 0, 1, {}, t_);
    if constexpr (std::same_as<Y, R>)
      kernels_.expand(tile, site, y.cols, t_, 0, y.cols, y);
    else
      expand<Y, R>(tile, site, y.cols, t_, 0, y.cols, y);
  }

 private:
  MatrixView<R const> rows_of(LowRankTile<R> const& tile) const {
    if constexpr (std::same_as<X, R>)
      if (copy_.data == nullptr) return x_;
    for (index_t m = 0; m < tile.row_count; ++m) pad_row(x_.row(tile.rows[m]), x_.cols, copy_.row(tile.rows[m]));
    return copy_;
  }
  AdapterKernels<R> const& kernels_;
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
  cpu::DeltaScratch<X, typename CpuBackend<Act>::Real> const scratch(be, x, deltas.max_rank);
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
    be.adapter_kernels().expand(tile, deltas.site, y.cols, t, 0, y.cols, y);
  });
}

}  // namespace graft
