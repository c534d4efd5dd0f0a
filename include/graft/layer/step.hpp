// SPDX-License-Identifier: Apache-2.0
// One step of a model as its layers see it.
#pragma once

#include <graft/adapter/plan.hpp>
#include <graft/backend/attention.hpp>
#include <graft/core/view.hpp>

#include <span>

namespace graft {

/// Rows that pass through the linear layers together: a slice of the batch with a plan of its own.
template <class B>
struct StepChunk {
  index_t first = 0, rows = 0;
  Plan<B> const* plan = nullptr;
  AttentionSpans spans;  ///< first_row counts from the chunk's first row
};

/// All layers of a forward use the same step. Long batches are cut into chunks inside each layer, so that scratch
/// memory stays small while PEDRO still sees whole prompts.
template <class B>
struct Step {
  using Act = typename B::Act;
  Plan<B> const* plan = nullptr;  ///< of the whole batch
  std::span<StepChunk<B> const> chunks;
  MatrixView<Act const, typename B::Space> cosine, sine;  ///< [n, angles] of RoPE
  KvView<Act> (*kv)(void const* cache, index_t layer) = nullptr;
  void const* cache = nullptr;

  KvView<Act> kv_of(index_t layer) const { return kv(cache, layer); }
};

}  // namespace graft
