// SPDX-License-Identifier: Apache-2.0
// Attention of spans of one row. The keys are split in chunks of a fixed size, so that a row's result does not depend
// on the batch; query heads that share a head of keys and values share its loads.
#pragma once

#include <graft/backend/cuda/attention_keys.cuh>

namespace graft::cuda {

inline constexpr int decode_threads = 128, decode_chunk = 256;  ///< tokens per block
inline constexpr int decode_pack = 8;                           ///< elements of a key or value a thread loads at once
inline constexpr int decode_heads = 8;                          ///< most query heads per block
inline constexpr int decode_key_lanes = 4;  ///< neighbouring threads that share a key, so that they read 64 bytes of it

/// What the chunks of every row and head leave: a softmax over the chunk's keys, not yet divided.
struct DecodeParts {
  float* values = nullptr;   ///< [spans, heads, chunks, head_dim], sum of e^(score - highest) v
  float* highest = nullptr;  ///< [spans, heads, chunks]
  float* total = nullptr;    ///< [spans, heads, chunks], sum of e^(score - highest)
  int chunks = 0;
};

/// Floats between the queries of two heads in shared memory: whole loads, zeros behind a head.
__host__ __device__ inline int decode_padded(int head_dim) {
  return (head_dim + decode_pack - 1) / decode_pack * decode_pack;
}

/// Elements [k, k + 8) of a key or value, `at` null: zeros, which are at `nothing`. One load either way where `whole`,
/// and no branch, so that several of them are under way together.
template <bool whole, class Act>
__device__ inline void load_slot(Act const* at, index_t offset, int k, int dim, Act const* nothing,
                                 float (&v)[decode_pack]) {
  if constexpr (whole)
    load(at != nullptr ? at + offset + k : nothing, v);
  else
    load_columns<false>(at != nullptr ? at + offset : nothing, k, at != nullptr ? dim : 0, v);
}

/// One chunk of one row for up to `Heads` query heads of a head of K and V. Block (chunk, head of K and V and group of
/// query heads, span). With parts.values null there is one chunk, whose result is written at once. `whole`: all keys
/// and values are multiples of 8 elements apart.
template <int Heads, bool whole, class Act>
__global__ void decode_chunks(KvView<Act> kv, AttentionSizes sizes, AttentionSpan const* spans,
                              MatrixView<Act const, DeviceSpace> q, MatrixView<Act, DeviceSpace> out,
                              DecodeParts parts) {
  constexpr int warps = decode_threads / 32;
  constexpr int at_once = Heads == 1 && whole ? 8 : Heads <= 4 ? 4 : 2;  // loads of a thread
  auto const span = spans[blockIdx.z];
  if (span.rows != 1) return;  // left to the prefill kernel
  int const head_groups = (sizes.shared + Heads - 1) / Heads;
  int const kv_head = static_cast<int>(blockIdx.y) / head_groups;
  int const first_head = kv_head * sizes.shared + static_cast<int>(blockIdx.y) % head_groups * Heads;
  int const last_head = (kv_head + 1) * sizes.shared;
  int const used = last_head - first_head < Heads ? last_head - first_head : Heads, dim = sizes.head_dim;
  index_t const first_key = sizes.shape.first_key(span.first_token);
  index_t const last_key = sizes.shape.last_key(span.first_token, span.tokens);
  index_t const chunk_first = index_t{blockIdx.x} * decode_chunk;
  index_t const from = first_key > chunk_first ? first_key : chunk_first;
  index_t const to = last_key < chunk_first + decode_chunk ? last_key : chunk_first + decode_chunk;
  int const count = to > from ? static_cast<int>(to - from) : 0;
  index_t const part = (index_t{blockIdx.z} * sizes.heads + first_head) * parts.chunks + blockIdx.x;
  int const thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  if (count == 0 && parts.values != nullptr) {  // the chunk is combined without being read
    if (thread < used) {
      parts.highest[part + thread * parts.chunks] = nothing_seen;
      parts.total[part + thread * parts.chunks] = 0;
    }
    return;
  }

  __shared__ Act const* slot[decode_chunk];  // null: the mask hides the token, what lies there may be anything
  __shared__ float weight[Heads][decode_chunk];
  __shared__ float of_warp[warps][Heads], highest[Heads], total[Heads];
  alignas(16) __shared__ Act nothing[decode_pack];
  int const padded = decode_padded(dim);
  float* const queries = dynamic_shared<float>();  // [Heads, padded], later [decode_threads, decode_pack]
  for (int k = thread; k < Heads * padded; k += decode_threads) {
    int const h = k / padded, c = k % padded;
    queries[k] = h < used && c < dim ? to_real(q.row(span.first_row)[(first_head + h) * index_t{dim} + c]) : 0.f;
  }
  if (thread < decode_pack) nothing[thread] = from_real<Act>(0);
  for (int t = thread; t < count; t += decode_threads)
    slot[t] = unmasked(span, 0, from + t) ? slot_of(kv, span, from + t, index_t{kv_head} * dim) : nullptr;
  __syncthreads();

  // scores: `decode_key_lanes` threads have a key
  constexpr int keys = decode_threads / decode_key_lanes;
  float best[Heads];
#pragma unroll
  for (int h = 0; h < Heads; ++h) best[h] = nothing_seen;
  for (int base = 0; base < count; base += at_once * keys) {
    int const first = base + thread / decode_key_lanes;
    Act const* at[at_once];
    float sum[at_once][Heads] = {};
#pragma unroll
    for (int i = 0; i < at_once; ++i) at[i] = first + i * keys < count ? slot[first + i * keys] : nullptr;
    for (int k = thread % decode_key_lanes * decode_pack; k < dim; k += decode_key_lanes * decode_pack) {
      float v[at_once][decode_pack];
#pragma unroll
      for (int i = 0; i < at_once; ++i) load_slot<whole>(at[i], kv.key_offset, k, dim, nothing, v[i]);
#pragma unroll
      for (int h = 0; h < Heads; ++h) {
        float query[decode_pack];
        load(queries + h * padded + k, query);
#pragma unroll
        for (int i = 0; i < at_once; ++i)
#pragma unroll
          for (int j = 0; j < decode_pack; ++j) sum[i][h] += v[i][j] * query[j];
      }
    }
#pragma unroll
    for (int i = 0; i < at_once; ++i)
#pragma unroll
      for (int h = 0; h < Heads; ++h) {
#pragma unroll
        for (int distance = 1; distance < decode_key_lanes; distance *= 2)
          sum[i][h] += __shfl_xor_sync(0xffffffffu, sum[i][h], distance);
        float const score = at[i] != nullptr ? sum[i][h] * sizes.scale : nothing_seen;
        if (first + i * keys < count && thread % decode_key_lanes == 0) weight[h][first + i * keys] = score;
        best[h] = fmaxf(best[h], score);
      }
  }
#pragma unroll
  for (int h = 0; h < Heads; ++h) {
    best[h] = warp_max(best[h]);
    if (lane == 0) of_warp[warp][h] = best[h];
  }
  __syncthreads();
  if (thread < Heads) {
    float high = of_warp[0][thread];
    for (int w = 1; w < warps; ++w) high = fmaxf(high, of_warp[w][thread]);
    highest[thread] = high;
  }
  __syncthreads();

  // weights
  float sum[Heads] = {};
  for (int t = thread; t < count; t += decode_threads)
#pragma unroll
    for (int h = 0; h < Heads; ++h) {
      float const score = weight[h][t];
      float const w = score == nothing_seen ? 0.f : expf(score - highest[h]);
      weight[h][t] = w;
      sum[h] += w;
    }
#pragma unroll
  for (int h = 0; h < Heads; ++h) {
    sum[h] = warp_sum(sum[h]);
    if (lane == 0) of_warp[warp][h] = sum[h];
  }
  __syncthreads();
  if (thread < Heads) {
    float all = 0;
    for (int w = 0; w < warps; ++w) all += of_warp[w][thread];
    total[thread] = all;
  }

  // values: `packs` threads have a token, `lanes` tokens are under way at a time
  int const passes = (dim + decode_pack * decode_threads - 1) / (decode_pack * decode_threads);
  for (int pass = 0; pass < passes; ++pass) {
    int const first_dim = pass * decode_pack * decode_threads;
    int const width = dim - first_dim < decode_pack * decode_threads ? dim - first_dim : decode_pack * decode_threads;
    int const packs = (width + decode_pack - 1) / decode_pack, lanes = decode_threads / packs;
    int const k = first_dim + thread % packs * decode_pack, token_lane = thread / packs;
    float acc[Heads][decode_pack] = {};
    if (token_lane < lanes)
      for (int first = token_lane; first < count; first += at_once * lanes) {
        float v[at_once][decode_pack];
#pragma unroll
        for (int i = 0; i < at_once; ++i) {
          int const t = first + i * lanes;
          load_slot<whole>(t < count ? slot[t] : nullptr, kv.value_offset, k, dim, nothing, v[i]);
        }
#pragma unroll
        for (int i = 0; i < at_once; ++i) {
          int const t = first + i * lanes < count ? first + i * lanes : first;  // behind the last: any weight times 0
#pragma unroll
          for (int h = 0; h < Heads; ++h) {
            float const w = weight[h][t];
#pragma unroll
            for (int j = 0; j < decode_pack; ++j) acc[h][j] += w * v[i][j];
          }
        }
      }
    float* const sums = queries;
#pragma unroll
    for (int h = 0; h < Heads; ++h) {
      __syncthreads();  // what was there has been read
      if (token_lane < lanes)
#pragma unroll
        for (int j = 0; j < decode_pack; ++j) sums[(token_lane * packs + thread % packs) * decode_pack + j] = acc[h][j];
      __syncthreads();
      if (h >= used) continue;
      for (int c = thread; c < width; c += decode_threads) {
        float value = 0;
        for (int l = 0; l < lanes; ++l) value += sums[l * packs * decode_pack + c];
        if (parts.values != nullptr)
          parts.values[(part + h * parts.chunks) * dim + first_dim + c] = value;
        else
          out.row(span.first_row)[(first_head + h) * index_t{dim} + first_dim + c] =
              from_real<Act>(total[h] > 0 ? value / total[h] : 0.f);
      }
    }
  }
  if (parts.values != nullptr && thread < used) {
    parts.highest[part + thread * parts.chunks] = highest[thread];
    parts.total[part + thread * parts.chunks] = total[thread];
  }
}

/// Adds the chunks of a row and head in their order. Block (head, span).
template <class Act>
__global__ void combine_chunks(AttentionSizes sizes, AttentionSpan const* spans, DecodeParts parts,
                               MatrixView<Act, DeviceSpace> out) {
  auto const span = spans[blockIdx.y];
  if (span.rows != 1) return;
  index_t const last_key = sizes.shape.last_key(span.first_token, span.tokens);
  int const chunks = static_cast<int>((last_key + decode_chunk - 1) / decode_chunk);
  index_t const part = (index_t{blockIdx.y} * sizes.heads + blockIdx.x) * parts.chunks;
  float highest = nothing_seen, total = 0;
  for (int k = 0; k < chunks; ++k) highest = fmaxf(highest, parts.highest[part + k]);
  for (int k = 0; k < chunks; ++k)
    if (parts.total[part + k] > 0) total += parts.total[part + k] * expf(parts.highest[part + k] - highest);
  Act* const to = out.row(span.first_row) + index_t{blockIdx.x} * sizes.head_dim;
  for (int c = static_cast<int>(threadIdx.x); c < sizes.head_dim; c += static_cast<int>(blockDim.x)) {
    float value = 0;
    for (int k = 0; k < chunks; ++k)
      if (parts.total[part + k] > 0)  // else its values were not written
        value += parts.values[(part + k) * sizes.head_dim + c] * expf(parts.highest[part + k] - highest);
    to[c] = from_real<Act>(total > 0 ? value / total : 0.f);
  }
}

/// Attention of the spans of one row; scratch in the caller's scope of the arena.
template <class Act>
void attention_decode(CudaBackend<Act>& be, KvView<Act> const& kv, AttentionShape const& shape,
                      AttentionSpans const& spans, MatrixView<Act const, DeviceSpace> q,
                      MatrixView<Act, DeviceSpace> out) {
  auto const sizes = attention_sizes(shape);
  auto const count = static_cast<index_t>(spans.size());
  DecodeParts parts;
  parts.chunks = static_cast<int>(ceil_div(spans.max_tokens, decode_chunk));
  index_t const all = count * shape.heads * parts.chunks;
  if (parts.chunks > 1) {
    parts.values = be.arena().template allocate<float>(all * shape.head_dim);
    parts.highest = be.arena().template allocate<float>(all);
    parts.total = be.arena().template allocate<float>(all);
  }
  auto const run = [&](auto kernel, int heads) {
    auto const grid = grid_of(parts.chunks, shape.kv_heads * ceil_div(sizes.shared, heads), count);
    index_t const shared = std::max(heads * decode_padded(sizes.head_dim), decode_threads * decode_pack);
    launch(kernel, grid, decode_threads, static_cast<std::size_t>(shared) * sizeof(float), be.stream(), kv, sizes,
           spans.data(), q, out, parts);
  };
  bool const whole = shape.head_dim % decode_pack == 0 && kv.width % decode_pack == 0 &&
                     kv.key_offset % decode_pack == 0 && kv.value_offset % decode_pack == 0;
  if (!whole)
    run(decode_chunks<1, false, Act>, 1);
  else if (sizes.shared == 1)
    run(decode_chunks<1, true, Act>, 1);
  else if (sizes.shared == 2)
    run(decode_chunks<2, true, Act>, 2);
  else if (sizes.shared <= 4)
    run(decode_chunks<4, true, Act>, 4);
  else
    run(decode_chunks<decode_heads, true, Act>, decode_heads);
  if (parts.chunks > 1)
    launch(combine_chunks<Act>, grid_of(shape.heads, count), 128, 0, be.stream(), sizes, spans.data(), parts, out);
}

}  // namespace graft::cuda
