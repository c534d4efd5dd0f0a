// SPDX-License-Identifier: Apache-2.0
// What attention reads: pages of keys and values, and which rows of a batch look at which of them.
#pragma once

#include <graft/config.hpp>
#include <graft/core/types.hpp>

#include <cstdint>
#include <span>

namespace graft {

/// The keys and values of one layer, scattered over pages. Token t of a sequence lies in page pages[t / page_tokens].
/// They are Act, or bf16 ("narrow") where the backend is CpuBackend<float>.
template <class Act>
struct KvView {
  Act* const* page_data = nullptr;           ///< [pages in the cache]
  index_t key_offset = 0, value_offset = 0;  ///< of this layer inside a page
  index_t page_tokens = 0;
  index_t width = 0;    ///< kv_heads * head_dim
  bool narrow = false;  ///< T is bf16 below; offsets count elements either way

  template <class T = Act>
  GRAFT_HOST_DEVICE T* key(std::int32_t page, index_t slot) const {
    return reinterpret_cast<T*>(page_data[page]) + key_offset + slot * width;
  }
  template <class T = Act>
  GRAFT_HOST_DEVICE T* value(std::int32_t page, index_t slot) const {
    return reinterpret_cast<T*>(page_data[page]) + value_offset + slot * width;
  }
};

/// Consecutive batch rows of one sequence. A row that only fills up a batch, on a device, is a span of one row with
/// first_token -1 and no tokens: it stores no key, and attention gives 0.
struct AttentionSpan {
  std::int32_t const* pages = nullptr;
  index_t first_row = 0, rows = 0;     ///< in the batch
  index_t first_token = 0;             ///< the sequence's token that row first_row is
  index_t tokens = 0;                  ///< keys of the sequence, those of this batch included
  std::uint8_t const* mask = nullptr;  ///< [rows, tokens] or null: 0 hides, in addition to the shape's own rule
};

/// The spans of a batch, where the backend reads them, and what a host must know of them.
struct AttentionSpans : std::span<AttentionSpan const> {
  AttentionSpans() = default;
  /// Of spans in host memory.
  AttentionSpans(std::span<AttentionSpan const> spans)  // NOLINT: implicit
      : std::span<AttentionSpan const>(spans), single_rows(false) {
    for (auto const& each : spans) {
      single_rows = single_rows || each.rows == 1;
      max_rows = each.rows > max_rows ? each.rows : max_rows;
      max_tokens = each.tokens > max_tokens ? each.tokens : max_tokens;
    }
  }
  /// Of spans anywhere.
  AttentionSpans(std::span<AttentionSpan const> spans, index_t most_rows, index_t most_tokens)
      : std::span<AttentionSpan const>(spans), max_rows(most_rows), max_tokens(most_tokens) {}
  /// The same spans at another place.
  AttentionSpans(AttentionSpan const* at, AttentionSpans const& known)
      : std::span<AttentionSpan const>(at, known.size()),
        max_rows(known.max_rows),
        max_tokens(known.max_tokens),
        single_rows(known.single_rows) {}

  index_t max_rows = 0, max_tokens = 0;  ///< of any span, at most
  bool single_rows = true;               ///< whether there may be spans of one row
};

struct AttentionShape {
  index_t heads = 0, kv_heads = 0, head_dim = 0;
  double scale = 0;  ///< of q . k
  bool causal = true;
  index_t window = 0;  ///< visible iff 0 <= i - j < window; 0: no limit

  /// Keys [first, last) that token i may look at.
  GRAFT_HOST_DEVICE index_t first_key(index_t i) const {
    return causal && window > 0 && i + 1 > window ? i + 1 - window : 0;
  }
  GRAFT_HOST_DEVICE index_t last_key(index_t i, index_t tokens) const { return causal ? i + 1 : tokens; }
  /// Tokens [first, last) that may look at key j.
  GRAFT_HOST_DEVICE index_t first_query(index_t j) const { return causal ? j : 0; }
  GRAFT_HOST_DEVICE index_t last_query(index_t j, index_t tokens) const {
    return causal && window > 0 && j + window < tokens ? j + window : tokens;
  }
};

}  // namespace graft
