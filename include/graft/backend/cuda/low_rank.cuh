// SPDX-License-Identifier: Apache-2.0
// Low-rank deltas on the device: shrink t = w s x A^T per tile of rows that share their adapters. Ranks of a tile's
// terms stand side by side without padding; A is read once per tile. The way back to the outputs is in
// maps_and_deltas.cuh.
#pragma once

#include <graft/backend/cuda/columns.cuh>
#include <graft/backend/cuda/cuda_backend.cuh>
#include <graft/backend/low_rank.hpp>

namespace graft::cuda {

inline constexpr int tile_rows = static_cast<int>(LowRankTile<float>::max_rows);
inline constexpr int shrink_threads = 256, shrink_ranks = 4;
inline constexpr int shrink_blocks = 2;  ///< of a multiprocessor at a time: 128 registers for a thread

/// The sum of the ranks of a tile's terms.
__device__ inline index_t rank_of(LowRankTile<float> const& tile, index_t site) {
  index_t sum = 0;
  for (index_t k = 0; k < tile.term_count; ++k) sum += tile.terms[k].table[site].rank;
  return sum;
}

/// Row `rank` of a tile's stacked factors: its row of A, and w s.
struct FactorRow {
  Numbers<float> a;
  float scale;
};
__device__ inline FactorRow factor_row(LowRankTile<float> const& tile, index_t site, index_t rank, index_t inputs) {
  for (index_t k = 0;; ++k) {
    auto const f = tile.terms[k].table[site];
    if (rank < f.rank) return {f.a + rank * inputs, tile.terms[k].weight * f.scale};
    rank -= f.rank;
  }
}

/// sum[m][p] += x[rows[m]] . a[p] over the thread's columns, for `Rows` rows of the tile; S is what the factors are
/// stored in. Rows that are not there are the first again, so that no branch keeps loads from being under way together.
template <class S, int Rows, bool whole, class X>
__device__ void add_products(FactorRow const (&factor)[shrink_ranks], LowRankTile<float> const& tile,
                             MatrixView<X const, DeviceSpace> x, float (&sum)[tile_rows][shrink_ranks]) {
  constexpr int N = 16 / static_cast<int>(sizeof(S));  // a row of A in whole loads
  constexpr int at_once = Rows < 4 ? Rows : 4;         // rows, for which there are registers
  X const* row[Rows];
#pragma unroll
  for (int m = 0; m < Rows; ++m) row[m] = x.row(tile.rows[m < tile.row_count ? m : 0]);
  for (index_t k = N * threadIdx.x; k < x.cols; k += N * shrink_threads) {
    float a[shrink_ranks][N], v[at_once][N];
#pragma unroll
    for (int p = 0; p < shrink_ranks; ++p) load_columns<whole>(factor[p].a.template as<S>(), k, x.cols, a[p]);
#pragma unroll
    for (int first = 0; first < Rows; first += at_once) {
#pragma unroll
      for (int m = 0; m < at_once; ++m) load_columns<whole>(row[first + m], k, x.cols, v[m]);
#pragma unroll
      for (int m = 0; m < at_once; ++m)
#pragma unroll
        for (int p = 0; p < shrink_ranks; ++p)
#pragma unroll
          for (int j = 0; j < N; ++j) sum[first + m][p] += v[m][j] * a[p][j];
    }
  }
}
template <class S, class X>
__device__ void add_products(FactorRow const (&factor)[shrink_ranks], LowRankTile<float> const& tile,
                             MatrixView<X const, DeviceSpace> x, float (&sum)[tile_rows][shrink_ranks]) {
  bool whole = x.cols % (16 / static_cast<int>(sizeof(S))) == 0 && aligned16(x);
#pragma unroll
  for (int p = 0; p < shrink_ranks; ++p) whole = whole && aligned16(factor[p].a);
  if (!whole)
    add_products<S, tile_rows, false>(factor, tile, x, sum);
  else if (tile.row_count == 1)  // as in decode steps whose requests have different modules
    add_products<S, 1, true>(factor, tile, x, sum);
  else
    add_products<S, tile_rows, true>(factor, tile, x, sum);
}

/// put(m, p, w s x[rows[m]] . a[p]) for the tile's rows and the first `used` factors, by all threads of a block. Every
/// thread sums its columns, the block adds them in a fixed order.
template <class X, class Put>
__device__ void multiply_tile(FactorRow const (&factor)[shrink_ranks], int used, LowRankTile<float> const& tile,
                              MatrixView<X const, DeviceSpace> x, Put const& put) {
  constexpr int warps = shrink_threads / 32;
  int const rows = static_cast<int>(tile.row_count);
  float sum[tile_rows][shrink_ranks] = {};
  if (factor[0].a.narrow())  // as all of a bank are
    add_products<bf16>(factor, tile, x, sum);
  else
    add_products<float>(factor, tile, x, sum);
  __shared__ float parts[warps][tile_rows * shrink_ranks];
  int const warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int m = 0; m < tile_rows; ++m)
#pragma unroll
    for (int p = 0; p < shrink_ranks; ++p) {
      if (m >= rows) break;
      float const whole_warp = warp_sum(sum[m][p]);
      if (lane == 0) parts[warp][m * shrink_ranks + p] = whole_warp;
    }
  __syncthreads();
  int const m = static_cast<int>(threadIdx.x) / shrink_ranks, p = static_cast<int>(threadIdx.x) % shrink_ranks;
  if (m >= rows || p >= used) return;
  float total = 0;
  for (int w = 0; w < warps; ++w) total += parts[w][m * shrink_ranks + p];
  // the constant index of a register array
  float scale = factor[0].scale;
#pragma unroll
  for (int k = 1; k < shrink_ranks; ++k) scale = p == k ? factor[k].scale : scale;
  put(m, p, total * scale);
}

/// Up to N sites of a batch that read one x, each with its deltas and its t [n, ranks].
template <int N>
struct ShrunkSites {
  struct Site {
    LowRankBatch<float> deltas;
    MatrixView<float, DeviceSpace> t{};
  };
  Site site[N];
};

/// t[n, r] for the rows of tile blockIdx.x, ranks [4 blockIdx.y, + 4) and site blockIdx.z.
template <int N, class X>
__global__ void __launch_bounds__(shrink_threads, shrink_blocks)
    shrink(__grid_constant__ ShrunkSites<N> const sites, MatrixView<X const, DeviceSpace> x) {
  auto const& own = sites.site[N == 1 ? 0 : blockIdx.z];
  auto const& deltas = own.deltas;
  auto const& t = own.t;
  auto const tile = deltas.tiles[blockIdx.x];
  index_t const first_rank = index_t{blockIdx.y} * shrink_ranks, ranks = rank_of(tile, deltas.site);
  if (tile.row_count == 0 || first_rank >= ranks) return;
  int const used = static_cast<int>(ranks - first_rank < shrink_ranks ? ranks - first_rank : shrink_ranks);
  FactorRow factor[shrink_ranks];
#pragma unroll
  for (int p = 0; p < shrink_ranks; ++p)
    factor[p] = factor_row(tile, deltas.site, first_rank + (p < used ? p : 0), x.cols);
  multiply_tile(factor, used, tile, x, [&](int m, int p, float value) { t(tile.rows[m], first_rank + p) = value; });
}

/// The same where x is a one-hot token: t[n, r] = w s A[r, token[n]].
template <class Token>
__global__ void shrink_tokens(LowRankBatch<float> deltas, Token const* tokens, index_t vocabulary,
                              MatrixView<float, DeviceSpace> t) {
  auto const tile = deltas.tiles[blockIdx.x];
  index_t const ranks = rank_of(tile, deltas.site);
  for (index_t k = threadIdx.x; k < tile.row_count * ranks; k += blockDim.x) {
    index_t const n = tile.rows[k / ranks], r = k % ranks;
    auto const factor = factor_row(tile, deltas.site, r, vocabulary);
    t(n, r) = factor.scale * factor.a[tokens[n]];
  }
}

/// Room for t of every row of x, in the caller's scope of the arena.
template <class Act>
MatrixView<float, DeviceSpace> shrunk_rows(CudaBackend<Act>& be, LowRankBatch<float> const& deltas, index_t rows) {
  return be.arena().template matrix<float>(rows, deltas.max_rank);
}

/// t of every row with deltas at the first `count` sites. x [n, i]
template <int N, class X>
void shrink_rows(cudaStream_t stream, ShrunkSites<N> const& sites, index_t count, MatrixView<X const, DeviceSpace> x) {
  auto const& any = sites.site[0].deltas;  // tiles and ranks are the batch's, whatever the site
  auto const grid = grid_of(any.tile_count, ceil_div(any.max_rank, shrink_ranks), count);
  launch(shrink<N, X>, grid, shrink_threads, 0, stream, sites, x);
}
template <class X>
void shrink_rows(cudaStream_t stream, LowRankBatch<float> const& deltas, MatrixView<X const, DeviceSpace> x,
                 MatrixView<float, DeviceSpace> t) {
  shrink_rows(stream, ShrunkSites<1>{{{deltas, t}}}, 1, x);
}

}  // namespace graft::cuda
