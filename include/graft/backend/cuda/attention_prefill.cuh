// SPDX-License-Identifier: Apache-2.0
// Attention of spans of many rows: tiles of queries walk over tiles of keys with a running softmax (Milakov and
// Gimelshein 2018, arXiv:1805.02867; Dao 2023, arXiv:2307.08691), so no matrix of scores exists. Two kernels: tensor
// cores for 16-bit activations and the usual head sizes, plain arithmetic for everything.
#pragma once

#include <graft/backend/cuda/attention_tiles.cuh>

namespace graft::cuda {

inline constexpr int plain_threads = 128, plain_rows = 4;  ///< rows per warp
inline constexpr int plain_tile = plain_threads / 32 * plain_rows;
inline constexpr int plain_dims = 256;  ///< of values at a time

/// Tile of 16 rows of one head: block (tile, head, span). A lane has a key of 32, then an element of the values of 32.
template <class Act>
__global__ void prefill_plain(KvView<Act> kv, AttentionSizes sizes, AttentionSpan const* spans,
                              MatrixView<Act const, DeviceSpace> q, MatrixView<Act, DeviceSpace> out) {
  auto const span = spans[blockIdx.z];
  index_t const first_row = index_t{gridDim.x - 1 - blockIdx.x} * plain_tile;  // long tiles first
  if (span.rows == 1 || first_row >= span.rows) return;
  index_t const last_row = first_row + plain_tile < span.rows ? first_row + plain_tile : span.rows;
  int const head = static_cast<int>(blockIdx.y), dim = sizes.head_dim;
  index_t const offset = index_t{head / sizes.shared} * dim;
  int const thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  auto const keys = keys_of(sizes.shape, span, first_row, last_row);
  __shared__ float queries[plain_tile][32], tile[32][33], weight[plain_tile][32];

  for (int base = 0; base < dim; base += plain_dims) {  // one pass for all but the largest heads
    float acc[plain_rows][plain_dims / 32] = {}, highest[plain_rows], total[plain_rows] = {};
#pragma unroll
    for (int r = 0; r < plain_rows; ++r) highest[r] = nothing_seen;
    for (index_t start = keys.first; start < keys.last; start += 32) {
      float score[plain_rows] = {};
      for (int first = 0; first < dim; first += 32) {
        __syncthreads();
        for (int k = thread; k < plain_tile * 32; k += plain_threads) {
          int const r = k / 32, c = first + k % 32;
          queries[r][k % 32] = first_row + r < last_row && c < dim
                                   ? to_real(q.row(span.first_row + first_row + r)[index_t{head} * dim + c])
                                   : 0.f;
        }
        for (int k = thread; k < 32 * 32; k += plain_threads) {
          index_t const token = start + k / 32;
          int const c = first + k % 32;
          tile[k / 32][k % 32] =
              token < keys.last && c < dim ? to_real(slot_of(kv, span, token, offset)[kv.key_offset + c]) : 0.f;
        }
        __syncthreads();
        for (int c = 0; c < 32; ++c)
#pragma unroll
          for (int r = 0; r < plain_rows; ++r) score[r] += queries[warp * plain_rows + r][c] * tile[lane][c];
      }
      index_t const token = start + lane;
#pragma unroll
      for (int r = 0; r < plain_rows; ++r) {
        index_t const row = first_row + warp * plain_rows + r, i = span.first_token + row;
        bool const seen = row < last_row && token >= sizes.shape.first_key(i) &&
                          token < sizes.shape.last_key(i, span.tokens) && unmasked(span, row, token);
        float const mine = seen ? score[r] * sizes.scale : nothing_seen;
        float const new_highest = fmaxf(highest[r], warp_max(mine));
        float const p = seen ? expf(mine - new_highest) : 0.f;
        float const rescale = highest[r] == nothing_seen ? 0.f : expf(highest[r] - new_highest);
        total[r] = total[r] * rescale + warp_sum(p);
        highest[r] = new_highest;
        weight[warp * plain_rows + r][lane] = p;
#pragma unroll
        for (int b = 0; b < plain_dims / 32; ++b) acc[r][b] *= rescale;
      }
#pragma unroll
      for (int b = 0; b < plain_dims / 32; ++b) {
        int const first = base + 32 * b;
        if (first >= dim) break;
        __syncthreads();
        for (int k = thread; k < 32 * 32; k += plain_threads) {
          index_t const value_token = start + k / 32;
          int const c = first + k % 32;
          tile[k / 32][k % 32] = value_token < keys.last && c < dim
                                     ? to_real(slot_of(kv, span, value_token, offset)[kv.value_offset + c])
                                     : 0.f;
        }
        __syncthreads();
        for (int t = 0; t < 32; ++t)
#pragma unroll
          for (int r = 0; r < plain_rows; ++r) {
            float const w = weight[warp * plain_rows + r][t];
            if (w != 0) acc[r][b] += w * tile[t][lane];  // what lies at hidden keys may be anything
          }
      }
    }
#pragma unroll
    for (int r = 0; r < plain_rows; ++r) {
      index_t const row = first_row + warp * plain_rows + r;
      if (row >= last_row) break;
      Act* const to = out.row(span.first_row + row) + index_t{head} * dim;
#pragma unroll
      for (int b = 0; b < plain_dims / 32; ++b)
        if (int const c = base + 32 * b + lane; c < dim)
          to[c] = from_real<Act>(total[r] > 0 ? acc[r][b] / total[r] : 0.f);  // a row that sees nothing is 0
    }
  }
}

inline constexpr int prefill_threads = 128, prefill_rows = 64;  ///< 16 rows per warp
template <int Dim>
inline constexpr int prefill_keys = Dim <= 128 ? 64 : 32;  ///< what two tiles of 48 KiB hold

/// Tile of 64 rows of one head on tensor cores: block (tile, head, span). Values of a tile of keys are copied while its
/// scores are computed, the next keys while the values are added.
template <int Dim, class Act>
__global__ void __launch_bounds__(prefill_threads)
    prefill_tensor(KvView<Act> kv, AttentionSizes sizes, AttentionSpan const* spans,
                   MatrixView<Act const, DeviceSpace> q, MatrixView<Act, DeviceSpace> out) {
#if defined(GRAFT_CUDA_EMULATION) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 750)
  constexpr int keys_per_tile = prefill_keys<Dim>, packs = Dim / 8;
  auto const& span = spans[blockIdx.z];                                          // registers are scarce here
  index_t const first_row = index_t{gridDim.x - 1 - blockIdx.x} * prefill_rows;  // long tiles first
  if (span.rows == 1 || first_row >= span.rows) return;
  index_t const last_row = first_row + prefill_rows < span.rows ? first_row + prefill_rows : span.rows;
  int const head = static_cast<int>(blockIdx.y);
  index_t const offset = index_t{head / sizes.shared} * Dim;
  int const thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  int const g = lane / 4, t = lane % 4;
  auto const keys = keys_of(sizes.shape, span, first_row, last_row);
  int const tiles =
      keys.last > keys.first ? static_cast<int>((keys.last - keys.first + keys_per_tile - 1) / keys_per_tile) : 0;
  alignas(16) __shared__ HeadTile<Act, keys_per_tile, Dim> key_tile;
  alignas(16) __shared__ HeadTile<Act, keys_per_tile, Dim> value_tile;
  __shared__ Act const* token_data[2][keys_per_tile];  // as slot_of says

  auto const find_tokens = [&](int j) {
    if (thread >= keys_per_tile) return;
    index_t const token = keys.first + index_t{j} * keys_per_tile + thread;
    token_data[j & 1][thread] = token < keys.last ? slot_of(kv, span, token, offset) : nullptr;
  };
  auto const copy_tile = [&](int j, index_t from_offset, HeadTile<Act, keys_per_tile, Dim>& to) {
#pragma unroll(Dim <= 128 ? 4 : 2)
    for (int k = thread; k < keys_per_tile * packs; k += prefill_threads) {
      Act* const at = &to[k / packs][k % packs * 8];
      if (Act const* const from = token_data[j & 1][k / packs]; from != nullptr)
        copy16(from + from_offset + k % packs * 8, at);
      else
        *aligned_as<uint4>(at) = uint4{0, 0, 0, 0};  // 0 times what lies there may be NaN
    }
  };

  index_t const row[2] = {first_row + warp * 16 + g, first_row + warp * 16 + g + 8};
  auto const query_row = [&](index_t r) {
    return r < last_row ? q.row(span.first_row + r) + index_t{head} * Dim : nullptr;
  };
  std::uint32_t query[Dim / 16][4];
  load_operand<Dim, Act>({query_row(row[0]), query_row(row[1])}, query);
  float acc[Dim / 8][4] = {};
  RunningSoftmax softmax;

  find_tokens(0);
  __syncthreads();
  if (tiles > 0) copy_tile(0, kv.key_offset, key_tile);
  for (int j = 0; j < tiles; ++j) {
    wait_for_copies();
    __syncthreads();  // keys are there; the values before have been read
    copy_tile(j, kv.value_offset, value_tile);
    find_tokens(j + 1);

    float score[keys_per_tile / 8][4] = {};
    multiply_rows<keys_per_tile, Dim, Act>(score, query, key_tile);
    mask_scores(sizes, span, row, last_row, keys.first + index_t{j} * keys_per_tile, score);
    softmax.weigh(score, acc);

    wait_for_copies();
    __syncthreads();  // values are there; the keys have been read
    if (j + 1 < tiles) copy_tile(j + 1, kv.key_offset, key_tile);
#pragma unroll
    for (int k = 0; k < keys_per_tile / 16; ++k)
      add_rows<Dim, Act>(acc, score[2 * k], score[2 * k + 1], &value_tile[16 * k]);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float const sum = row_sum(softmax.total[half]);
    if (row[half] >= last_row) continue;
    float const inverse = sum > 0 ? 1 / sum : 0.f;  // a row that sees nothing is 0
    Act* const to = out.row(span.first_row + row[half]) + index_t{head} * Dim + 2 * t;
#pragma unroll
    for (int n = 0; n < Dim / 8; ++n)
      *aligned_as<std::uint32_t>(to + 8 * n) = pack2<Act>(acc[n][2 * half] * inverse, acc[n][2 * half + 1] * inverse);
  }
#endif
}

/// Attention of the spans of more than one row.
template <class Act>
void attention_prefill(CudaBackend<Act>& be, KvView<Act> const& kv, AttentionShape const& shape,
                       AttentionSpans const& spans, MatrixView<Act const, DeviceSpace> q,
                       MatrixView<Act, DeviceSpace> out) {
  auto const sizes = attention_sizes(shape);
  auto const run = [&](auto kernel, index_t rows, int threads) {
    auto const grid = grid_of(ceil_div(spans.max_rows, rows), shape.heads, static_cast<index_t>(spans.size()));
    launch(kernel, grid, static_cast<unsigned>(threads), 0, be.stream(), kv, sizes, spans.data(), q, out);
  };
  if constexpr (tensor_core_capability<Act> < 1000) {
    bool const whole =
        kv.width % 8 == 0 && kv.key_offset % 8 == 0 && kv.value_offset % 8 == 0 && aligned16(q) && aligned16(out);
    if (whole && be.capability() >= tensor_core_capability<Act>) {
      auto const tensor = [&](auto kernel) { run(kernel, prefill_rows, prefill_threads); };
      switch (shape.head_dim) {
        case 64:
          return tensor(prefill_tensor<64, Act>);
        case 80:
          return tensor(prefill_tensor<80, Act>);
        case 96:
          return tensor(prefill_tensor<96, Act>);
        case 128:
          return tensor(prefill_tensor<128, Act>);
        case 256:
          return tensor(prefill_tensor<256, Act>);
        default:
          break;
      }
    }
  }
  run(prefill_plain<Act>, plain_tile, plain_threads);
}

}  // namespace graft::cuda
