// SPDX-License-Identifier: Apache-2.0
// Gradients of one low-rank delta on the device. Every sum is one thread's or one block's, in a fixed order.
#pragma once

#include <graft/backend/cuda/elementwise_backward.cuh>
#include <graft/backend/cuda/low_rank.cuh>

#include <algorithm>
#include <span>

namespace graft {
namespace cuda {

/// out[k, r] = scale x[rows[k]] . w[r] for 8 of the listed rows, from 8 blockIdx.x on, and ranks [4 blockIdx.y, + 4).
/// w [r, size]
template <class X>
__global__ void __launch_bounds__(shrink_threads, shrink_blocks)
    listed_dots(MatrixView<X const, DeviceSpace> x, std::int32_t const* rows, float const* w, float scale,
                MatrixView<float, DeviceSpace> out) {
  index_t const first_row = index_t{blockIdx.x} * tile_rows, first_rank = index_t{blockIdx.y} * shrink_ranks;
  index_t const left = out.rows - first_row, ranks = out.cols - first_rank;
  LowRankTile<float> const tile{nullptr, 0, rows + first_row, left < tile_rows ? left : tile_rows};
  int const used = static_cast<int>(ranks < shrink_ranks ? ranks : shrink_ranks);
  FactorRow factor[shrink_ranks];
#pragma unroll
  for (int p = 0; p < shrink_ranks; ++p) factor[p] = {w + (first_rank + (p < used ? p : 0)) * x.cols, scale};
  multiply_tile(factor, used, tile, x, [&](int m, int p, float value) { out(first_row + m, first_rank + p) = value; });
}

inline constexpr int outer_threads = 128;
inline constexpr int outer_ranks = 16, outer_rows = 32;  ///< of the left factor in shared memory at a time
/// Listed rows whose sum a block makes alone, and the most sums that wait for each other.
inline constexpr index_t outer_piece = 64, outer_pieces = 32;

/// parts[piece, r, c] = sum_k left[k, r] right[rows[k], c] over the listed rows of piece blockIdx.z, in their order: a
/// thread has a column of ranks [16 blockIdx.y, + 16).
template <class T>
__global__ void __launch_bounds__(outer_threads)
    listed_outer_products(MatrixView<float const, DeviceSpace> left, std::int32_t const* rows,
                          MatrixView<T const, DeviceSpace> right, index_t piece, MatrixView<float, DeviceSpace> parts) {
  alignas(16) __shared__ float factors[outer_rows][outer_ranks];
  __shared__ std::int32_t listed[outer_rows];
  int const thread = static_cast<int>(threadIdx.x);
  index_t const c = index_t{blockIdx.x} * outer_threads + thread, first = index_t{blockIdx.y} * outer_ranks;
  index_t const begin = blockIdx.z * piece, end = begin + piece < left.rows ? begin + piece : left.rows;
  float sum[outer_ranks] = {};
  for (index_t start = begin; start < end; start += outer_rows) {
    int const count = static_cast<int>(end - start < outer_rows ? end - start : outer_rows);
    __syncthreads();  // those before have been used
    for (int k = thread; k < count * outer_ranks; k += outer_threads) {
      int const n = k / outer_ranks, r = k % outer_ranks;
      factors[n][r] = first + r < left.cols ? left(start + n, first + r) : 0.f;
    }
    if (thread < count) listed[thread] = rows[start + thread];
    __syncthreads();
    if (c >= right.cols) continue;
#pragma unroll 8
    for (int n = 0; n < count; ++n) {
      float const v = to_real(right(listed[n], c));
      float factor[outer_ranks];
      load(factors[n], factor);
#pragma unroll
      for (int r = 0; r < outer_ranks; ++r) sum[r] += factor[r] * v;
    }
  }
  if (c >= right.cols) return;
#pragma unroll
  for (int r = 0; r < outer_ranks; ++r)
    if (first + r < left.cols) parts(blockIdx.z, (first + r) * right.cols + c) = sum[r];
}

/// dx[rows[k]] += g[k] A for 8 of the listed rows, from 8 blockIdx.x on; a thread has a column.
template <class D>
__global__ void listed_expand(MatrixView<float const, DeviceSpace> g, std::int32_t const* rows, float const* a,
                              MatrixView<D, DeviceSpace> dx) {
  index_t const c = index_t{blockIdx.y} * blockDim.x + threadIdx.x, first = index_t{blockIdx.x} * tile_rows;
  if (c >= dx.cols) return;
  int const count = static_cast<int>(g.rows - first < tile_rows ? g.rows - first : tile_rows);
  float sum[tile_rows] = {};
  for (index_t r = 0; r < g.cols; ++r) {
    float const v = a[r * dx.cols + c];
#pragma unroll
    for (int m = 0; m < tile_rows; ++m) sum[m] += g(first + (m < count ? m : 0), r) * v;
  }
#pragma unroll
  for (int m = 0; m < tile_rows; ++m) {
    if (m >= count) break;
    D& to = dx(rows[first + m], c);
    to = from_real<D>(to_real(to) + sum[m]);
  }
}

/// t[k, r] = scale A[r, tokens[rows[k]]]
template <class Token>
__global__ void listed_columns(float const* a, std::int32_t const* rows, Token const* tokens, index_t vocabulary,
                               float scale, MatrixView<float, DeviceSpace> t) {
  index_t const at = index_t{blockIdx.x} * blockDim.x + threadIdx.x, k = at / t.cols, r = at % t.cols;
  if (k < t.rows) t(k, r) = scale * a[r * vocabulary + tokens[rows[k]]];
}

/// da[r, token] += the g of all rows with the token, in their order: the thread of the first such row does it.
template <class Token>
__global__ void add_columns(MatrixView<float const, DeviceSpace> g, std::int32_t const* rows, Token const* tokens,
                            index_t vocabulary, float* da) {
  index_t const at = index_t{blockIdx.x} * blockDim.x + threadIdx.x, k = at / g.cols, r = at % g.cols;
  if (k >= g.rows) return;
  Token const token = tokens[rows[k]];
  for (index_t before = 0; before < k; ++before)
    if (tokens[rows[before]] == token) return;
  float sum = 0;
  for (index_t other = k; other < g.rows; ++other)
    if (tokens[rows[other]] == token) sum += g(other, r);
  da[r * vocabulary + token] += sum;
}

template <class Act, class X>
MatrixView<float const, DeviceSpace> dots_of(CudaBackend<Act>& be, MatrixView<X const, DeviceSpace> x,
                                             std::span<std::int32_t const> rows, float const* w, index_t rank,
                                             float scale) {
  auto const out = be.arena().template matrix<float>(static_cast<index_t>(rows.size()), rank);
  launch(listed_dots<X>, grid_of(ceil_div(out.rows, tile_rows), ceil_div(rank, shrink_ranks)), shrink_threads, 0,
         be.stream(), x, rows.data(), w, scale, out);
  return out;
}
/// out[r, c] += sum_k left[k, r] right[rows[k], c]
template <class Act, class T>
void add_outer_products(CudaBackend<Act>& be, MatrixView<float const, DeviceSpace> left, std::int32_t const* rows,
                        MatrixView<T const, DeviceSpace> right, float* out) {
  auto const scope = be.scope();
  index_t const piece = std::max(outer_piece, ceil_div(left.rows, outer_pieces)), pieces = ceil_div(left.rows, piece);
  SumsOverRows<1> const sum(be, pieces, {out}, left.cols * right.cols);
  auto const grid = grid_of(ceil_div(right.cols, outer_threads), ceil_div(left.cols, outer_ranks), pieces);
  launch(listed_outer_products<T>, grid, outer_threads, 0, be.stream(), left, rows, right, piece, sum.parts(0));
  sum.add();
}

}  // namespace cuda

/// The backward of y[n] += w s (x[n] A^T) B^T for the listed rows n, with g[n] = w s dy[n] B  [r]:
///     dx[n] += g[n] A          dA += sum_n g[n]^T x[n]          dB^T += sum_n (w s x[n] A^T)^T dy[n]
/// x [n, i], dy [n, o]; dx [n, i] or empty; da [r, i] and db_transposed [r, o] or null. `rows` names device memory,
/// each row once. Elements of x, dy and dx may be f32, bf16 or f16.
template <class Act, class X, class G, class D>
void low_rank_backward(CudaBackend<Act>& be, LowRankFactors<float> const& f, float weight,
                       std::span<std::int32_t const> rows, MatrixView<X const, DeviceSpace> x,
                       MatrixView<G const, DeviceSpace> dy, MatrixView<D, DeviceSpace> dx, float* da,
                       float* db_transposed) noexcept {
  if (f.rank == 0 || rows.empty()) return;
  auto const scope = be.scope();
  float const scale = weight * f.scale;
  auto const count = static_cast<index_t>(rows.size());
  if (da != nullptr || !dx.empty()) {
    auto const g = cuda::dots_of(be, dy, rows, f.b_transposed.full(), f.rank, scale);
    if (da != nullptr) cuda::add_outer_products(be, g, rows.data(), x, da);
    if (!dx.empty())
      cuda::launch(cuda::listed_expand<D>, cuda::grid_of(ceil_div(count, cuda::tile_rows), ceil_div(dx.cols, 128)), 128,
                   0, be.stream(), g, rows.data(), f.a.full(), dx);
  }
  if (db_transposed == nullptr) return;
  auto const t = cuda::dots_of(be, x, rows, f.a.full(), f.rank, scale);
  cuda::add_outer_products(be, t, rows.data(), dy, db_transposed);
}

/// The same on an embedding, where x[n] is the one-hot tokens[n]: y[n] += w s B A[:, tokens[n]].  A [r, vocabulary];
/// tokens in device memory.
template <class Act, class G>
void low_rank_embedding_backward(CudaBackend<Act>& be, LowRankFactors<float> const& f, float weight,
                                 std::span<std::int32_t const> rows, std::int32_t const* tokens, index_t vocabulary,
                                 MatrixView<G const, DeviceSpace> dy, float* da, float* db_transposed) noexcept {
  if (f.rank == 0 || rows.empty()) return;
  auto const scope = be.scope();
  float const scale = weight * f.scale;
  auto const count = static_cast<index_t>(rows.size());
  auto const grid = cuda::grid_of(ceil_div(count * f.rank, 128));
  if (da != nullptr) {
    auto const g = cuda::dots_of(be, dy, rows, f.b_transposed.full(), f.rank, scale);
    cuda::launch(cuda::add_columns<std::int32_t>, grid, 128, 0, be.stream(), g, rows.data(), tokens, vocabulary, da);
  }
  if (db_transposed == nullptr) return;
  auto const t = be.arena().template matrix<float>(count, f.rank);
  cuda::launch(cuda::listed_columns<std::int32_t>, grid, 128, 0, be.stream(), f.a.full(), rows.data(), tokens,
               vocabulary, scale, t);
  cuda::add_outer_products(be, MatrixView<float const, DeviceSpace>(t), rows.data(), dy, db_transposed);
}

}  // namespace graft
