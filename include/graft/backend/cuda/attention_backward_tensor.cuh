// SPDX-License-Identifier: Apache-2.0
// Gradients of attention on tensor cores, for 16-bit activations and the usual head sizes (Dao 2023, arXiv:2307.08691,
// algorithm 2, but without atomics: every row of dQ, dK and dV has one owner that adds in a fixed order).
//
// With s = q . k, p = softmax(s), dp = dout . v and a = dout . out of the row, ds = p (dp - a):
//     dQ = scale ds K      dK = scale ds^T Q      dV = p^T dout
// The owner of queries does not need the sum of softmax before its end, because dQ is linear in p: it runs along with
// the highest score, as in the forward, and is left to the owner of keys. A tile of queries and keys costs seven
// products instead of the five that atomics need: s, dp and dQ here, s, dp, dV and dK there. A warp's own rows stay in
// registers, so that two products of 16 x 8 x 16 cost one load of 512 bytes from shared memory. p and ds are rounded to
// Act where they enter a product.
#pragma once

#include <graft/backend/cuda/attention_tiles.cuh>

namespace graft::cuda {

inline constexpr int owned_rows = 64;         ///< queries or keys of a block, 16 of a warp
inline constexpr unsigned dq_threads = 128;   ///< a warp for each 16 queries
inline constexpr unsigned dkv_threads = 256;  ///< two warps for each 16 keys: there are few heads of keys
template <int Dim>
inline constexpr int walked_rows = Dim <= 96 ? 64 : 32;  ///< what 64 KiB hold two pairs of
/// Two pairs of tiles: one is copied while the other is read.
template <class Act, int Dim>
inline constexpr std::size_t walked_bytes = 4 * sizeof(HeadTile<Act, walked_rows<Dim>, Dim>);

/// Starts the copy of rows [first, last) of the batch, of one head, into a tile; zeros behind them, because 0 times
/// what lies there may be NaN.
template <int Threads, int Rows, int Dim, class Act>
__device__ inline void copy_rows(MatrixView<Act const, DeviceSpace> from, index_t first, index_t last, index_t offset,
                                 HeadTile<Act, Rows, Dim>& to) {
  constexpr int packs = Dim / 8;
#pragma unroll 4
  for (int k = static_cast<int>(threadIdx.x); k < Rows * packs; k += Threads) {
    Act* const at = &to[k / packs][k % packs * 8];
    if (first + k / packs < last)
      copy16(from.row(first + k / packs) + offset + k % packs * 8, at);
    else
      *aligned_as<uint4>(at) = uint4{0, 0, 0, 0};
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
__global__ void __launch_bounds__(dq_threads)
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
    for (int half = 0; half < 2; ++half) along[half] = RunningSoftmax::sum_of_row(along[half]);
  }

  auto const keys = keys_of(in.sizes.shape, span, first_row, last_row);
  int const tiles = static_cast<int>((keys.last - keys.first + rows - 1) / rows);
  auto* const tile = dynamic_shared<HeadTile<Act, rows, Dim>>();
  auto const copy = [&](int j) {
    index_t const start = span.first_row + keys.first + index_t{j} * rows, last = span.first_row + keys.last;
    copy_rows<dq_threads, rows, Dim>(in.k, start, last, key_offset, tile[j % 2 * 2]);
    copy_rows<dq_threads, rows, Dim>(in.v, start, last, key_offset, tile[j % 2 * 2 + 1]);
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
    float rescale[2];
    softmax.weigh(weight, rescale);
#pragma unroll
    for (int n = 0; n < Dim / 8; ++n)
#pragma unroll
      for (int c = 0; c < 4; ++c) acc[n][c] *= rescale[c / 2];
#pragma unroll
    for (int part = 0; part < rows / 16; ++part) {
      if (!tiles_meet(in.sizes.shape, span, warp_row, 16, start + 16 * part, 16)) continue;
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
    float const total = softmax.sum(half);
    factor[half] = total > 0 ? in.sizes.scale / total : 0.f;
    if (row[half] < last_row && lane % 4 == 0)
      in.sums(span.first_row + row[half], head) = {total > 0 ? softmax.highest[half] + log2f(total) : INFINITY,
                                                   along[half]};
  }
  add_result<Dim, Act>(acc, factor, {begin(dq, row[0]), begin(dq, row[1])});
#endif
}

/// dK and dV of 64 keys of a head of keys: block (tile, head of keys, span). The heads that share the keys follow each
/// other. Each 16 keys have two warps, which take the queries of a tile 16 by 16 in turns.
template <int Dim, class Act>
__global__ void __launch_bounds__(dkv_threads)
    attention_dkv_tensor(AttentionInputs<Act> in, AttentionSpan const* spans, MatrixView<Act, DeviceSpace> dk,
                         MatrixView<Act, DeviceSpace> dv) {
#if defined(GRAFT_CUDA_EMULATION) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 750)
  constexpr int rows = walked_rows<Dim>;
  auto const& span = spans[blockIdx.z];
  auto const& shape = in.sizes.shape;
  index_t const first_key = index_t{blockIdx.x} * owned_rows;
  if (first_key >= span.rows) return;
  index_t const last_key = first_key + owned_rows < span.rows ? first_key + owned_rows : span.rows;
  int const kv_head = static_cast<int>(blockIdx.y), lane = static_cast<int>(threadIdx.x) % 32;
  int const warp = static_cast<int>(threadIdx.x) / 32 % 4, turn = static_cast<int>(threadIdx.x) / 128, t = lane % 4;
  index_t const warp_key = first_key + warp * 16;
  index_t const key[2] = {warp_key + lane / 4, warp_key + lane / 4 + 8};

  auto const begin = [&](auto matrix, index_t r) {
    return r < last_key ? matrix.row(span.first_row + r) + index_t{kv_head} * Dim : nullptr;
  };
  std::uint32_t k[Dim / 16][4], v[Dim / 16][4];
  load_operand<Dim, Act>({begin(in.k, key[0]), begin(in.k, key[1])}, k);
  load_operand<Dim, Act>({begin(in.v, key[0]), begin(in.v, key[1])}, v);

  index_t const first = shape.first_query(first_key), last = shape.last_query(last_key - 1, span.rows);
  int const tiles_of_head = static_cast<int>((last - first + rows - 1) / rows), tiles = tiles_of_head * in.sizes.shared;
  auto* const tile = dynamic_shared<HeadTile<Act, rows, Dim>>();
  auto const head_of = [&](int j) { return kv_head * in.sizes.shared + j / tiles_of_head; };
  auto const start_of = [&](int j) { return first + index_t{j % tiles_of_head} * rows; };
  auto const copy = [&](int j) {
    index_t const start = span.first_row + start_of(j), end = span.first_row + last, offset = index_t{head_of(j)} * Dim;
    copy_rows<dkv_threads, rows, Dim>(in.q, start, end, offset, tile[j % 2 * 2]);
    copy_rows<dkv_threads, rows, Dim>(in.dout, start, end, offset, tile[j % 2 * 2 + 1]);
  };
  float dk_sum[Dim / 8][4] = {}, dv_sum[Dim / 8][4] = {};
  float const scale = in.sizes.scale * log2_e;
  copy(0);
  for (int j = 0; j < tiles; ++j) {
    wait_for_copies();
    __syncthreads();  // this pair is there; the one before has been read
    if (j + 1 < tiles) copy(j + 1);
    int const head = head_of(j);
    for (int part = turn; part < rows / 16; part += 2) {
      index_t const query = start_of(j) + 16 * part;
      if (!tiles_meet(shape, span, query, 16, warp_key, 16)) continue;
      bool const all = span.mask == nullptr && query + 16 <= span.rows && warp_key + 16 <= span.rows &&
                       shape.first_key(query + 15) <= warp_key && shape.last_key(query, span.rows) >= warp_key + 16;
      auto const *const q = tile[j % 2 * 2] + 16 * part, *const dout = tile[j % 2 * 2 + 1] + 16 * part;
      float weight[2][4] = {}, slope[2][4] = {};  // [key, query]
      multiply_rows<16, Dim, Act>(weight, k, q);
      multiply_rows<16, Dim, Act>(slope, v, dout);
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          index_t const i = query + 8 * n + 2 * t + c;
          auto const sums = i < span.rows ? in.sums(span.first_row + i, head) : RowSums{INFINITY, 0};
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float &p = weight[n][2 * half + c], &ds = slope[n][2 * half + c];
            bool const seen = all || looks_at(shape, span, i, key[half]);
            p = seen ? exp2f(p * scale - sums.log_total) : 0.f;
            ds = p * (ds - sums.along);
          }
        }
      add_rows<Dim, Act>(dv_sum, weight[0], weight[1], dout);
      add_rows<Dim, Act>(dk_sum, slope[0], slope[1], q);
    }
  }

  // the sums of the first turn and those of the second
  auto* const second = dynamic_shared<float>() + threadIdx.x % 128;
  auto const finish = [&](float(&sum)[Dim / 8][4], float factor, MatrixView<Act, DeviceSpace> to) {
    __syncthreads();  // what was there has been read
    if (turn == 1)
#pragma unroll
      for (int n = 0; n < Dim / 2; ++n) second[128 * n] = sum[n / 4][n % 4];
    __syncthreads();
    if (turn == 1) return;
#pragma unroll
    for (int n = 0; n < Dim / 2; ++n) sum[n / 4][n % 4] += second[128 * n];
    add_result<Dim, Act>(sum, {factor, factor}, {begin(to, key[0]), begin(to, key[1])});
  };
  finish(dk_sum, in.sizes.scale, dk);
  finish(dv_sum, 1, dv);
#endif
}

}  // namespace graft::cuda
