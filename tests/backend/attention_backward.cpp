// SPDX-License-Identifier: Apache-2.0
// Gradients of attention against differences of softmax(scale q K^T) V in double: causal, windowed, bidirectional,
// masked, ragged, grouped queries; f32 against double over several blocks; any executor.
#include <graft/backend/cpu/attention.hpp>
#include <graft/backend/cpu/attention_backward.hpp>
#include <graft/testing/buffer.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/gradient_check.hpp>
#include <graft/testing/random.hpp>
#include <tests/backend/poison.hpp>
#include <tests/catch.hpp>

#include <array>
#include <cmath>
#include <deque>
#include <numeric>
#include <vector>

namespace {

using namespace graft;
using namespace graft::testing;

/// Sequences of one batch with everything attention reads, filled at random. Rows of no sequence stand around them.
template <class R>
struct Batch {
  static constexpr index_t page_tokens = 16;

  Batch(AttentionShape const& s, std::vector<index_t> const& lengths, bool masked, Random& random)
      : shape(s),
        rows(std::accumulate(lengths.begin(), lengths.end(), index_t{2})),
        width(s.kv_heads * s.head_dim),
        q(rows, s.heads * s.head_dim, 3),
        k(rows, width, 1),
        v(rows, width, 2),
        dout(rows, s.heads * s.head_dim, 1) {
    for (auto* buffer : {&q, &k, &v, &dout}) {
      Buffer<float> draw(rows, buffer->view().cols);
      fill_normal(draw.view(), random);
      for (index_t n = 0; n < rows; ++n)
        for (index_t c = 0; c < draw.view().cols; ++c) buffer->row(n)[c] = static_cast<R>(draw.row(n)[c]);
    }
    index_t row = 1, page = 0;
    for (index_t const tokens : lengths) {
      pages.emplace_back();
      for (index_t p = 0; p < ceil_div(tokens, page_tokens); ++p)
        pages.back().push_back(static_cast<std::int32_t>(page++));
      masks.emplace_back();
      if (masked) {
        for (index_t j = 0; j < tokens * tokens; ++j) masks.back().push_back(pick(random, 0, 3) > 0);
        if (tokens > 2) std::fill_n(masks.back().begin() + tokens, tokens, std::uint8_t{0});  // row 1 sees nothing
      }
      spans.push_back({pages.back().data(), row, tokens, 0, tokens, masked ? masks.back().data() : nullptr});
      row += tokens;
    }
    memory.resize(static_cast<std::size_t>(page * page_tokens * width * 2));
    for (index_t p = 0; p < page; ++p) page_data.push_back(memory.data() + p * page_tokens * width * 2);
  }

  /// attention's own forward
  Buffer<R> forward(CpuBackend<R>& be) {
    KvView<R> const kv{page_data.data(), 0, page_tokens * width, page_tokens, width};
    Buffer<R> out(rows, shape.heads * shape.head_dim, 5);
    store_kv<R>(be, kv, spans, std::as_const(k).view(), std::as_const(v).view());
    attention<R>(be, kv, shape, spans, std::as_const(q).view(), out.view());
    return out;
  }
  double loss(CpuBackend<R>& be) {
    auto const out = forward(be);
    double sum = 0;
    for (auto const& span : spans)
      for (index_t n = span.first_row; n < span.first_row + span.rows; ++n)
        for (index_t c = 0; c < out.view().cols; ++c) sum += to_double(out.row(n)[c]) * to_double(dout.row(n)[c]);
    return sum;
  }
  struct Gradients {
    Buffer<R> q, k, v;
  };
  Gradients backward(CpuBackend<R>& be, R start = 0) {
    auto const out = forward(be);
    Gradients g{{rows, q.view().cols, 2}, {rows, width, 1}, {rows, width, 3}};
    for (auto* buffer : {&g.q, &g.k, &g.v})
      for (index_t n = 0; n < rows; ++n) std::fill_n(buffer->row(n), buffer->view().cols, start);
    graft_test::poison(be);
    attention_backward<R>(be, shape, spans, std::as_const(q).view(), std::as_const(k).view(), std::as_const(v).view(),
                          out.view(), std::as_const(dout).view(), g.q.view(), g.k.view(), g.v.view());
    for (auto* buffer : {&g.q, &g.k, &g.v}) REQUIRE(buffer->gaps_untouched());
    return g;
  }

  AttentionShape shape;
  index_t rows, width;
  Buffer<R> q, k, v, dout;
  std::vector<R> memory;
  std::vector<R*> page_data;
  std::deque<std::vector<std::int32_t>> pages;
  std::deque<std::vector<std::uint8_t>> masks;
  std::vector<AttentionSpan> spans;
};

struct Case {
  index_t heads, kv_heads, head_dim;
  bool causal;
  index_t window;
  bool masked;
};
constexpr Case cases[] = {{1, 1, 6, true, 0, false},  {3, 1, 16, true, 3, false}, {4, 2, 5, true, 0, true},
                          {2, 2, 7, false, 0, false}, {4, 1, 3, false, 0, true},  {2, 1, 4, true, 1, false}};
AttentionShape shape_of(Case const& c) {
  return {c.heads, c.kv_heads, c.head_dim, 1 / std::sqrt(static_cast<double>(c.head_dim)), c.causal, c.window};
}

TEST_CASE("gradients of attention equal differences of attention") {
  Random random(1);
  CpuBackend<double> be;
  for (auto const& c : cases) {
    INFO(c.heads << " heads, " << c.kv_heads << " of keys, " << c.head_dim << " wide, causal " << c.causal
                 << ", window " << c.window << ", masked " << c.masked);
    Batch<double> batch(shape_of(c), {1, 9, 4}, c.masked, random);
    auto const g = batch.backward(be);
    auto const f = [&] { return batch.loss(be); };
    CHECK(gradient_error(f, batch.q.view(), g.q.view()) <= 1);
    CHECK(gradient_error(f, batch.k.view(), g.k.view()) <= 1);
    CHECK(gradient_error(f, batch.v.view(), g.v.view()) <= 1);
  }
}

/// dL/dq, dL/dk, dL/dv written down with whole matrices for one head of a span.
template <class R>
void reference(Batch<R> const& batch, AttentionSpan const& span, index_t h, Matrix& dq, Matrix& dk, Matrix& dv) {
  auto const& s = batch.shape;
  index_t const tokens = span.rows, d = s.head_dim, kv = h / (s.heads / s.kv_heads);
  auto const part = [&](Buffer<R> const& from, index_t at) {
    return Matrix(from.view().row_range(span.first_row, tokens).col_range(at * d, d));
  };
  Matrix const q = part(batch.q, h), k = part(batch.k, kv), v = part(batch.v, kv), dout = part(batch.dout, h);
  Matrix const scores = s.scale * (q * transposed(k)), dp = dout * transposed(v);
  Matrix p(tokens, tokens), ds(tokens, tokens);
  for (index_t i = 0; i < tokens; ++i) {
    auto const visible = [&](index_t j) {
      return (!s.causal || (j <= i && (s.window == 0 || i - j < s.window))) &&
             (span.mask == nullptr || span.mask[i * tokens + j] != 0);
    };
    double sum = 0, mean = 0;
    for (index_t j = 0; j < tokens; ++j) sum += p(i, j) = visible(j) ? std::exp(scores(i, j)) : 0;
    if (sum == 0) continue;
    for (index_t j = 0; j < tokens; ++j) p(i, j) /= sum, mean += p(i, j) * dp(i, j);
    for (index_t j = 0; j < tokens; ++j) ds(i, j) = s.scale * p(i, j) * (dp(i, j) - mean);
  }
  auto const add = [&](Matrix& to, index_t at, Matrix const& value) {
    for (index_t r = 0; r < tokens; ++r)
      for (index_t c = 0; c < d; ++c) to(span.first_row + r, at * d + c) += value(r, c);
  };
  add(dq, h, ds * k);
  add(dk, kv, transposed(ds) * q);
  add(dv, kv, transposed(p) * dout);
}

TEMPLATE_TEST_CASE("gradients over several blocks equal whole matrices, and add to what is there", "[isa]", float,
                   double) {
  using R = TestType;
  Random random(2);
  CpuBackend<R> be;
  for (auto const& [heads, kv_heads, head_dim] : {std::array<index_t, 3>{6, 2, 64}, {2, 2, 33}, {3, 1, 20}})
    for (auto const& [causal, window] : {std::pair{true, 0}, {true, 70}, {true, 5}, {false, 0}})
      for (bool const masked : {false, true}) {
        AttentionShape const shape{heads,  kv_heads, head_dim, 1 / std::sqrt(static_cast<double>(head_dim)),
                                   causal, window};
        Batch<R> batch(shape, {150, 64, 3}, masked, random);
        Matrix dq(batch.rows, heads * head_dim), dk(batch.rows, batch.width), dv(batch.rows, batch.width);
        for (auto const& span : batch.spans)
          for (index_t h = 0; h < heads; ++h) reference(batch, span, h, dq, dk, dv);
        auto const g = batch.backward(be);
        INFO(heads << " heads, " << kv_heads << " of keys, " << head_dim << " wide, causal " << causal << ", window "
                   << window << ", masked " << masked);
        // a weight is off by its score's errors (sums of head_dim products of size one) and 2 ulp of exponentials; in
        // ds two numbers of about the same size are subtracted
        double const bound = 200 * unit_roundoff<R>();
        CHECK(relative_l2(g.q.view(), dq) <= bound);
        CHECK(relative_l2(g.k.view(), dk) <= bound);
        CHECK(relative_l2(g.v.view(), dv) <= bound);
        // the same on top of ones: numbers of about that size, rounded once more
        auto const more = batch.backward(be, R(1));
        Matrix ones(batch.rows, batch.width);
        ones.values.assign(ones.values.size(), 1.0);
        CHECK(relative_l2(more.k.view(), dk + ones) <= bound);
        CHECK(relative_l2(more.v.view(), dv + ones) <= bound);
      }
}

TEST_CASE("a row that sees nothing has gradient 0, and rows outside the spans are left alone") {
  Random random(3);
  CpuBackend<float> be;
  Batch<float> batch({4, 2, 8, 0.3, false, 0}, {70}, true, random);
  auto const g = batch.backward(be);
  for (index_t c = 0; c < 32; ++c) CHECK(g.q.row(batch.spans[0].first_row + 1)[c] == 0);
  for (index_t n : {index_t{0}, batch.rows - 1}) {
    for (index_t c = 0; c < 32; ++c) CHECK(g.q.row(n)[c] == 0);
    for (index_t c = 0; c < 16; ++c) CHECK((g.k.row(n)[c] == 0 && g.v.row(n)[c] == 0));
  }
}

TEST_CASE("scores of any size have finite gradients") {
  Random random(4);
  CpuBackend<float> be;
  Batch<float> batch({2, 1, 16, 0.25, true, 0}, {90}, false, random);
  for (index_t n = 0; n < batch.rows; ++n)
    for (index_t c = 0; c < 32; ++c) batch.q.row(n)[c] *= 1000;
  auto const g = batch.backward(be);
  double sum = 0;
  for (index_t n = 0; n < batch.rows; ++n)
    for (index_t c = 0; c < 16; ++c) {
      CHECK(std::isfinite(g.k.row(n)[c]));
      sum += std::fabs(to_double(g.v.row(n)[c]));
    }
  CHECK(sum > 1);
}

TEST_CASE("a sequence's gradients do not depend on the batch or the number of threads", "[many_threads]") {
  Random random(5);
  AttentionShape const shape{6, 2, 33, 0.2, true, 0};
  Batch<float> batch(shape, {100, 7, 66}, false, random);
  CpuBackend<float> serial;
  auto const expected = batch.backward(serial);
  for (index_t const threads : {2, 3}) {
    ThreadPool pool(threads);
    CpuBackend<float> be(pool);
    auto const g = batch.backward(be);
    CHECK(same_bits(g.q.view(), expected.q.view()));
    CHECK(same_bits(g.k.view(), expected.k.view()));
    CHECK(same_bits(g.v.view(), expected.v.view()));
  }
  auto const all = batch.spans;
  for (auto const& span : all) {
    batch.spans = {span};
    auto const g = batch.backward(serial);
    auto const same = [&](Buffer<float> const& a, Buffer<float> const& b) {
      return same_bits(a.view().row_range(span.first_row, span.rows), b.view().row_range(span.first_row, span.rows));
    };
    CHECK((same(g.q, expected.q) && same(g.k, expected.k) && same(g.v, expected.v)));
  }
}

TEST_CASE("a span that does not start its sequence is refused") {
  Random random(6);
  CpuBackend<float> be;
  Batch<float> batch({2, 1, 4, 0.5, true, 0}, {6}, false, random);
  auto const out = batch.forward(be);
  batch.spans[0].first_row += 2, batch.spans[0].rows = 4, batch.spans[0].first_token = 2;
  Buffer<float> dq(8, 8), dk(8, 4), dv(8, 4);
  CHECK_THROWS_WITH(
      attention_backward<float>(be, batch.shape, batch.spans, std::as_const(batch.q).view(),
                                std::as_const(batch.k).view(), std::as_const(batch.v).view(), out.view(),
                                std::as_const(batch.dout).view(), dq.view(), dk.view(), dv.view()),
      Catch::Contains("takes whole sequences; this one has 6 keys, of which rows 2 to 6 are in the batch"));
}

}  // namespace
