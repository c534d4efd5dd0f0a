// SPDX-License-Identifier: Apache-2.0
// Gradients of attention on the CPU, block by block: softmax is made again from q and k, no score matrix is kept.
#pragma once

#include <graft/backend/attention.hpp>
#include <graft/backend/cpu/cpu_backend.hpp>
#include <graft/backend/cpu/outer_products.hpp>
#include <graft/core/highest.hpp>

#include <algorithm>
#include <limits>
#include <span>

namespace graft {
namespace cpu {

inline constexpr index_t attention_block = 64;  // queries and keys of one block of scores

/// The backward of one sequence's attention on the keys of one head. With scores s, weights p = softmax(s) and
/// c = dout . out per query:   ds = p (dout . v - c),   dq += scale ds k,   dk += scale ds^T q,   dv += p^T dout.
/// Dao et al. 2022, arXiv:2205.14135, algorithm 4.
template <class Act>
class AttentionBackward {
 public:
  static constexpr Act hidden = -std::numeric_limits<Act>::infinity();

  BackwardKernels<Act> const& kernels;
  AttentionShape const& shape;
  AttentionSpan const& span;
  // rows of the span, columns of the key head: [rows, head_dim]
  MatrixView<Act const> k, v;
  MatrixView<Act> dk, dv;
  // rows of the span, columns of the heads that share the keys: [rows, heads * head_dim]
  MatrixView<Act const> q, out, dout;
  MatrixView<Act> dq;
  // of each query and head: the largest score, the log of the sum of exponentials, dout . out   [rows, heads]
  MatrixView<Act> highest, total, along;
  Act* scratch;

  static index_t scratch_size(index_t head_dim) { return 2 * attention_block * (head_dim + attention_block); }

  void run() const {
    for (index_t n = 0; n < q.rows; ++n)
      for (index_t h = 0; h < highest.cols; ++h) {
        highest(n, h) = hidden, total(n, h) = 0;
        along(n, h) = dot(head(dout, h).row(n), head(out, h).row(n), shape.head_dim);
      }
    each_block([&](Block const& block) { sum_block(block); });
    for (index_t n = 0; n < q.rows; ++n)
      for (index_t h = 0; h < highest.cols; ++h) total(n, h) = highest(n, h) + std::log(total(n, h));
    each_block([&](Block const& block) { gradient_block(block); });
  }

 private:
  struct Block {
    index_t head, query, queries, key, keys;
  };

  template <class T>
  MatrixView<T> head(MatrixView<T> m, index_t h) const {
    return m.col_range(h * shape.head_dim, shape.head_dim);
  }
  // [head_dim, keys of a block] of a block of keys and of its values; scores and their gradients [queries, keys]
  MatrixView<Act> key_columns() const { return {scratch, shape.head_dim, attention_block, attention_block}; }
  MatrixView<Act> value_columns() const {
    return {scratch + shape.head_dim * attention_block, shape.head_dim, attention_block, attention_block};
  }
  MatrixView<Act> weights(index_t queries) const {
    return {scratch + 2 * shape.head_dim * attention_block, queries, attention_block, attention_block};
  }
  MatrixView<Act> slopes(index_t queries) const {
    return {weights(attention_block).row(attention_block), queries, attention_block, attention_block};
  }

  /// f(block) for every block of scores with a visible key, keys in the outer loop; columns past the last key are 0.
  template <class F>
  void each_block(F f) const {
    for (index_t key = 0; key < k.rows; key += attention_block) {
      index_t const keys = std::min(attention_block, k.rows - key);
      for (index_t c = 0; c < shape.head_dim; ++c) {
        std::fill_n(key_columns().row(c), attention_block, Act{0});
        std::fill_n(value_columns().row(c), attention_block, Act{0});
      }
      for (index_t t = 0; t < keys; ++t)
        for (index_t c = 0; c < shape.head_dim; ++c) {
          key_columns()(c, t) = k(key + t, c);
          value_columns()(c, t) = v(key + t, c);
        }
      for (index_t query = 0; query < q.rows; query += attention_block) {
        index_t const queries = std::min(attention_block, q.rows - query);
        if (shape.last_key(query + queries - 1, span.tokens) <= key || shape.first_key(query) >= key + keys) continue;
        for (index_t h = 0; h < highest.cols; ++h) f(Block{h, query, queries, key, keys});
      }
    }
  }

  /// rows [queries, 64] = left [queries, head_dim] . each key (value)
  void multiply(MatrixView<Act const> left, MatrixView<Act const> columns, MatrixView<Act> result) const {
    for (index_t r = 0; r < result.rows; ++r) std::fill_n(result.row(r), attention_block, Act{0});
    kernels.add_product(as_is(left), columns, result);
  }

  /// Scaled scores of a block; what may not be looked at is -infinity.
  MatrixView<Act> scores(Block const& b) const {
    auto const s = weights(b.queries);
    multiply(head(q, b.head).row_range(b.query, b.queries), key_columns(), s);
    Act const scale = static_cast<Act>(shape.scale);
    for (index_t r = 0; r < b.queries; ++r) {
      Act* const row = s.row(r);
      index_t const n = b.query + r;
      index_t const first = std::clamp<index_t>(shape.first_key(n) - b.key, 0, attention_block);
      index_t const last = std::clamp<index_t>(shape.last_key(n, span.tokens) - b.key, first, b.keys);
      for (index_t t = 0; t < attention_block; ++t) row[t] *= scale;
      std::fill(row, row + first, hidden);
      std::fill(row + last, row + attention_block, hidden);
      if (span.mask == nullptr) continue;
      std::uint8_t const* const mask = span.mask + n * span.tokens + b.key;
      for (index_t t = first; t < last; ++t)
        if (mask[t] == 0) row[t] = hidden;
    }
    return s;
  }

  void sum_block(Block const& b) const {
    auto const s = scores(b);
    for (index_t r = 0; r < b.queries; ++r) {
      Act* const row = s.row(r);
      Act& top = highest(b.query + r, b.head);
      Act& sum = total(b.query + r, b.head);
      Act const before = top;
      top = std::max(top, highest_of(row, b.keys));
      if (top == hidden) continue;
      Act const here = static_cast<Act>(kernels.exponentials(row, b.keys, top));
      sum = here + (sum == 0 ? Act{0} : sum * exp_of(before - top));
    }
  }

  void gradient_block(Block const& b) const {
    auto const p = scores(b);
    auto const ds = slopes(b.queries);
    auto const queries = head(q, b.head).row_range(b.query, b.queries);
    auto const up = head(dout, b.head).row_range(b.query, b.queries);
    multiply(up, value_columns(), ds);
    Act const scale = static_cast<Act>(shape.scale);
    for (index_t r = 0; r < b.queries; ++r) {
      Act const sum = total(b.query + r, b.head), level = along(b.query + r, b.head);
      Act* const weight = p.row(r);
      Act* const slope = ds.row(r);
      if (highest(b.query + r, b.head) == hidden)  // every key is masked: the output is 0, whatever q
        std::fill_n(weight, attention_block, Act{0});
      else
        kernels.exponentials(weight, attention_block, sum);
      for (index_t t = 0; t < attention_block; ++t) slope[t] = scale * weight[t] * (slope[t] - level);
    }
    kernels.add_product(as_is(ds.col_range(0, b.keys)), k.row_range(b.key, b.keys),
                        head(dq, b.head).row_range(b.query, b.queries));
    kernels.add_product(transposed(ds.col_range(0, b.keys)), queries, dk.row_range(b.key, b.keys));
    kernels.add_product(transposed(p.col_range(0, b.keys)), up, dv.row_range(b.key, b.keys));
  }
};

}  // namespace cpu

/// The backward of attention over sequences that start in this batch: a span's keys are its own rows (first_token 0,
/// tokens == rows). q, out, dout, dq [n, heads * head_dim]; k, v, dk, dv [n, kv_heads * head_dim], rows of the batch;
/// out is attention's result. dq, dk, dv +=. A row that may look at nothing has gradient 0.
template <class Act>
void attention_backward(CpuBackend<Act>& be, AttentionShape const& shape, std::span<AttentionSpan const> spans,
                        MatrixView<Act const> q, MatrixView<Act const> k, MatrixView<Act const> v,
                        MatrixView<Act const> out, MatrixView<Act const> dout, MatrixView<Act> dq, MatrixView<Act> dk,
                        MatrixView<Act> dv) {
  for (auto const& span : spans)
    expects(span.first_token == 0 && span.tokens == span.rows,
            "graft: attention's backward takes whole sequences; this one has ", span.tokens, " keys, of which rows ",
            span.first_token, " to ", span.first_token + span.rows, " are in the batch");
  ArenaScope scope(be.arena());
  index_t const shared = shape.heads / shape.kv_heads, d = shape.head_dim;
  auto const tasks = static_cast<index_t>(spans.size()) * shape.kv_heads;
  auto const scratch = be.arena().template matrix<Act>(tasks, cpu::AttentionBackward<Act>::scratch_size(d));
  auto const state = [&] { return be.arena().template matrix<Act>(q.rows, shape.heads); };
  auto const highest = state(), total = state(), along = state();
  be.executor().run(tasks, [&](index_t task) {
    auto const& span = spans[static_cast<std::size_t>(task / shape.kv_heads)];
    index_t const kv_head = task % shape.kv_heads;
    auto const part = [&](auto matrix, index_t width) {
      return matrix.row_range(span.first_row, span.rows).col_range(kv_head * width, width);
    };
    cpu::AttentionBackward<Act>{be.backward_kernels(),
                                shape,
                                span,
                                part(k, d),
                                part(v, d),
                                part(dk, d),
                                part(dv, d),
                                part(q, shared * d),
                                part(out, shared * d),
                                part(dout, shared * d),
                                part(dq, shared * d),
                                part(highest, shared),
                                part(total, shared),
                                part(along, shared),
                                scratch.row(task)}
        .run();
  });
}

}  // namespace graft
