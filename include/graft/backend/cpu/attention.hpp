// SPDX-License-Identifier: Apache-2.0
// Attention over paged keys and values on the CPU, page by page with a running softmax: no score matrix is kept.
#pragma once

#include <graft/backend/attention.hpp>
#include <graft/backend/cpu/elementwise.hpp>

#include <algorithm>
#include <span>

namespace graft {
/// Writes keys and values of the batch into their pages. k, v [n, kv_heads * head_dim]
template <class Act>
void store_kv(CpuBackend<Act>& be, KvView<Act> const& kv, std::span<AttentionSpan const> spans, MatrixView<Act const> k,
              MatrixView<Act const> v) {
  auto const store = [&](AttentionSpan const& span) {
    for (index_t r = 0; r < span.rows; ++r) {
      index_t const token = span.first_token + r, slot = token % kv.page_tokens;
      std::int32_t const page = span.pages[token / kv.page_tokens];
      Act const *const key = k.row(span.first_row + r), *const value = v.row(span.first_row + r);
      if (kv.narrow) {
        be.kernels().narrow_row(key, kv.width, kv.template key<bf16>(page, slot));
        be.kernels().narrow_row(value, kv.width, kv.template value<bf16>(page, slot));
      } else {
        std::copy_n(key, kv.width, kv.key(page, slot));
        std::copy_n(value, kv.width, kv.value(page, slot));
      }
    }
  };
  cpu::for_row_blocks(be, static_cast<index_t>(spans.size()), [&](index_t first, index_t last) {
    for (index_t s = first; s < last; ++s) store(spans[static_cast<std::size_t>(s)]);
  });
}

/// out = attention(q, pages). q, out [n, heads * head_dim]
template <class Act>
void attention(CpuBackend<Act>& be, KvView<Act> const& kv, AttentionShape const& shape,
               std::span<AttentionSpan const> spans, MatrixView<Act const> q, MatrixView<Act> out) {
  index_t const block = std::max<index_t>(1, cpu::attention_queries * shape.kv_heads / shape.heads);  // rows of a task
  ArenaScope scope(be.arena());
  auto const first_task = be.arena().template vector<index_t>(static_cast<index_t>(spans.size()));
  index_t tasks = 0;
  for (std::size_t s = 0; s < spans.size(); ++s) {
    first_task[static_cast<index_t>(s)] = tasks;
    tasks += ceil_div(spans[s].rows, block) * shape.kv_heads;
  }
  be.executor().run(tasks, [&](index_t task) {
    auto const s = std::upper_bound(first_task.begin(), first_task.end(), task) - first_task.begin() - 1;
    auto const& span = spans[static_cast<std::size_t>(s)];
    index_t const of_span = task - first_task[s];
    index_t const row = of_span / shape.kv_heads * block, kv_head = of_span % shape.kv_heads;
    be.kernels().attend(kv, shape, span, row, std::min(span.rows, row + block), kv_head, q, out);
  });
}

}  // namespace graft
