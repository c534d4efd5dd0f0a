// SPDX-License-Identifier: Apache-2.0
// Attention on tensor cores, as prefill and the gradients share it. A warp keeps 16 rows of a head in registers and
// walks over tiles of other rows in shared memory. With g = lane / 4 and t = lane % 4 as in multiply_add, a lane knows
// of rows g and g + 8.
#pragma once

#include <graft/backend/cuda/attention_keys.cuh>
#include <graft/backend/cuda/tensor_core.cuh>

namespace graft::cuda {

/// Rows of a head in shared memory; 8 rows of 16 bytes lie in different banks.
template <class Act, int Rows, int Dim>
using HeadTile = Act[Rows][Dim + 8];

/// A warp's 16 rows as a left operand; a lane's two begin at row[0] and row[1] and are 0 where these are null.
template <int Dim, class Act>
__device__ inline void load_operand(Act const* const (&row)[2], std::uint32_t (&to)[Dim / 16][4]) {
  int const t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int k = 0; k < Dim / 16; ++k)
#pragma unroll
    for (int part = 0; part < 4; ++part)
      to[k][part] = row[part % 2] != nullptr
                        ? *aligned_as<std::uint32_t const>(row[part % 2] + 16 * k + 8 * (part / 2) + 2 * t)
                        : 0;
}

/// The same rows into a tile.
template <int Dim, class Act>
__device__ inline void store_operand(std::uint32_t const (&from)[Dim / 16][4], Act (*tile)[Dim + 8]) {
  int const g = static_cast<int>(threadIdx.x) % 32 / 4, t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int k = 0; k < Dim / 16; ++k)
#pragma unroll
    for (int part = 0; part < 4; ++part)
      *aligned_as<std::uint32_t>(&tile[g + 8 * (part % 2)][16 * k + 8 * (part / 2) + 2 * t]) = from[k][part];
}

/// sum [16, Rows] += a b^T for columns [16 k, 16 k + 16) of the first Rows rows of a tile.
template <int Rows, int Dim, class Act>
__device__ inline void multiply_columns(float (&sum)[Rows / 8][4], std::uint32_t const (&a)[4],
                                        Act const (*tile)[Dim + 8], int k) {
  int const lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int n = 0; n < Rows / 16; ++n) {
    std::uint32_t b[4];
    load_matrices<false>(b, &tile[16 * n + lane / 16 * 8 + lane % 8][16 * k + lane / 8 % 2 * 8]);
    multiply_add<Act>(sum[2 * n], a, {b[0], b[1]});
    multiply_add<Act>(sum[2 * n + 1], a, {b[2], b[3]});
  }
}
/// Over all columns, a in registers.
template <int Rows, int Dim, class Act>
__device__ inline void multiply_rows(float (&sum)[Rows / 8][4], std::uint32_t const (&a)[Dim / 16][4],
                                     Act const (*tile)[Dim + 8]) {
#pragma unroll
  for (int k = 0; k < Dim / 16; ++k) multiply_columns<Rows, Dim, Act>(sum, a[k], tile, k);
}
/// Over all columns, a the first 16 rows of another tile.
template <int Rows, int Dim, class Act>
__device__ inline void multiply_rows(float (&sum)[Rows / 8][4], Act const (*left)[Dim + 8],
                                     Act const (*tile)[Dim + 8]) {
  int const lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int k = 0; k < Dim / 16; ++k) {
    std::uint32_t a[4];
    load_matrices<false>(a, &left[lane % 16][16 * k + lane / 16 * 8]);
    multiply_columns<Rows, Dim, Act>(sum, a, tile, k);
  }
}

/// sum [16, Dim] += a b for a [16, 16] in two accumulators, rounded to Act, and b the first 16 rows of a tile.
template <int Dim, class Act>
__device__ inline void add_rows(float (&sum)[Dim / 8][4], float const (&left)[4], float const (&right)[4],
                                Act const (*tile)[Dim + 8]) {
  int const lane = static_cast<int>(threadIdx.x) % 32;
  // numbers as they lie in accumulators are a left operand as it must lie
  std::uint32_t const a[4] = {pack2<Act>(left[0], left[1]), pack2<Act>(left[2], left[3]),
                              pack2<Act>(right[0], right[1]), pack2<Act>(right[2], right[3])};
#pragma unroll
  for (int n = 0; n < Dim / 16; ++n) {
    std::uint32_t b[4];
    load_matrices<true>(b, &tile[lane % 16][16 * n + lane / 16 * 8]);
    multiply_add<Act>(sum[2 * n], a, {b[0], b[1]});
    multiply_add<Act>(sum[2 * n + 1], a, {b[2], b[3]});
  }
}

/// Products of rows row[0] and row[1] of a span with `8 N` keys from `start` on become exponents of 2, nothing_seen
/// where the row, below last_row, does not see the key.
template <int N>
__device__ inline void mask_scores(AttentionSizes const& sizes, AttentionSpan const& span, index_t const (&row)[2],
                                   index_t last_row, index_t start, float (&score)[N][4]) {
  float const scale = sizes.scale * log2_e;
  int const t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    // columns [first, last) by the shape's own rule
    index_t const i = span.first_token + row[half];
    int const first = static_cast<int>(sizes.shape.first_key(i) - start);
    int const last = row[half] < last_row ? static_cast<int>(sizes.shape.last_key(i, span.tokens) - start) : 0;
    bool const all = first <= 0 && last >= 8 * N && span.mask == nullptr;
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& s = score[n][2 * half + c];
        int const column = 8 * n + 2 * t + c;
        bool const seen = all || (column >= first && column < last && unmasked(span, row[half], start + column));
        s = seen ? s * scale : nothing_seen;
      }
  }
}

/// Over the four lanes of a row.
__device__ inline float row_sum(float x) { return lanes_sum<4>(x); }
__device__ inline float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

/// Softmax of a warp's rows, tile by tile.
struct RunningSoftmax {
  float highest[2] = {nothing_seen, nothing_seen};  ///< exponent of the rows
  float total[2] = {};                              ///< of this lane's keys

  /// Exponents become weights relative to the highest so far, and so do those that went into sum [16, 8 M] before.
  template <int N, int M>
  __device__ void weigh(float (&score)[N][4], float (&sum)[M][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float high = nothing_seen;
#pragma unroll
      for (int n = 0; n < N; ++n) high = fmaxf(high, fmaxf(score[n][2 * half], score[n][2 * half + 1]));
      float const new_highest = fmaxf(highest[half], row_max(high));
      float const shift = new_highest == nothing_seen ? 0.f : new_highest;
      float const rescale = exp2f(highest[half] - shift);  // 0 where nothing was seen before
      highest[half] = new_highest;
      total[half] *= rescale;
#pragma unroll
      for (int m = 0; m < M; ++m) sum[m][2 * half] *= rescale, sum[m][2 * half + 1] *= rescale;
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& s = score[n][2 * half + c];
          s = exp2f(s - shift);
          total[half] += s;
        }
    }
  }
};

}  // namespace graft::cuda
