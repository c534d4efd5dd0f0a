// SPDX-License-Identifier: Apache-2.0
// Attention over paged keys and values on the device.
#pragma once

#include <graft/backend/cuda/attention_decode.cuh>
#include <graft/backend/cuda/attention_prefill.cuh>

namespace graft {

/// out = attention(q, pages). q, out [n, heads * head_dim]; spans.data() and all it points to in device memory, pages
/// aligned to 16 bytes. Spans of one row and longer ones have kernels of their own, so that a sequence's result does
/// not depend on what it shares the batch with. On tensor cores, keys that a row does not see must hold numbers: 0
/// times NaN of a neighbour's is NaN.
template <class Act>
void attention(CudaBackend<Act>& be, KvView<Act> const& kv, AttentionShape const& shape, AttentionSpans const& spans,
               MatrixView<Act const, DeviceSpace> q, MatrixView<Act, DeviceSpace> out) {
  if (spans.empty()) return;
  auto const scope = be.scope();
  if (spans.single_rows) cuda::attention_decode(be, kv, shape, spans, q, out);
  if (spans.max_rows > 1) cuda::attention_prefill(be, kv, shape, spans, q, out);
}

}  // namespace graft
