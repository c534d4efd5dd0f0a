// SPDX-License-Identifier: Apache-2.0
// What the attention kernels share: where a token's keys and values lie, and which of them a row sees. Softmax is made
// of powers of 2.
#pragma once

#include <graft/backend/attention.hpp>
#include <graft/backend/cuda/columns.cuh>
#include <graft/backend/cuda/cuda_backend.cuh>

#include <cmath>

namespace graft::cuda {

inline constexpr float nothing_seen = -INFINITY;
inline constexpr float log2_e = 1.44269504088896341f;

/// The shape as kernels use it.
struct AttentionSizes {
  int heads = 0, kv_heads = 0, shared = 0, head_dim = 0;  ///< shared: query heads per head of K and V
  float scale = 0;
  AttentionShape shape;
};
inline AttentionSizes attention_sizes(AttentionShape const& shape) {
  return {static_cast<int>(shape.heads),
          static_cast<int>(shape.kv_heads),
          static_cast<int>(shape.heads / shape.kv_heads),
          static_cast<int>(shape.head_dim),
          static_cast<float>(shape.scale),
          shape};
}

/// Where a token lies in its page: element `offset` of its key is kv.key_offset behind, of its value kv.value_offset.
template <class Act>
__device__ Act const* slot_of(KvView<Act> const& kv, AttentionSpan const& span, index_t token, index_t offset) {
  auto const t = static_cast<unsigned>(token), page_tokens = static_cast<unsigned>(kv.page_tokens);
  return kv.page_data[span.pages[t / page_tokens]] + index_t{t % page_tokens} * kv.width + offset;
}

/// Whether the mask lets row `row` of the span see the token; the shape's own rule is asked elsewhere.
__device__ inline bool unmasked(AttentionSpan const& span, index_t row, index_t token) {
  return span.mask == nullptr || span.mask[row * span.tokens + token] != 0;
}

/// The keys that rows [first_row, last_row) of a span see between them.
struct KeyRange {
  index_t first, last;
};
__device__ inline KeyRange keys_of(AttentionShape const& shape, AttentionSpan const& span, index_t first_row,
                                   index_t last_row) {
  return {shape.first_key(span.first_token + first_row), shape.last_key(span.first_token + last_row - 1, span.tokens)};
}

/// What softmax leaves of a row and a head for its gradients.
struct RowSums {
  float log_total;  ///< log2 of the sum of 2^(score log2 e); infinity where the row sees nothing
  float along;      ///< dout . out
};
/// What the kernels of gradients read: rows of the batch, and sums, which the kernel of dQ writes and that of dK and dV
/// reads.
template <class Act>
struct AttentionInputs {
  AttentionSizes sizes;
  MatrixView<Act const, DeviceSpace> q, k, v, out, dout;
  MatrixView<RowSums, DeviceSpace> sums;  ///< [heads, n]
};

/// Whether query `i` of a span that starts its sequence looks at key `j`.
__device__ inline bool looks_at(AttentionShape const& shape, AttentionSpan const& span, index_t i, index_t j) {
  return i < span.rows && j < span.rows && j >= shape.first_key(i) && j < shape.last_key(i, span.rows) &&
         unmasked(span, i, j);
}
/// Whether any of `queries` from `query` on looks at any of `keys` from `key` on, by the shape's own rule.
__device__ inline bool tiles_meet(AttentionShape const& shape, AttentionSpan const& span, index_t query, int queries,
                                  index_t key, int keys) {
  index_t const last = query + queries < span.rows ? query + queries : span.rows;
  return shape.last_key(last - 1, span.rows) > key && shape.first_key(query) < key + keys;
}

}  // namespace graft::cuda
