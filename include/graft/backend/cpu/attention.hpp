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
        be.layer_kernels().narrow_row(key, kv.width, kv.template key<bf16>(page, slot));
        be.layer_kernels().narrow_row(value, kv.width, kv.template value<bf16>(page, slot));
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

namespace cpu {
/// A span's part of attention's tasks: blocks of its rows by heads of K and V by chunks of its keys.
struct SpanTasks {
  index_t first;       ///< of its tasks
  index_t chunks;      ///< 1: a task takes all keys
  index_t first_part;  ///< of what the chunks of its rows and heads leave
};
}  // namespace cpu

/// out = attention(q, pages). q, out [n, heads * head_dim], head_dim up to 6144
template <class Act>
void attention(CpuBackend<Act>& be, KvView<Act> const& kv, AttentionShape const& shape,
               std::span<AttentionSpan const> spans, MatrixView<Act const> q, MatrixView<Act> out) {
  expects(shape.head_dim <= cpu::attention_numbers, "graft: heads of ", shape.head_dim,
          " numbers; attention on the CPU takes up to ", cpu::attention_numbers);
  index_t const block = std::max<index_t>(1, cpu::attention_queries * shape.kv_heads / shape.heads);  // rows of a task
  auto const count = static_cast<index_t>(spans.size());
  ArenaScope scope(be.arena());
  auto const of_span = be.arena().template vector<cpu::SpanTasks>(count);
  index_t tasks = 0, parts_left = 0;
  auto const deal_out = [&](bool chunks) {
    tasks = 0;
    for (index_t s = 0; s < count; ++s) {
      auto const& span = spans[static_cast<std::size_t>(s)];
      of_span[s] = {tasks, chunks ? std::max<index_t>(1, ceil_div(span.tokens, cpu::key_chunk(kv.page_tokens))) : 1,
                    parts_left};
      tasks += ceil_div(span.rows, block) * shape.kv_heads * of_span[s].chunks;
      if (of_span[s].chunks > 1) parts_left += span.rows * shape.heads * of_span[s].chunks;
    }
  };
  deal_out(false);
  // too few for threads to finish together; how they are dealt out changes no sum
  auto const& executor = be.executor();
  if (executor.waits() && executor.concurrency() > 1 && tasks < 4 * executor.concurrency()) deal_out(true);
  auto const parts = be.arena().template matrix<Act>(parts_left, shape.head_dim + 2);
  auto const parts_of = [&](index_t s) {
    return parts.row_range(of_span[s].first_part,
                           spans[static_cast<std::size_t>(s)].rows * shape.heads * of_span[s].chunks);
  };
  be.executor().run(tasks, [&](index_t task) {
    auto const s = std::upper_bound(of_span.begin(), of_span.end(), task,
                                    [](index_t t, auto const& each) { return t < each.first; }) -
                   of_span.begin() - 1;
    auto const& span = spans[static_cast<std::size_t>(s)];
    index_t const chunks = of_span[s].chunks, kv_head = (task - of_span[s].first) % shape.kv_heads;
    index_t const piece = (task - of_span[s].first) / shape.kv_heads, row = piece / chunks * block;
    index_t const end = std::min(span.rows, row + block);
    if (chunks == 1)
      be.layer_kernels().attend(kv, shape, span, row, end, kv_head, q, out);
    else
      be.layer_kernels().attend_chunk(kv, shape, span, row, end, kv_head, piece % chunks, q, parts_of(s));
  });
  if (parts_left == 0) return;
  be.executor().run(count * shape.kv_heads, [&](index_t task) {
    index_t const s = task / shape.kv_heads, kv_head = task % shape.kv_heads, shared = shape.heads / shape.kv_heads;
    auto const& span = spans[static_cast<std::size_t>(s)];
    if (of_span[s].chunks == 1) return;
    for (index_t row = 0; row < span.rows; ++row)
      for (index_t head = kv_head * shared; head < (kv_head + 1) * shared; ++head)
        be.layer_kernels().combine_chunks(
            parts_of(s).row_range((row * shape.heads + head) * of_span[s].chunks, of_span[s].chunks),
            out.row(span.first_row + row) + head * shape.head_dim);
  });
}

}  // namespace graft
