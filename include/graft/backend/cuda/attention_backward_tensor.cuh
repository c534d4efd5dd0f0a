// SPDX-License-Identifier: Apache-2.0
// Gradients of attention on tensor cores, for 16-bit activations and the usual head sizes (Dao 2023, arXiv:2307.08691,
// algorithm 2, but without atomics: every row of dQ, dK and dV has one owner that adds in a fixed order).
//
// With s = scale q . k, p = softmax(s), dp = dout . v and a = dout . out of the row, ds = p (dp - a):
//     dQ = scale ds K      dK = scale ds^T Q      dV = p^T dout
// The owner of queries does not need the sum of softmax before its end, because dQ is linear in p: it runs along with
// the highest score, as in the forward, and is left to the owner of keys. A tile of queries and keys costs seven
// products instead of the five that atomics need: s, dp and dQ here, s, dp, dV and dK there. A warp's own rows stay in
// registers, so that two products of 16 x 8 x 16 cost one load of 512 bytes from shared memory (values of 128 columns
// are a load of their own). p and ds are rounded to Act where they enter a product; in f16 they have to stay in its
// range, as dout itself. Heads of 256 are left to the plain kernels: the sums of dK and dV would take all registers.
#pragma once

#include <graft/backend/cuda/attention_tiles.cuh>

namespace graft::cuda {

inline constexpr int owned_rows = 64;      ///< queries or keys of a block, 16 of a warp
inline constexpr int owner_threads = 128;  ///< a warp for each 16 rows
template <int Dim>
inline constexpr int walked_rows = Dim <= 96 ? 64 : 32;  ///< what 64 KiB hold two pairs of
/// Whether registers hold a warp's values beside its keys and the sums of both.
template <int Dim>
inline constexpr bool values_in_registers = Dim <= 96;
/// Two pairs of tiles, one of which is copied while the other is read; behind them values that registers do not hold.
template <class Act, int Dim>
inline constexpr std::size_t walked_bytes = 4 * sizeof(HeadTile<Act, walked_rows<Dim>, Dim>);
template <class Act, int Dim>
inline constexpr std::size_t value_bytes = values_in_registers<Dim> ? 0 : sizeof(HeadTile<Act, owned_rows, Dim>);

/// Starts the copy of rows [first, last) of a head of two matrices into a pair of tiles; zeros behind them, because 0
/// times what lies there may be NaN.
template <int Rows, int Dim, class Act>
__device__ inline void copy_pair(MatrixView<Act const, DeviceSpace> const& a,
                                 MatrixView<Act const, DeviceSpace> const& b, index_t first, index_t last,
                                 index_t offset, HeadTile<Act, Rows, Dim>* to) {
  constexpr int packs = Dim / 8;
#pragma unroll 1
  for (int k = static_cast<int>(threadIdx.x); k < Rows * packs; k += owner_threads) {
    int const r = k / packs, c = k % packs * 8;
    if (first + r < last) {
      copy16(a.row(first + r) + offset + c, &to[0][r][c]);
      copy16(b.row(first + r) + offset + c, &to[1][r][c]);
    } else {
      *aligned_as<uint4>(&to[0][r][c]) = *aligned_as<uint4>(&to[1][r][c]) = uint4{0, 0, 0, 0};
    }
  }
}

/// to[r] += factor[r] sum for the rows of a lane that are not null.
template <int Dim, class Act>
__device__ inline void add_result(float const (&sum)[Dim / 8][4], float const (&factor)[2], Act* const (&to)[2]) {
  int const t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (to[half] == nullptr) continue;
#pragma unroll
    for (int n = 0; n < Dim / 8; ++n) {
      Act* const at = to[half] + 8 * n + 2 * t;
      auto const before = load_pack<2>(at);
      *aligned_as<std::uint32_t>(at) = pack2<Act>(to_real(before.value[0]) + factor[half] * sum[n][2 * half],
                                                  to_real(before.value[1]) + factor[half] * sum[n][2 * half + 1]);
    }
  }
}

/// dQ of 64 queries of a head, and what softmax leaves of them: block (tile, head, span).
template <int Dim, class Act>
__global__ void __launch_bounds__(owner_threads)
    attention_dq_tensor(AttentionInputs<Act> in, AttentionSpan const* spans, MatrixView<Act, DeviceSpace> dq) {
#if defined(GRAFT_CUDA_EMULATION) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 750)
  constexpr int rows = walked_rows<Dim>;
  auto const& span = spans[blockIdx.z];
  index_t const first_row = index_t{gridDim.x - 1 - blockIdx.x} * owned_rows;  // long tiles first
  if (first_row >= span.rows) return;
  index_t const last_row = first_row + owned_rows < span.rows ? first_row + owned_rows : span.rows;
  int const head = static_cast<int>(blockIdx.y), lane = static_cast<int>(threadIdx.x) % 32;
  index_t const offset = index_t{head} * Dim, key_offset = index_t{head / in.sizes.shared} * Dim;
  index_t const warp_row = first_row + static_cast<int>(threadIdx.x) / 32 * 16;
  index_t const row[2] = {warp_row + lane / 4, warp_row + lane / 4 + 8};

  auto const begin = [&](auto matrix, index_t r) {
    return r < last_row ? matrix.row(span.first_row + r) + offset : nullptr;
  };
  std::uint32_t q[Dim / 16][4], dout[Dim / 16][4];
  load_operand<Dim, Act>({begin(in.q, row[0]), begin(in.q, row[1])}, q);
  load_operand<Dim, Act>({begin(in.dout, row[0]), begin(in.dout, row[1])}, dout);
  float along[2] = {};
  {
    std::uint32_t out[Dim / 16][4];
    load_operand<Dim, Act>({begin(in.out, row[0]), begin(in.out, row[1])}, out);
#pragma unroll
    for (int k = 0; k < Dim / 16; ++k)
#pragma unroll
      for (int part = 0; part < 4; ++part) along[part % 2] += dot2<Act>(dout[k][part], out[k][part]);
#pragma unroll
    for (int half = 0; half < 2; ++half) along[half] = row_sum(along[half]);
  }

  auto const keys = keys_of(in.sizes.shape, span, first_row, last_row);
  auto const warp_keys =
      keys_of(in.sizes.shape, span, warp_row, warp_row + 16 < last_row ? warp_row + 16 : last_row);  // may be none
  int const tiles = static_cast<int>((keys.last - keys.first + rows - 1) / rows);
  auto* const tile = dynamic_shared<HeadTile<Act, rows, Dim>>();
  auto const copy = [&](int j) {
    copy_pair<rows, Dim>(in.k, in.v, span.first_row + keys.first + index_t{j} * rows, span.first_row + keys.last,
                         key_offset, tile + j % 2 * 2);
  };
  float acc[Dim / 8][4] = {};
  RunningSoftmax softmax;
  copy(0);
  for (int j = 0; j < tiles; ++j) {
    wait_for_copies();
    __syncthreads();  // this pair is there; the one before has been read
    if (j + 1 < tiles) copy(j + 1);
    auto const *const k = tile[j % 2 * 2], *const v = tile[j % 2 * 2 + 1];
    float weight[rows / 8][4] = {};
    index_t const start = keys.first + index_t{j} * rows;
    multiply_rows<rows, Dim, Act>(weight, q, k);
    mask_scores(in.sizes, span, row, last_row, start, weight);
    softmax.weigh(weight, acc);
#pragma unroll
    for (int part = 0; part < rows / 16; ++part) {
      index_t const key = start + 16 * part;
      if (key + 16 <= warp_keys.first || key >= warp_keys.last) continue;
      float slope[2][4] = {};
      multiply_rows<16, Dim, Act>(slope, dout, v + 16 * part);
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c) slope[n][c] = weight[2 * part + n][c] * (slope[n][c] - along[c / 2]);
      add_rows<Dim, Act>(acc, slope[0], slope[1], k + 16 * part);
    }
  }

  float factor[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float const total = row_sum(softmax.total[half]);
    factor[half] = total > 0 ? in.sizes.scale / total : 0.f;
    if (row[half] < last_row && lane % 4 == 0)
      in.sums(head, span.first_row + row[half]) = {total > 0 ? softmax.highest[half] + log2f(total) : INFINITY,
                                                   along[half]};
  }
  add_result<Dim, Act>(acc, factor, {begin(dq, row[0]), begin(dq, row[1])});
#endif
}

/// dK and dV of 64 keys of a head of keys: block (tile, head of keys, span). The heads that share the keys follow each
/// other.
template <int Dim, class Act>
__global__ void __launch_bounds__(owner_threads)
    attention_dkv_tensor(AttentionInputs<Act> in, AttentionSpan const* spans, MatrixView<Act, DeviceSpace> dk,
                         MatrixView<Act, DeviceSpace> dv) {
#if defined(GRAFT_CUDA_EMULATION) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 750)
  constexpr int rows = walked_rows<Dim>;
  auto const& span = spans[blockIdx.z];
  auto const& shape = in.sizes.shape;
  int const span_rows = static_cast<int>(span.rows), first_key = static_cast<int>(blockIdx.x) * owned_rows;
  if (first_key >= span_rows) return;
  int const last_key = first_key + owned_rows < span_rows ? first_key + owned_rows : span_rows;
  int const kv_head = static_cast<int>(blockIdx.y), lane = static_cast<int>(threadIdx.x) % 32;
  int const warp_key = first_key + static_cast<int>(threadIdx.x) / 32 * 16;
  int const key[2] = {warp_key + lane / 4, warp_key + lane / 4 + 8};

  auto const begin = [&](auto matrix, int r) {
    return r < last_key ? matrix.row(span.first_row + r) + index_t{kv_head} * Dim : nullptr;
  };
  std::uint32_t k[Dim / 16][4], v[Dim / 16][4];
  load_operand<Dim, Act>({begin(in.k, key[0]), begin(in.k, key[1])}, k);
  load_operand<Dim, Act>({begin(in.v, key[0]), begin(in.v, key[1])}, v);
  auto* const tile = dynamic_shared<HeadTile<Act, rows, Dim>>();
  auto* const warp_values = tile[4] + static_cast<int>(threadIdx.x) / 32 * 16;
  if constexpr (!values_in_registers<Dim>) store_operand<Dim, Act>(v, warp_values);

  // the queries that look at a key of the block, of the warp, at this lane's
  auto const first_of = [&](int j) { return static_cast<int>(shape.first_query(j)); };
  auto const last_of = [&](int j) { return static_cast<int>(shape.last_query(j, span_rows)); };
  int const first = first_of(first_key), last = last_of(last_key - 1);
  int const warp_first = first_of(warp_key), warp_last = last_of(warp_key + 15);
  int const seen_first[2] = {first_of(key[0]), first_of(key[1])};
  int const seen_last[2] = {key[0] < last_key ? last_of(key[0]) : 0, key[1] < last_key ? last_of(key[1]) : 0};
  auto const copy = [&](int head, int start, int pair) {
    copy_pair<rows, Dim>(in.q, in.dout, span.first_row + start, span.first_row + last, index_t{head} * Dim,
                         tile + 2 * pair);
  };
  float dk_sum[Dim / 8][4] = {}, dv_sum[Dim / 8][4] = {};
  float const scale = in.sizes.scale * log2_e;
  int const first_head = kv_head * in.sizes.shared, last_head = first_head + in.sizes.shared;
  int pair = 0;
  copy(first_head, first, 0);
  for (int head = first_head; head < last_head; ++head)
    for (int start = first; start < last; start += rows, pair ^= 1) {
      wait_for_copies();
      __syncthreads();  // this pair is there; the one before has been read
      if (start + rows < last)
        copy(head, start + rows, pair ^ 1);
      else if (head + 1 < last_head)
        copy(head + 1, first, pair ^ 1);
#pragma unroll 1
      for (int part = 0; part < rows / 16; ++part) {
        int const query = start + 16 * part;
        if (query + 16 <= warp_first || query >= warp_last) continue;
        auto const *const q = tile[2 * pair] + 16 * part, *const dout = tile[2 * pair + 1] + 16 * part;
        RowSums sums[2][2];  // on their way while scores are made
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            int const i = query + 8 * n + lane % 4 * 2 + c;
            sums[n][c] = i < last ? in.sums(head, span.first_row + i) : RowSums{INFINITY, 0};
          }
        float weight[2][4] = {}, slope[2][4] = {};  // [key, query]
        multiply_rows<16, Dim, Act>(weight, k, q);
        if constexpr (values_in_registers<Dim>)
          multiply_rows<16, Dim, Act>(slope, v, dout);
        else
          multiply_rows<16, Dim, Act>(slope, warp_values, dout);
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            int const i = query + 8 * n + lane % 4 * 2 + c;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              float &p = weight[n][2 * half + c], &ds = slope[n][2 * half + c];
              bool const seen = i >= seen_first[half] && i < seen_last[half] && unmasked(span, i, key[half]);
              p = seen ? exp2f(p * scale - sums[n][c].log_total) : 0.f;
              ds = p * (ds - sums[n][c].along);
            }
          }
        add_rows<Dim, Act>(dv_sum, weight[0], weight[1], dout);
        add_rows<Dim, Act>(dk_sum, slope[0], slope[1], q);
      }
    }

  add_result<Dim, Act>(dk_sum, {in.sizes.scale, in.sizes.scale}, {begin(dk, key[0]), begin(dk, key[1])});
  add_result<Dim, Act>(dv_sum, {1, 1}, {begin(dv, key[0]), begin(dv, key[1])});
#endif
}

}  // namespace graft::cuda
