// SPDX-License-Identifier: Apache-2.0
// Gradients of attention in plain arithmetic, for all types and head sizes: softmax is made again tile by tile, no
// matrix of scores is kept (Dao et al. 2022, arXiv:2205.14135, algorithm 4). Every row of dQ, dK and dV has one owner
// that adds in a fixed order; scores are computed once for dQ, with a running softmax, and once for dK and dV.
#pragma once

#include <graft/backend/cuda/attention_keys.cuh>

namespace graft::cuda {

inline constexpr int backward_tile = 32;  ///< queries and keys of a tile of scores
inline constexpr int backward_rows = 4;   ///< of a tile, per warp
inline constexpr int backward_threads = 32 * backward_tile / backward_rows;
inline constexpr int backward_dims = 128;  ///< columns of results at a time
/// Of a multiprocessor at a time: 128 registers for a thread, which is enough where loops are not unrolled further than
/// the pragmas below say.
inline constexpr int backward_blocks = 2;

/// 32 x 32 numbers; a column's numbers lie in different banks.
using Square = float[backward_tile][backward_tile + 1];

/// Rows [row, row + 32) below last_row and columns [column, column + 32) of a head, 0 elsewhere, by all threads.
template <class Act>
__device__ inline void load_square(MatrixView<Act const, DeviceSpace> from, index_t first_row, index_t row,
                                   index_t last_row, index_t offset, int column, int columns, Square& to) {
#pragma unroll 2
  for (int k = static_cast<int>(threadIdx.x); k < backward_tile * backward_tile; k += backward_threads) {
    int const r = k / backward_tile, c = k % backward_tile;
    bool const there = row + r < last_row && column + c < columns;
    to[r][c] = there ? to_real(from(first_row + row + r, offset + column + c)) : 0.f;
  }
}

/// A tile's products of 4 rows of a warp with the row of each lane: sum[r] = left[4 warp + r] . right[lane], over all
/// columns of the head; both in global memory.
template <class Act>
__device__ inline void multiply_rows(AttentionSpan const& span, MatrixView<Act const, DeviceSpace> left, index_t query,
                                     index_t left_offset, MatrixView<Act const, DeviceSpace> right, index_t key,
                                     index_t right_offset, int dim, Square& a, Square& b, float (&sum)[backward_rows]) {
  int const warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int r = 0; r < backward_rows; ++r) sum[r] = 0;
  for (int column = 0; column < dim; column += backward_tile) {
    __syncthreads();  // what was there has been read
    load_square(left, span.first_row, query, span.rows, left_offset, column, dim, a);
    load_square(right, span.first_row, key, span.rows, right_offset, column, dim, b);
    __syncthreads();
#pragma unroll 4
    for (int c = 0; c < backward_tile; ++c)
#pragma unroll
      for (int r = 0; r < backward_rows; ++r) sum[r] += a[backward_rows * warp + r][c] * b[lane][c];
  }
}

/// Adds a warp's rows of results, a column of every 32 from `base` on per lane, to rows [first, first + 32) of a span.
template <class Act>
__device__ inline void add_tile(AttentionSpan const& span, float const (&sum)[backward_rows][backward_dims / 32],
                                index_t first, index_t offset, int base, int dim, MatrixView<Act, DeviceSpace> to) {
  int const warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int r = 0; r < backward_rows; ++r)
#pragma unroll
    for (int part = 0; part < backward_dims / 32; ++part) {
      index_t const row = first + backward_rows * warp + r;
      int const column = base + 32 * part + lane;
      if (row >= span.rows || column >= dim) continue;
      Act& element = to(span.first_row + row, offset + column);
      element = from_real<Act>(to_real(element) + sum[r][part]);
    }
}

/// dQ of 32 queries of a head, and what softmax leaves of them: block (tile, head, span). A lane has a column of every
/// 32.
template <class Act>
__global__ void __launch_bounds__(backward_threads, backward_blocks)
    attention_dq(AttentionInputs<Act> in, AttentionSpan const* spans, MatrixView<Act, DeviceSpace> dq) {
  auto const span = spans[blockIdx.z];
  index_t const query = index_t{blockIdx.x} * backward_tile;
  if (query >= span.rows) return;
  auto const& shape = in.sizes.shape;
  int const head = static_cast<int>(blockIdx.y), dim = in.sizes.head_dim;
  int const warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  index_t const q_offset = index_t{head} * dim, k_offset = index_t{head / in.sizes.shared} * dim;
  index_t const warp_row = query + backward_rows * warp;
  __shared__ Square a, b, slopes;
  float along[backward_rows] = {};
#pragma unroll
  for (int r = 0; r < backward_rows; ++r) {
    if (warp_row + r >= span.rows) break;
    index_t const n = span.first_row + warp_row + r;
    for (int c = lane; c < dim; c += 32)
      along[r] += to_real(in.dout(n, q_offset + c)) * to_real(in.out(n, q_offset + c));
    along[r] = warp_sum(along[r]);
  }
  for (int base = 0; base < dim; base += backward_dims) {
    float acc[backward_rows][backward_dims / 32] = {}, highest[backward_rows], total[backward_rows] = {};
#pragma unroll
    for (int r = 0; r < backward_rows; ++r) highest[r] = nothing_seen;
    for (index_t key = 0; key < span.rows; key += backward_tile) {
      if (!tiles_meet(shape, span, query, backward_tile, key, backward_tile)) continue;
      float score[backward_rows], slope[backward_rows];
      multiply_rows(span, in.q, query, q_offset, in.k, key, k_offset, dim, a, b, score);
      multiply_rows(span, in.dout, query, q_offset, in.v, key, k_offset, dim, a, b, slope);
#pragma unroll
      for (int r = 0; r < backward_rows; ++r) {
        bool const seen = looks_at(shape, span, warp_row + r, key + lane);
        float const mine = seen ? score[r] * in.sizes.scale * log2_e : nothing_seen;
        float const new_highest = fmaxf(highest[r], warp_max(mine));
        float const p = seen ? exp2f(mine - new_highest) : 0.f;
        float const rescale = highest[r] == nothing_seen ? 0.f : exp2f(highest[r] - new_highest);
        total[r] = total[r] * rescale + warp_sum(p);
        highest[r] = new_highest;
        slopes[backward_rows * warp + r][lane] = seen ? p * (slope[r] - along[r]) : 0.f;
#pragma unroll
        for (int part = 0; part < backward_dims / 32; ++part) acc[r][part] *= rescale;
      }
#pragma unroll
      for (int part = 0; part < backward_dims / 32; ++part) {
        int const column = base + 32 * part;
        if (column >= dim) break;
        __syncthreads();
        load_square(in.k, span.first_row, key, span.rows, k_offset, column, dim, b);
        __syncthreads();
#pragma unroll 4
        for (int t = 0; t < backward_tile; ++t)
#pragma unroll
          for (int r = 0; r < backward_rows; ++r) acc[r][part] += slopes[backward_rows * warp + r][t] * b[t][lane];
      }
    }
#pragma unroll
    for (int r = 0; r < backward_rows; ++r) {
      float const factor = total[r] > 0 ? in.sizes.scale / total[r] : 0.f;
#pragma unroll
      for (int part = 0; part < backward_dims / 32; ++part) acc[r][part] *= factor;
      if (base == 0 && lane == 0 && warp_row + r < span.rows)
        in.sums(head, span.first_row + warp_row + r) = {total[r] > 0 ? highest[r] + log2f(total[r]) : INFINITY,
                                                        along[r]};
    }
    add_tile(span, acc, query, q_offset, base, dim, dq);
  }
}

/// dK and dV of 32 keys of a head of keys: block (tile, head of keys, span). The heads that share the keys follow each
/// other.
template <class Act>
__global__ void __launch_bounds__(backward_threads, backward_blocks)
    attention_dkv(AttentionInputs<Act> in, AttentionSpan const* spans, MatrixView<Act, DeviceSpace> dk,
                  MatrixView<Act, DeviceSpace> dv) {
  auto const span = spans[blockIdx.z];
  index_t const key = index_t{blockIdx.x} * backward_tile;
  if (key >= span.rows) return;
  int const kv_head = static_cast<int>(blockIdx.y), dim = in.sizes.head_dim;
  int const warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  index_t const k_offset = index_t{kv_head} * dim;
  __shared__ Square a, b, weights, slopes;
  for (int base = 0; base < dim; base += backward_dims) {
    float acc_k[backward_rows][backward_dims / 32] = {}, acc_v[backward_rows][backward_dims / 32] = {};
    for (int head = kv_head * in.sizes.shared; head < (kv_head + 1) * in.sizes.shared; ++head)
      for (index_t query = 0; query < span.rows; query += backward_tile) {
        if (!tiles_meet(in.sizes.shape, span, query, backward_tile, key, backward_tile)) continue;
        index_t const q_offset = index_t{head} * dim;
        float score[backward_rows], slope[backward_rows];
        multiply_rows(span, in.q, query, q_offset, in.k, key, k_offset, dim, a, b, score);
        multiply_rows(span, in.dout, query, q_offset, in.v, key, k_offset, dim, a, b, slope);
#pragma unroll
        for (int r = 0; r < backward_rows; ++r) {
          int const row = backward_rows * warp + r;
          float p = 0, ds = 0;
          if (looks_at(in.sizes.shape, span, query + row, key + lane)) {
            auto const sums = in.sums(head, span.first_row + query + row);
            p = exp2f(score[r] * in.sizes.scale * log2_e - sums.log_total);
            ds = in.sizes.scale * p * (slope[r] - sums.along);
          }
          weights[row][lane] = p;
          slopes[row][lane] = ds;
        }
#pragma unroll
        for (int part = 0; part < backward_dims / 32; ++part) {
          int const column = base + 32 * part;
          if (column >= dim) break;
          __syncthreads();
          load_square(in.q, span.first_row, query, span.rows, q_offset, column, dim, a);
          load_square(in.dout, span.first_row, query, span.rows, q_offset, column, dim, b);
          __syncthreads();
#pragma unroll 4
          for (int i = 0; i < backward_tile; ++i)
#pragma unroll
            for (int r = 0; r < backward_rows; ++r) {
              acc_k[r][part] += slopes[i][backward_rows * warp + r] * a[i][lane];
              acc_v[r][part] += weights[i][backward_rows * warp + r] * b[i][lane];
            }
        }
      }
    add_tile(span, acc_k, key, k_offset, base, dim, dk);
    add_tile(span, acc_v, key, k_offset, base, dim, dv);
  }
}

}  // namespace graft::cuda
