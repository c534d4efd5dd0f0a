// SPDX-License-Identifier: Apache-2.0
// Attention over scattered pages against softmax(scale q K^T) V in double: causal, windowed, bidirectional, masked,
// grouped queries; and a row's bits do not depend on how its sequence is cut into calls or what else is in the batch.
#include <graft/backend/cpu/attention.hpp>
#include <graft/testing/buffer.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/random.hpp>
#include <tests/catch.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <deque>
#include <utility>
#include <vector>

namespace {

using namespace graft;
using namespace graft::testing;

/// The keys and values of some sequences, on pages in random order.
template <class R>
struct Cache {
  Cache(AttentionShape const& shape, index_t page_tokens, std::vector<index_t> const& lengths, Random& random)
      : width(shape.kv_heads * shape.head_dim) {
    index_t total = 0;
    for (index_t const tokens : lengths) total += ceil_div(tokens, page_tokens);
    auto const order = permutation(total, random);
    memory.resize(static_cast<std::size_t>(total * page_tokens * width * 2 + 5), static_cast<R>(NAN));  // 5: an offset
    for (index_t p = 0; p < total; ++p) page_data.push_back(memory.data() + p * page_tokens * width * 2);
    view = {page_data.data(), 5, 5 + page_tokens * width, page_tokens, width};
    index_t next = 0;
    for (index_t const tokens : lengths) {
      pages.emplace_back();
      for (index_t p = 0; p < ceil_div(tokens, page_tokens); ++p)
        pages.back().push_back(static_cast<std::int32_t>(order[static_cast<std::size_t>(next++)]));
      keys.emplace_back(tokens, width), values.emplace_back(tokens, width);
      fill_normal(keys.back().view(), random);
      fill_normal(values.back().view(), random);
    }
  }
  AttentionSpan span(std::size_t sequence, index_t first_row, index_t first_token, index_t rows) const {
    return {pages[sequence].data(), first_row, rows, first_token, first_token + rows, nullptr};
  }
  index_t width;
  std::vector<R> memory;
  std::vector<R*> page_data;
  KvView<R> view;
  std::deque<std::vector<std::int32_t>> pages;
  std::deque<Buffer<R>> keys, values;
};

/// One row of attention in double. visible(j): whether key j may be looked at.
template <class R, class Visible>
void reference(AttentionShape const& shape, Buffer<R> const& keys, Buffer<R> const& values, R const* q, index_t tokens,
               Visible visible, double* out) {
  index_t const shared = shape.heads / shape.kv_heads;
  for (index_t h = 0; h < shape.heads; ++h) {
    index_t const at = h / shared * shape.head_dim;
    std::vector<double> p(static_cast<std::size_t>(tokens), 0.0);
    double highest = -1e300, sum = 0;
    for (index_t j = 0; j < tokens; ++j) {
      double& score = p[static_cast<std::size_t>(j)];
      for (index_t k = 0; k < shape.head_dim; ++k)
        score += shape.scale * to_double(q[h * shape.head_dim + k]) * to_double(keys.row(j)[at + k]);
      if (visible(j)) highest = std::max(highest, score);
    }
    for (index_t j = 0; j < tokens; ++j)
      sum += p[static_cast<std::size_t>(j)] = visible(j) ? std::exp(p[static_cast<std::size_t>(j)] - highest) : 0;
    for (index_t k = 0; k < shape.head_dim; ++k) {
      double& o = out[h * shape.head_dim + k];
      o = 0;
      for (index_t j = 0; j < tokens && sum > 0; ++j)
        o += p[static_cast<std::size_t>(j)] / sum * to_double(values.row(j)[at + k]);
    }
  }
}

/// Softmax weights are wrong by scores' errors (sums of head_dim products of size one) and the exponential's 2 ulp.
template <class R>
constexpr double bound = 100 * unit_roundoff<R>();

TEMPLATE_TEST_CASE("paged attention equals the formula", "", float, double) {
  using R = TestType;
  Random random(1);
  CpuBackend<R> be;
  for (auto const& [heads, kv_heads, head_dim] :
       {std::array<index_t, 3>{1, 1, 6}, {3, 1, 64}, {4, 4, 20}, {8, 1, 10}, {6, 2, 33}})
    for (index_t const page_tokens : {1, 5, 16, 64})
      for (auto const& [causal, window] : {std::pair{true, 0}, {true, 7}, {true, 1}, {false, 0}}) {
        AttentionShape const shape{heads,  kv_heads, head_dim, 1 / std::sqrt(static_cast<double>(head_dim)),
                                   causal, window};
        std::vector<index_t> const lengths{1, 23, 70};
        Cache<R> cache(shape, page_tokens, lengths, random);
        index_t const rows = 1 + 23 + 70;
        Buffer<R> q(rows, heads * head_dim, 3), k(rows, cache.width, 1), v(rows, cache.width, 2),
            out(rows, heads * head_dim, 4);
        fill_normal(q.view(), random);
        std::vector<AttentionSpan> spans;
        index_t row = 0;
        for (std::size_t s = 0; s < lengths.size(); ++s) {
          spans.push_back(cache.span(s, row, 0, lengths[s]));
          for (index_t t = 0; t < lengths[s]; ++t, ++row) {
            std::copy_n(cache.keys[s].row(t), cache.width, k.row(row));
            std::copy_n(cache.values[s].row(t), cache.width, v.row(row));
          }
        }
        store_kv<R>(be, cache.view, spans, std::as_const(k).view(), std::as_const(v).view());
        attention<R>(be, cache.view, shape, spans, std::as_const(q).view(), out.view());
        Matrix expected(rows, heads * head_dim);
        row = 0;
        for (std::size_t s = 0; s < lengths.size(); ++s)
          for (index_t i = 0; i < lengths[s]; ++i, ++row) {
            auto const visible = [&, causal = causal, window = window](index_t j) {
              return !causal || (j <= i && (window == 0 || i - j < window));
            };
            reference(shape, cache.keys[s], cache.values[s], q.row(row), lengths[s], visible, expected.view().row(row));
          }
        INFO(heads << " heads, " << kv_heads << " of keys, " << head_dim << " wide, pages of " << page_tokens
                   << ", causal " << causal << ", window " << window);
        CHECK(worst_row(out.view(), expected) <= bound<R>);
        REQUIRE(out.gaps_untouched());
      }
}

TEST_CASE("keys and values in bf16 are those rounded, and attention over them is that over the rounded in f32",
          "[isa]") {
  Random random(6);
  CpuBackend<> be;
  for (auto const& [heads, kv_heads, head_dim] :
       {std::array<index_t, 3>{1, 1, 6}, {3, 1, 64}, {4, 4, 20}, {7, 1, 10}, {6, 2, 33}})
    for (index_t const page_tokens : {1, 5, 64}) {
      AttentionShape const shape{heads, kv_heads, head_dim, 0.2, true, head_dim == 20 ? 7 : 0};
      std::vector<index_t> const lengths{1, 23, 70};
      Cache<float> cache(shape, page_tokens, lengths, random);
      // as many elements, of half the size, that begin as NaN
      std::vector<bf16> memory(cache.memory.size(), bf16(NAN));
      std::vector<float*> pages;
      for (float* const page : cache.page_data)
        pages.push_back(reinterpret_cast<float*>(memory.data() + (page - cache.memory.data())));
      KvView<float> narrow = cache.view;
      narrow.page_data = pages.data(), narrow.narrow = true;
      index_t const rows = 1 + 23 + 70;
      Buffer<float> q(rows, heads * head_dim, 3), k(rows, cache.width, 1), v(rows, cache.width, 2),
          rounded_k(rows, cache.width), rounded_v(rows, cache.width), out(rows, heads * head_dim, 4),
          expected(rows, heads * head_dim);
      fill_normal(q.view(), random), fill_normal(k.view(), random), fill_normal(v.view(), random);
      for (index_t n = 0; n < rows; ++n)
        for (index_t c = 0; c < cache.width; ++c) {
          rounded_k.row(n)[c] = static_cast<float>(bf16(k.row(n)[c]));
          rounded_v.row(n)[c] = static_cast<float>(bf16(v.row(n)[c]));
        }
      std::vector<AttentionSpan> spans;
      index_t row = 0;
      for (std::size_t s = 0; s < lengths.size(); row += lengths[s++])
        spans.push_back(cache.span(s, row, 0, lengths[s]));
      store_kv<float>(be, narrow, spans, std::as_const(k).view(), std::as_const(v).view());
      attention<float>(be, narrow, shape, spans, std::as_const(q).view(), out.view());
      store_kv<float>(be, cache.view, spans, std::as_const(rounded_k).view(), std::as_const(rounded_v).view());
      attention<float>(be, cache.view, shape, spans, std::as_const(q).view(), expected.view());
      INFO(heads << " heads, " << kv_heads << " of keys, " << head_dim << " wide, pages of " << page_tokens);
      CHECK(same_bits(out.view(), expected.view()));
      REQUIRE(out.gaps_untouched());
    }
}

TEST_CASE("bf16 of a row is that of its values, numbers that are none included", "[isa]") {
  Random random(7);
  index_t const count = 45;
  std::vector<float> x(static_cast<std::size_t>(count));
  fill_normal(VectorView<float>{x.data(), count}, random);
  float const special[] = {NAN, -NAN, INFINITY, -INFINITY, 0.f, -0.f, 1e-40f, 3.4e38f, 1.00390625f, 1.01171875f};
  for (std::size_t k = 0; k < std::size(special); ++k) x[2 * k] = x[x.size() - 1 - 2 * k] = special[k];
  std::vector<bf16> y(x.size());
  CpuBackend<>().layer_kernels().narrow_row(x.data(), count, y.data());
  for (std::size_t k = 0; k < x.size(); ++k) CHECK(y[k].bits == bf16(x[k]).bits);
}

TEST_CASE("masks hide keys in addition, and a row that sees nothing is zero", "[isa]") {
  Random random(2);
  CpuBackend<> be;
  AttentionShape const shape{4, 2, 12, 0.3, false, 0};
  index_t const tokens = 21;
  Cache<float> cache(shape, 8, {tokens}, random);
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(tokens * tokens));
  for (auto& m : mask) m = pick(random, 0, 2) > 0;
  for (index_t j = 0; j < tokens; ++j) mask[static_cast<std::size_t>(5 * tokens + j)] = 0;  // row 5 sees nothing
  for (index_t j = 0; j < 8; ++j) mask[static_cast<std::size_t>(6 * tokens + j)] = 0;       // row 6 nothing of a page
  AttentionSpan span = cache.span(0, 0, 0, tokens);
  span.mask = mask.data();
  std::vector<AttentionSpan> const spans{span};
  Buffer<float> q(tokens, 48), out(tokens, 48);
  fill_normal(q.view(), random);
  store_kv<float>(be, cache.view, spans, std::as_const(cache.keys[0]).view(), std::as_const(cache.values[0]).view());
  attention<float>(be, cache.view, shape, spans, std::as_const(q).view(), out.view());
  Matrix expected(tokens, 48);
  for (index_t i = 0; i < tokens; ++i)
    reference(
        shape, cache.keys[0], cache.values[0], q.row(i), tokens,
        [&](index_t j) { return mask[static_cast<std::size_t>(i * tokens + j)] != 0; }, expected.view().row(i));
  CHECK(worst_row(out.view(), expected) <= bound<float>);
  for (index_t k = 0; k < 48; ++k) CHECK(out.row(5)[k] == 0);
}

TEST_CASE("heads that are too wide are refused by their width") {
  Random random(9);
  CpuBackend<> be;
  AttentionShape const shape{1, 1, cpu::attention_numbers + 1, 1, true, 0};
  Cache<float> cache(shape, 1, {1}, random);
  Buffer<float> q(1, shape.head_dim), out(1, shape.head_dim);
  std::vector<AttentionSpan> const spans{cache.span(0, 0, 0, 1)};
  CHECK_THROWS_WITH(attention<float>(be, cache.view, shape, spans, std::as_const(q).view(), out.view()),
                    "graft: heads of 6145 numbers; attention on the CPU takes up to 6144");
}

TEST_CASE("scores of any size are survived") {
  Random random(3);
  CpuBackend<> be;
  AttentionShape const shape{1, 1, 8, 1, true, 0};
  Cache<float> cache(shape, 4, {30}, random);
  Buffer<float> q(30, 8), out(30, 8);
  fill_normal(q.view(), random, 0, 1000);  // scores of thousands: one key gets everything
  std::vector<AttentionSpan> const spans{cache.span(0, 0, 0, 30)};
  store_kv<float>(be, cache.view, spans, std::as_const(cache.keys[0]).view(), std::as_const(cache.values[0]).view());
  attention<float>(be, cache.view, shape, spans, std::as_const(q).view(), out.view());
  Matrix expected(30, 8);
  for (index_t i = 0; i < 30; ++i)
    reference(
        shape, cache.keys[0], cache.values[0], q.row(i), 30, [&](index_t j) { return j <= i; }, expected.view().row(i));
  // scores of 4000 carry errors of 4000 * 8 * 2^-24 = 2e-3, which is the relative error of a softmax weight
  CHECK(worst_row(out.view(), expected) <= 1e-2);
}

TEST_CASE("a row's bits do not depend on chunks, neighbours or executor", "[isa]") {
  Random random(4);
  CpuBackend<> serial;
  ThreadPool pool(3);
  CpuBackend<> threaded(pool);
  // one row is as many queries as heads share keys: 1 to 4 of them meet keys another way than many do
  for (auto const& [heads, kv_heads, head_dim] :
       {std::array<index_t, 3>{6, 2, 20}, {2, 2, 16}, {4, 2, 80}, {3, 1, 64}, {4, 1, 144}, {10, 2, 64}})
    for (index_t const window : {0, 9})
      for (bool const masked : {false, true}) {
        AttentionShape const shape{heads, kv_heads, head_dim, 0.25, true, window};
        index_t const width = heads * head_dim, kv_width = kv_heads * head_dim;
        Cache<float> cache(shape, 24, {70, 11}, random);
        Buffer<float> q(70, width), expected(70, width), filler(11, kv_width);
        fill_normal(q.view(), random), fill_normal(filler.view(), random);
        std::vector<std::uint8_t> mask(70 * 70);
        for (auto& m : mask) m = masked ? random.uniform(0, 1) < 0.8 : 1;
        // rows [first, first + rows) of sequence 0, behind `before` rows of a batch
        auto const part = [&](index_t before, index_t first, index_t rows, std::vector<std::uint8_t>& its_mask) {
          AttentionSpan span = cache.span(0, before, first, rows);
          for (index_t n = first; n < first + rows; ++n)
            for (index_t t = 0; t < span.tokens; ++t) its_mask.push_back(mask[static_cast<std::size_t>(n * 70 + t)]);
          if (masked) span.mask = its_mask.data();
          return span;
        };
        std::vector<std::uint8_t> whole_mask;
        std::vector<AttentionSpan> const whole{part(0, 0, 70, whole_mask)};
        store_kv<float>(serial, cache.view, whole, std::as_const(cache.keys[0]).view(),
                        std::as_const(cache.values[0]).view());
        attention<float>(serial, cache.view, shape, whole, std::as_const(q).view(), expected.view());

        // sequence 0 in chunks, as the second part of a batch that begins with sequence 1
        for (auto* be : {&serial, &threaded})
          for (index_t const chunk : {1, 7, 70})
            for (index_t first = 0; first < 70; first += chunk) {
              index_t const rows = std::min(chunk, 70 - first);
              Buffer<float> batch(11 + rows, width, 2), out(11 + rows, width, 1);
              fill_normal(batch.view(), random);
              for (index_t n = 0; n < rows; ++n) std::copy_n(q.row(first + n), width, batch.row(11 + n));
              std::vector<std::uint8_t> its_mask;
              std::vector<AttentionSpan> const spans{cache.span(1, 0, 0, 11), part(11, first, rows, its_mask)};
              std::vector<AttentionSpan> const other{spans[0]};
              store_kv<float>(*be, cache.view, other, std::as_const(filler).view(), std::as_const(filler).view());
              attention<float>(*be, cache.view, shape, spans, std::as_const(batch).view(), out.view());
              INFO(heads << " heads, " << kv_heads << " of keys, " << head_dim << " wide, window " << window
                         << ", masked " << masked << ", rows " << first << " to " << first + rows);
              REQUIRE(same_bits(out.view().row_range(11, rows), expected.view().row_range(first, rows)));
            }
      }
}

TEST_CASE("a row sums keys chunk by chunk, whoever has the chunks", "[isa]") {
  Random random(8);
  CpuBackend<> serial;
  ThreadPool two(2), seven(7);
  CpuBackend<> few(two), many(seven);
  // chunks are of 504 tokens; the rows lie behind the second's begin, and behind the third's
  index_t const tokens = 1030, page_tokens = 24, cases[][2] = {{500, 25}, {1005, 25}};
  REQUIRE(cpu::key_chunk(page_tokens) == 504);
  for (auto const& [heads, kv_heads, head_dim] :
       {std::array<index_t, 3>{6, 2, 20}, {2, 2, 64}, {3, 1, 144}, {1, 1, 300}})
    for (auto const& [causal, window] : {std::pair{true, 0}, {true, 9}, {true, 520}, {false, 0}})
      for (bool const masked : {false, true})
        for (auto const& [first, rows] : cases) {
          AttentionShape const shape{heads,  kv_heads, head_dim, 1 / std::sqrt(static_cast<double>(head_dim)),
                                     causal, window};
          index_t const width = heads * head_dim;
          Cache<float> cache(shape, page_tokens, {tokens}, random);
          std::vector<AttentionSpan> const all{cache.span(0, 0, 0, tokens)};
          store_kv<float>(serial, cache.view, all, std::as_const(cache.keys[0]).view(),
                          std::as_const(cache.values[0]).view());
          Buffer<float> q(rows, width), expected(rows, width);
          fill_normal(q.view(), random);
          std::vector<std::uint8_t> mask(static_cast<std::size_t>(rows * tokens));
          for (auto& m : mask) m = pick(random, 0, 2) > 0;
          if (masked)  // a row that sees no key of its first chunk
            std::fill_n(mask.begin() + (rows - 1) * tokens, 504, std::uint8_t{0});
          // rows [at, at + count) of the case
          auto const run = [&, causal = causal, first = first](CpuBackend<>& be, index_t at, index_t count,
                                                               MatrixView<float> out) {
            AttentionSpan span{
                cache.pages[0].data(), 0, count, first + at, causal ? first + at + count : tokens, nullptr};
            std::vector<std::uint8_t> of_span;
            for (index_t n = at; n < at + count; ++n)
              of_span.insert(of_span.end(), mask.begin() + n * tokens, mask.begin() + n * tokens + span.tokens);
            if (masked) span.mask = of_span.data();
            attention<float>(be, cache.view, shape, std::span<AttentionSpan const>(&span, 1),
                             std::as_const(q).view().row_range(at, count), out);
          };
          run(serial, 0, rows, expected.view());
          Matrix formula(rows, width);
          for (index_t n = 0; n < rows; ++n) {
            index_t const i = first + n;
            auto const visible = [&, causal = causal, window = window, row = n](index_t j) {
              return (!causal || (j <= i && (window == 0 || i - j < window))) &&
                     (!masked || mask[static_cast<std::size_t>(row * tokens + j)] != 0);
            };
            reference(shape, cache.keys[0], cache.values[0], q.row(n), tokens, visible, formula.view().row(n));
          }
          INFO(heads << " heads, " << kv_heads << " of keys, " << head_dim << " wide, causal " << causal << ", window "
                     << window << ", masked " << masked << ", rows from " << first << " on");
          CHECK(worst_row(expected.view(), formula) <= bound<float>);
          for (auto* be : {&serial, &few, &many})
            for (index_t const count : {index_t{1}, index_t{4}, rows})
              for (index_t at = 0; at < rows; at += count) {
                index_t const used = std::min(count, rows - at);
                Buffer<float> out(used, width, 3);
                run(*be, at, used, out.view());
                REQUIRE(same_bits(out.view(), expected.view().row_range(at, used)));
                REQUIRE(out.gaps_untouched());
              }
        }
}

}  // namespace
