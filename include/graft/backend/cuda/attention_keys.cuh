// SPDX-License-Identifier: Apache-2.0
// What the attention kernels share: where a token's keys and values lie, and which of them a row sees.
#pragma once

#include <graft/backend/attention.hpp>
#include <graft/backend/cuda/columns.cuh>
#include <graft/backend/cuda/cuda_backend.cuh>

#include <cmath>

namespace graft::cuda {

inline constexpr float nothing_seen = -INFINITY;

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

}  // namespace graft::cuda
