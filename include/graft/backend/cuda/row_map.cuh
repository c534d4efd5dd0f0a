// SPDX-License-Identifier: Apache-2.0
// Affine row maps on the device, in place. A thread owns both partners of a pair, so nothing waits within a map.
#pragma once

#include <graft/backend/cuda/columns.cuh>
#include <graft/backend/cuda/cuda_backend.cuh>
#include <graft/backend/row_map.hpp>

#include <cstdint>
#include <span>

namespace graft {
namespace cuda {

inline constexpr int row_map_threads = 256;

/// map_element with each rounding written down: left to the compiler, which of the two products it contracts with a sum
/// could differ from kernel to kernel, and so could the bits of a map that waits and of one that does not.
__device__ inline float map_float(float y, float other, float c1, float d, float e) {
  return __fadd_rn(__fadd_rn(y, __fmaf_rn(c1, y, __fmul_rn(d, other))), e);
}

/// The partner of column j: with divisions of 32 bits, which are a few instructions instead of a call.
__device__ inline index_t partner_column(index_t j, index_t group) {
  auto const half = static_cast<unsigned>(group) / 2;
  return static_cast<unsigned>(j) % static_cast<unsigned>(group) < half ? j + half : j - half;
}

/// Elements [first, last) of a map without d, N at a time; threads of the block share them.
template <int N, class T>
__device__ void map_alone(RowMapRow<float const> const& map, T* y, index_t first, index_t last) {
  for (index_t j = first + N * threadIdx.x; j < last; j += N * blockDim.x) {
    float u[N], c1[N], e[N];
    load(y + j, u);
    load_present(map.c1, j, last, true, c1);
    load_present(map.e, j, last, true, e);
#pragma unroll
    for (int k = 0; k < N; ++k) u[k] = map_float(u[k], 0.f, c1[k], 0.f, e[k]);
    store(u, y + j);
  }
}

/// Groups of 2, 4, ... N elements: every pair lies within N neighbours.
template <int N, class T>
__device__ void map_within(RowMapRow<float const> const& map, T* y, index_t first, index_t last) {
  int const half = static_cast<int>(map.group) / 2;
  for (index_t j = first + N * threadIdx.x; j < last; j += N * blockDim.x) {
    float u[N], c1[N], d[N], e[N], result[N];
    load(y + j, u);
    load_present(map.c1, j, last, true, c1);
    load_columns(map.d, j, last, true, d);
    load_present(map.e, j, last, true, e);
#pragma unroll
    for (int k = 0; k < N; ++k) {  // constant indices keep u in registers
      float const other = half == 1 ? u[k ^ 1] : half == 2 ? u[(k ^ 2) % N] : u[(k ^ 4) % N];
      result[k] = map_float(u[k], other, c1[k], d[k], e[k]);
    }
    store(result, y + j);
  }
}

/// Pairs whose partners are at least N apart, N pairs at a time.
template <int N, class T>
__device__ void map_pairs(RowMapRow<float const> const& map, T* y, index_t first, index_t last) {
  auto const half = static_cast<unsigned>(map.group / 2), pairs = static_cast<unsigned>((last - first) / 2);
  for (unsigned pair = N * threadIdx.x; pair < pairs; pair += N * blockDim.x) {
    index_t const j = first + pair + pair / half * half, p = j + half;
    float u[N], v[N], cu[N], cv[N], du[N], dv[N], eu[N], ev[N];
    load(y + j, u), load(y + p, v);
    load_present(map.c1, j, last, true, cu), load_present(map.c1, p, last, true, cv);
    load_columns(map.d, j, last, true, du), load_columns(map.d, p, last, true, dv);
    load_present(map.e, j, last, true, eu), load_present(map.e, p, last, true, ev);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      float const own = u[k];
      u[k] = map_float(own, v[k], cu[k], du[k], eu[k]);
      v[k] = map_float(v[k], own, cv[k], dv[k], ev[k]);
    }
    store(u, y + j), store(v, y + p);
  }
}

/// Elements [first, last) of one map, its successors not; multiples of its group. y points at element 0.
template <class T>
__device__ void map_once(RowMapRow<float const> const& map, T* y, index_t first, index_t last) {
  constexpr int N = 16 / static_cast<int>(sizeof(T));
  bool const whole =
      aligned16(y + first) && aligned16(map.c1, map.d, map.e) && first % N == 0 && (last - first) % N == 0;
  if (map.d == nullptr)
    whole ? map_alone<N>(map, y, first, last) : map_alone<1>(map, y, first, last);
  else if (whole && map.group / 2 % N == 0)
    map_pairs<N>(map, y, first, last);
  else if (whole && map.group <= N && N % map.group == 0)
    map_within<N>(map, y, first, last);
  else
    map_pairs<1>(map, y, first, last);
}
/// The map and its successors, by all threads of a block.
template <class T>
__device__ void map_row(RowMapRow<float const> const& map, T* y, index_t first, index_t last) {
  for (auto const* m = &map; m != nullptr; m = m->next) {
    map_once(*m, y, first, last);
    __syncthreads();  // a successor pairs other elements
  }
}

/// Whether columns can be shared among blocks that own multiples of `chunk`.
__device__ inline bool splits(RowMapRow<float const> const& map, index_t chunk) {
  return map.next == nullptr && (map.group == 0 || chunk % map.group == 0);
}

/// The maps where any row has one, else no maps: what kernels are given, which cannot ask.
inline RowMapBatch<float> present_maps(RowMapBatch<float> const& maps) {
  return maps.any() ? maps : RowMapBatch<float>{};
}

/// One row per blockIdx.x; blockIdx.y is a chunk of columns.
template <class T>
__global__ void map_rows(RowMapBatch<float> maps, MatrixView<T, DeviceSpace> y, index_t chunk) {
  index_t const n = blockIdx.x, first = blockIdx.y * chunk;
  auto const* const map = maps.row(n);
  if (map == nullptr) return;
  if (splits(*map, chunk)) {
    map_once(*map, y.row(n), first, first + chunk < y.cols ? first + chunk : y.cols);
  } else if (blockIdx.y == 0) {
    map_row(*map, y.row(n), 0, y.cols);
  }
}

/// One listed row per blockIdx.x, all its columns. The map is asked for by address, so that no thread copies it.
template <class T>
__global__ void map_listed_rows(__grid_constant__ RowMapRow<float const> const map, std::int32_t const* rows,
                                MatrixView<T, DeviceSpace> y) {
  map_row(map, y.row(rows[blockIdx.x]), 0, y.cols);
}

}  // namespace cuda

/// Applies one map to the listed rows in place. y [n, size]; `rows` names device memory.
template <class Act, class T>
void apply_row_map(CudaBackend<Act>& be, RowMapRow<float const> const& map, std::span<std::int32_t const> rows,
                   MatrixView<T, DeviceSpace> y) {
  cuda::launch(cuda::map_listed_rows<T>, cuda::grid_of(static_cast<index_t>(rows.size())), cuda::row_map_threads, 0,
               be.stream(), map, rows.data(), y);
}

/// Applies each batch row's map in place. y [n, size]; T may be f32, bf16 or f16. Rows without a map are not touched.
template <class Act, class T>
void apply_row_map(CudaBackend<Act>& be, RowMapBatch<float> const& maps, MatrixView<T, DeviceSpace> y) noexcept {
  if (!maps.any()) return;
  index_t const chunk = 8 * cuda::row_map_threads;  // a power of two, as groups of pairs usually are
  auto const grid = cuda::grid_of(y.rows, ceil_div(y.cols, chunk));
  cuda::launch(cuda::map_rows<T>, grid, cuda::row_map_threads, 0, be.stream(), maps, y, chunk);
}

}  // namespace graft
