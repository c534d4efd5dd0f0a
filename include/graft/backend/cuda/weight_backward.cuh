// SPDX-License-Identifier: Apache-2.0
// Gradients of dense weights, biases and embedding tables on the device. No atomics: every sum has one owner and one
// order.
#pragma once

#include <graft/backend/cuda/elementwise_backward.cuh>

#include <cstdint>

namespace graft {
namespace cuda {

/// parts(b, k) = the sum of column k over rows [32 b, 32 b + 32).
template <class Act>
__global__ void sum_columns(MatrixView<Act const, DeviceSpace> x, MatrixView<float, DeviceSpace> parts) {
  index_t const k = index_t{blockIdx.x} * blockDim.x + threadIdx.x, first = blockIdx.y * summed_rows;
  if (k >= x.cols) return;
  float sum = 0;
  for (index_t n = first; n < first + summed_rows && n < x.rows; ++n) sum += to_real(x(n, k));
  parts(blockIdx.y, k) = sum;
}

/// Links rows of one index in their order, a warp per row: next[n] is the next row with row n's index, or -1; first[n]
/// says whether n is the first.
template <class Index>
__global__ void link_rows(Index const* index, std::int32_t count, std::int32_t* next, std::int32_t* first) {
  std::int32_t const lane = static_cast<std::int32_t>(threadIdx.x), n = static_cast<std::int32_t>(blockIdx.x);
  Index const mine = index[n];
  bool earlier = false;
  for (std::int32_t k = lane; k < n; k += 32) earlier = earlier || index[k] == mine;
  std::int32_t found = -1;
  for (std::int32_t start = n + 1; start < count && found < 0; start += 32) {
    unsigned const here = __ballot_sync(0xffffffffu, start + lane < count && index[start + lane] == mine);
    if (here != 0) found = start + __ffs(static_cast<int>(here)) - 1;
  }
  bool const any = __ballot_sync(0xffffffffu, earlier) != 0;
  if (lane == 0) next[n] = found, first[n] = any ? 0 : 1;
}

/// table[index[n]] += the rows linked from n on, in their order; n is the first of its index.
template <class Act, class T>
struct AddLinked {
  static constexpr int columns = 8;
  std::int32_t const *index, *next, *first_of;
  MatrixView<Act const, DeviceSpace> dh;
  MatrixView<T, DeviceSpace> table;
  bool whole;

  __device__ void operator()(index_t n, index_t first) const {
    if (first_of[n] == 0) return;
    float sum[columns], v[columns];
    load_columns(table.row(index[n]), first, dh.cols, whole, sum);
    for (auto k = static_cast<std::int32_t>(n); k >= 0; k = next[k]) {
      load_columns(dh.row(k), first, dh.cols, whole, v);
      for (int c = 0; c < columns; ++c) sum[c] += v[c];
    }
    store_columns(sum, first, dh.cols, whole, table.row(index[n]));
  }
};

}  // namespace cuda

/// The gradient of W in y = x W^T + b: dw += dy^T x, in float.  dy [n, o], x [n, i], dw [o, i]
template <class Act>
void weight_gradient(CudaBackend<Act>& be, MatrixView<Act const, DeviceSpace> dy, MatrixView<Act const, DeviceSpace> x,
                     MatrixView<float, DeviceSpace> dw) {
  if (x.rows == 0) return;
  be.dense_products().multiply(be.stream(), be.arena(), dy, cuda::Transpose::yes, x, cuda::Transpose::no,
                               static_cast<float const*>(nullptr), dw, true);
}

/// The gradient of b: db += sum_n dy[n], in float.  dy [n, o], db [o]
template <class Act>
void bias_gradient(CudaBackend<Act>& be, MatrixView<Act const, DeviceSpace> dy, VectorView<float, DeviceSpace> db) {
  auto const scope = be.scope();
  index_t const blocks = ceil_div(dy.rows, cuda::summed_rows);
  cuda::SumsOverRows<1> const sums(be, blocks, {db.data}, db.size);
  cuda::launch(cuda::sum_columns<Act>, cuda::grid_of(ceil_div(dy.cols, 128), blocks), 128, 0, be.stream(), dy,
               sums.parts(0));
  sums.add();
}

/// The gradient of the table in h[n] = table[index[n]]: dtable[index[n]] += dh[n], in the order of n.  dh [n, d]; index
/// [n] in device memory. Elements of dtable may be f32, bf16 or f16.
template <class Act, class T>
void gather_rows_backward(CudaBackend<Act>& be, std::int32_t const* index, MatrixView<Act const, DeviceSpace> dh,
                          MatrixView<T, DeviceSpace> dtable) {
  auto const scope = be.scope();
  auto* const next = be.arena().template allocate<std::int32_t>(dh.rows);
  auto* const first = be.arena().template allocate<std::int32_t>(dh.rows);
  cuda::launch(cuda::link_rows<std::int32_t>, cuda::grid_of(dh.rows), 32, 0, be.stream(), index,
               static_cast<std::int32_t>(dh.rows), next, first);
  bool const whole = cuda::aligned16(dh) && cuda::aligned16(dtable);
  cuda::for_chunks(be, cuda::AddLinked<Act, T>{index, next, first, dh, dtable, whole}, dh.rows, dh.cols);
}

}  // namespace graft
