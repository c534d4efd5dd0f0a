// SPDX-License-Identifier: Apache-2.0
// Gradients of one low-rank delta on the device. Every sum is one thread's or one block's, in a fixed order.
#pragma once

#include <graft/backend/cuda/columns.cuh>
#include <graft/backend/cuda/cuda_backend.cuh>
#include <graft/backend/low_rank.hpp>

#include <algorithm>
#include <span>

namespace graft {
namespace cuda {

inline constexpr int factor_ranks = 4;  ///< rows of a factor that share what a thread or a block reads

/// out[k, r] = scale x[rows[k]] . w[r] for ranks [4 blockIdx.y, + 4) of listed row k = blockIdx.x. w [r, size]
template <class X>
__global__ void listed_dots(MatrixView<X const, DeviceSpace> x, std::int32_t const* rows, float const* w, float scale,
                            MatrixView<float, DeviceSpace> out) {
  index_t const first = index_t{blockIdx.y} * factor_ranks;
  X const* const from = x.row(rows[blockIdx.x]);
  float sum[factor_ranks] = {};
  for (index_t c = threadIdx.x; c < x.cols; c += blockDim.x) {
    float const v = to_real(from[c]);
#pragma unroll
    for (int p = 0; p < factor_ranks; ++p)
      if (first + p < out.cols) sum[p] += v * w[(first + p) * x.cols + c];
  }
#pragma unroll
  for (int p = 0; p < factor_ranks; ++p) {
    float const total = block_sum(sum[p]);
    if (threadIdx.x == 0 && first + p < out.cols) out(blockIdx.x, first + p) = scale * total;
  }
}

/// out[r, c] += sum_k left[k, r] right[rows[k], c], in the listed order: a thread has a column of 4 ranks.
template <class T>
__global__ void listed_outer_products(MatrixView<float const, DeviceSpace> left, std::int32_t const* rows,
                                      MatrixView<T const, DeviceSpace> right, float* out) {
  index_t const c = index_t{blockIdx.x} * blockDim.x + threadIdx.x, first = index_t{blockIdx.y} * factor_ranks;
  if (c >= right.cols) return;
  float sum[factor_ranks] = {};
  for (index_t k = 0; k < left.rows; ++k) {
    float const v = to_real(right(rows[k], c));
#pragma unroll
    for (int p = 0; p < factor_ranks; ++p)
      if (first + p < left.cols) sum[p] += left(k, first + p) * v;
  }
#pragma unroll
  for (int p = 0; p < factor_ranks; ++p)
    if (first + p < left.cols) out[(first + p) * right.cols + c] += sum[p];
}

/// dx[rows[k]] += g[k] A for row k = blockIdx.y.
template <class D>
__global__ void listed_expand(MatrixView<float const, DeviceSpace> g, std::int32_t const* rows, float const* a,
                              MatrixView<D, DeviceSpace> dx) {
  index_t const c = index_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (c >= dx.cols) return;
  for (index_t k = blockIdx.y; k < g.rows; k += gridDim.y) {
    float sum = 0;
    for (index_t r = 0; r < g.cols; ++r) sum += g(k, r) * a[r * dx.cols + c];
    D& to = dx(rows[k], c);
    to = from_real<D>(to_real(to) + sum);
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
  launch(listed_dots<X>, grid_of(out.rows, ceil_div(rank, factor_ranks)), 128, 0, be.stream(), x, rows.data(), w, scale,
         out);
  return out;
}
template <class Act, class T>
void add_outer_products(CudaBackend<Act>& be, MatrixView<float const, DeviceSpace> left, std::int32_t const* rows,
                        MatrixView<T const, DeviceSpace> right, float* out) {
  launch(listed_outer_products<T>, grid_of(ceil_div(right.cols, 128), ceil_div(left.cols, factor_ranks)), 128, 0,
         be.stream(), left, rows, right, out);
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
      cuda::launch(cuda::listed_expand<D>, cuda::grid_of(ceil_div(dx.cols, 128), std::min<index_t>(count, 65535)), 128,
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
