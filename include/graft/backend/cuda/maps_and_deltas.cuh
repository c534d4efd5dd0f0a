// SPDX-License-Identifier: Apache-2.0
// Both mechanisms behind a linear layer in one pass over its outputs: y = outer(inner(y) + t B^T).
#pragma once

#include <graft/backend/cuda/low_rank.cuh>
#include <graft/backend/cuda/row_map.cuh>

#include <algorithm>

namespace graft {
namespace cuda {

/// A block owns a tile of rows and a chunk of columns, a thread 4 neighbouring columns of every row.
inline constexpr int delta_threads = 128, delta_columns = 4, delta_chunk = delta_threads * delta_columns;
inline constexpr int delta_ranks = 32;  ///< of t in shared memory at a time

/// Which maps a block's rows have; in shared memory, the same for all threads.
struct TileMaps {
  RowMapRow<float const> const* map[2][tile_rows];  ///< inner, outer; null: none
  bool divided[tile_rows];                          ///< whether chunks of the row can be mapped apart
  bool pairs[2];                                    ///< whether any of the divided rows' maps pairs elements
};

__device__ inline void find_maps(RowMapBatch<float> const& inner, RowMapBatch<float> const& outer,
                                 LowRankTile<float> const& tile, TileMaps& maps) {
  int const m = static_cast<int>(threadIdx.x);
  if (m < tile_rows) {
    bool const there = m < tile.row_count;
    auto const* const in = there && inner.request != nullptr ? inner.row(tile.rows[m]) : nullptr;
    auto const* const out = there && outer.request != nullptr ? outer.row(tile.rows[m]) : nullptr;
    maps.map[0][m] = in, maps.map[1][m] = out;
    maps.divided[m] = (in == nullptr || splits(*in, delta_chunk)) && (out == nullptr || splits(*out, delta_chunk));
  }
  __syncthreads();
  if (m < 2) {
    maps.pairs[m] = false;
    for (int k = 0; k < tile_rows; ++k)
      if (auto const* const map = maps.map[m][k]; map != nullptr && maps.divided[k] && map->d != nullptr)
        maps.pairs[m] = true;
  }
  __syncthreads();
}

/// Applies stage 0 or 1 to the columns in registers; partners meet in shared memory. `column` is the thread's first,
/// `first` the block's.
__device__ inline void map_tile(TileMaps const& maps, int stage, index_t first, index_t column, index_t cols,
                                float (&v)[tile_rows][delta_columns], float (&shared)[tile_rows][delta_chunk]) {
  if (maps.pairs[stage]) {
    __syncthreads();  // the other stage has read
#pragma unroll
    for (int m = 0; m < tile_rows; ++m)
#pragma unroll
      for (int j = 0; j < delta_columns; ++j) shared[m][column - first + j] = v[m][j];
    __syncthreads();
  }
  if (column >= cols) return;
#pragma unroll
  for (int m = 0; m < tile_rows; ++m) {
    auto const* const map = maps.map[stage][m];
    if (map == nullptr || !maps.divided[m]) continue;
    bool const whole = aligned16(map->c1, map->d, map->e);
    float c1[delta_columns], d[delta_columns], e[delta_columns];
    load_present(map->c1, column, cols, whole, c1);
    load_present(map->d, column, cols, whole, d);
    load_present(map->e, column, cols, whole, e);
    auto const group = static_cast<unsigned>(map->group);
#pragma unroll
    for (int j = 0; j < delta_columns; ++j) {
      float other = 0;
      if (group != 0 && column + j < cols) {
        auto const at = static_cast<unsigned>(column - first) + static_cast<unsigned>(j), within = at % group;
        other = shared[m][within < group / 2 ? at + group / 2 : at - group / 2];
      }
      v[m][j] = map_float(v[m][j], other, c1[j], d[j], e[j]);
    }
  }
}

/// v += t b for four columns of `count` rows of b, whose type S is what it is stored in.
template <bool whole, class S>
__device__ inline void expand_ranks(S const* b, int count, index_t column, index_t cols,
                                    float const (&piece)[delta_ranks][tile_rows],
                                    float (&v)[tile_rows][delta_columns]) {
#pragma unroll(16 / sizeof(S))  // as many bytes on their way from narrow rows as from others
  for (int r = 0; r < count; ++r) {
    float some[delta_columns], scaled[tile_rows];
    load_columns<whole>(b + r * cols, column, cols, some);
    load(piece[r], scaled);
#pragma unroll
    for (int m = 0; m < tile_rows; ++m)
#pragma unroll
      for (int j = 0; j < delta_columns; ++j) v[m][j] += scaled[m] * some[j];
  }
}

template <class S>
__device__ inline void expand_ranks(S const* b, int count, index_t column, index_t cols, bool whole,
                                    float const (&piece)[delta_ranks][tile_rows],
                                    float (&v)[tile_rows][delta_columns]) {
  if (whole)
    expand_ranks<true>(b, count, column, cols, piece, v);
  else
    expand_ranks<false>(b, count, column, cols, piece, v);
}

/// v += t B^T for the block's columns.
__device__ inline void expand_tile(LowRankTile<float> const& tile, index_t site, MatrixView<float const, DeviceSpace> t,
                                   index_t column, index_t cols, float (&v)[tile_rows][delta_columns],
                                   float (&piece)[delta_ranks][tile_rows]) {
  index_t offset = 0;
  for (index_t k = 0; k < tile.term_count; ++k) {
    auto const f = tile.terms[k].table[site];
    bool const whole = cols % delta_columns == 0 && aligned16(f.b_transposed);
    for (index_t first = 0; first < f.rank; first += delta_ranks) {
      int const count = static_cast<int>(f.rank - first < delta_ranks ? f.rank - first : delta_ranks);
      __syncthreads();  // the piece before has been read
      for (int k2 = static_cast<int>(threadIdx.x); k2 < count * tile_rows; k2 += delta_threads) {
        int const m = k2 / count, r = k2 % count;
        piece[r][m] = m < tile.row_count ? t(tile.rows[m], offset + first + r) : 0.f;
      }
      __syncthreads();
      if (column >= cols) continue;
      auto const b = f.b_transposed + first * cols;
      if (b.narrow())
        expand_ranks(b.as<bf16>(), count, column, cols, whole, piece, v);
      else
        expand_ranks(b.as<float>(), count, column, cols, whole, piece, v);
    }
    offset += f.rank;
  }
}

/// A row whose maps reach over chunks, by one block, step by step in memory. A 16-bit row is rounded after every step.
template <class Y>
__device__ void whole_row(TileMaps const& maps, LowRankTile<float> const& tile, int m, index_t site, index_t ranks,
                          MatrixView<float const, DeviceSpace> t, MatrixView<Y, DeviceSpace> y) {
  index_t const n = tile.rows[m];
  Y* const row = y.row(n);
  if (maps.map[0][m] != nullptr) map_row(*maps.map[0][m], row, 0, y.cols);
  if (ranks != 0) {
    for (index_t j = threadIdx.x; j < y.cols; j += delta_threads) {
      float sum = to_real(row[j]);
      index_t offset = 0;
      for (index_t k = 0; k < tile.term_count; ++k) {
        auto const f = tile.terms[k].table[site];
        for (index_t r = 0; r < f.rank; ++r) sum += t(n, offset + r) * f.b_transposed[r * y.cols + j];
        offset += f.rank;
      }
      row[j] = from_real<Y>(sum);
    }
    __syncthreads();
  }
  if (maps.map[1][m] != nullptr) map_row(*maps.map[1][m], row, 0, y.cols);
}

/// y = outer(inner(y) + t B^T) of up to N products of a batch; with t empty, no deltas.
template <int N, class Y>
struct UnfinishedProducts {
  struct Product {
    RowMapBatch<float> inner;
    LowRankBatch<float> deltas;
    RowMapBatch<float> outer;
    MatrixView<float const, DeviceSpace> t{};
    MatrixView<Y, DeviceSpace> y{};
  };
  Product product[N];
};

/// Tile blockIdx.x and chunk blockIdx.y of product blockIdx.z. Rows without any adapter are not touched.
template <int N, class Y>
__global__ void maps_and_deltas(__grid_constant__ UnfinishedProducts<N, Y> const products) {
  auto const& product = products.product[N == 1 ? 0 : blockIdx.z];
  auto const& inner = product.inner;
  auto const& deltas = product.deltas;
  auto const& outer = product.outer;
  auto const& t = product.t;
  auto const& y = product.y;
  if (index_t{blockIdx.y} * delta_chunk >= y.cols) return;  // others are wider
  __shared__ TileMaps maps;
  alignas(16) __shared__ float shared[tile_rows][delta_chunk];
  alignas(16) __shared__ float piece[delta_ranks][tile_rows];
  auto const tile = deltas.tiles[blockIdx.x];
  if (tile.row_count == 0) return;
  index_t const ranks = t.data != nullptr ? rank_of(tile, deltas.site) : 0;
  find_maps(inner, outer, tile, maps);
  index_t const first = index_t{blockIdx.y} * delta_chunk, column = first + delta_columns * threadIdx.x;
  bool const whole = y.cols % delta_columns == 0 && aligned16(y);
  bool touched[tile_rows], any = false;
  float v[tile_rows][delta_columns];
#pragma unroll
  for (int m = 0; m < tile_rows; ++m) {
    touched[m] =
        m < tile.row_count && maps.divided[m] && (ranks != 0 || maps.map[0][m] != nullptr || maps.map[1][m] != nullptr);
    any = any || touched[m];
    if (touched[m] && column < y.cols)
      load_columns(y.row(tile.rows[m]), column, y.cols, whole, v[m]);
    else
#pragma unroll
      for (int j = 0; j < delta_columns; ++j) v[m][j] = 0;
  }
  if (any) {
    map_tile(maps, 0, first, column, y.cols, v, shared);
    if (ranks != 0) expand_tile(tile, deltas.site, t, column, y.cols, v, piece);
    map_tile(maps, 1, first, column, y.cols, v, shared);
#pragma unroll
    for (int m = 0; m < tile_rows; ++m)
      if (touched[m] && column < y.cols) store_columns(v[m], column, y.cols, whole, y.row(tile.rows[m]));
  }
  if (blockIdx.y != 0) return;
  for (int m = 0; m < tile.row_count; ++m)
    if (!maps.divided[m]) whole_row(maps, tile, m, deltas.site, ranks, t, y);
}

/// The first `count` of them.
template <class Act, int N, class Y>
void launch_maps_and_deltas(CudaBackend<Act>& be, UnfinishedProducts<N, Y> const& products, index_t count = N) {
  index_t widest = 0;
  for (index_t k = 0; k < count; ++k) widest = std::max(widest, products.product[k].y.cols);
  auto const grid = grid_of(products.product[0].deltas.tile_count, ceil_div(widest, delta_chunk), count);
  launch(maps_and_deltas<N, Y>, grid, delta_threads, 0, be.stream(), products);
}
template <class Act, class Y>
void launch_maps_and_deltas(CudaBackend<Act>& be, RowMapBatch<float> const& inner, LowRankBatch<float> const& deltas,
                            RowMapBatch<float> const& outer, MatrixView<float, DeviceSpace> t,
                            MatrixView<Y, DeviceSpace> y) {
  launch_maps_and_deltas(be, UnfinishedProducts<1, Y>{{{inner, deltas, outer, t, y}}});
}

}  // namespace cuda

/// Bytes of the arena that `apply_maps_and_deltas` takes at most for x [rows, inputs], whatever its type and alignment.
template <class Act>
std::size_t maps_and_deltas_workspace(CudaBackend<Act> const&, index_t rows, index_t, index_t max_rank) {
  return BasicArena<DeviceSpace>::template bytes_of<float>(rows * max_rank);
}

/// y = outer(inner(y) + deltas(x)) in place, for every batch row with adapters. x [n, i], y [n, o]; elements may be
/// f32, bf16 or f16, arithmetic is f32 and y is rounded once, unless a map pairs elements over chunks of 512 columns or
/// has a successor.
template <class Act, class X, class Y>
void apply_maps_and_deltas(CudaBackend<Act>& be, RowMapBatch<float> const& inner, LowRankBatch<float> const& deltas,
                           RowMapBatch<float> const& outer, MatrixView<X const, DeviceSpace> x,
                           MatrixView<Y, DeviceSpace> y) noexcept {
  bool const any_inner = inner.any(), any_delta = deltas.any(), any_outer = outer.any();
  if (!any_inner && !any_delta && !any_outer) return;
  auto const scope = be.scope();
  MatrixView<float, DeviceSpace> t{};
  if (any_delta) cuda::shrink_rows(be.stream(), deltas, x, t = cuda::shrunk_rows(be, deltas, x.rows));
  cuda::launch_maps_and_deltas(be, cuda::present_maps(inner), deltas, cuda::present_maps(outer), t, y);
}

/// Adds each batch row's low-rank deltas in place. x [n, i], y [n, o]; elements may be f32, bf16 or f16.
template <class Act, class X, class Y>
void apply_low_rank(CudaBackend<Act>& be, LowRankBatch<float> const& deltas, MatrixView<X const, DeviceSpace> x,
                    MatrixView<Y, DeviceSpace> y) noexcept {
  if (!deltas.any()) return;
  auto const scope = be.scope();
  auto const t = cuda::shrunk_rows(be, deltas, x.rows);
  cuda::shrink_rows(be.stream(), deltas, x, t);
  cuda::launch_maps_and_deltas(be, {}, deltas, {}, t, y);
}

/// The same on an embedding, where x is a one-hot token: y[n] += sum_k w_k s_k B_k A_k[:, token[n]]. tokens [n] are in
/// device memory.
template <class Act>
void apply_low_rank_embedding(CudaBackend<Act>& be, LowRankBatch<float> const& deltas, std::int32_t const* tokens,
                              index_t vocabulary, MatrixView<Act, DeviceSpace> y) noexcept {
  if (!deltas.any()) return;
  auto const scope = be.scope();
  auto const t = cuda::shrunk_rows(be, deltas, y.rows);
  cuda::launch(cuda::shrink_tokens<std::int32_t>, cuda::grid_of(deltas.tile_count), 256, 0, be.stream(), deltas, tokens,
               vocabulary, t);
  cuda::launch_maps_and_deltas(be, {}, deltas, {}, t, y);
}

}  // namespace graft
