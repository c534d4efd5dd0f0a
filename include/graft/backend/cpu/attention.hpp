// SPDX-License-Identifier: Apache-2.0
// Attention over paged keys and values on the CPU, page by page with a running softmax: no score matrix is kept.
#pragma once

#include <graft/backend/attention.hpp>
#include <graft/backend/cpu/elementwise.hpp>

#include <algorithm>
#include <limits>
#include <span>

namespace graft {
namespace cpu {

inline constexpr index_t max_page_tokens = 64;

/// out [head_dim] = softmax(scale q . K) V over the keys token i of the span may see.
template <class Act>
void attend(KvView<Act> const& kv, AttentionShape const& shape, AttentionSpan const& span, index_t row, index_t kv_head,
            Act const* q, Act* out) {
  index_t const token = span.first_token + row, offset = kv_head * shape.head_dim;
  index_t const first = shape.first_key(token), last = shape.last_key(token, span.tokens);
  std::uint8_t const* const mask = span.mask != nullptr ? span.mask + row * span.tokens : nullptr;
  Act highest = -std::numeric_limits<Act>::infinity(), total = 0;
  std::fill(out, out + shape.head_dim, Act{0});
  for (index_t start = first; start < last;) {
    index_t const slot = start % kv.page_tokens, count = std::min(last - start, kv.page_tokens - slot);
    std::int32_t const page = span.pages[start / kv.page_tokens];
    Act score[max_page_tokens];
    Act page_highest = highest;
    for (index_t t = 0; t < count; ++t) {
      bool const visible = mask == nullptr || mask[start + t] != 0;
      score[t] = visible ? static_cast<Act>(shape.scale) * dot(q, kv.key(page, slot + t) + offset, shape.head_dim)
                         : -std::numeric_limits<Act>::infinity();
      page_highest = std::max(page_highest, score[t]);
    }
    if (page_highest > -std::numeric_limits<Act>::infinity()) {
      if (page_highest > highest) {
        Act const rescale = total == 0 ? Act{0} : exp_of(highest - page_highest);
        total *= rescale;
        for (index_t k = 0; k < shape.head_dim; ++k) out[k] *= rescale;
        highest = page_highest;
      }
      for (index_t t = 0; t < count; ++t) {
        Act const p = exp_of(score[t] - highest);
        if (p == 0) continue;
        total += p;
        Act const* const v = kv.value(page, slot + t) + offset;
        for (index_t k = 0; k < shape.head_dim; ++k) out[k] += p * v[k];
      }
    }
    start += count;
  }
  if (total > 0)  // a row whose every key is masked is 0
    for (index_t k = 0; k < shape.head_dim; ++k) out[k] /= total;
}

}  // namespace cpu

/// Writes keys and values of the batch into their pages. k, v [n, kv_heads * head_dim]
template <class Act>
void store_kv(CpuBackend<Act>& be, KvView<Act> const& kv, std::span<AttentionSpan const> spans, MatrixView<Act const> k,
              MatrixView<Act const> v) {
  be.executor().run(static_cast<index_t>(spans.size()), [&](index_t s) {
    auto const& span = spans[static_cast<std::size_t>(s)];
    for (index_t r = 0; r < span.rows; ++r) {
      index_t const token = span.first_token + r;
      std::int32_t const page = span.pages[token / kv.page_tokens];
      std::copy(k.row(span.first_row + r), k.row(span.first_row + r) + kv.width, kv.key(page, token % kv.page_tokens));
      std::copy(v.row(span.first_row + r), v.row(span.first_row + r) + kv.width,
                kv.value(page, token % kv.page_tokens));
    }
  });
}

/// out = attention(q, pages). q, out [n, heads * head_dim]
template <class Act>
void attention(CpuBackend<Act>& be, KvView<Act> const& kv, AttentionShape const& shape,
               std::span<AttentionSpan const> spans, MatrixView<Act const> q, MatrixView<Act> out) {
  index_t const shared = shape.heads / shape.kv_heads;
  for (auto const& span : spans)
    be.executor().run(span.rows * shape.kv_heads, [&](index_t task) {
      index_t const row = task / shape.kv_heads, kv_head = task % shape.kv_heads;
      for (index_t h = kv_head * shared; h < (kv_head + 1) * shared; ++h)
        cpu::attend(kv, shape, span, row, kv_head, q.row(span.first_row + row) + h * shape.head_dim,
                    out.row(span.first_row + row) + h * shape.head_dim);
    });
}

}  // namespace graft
