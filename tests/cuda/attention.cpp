// SPDX-License-Identifier: Apache-2.0
// Attention on the device, decode and prefill, on tensor cores and without, against softmax written down in double.
#include <graft/backend/cuda/attention.cuh>
#include <tests/catch.hpp>
#include <tests/cuda/on_device.hpp>

#include <cmath>
#include <limits>
#include <vector>

namespace {

using namespace graft_test;

struct Span {
  index_t rows, tokens;
  bool masked = false;
};
struct Case {
  index_t heads, kv_heads, dim;
  std::vector<Span> spans;  ///< the last `rows` of `tokens` each
  bool causal = true;
  index_t window = 0, page_tokens = 16;
  index_t gap = 0;  ///< between rows of q and out
};

/// Keys and values of every span in pages in random order, NaN where no token is.
template <class Act>
struct Pages {
  std::vector<Matrix> keys, values;  ///< [tokens, kv_heads * dim] per span
  std::vector<std::vector<std::int32_t>> pages;
  std::vector<std::vector<Act>> data;
  index_t key_offset, value_offset, page_size;

  Pages(Case const& c, std::uint64_t seed) {
    Random random(seed);
    index_t const width = c.kv_heads * c.dim;
    key_offset = 2 * width * c.page_tokens, value_offset = key_offset + width * c.page_tokens;  // of a second layer
    page_size = value_offset + width * c.page_tokens;
    std::size_t count = 1;  // one that nobody uses
    for (auto const& span : c.spans) count += static_cast<std::size_t>(ceil_div(span.tokens, c.page_tokens));
    auto const order = permutation(static_cast<index_t>(count), random);
    data.assign(count, std::vector<Act>(static_cast<std::size_t>(page_size),
                                        static_cast<Act>(std::numeric_limits<float>::quiet_NaN())));
    std::size_t next = 1;
    for (auto const& span : c.spans) {
      Buffer<Act> k(span.tokens, width), v(span.tokens, width);
      Random numbers(seed + 100 + keys.size());  // a span's numbers do not depend on the others
      fill_normal(k.view(), numbers), fill_normal(v.view(), numbers);
      keys.emplace_back(k.view()), values.emplace_back(v.view());
      pages.emplace_back();
      for (index_t t = 0; t < span.tokens; ++t) {
        if (t % c.page_tokens == 0) pages.back().push_back(static_cast<std::int32_t>(order[next++]));
        auto& page = data[static_cast<std::size_t>(pages.back().back())];
        std::copy(k.row(t), k.row(t) + width, page.begin() + key_offset + t % c.page_tokens * width);
        std::copy(v.row(t), v.row(t) + width, page.begin() + value_offset + t % c.page_tokens * width);
      }
    }
  }
};

/// softmax(scale q . K) V of one row, all heads.
Vector attend(Case const& c, AttentionShape const& shape, Matrix const& keys, Matrix const& values, Vector const& q,
              index_t token, index_t tokens, std::uint8_t const* mask) {
  Vector out(static_cast<std::size_t>(c.heads * c.dim), 0.0);
  for (index_t h = 0; h < c.heads; ++h) {
    index_t const offset = h / (c.heads / c.kv_heads) * c.dim;
    Vector weight(static_cast<std::size_t>(tokens), 0.0);
    double highest = -std::numeric_limits<double>::infinity(), total = 0;
    auto const seen = [&](index_t t) {
      bool const in_reach = !c.causal || (t <= token && (c.window == 0 || token - t < c.window));
      return in_reach && (mask == nullptr || mask[t] != 0);
    };
    for (index_t t = 0; t < tokens; ++t) {
      if (!seen(t)) continue;
      double score = 0;
      for (index_t k = 0; k < c.dim; ++k) score += q[static_cast<std::size_t>(h * c.dim + k)] * keys(t, offset + k);
      weight[static_cast<std::size_t>(t)] = score * shape.scale;
      highest = std::max(highest, score * shape.scale);
    }
    for (index_t t = 0; t < tokens; ++t)
      if (seen(t))
        total += weight[static_cast<std::size_t>(t)] = std::exp(weight[static_cast<std::size_t>(t)] - highest);
    for (index_t t = 0; t < tokens; ++t)
      if (seen(t))
        for (index_t k = 0; k < c.dim; ++k)
          out[static_cast<std::size_t>(h * c.dim + k)] +=
              weight[static_cast<std::size_t>(t)] / total * values(t, offset + k);
  }
  return out;
}

/// Results are rounded to Act once. On tensor cores the weights of the values are too: their errors are as random as
/// the values, so they weigh as much once more; 2 is for the worst of many rows. Sums in f32 stay below 1e-5.
template <class Act>
double bound() {
  return std::same_as<Act, float> ? 1e-5 : 4 * unit_roundoff<Act>();
}

template <class Act>
Buffer<Act> check(Case const& c, std::uint64_t seed = 1) {
  Pages<Act> const pages(c, seed);
  Device<Act> device;
  AttentionShape const shape{c.heads, c.kv_heads, c.dim, 1 / std::sqrt(static_cast<double>(c.dim)), c.causal, c.window};
  index_t rows = 1;  // the first row belongs to nobody
  for (auto const& span : c.spans) rows += span.rows;
  Buffer<Act> q(rows, c.heads * c.dim, c.gap), out(rows, c.heads * c.dim, c.gap);
  index_t first_row = 1;
  for (std::size_t s = 0; s < c.spans.size(); first_row += c.spans[s].rows, ++s) {
    Random numbers(seed + 200 + s);
    fill_normal(q.view().row_range(first_row, c.spans[s].rows), numbers);
  }
  for (index_t n = 0; n < rows; ++n)
    std::fill(out.row(n), out.row(n) + c.heads * c.dim, static_cast<Act>(std::numeric_limits<float>::quiet_NaN()));
  Matrix const queries(q.view());
  Matrix correct(out.view());
  Random random(seed);

  std::vector<Act*> page_data;
  for (auto const& page : pages.data) page_data.push_back(device.put(page));
  std::vector<AttentionSpan> spans;
  index_t row = 1;
  for (std::size_t s = 0; s < c.spans.size(); ++s) {
    auto const& span = c.spans[s];
    std::vector<std::uint8_t> mask;
    if (span.masked) {
      for (index_t k = 0; k < span.rows * span.tokens; ++k) mask.push_back(pick(random, 0, 3) != 0);
      std::fill(mask.begin(), mask.begin() + span.tokens, std::uint8_t{0});  // a row that sees nothing
    }
    index_t const first = span.tokens - span.rows;
    spans.push_back({device.put(pages.pages[s]), row, span.rows, first, span.tokens, device.put(mask)});
    for (index_t r = 0; r < span.rows; ++r, ++row) {
      auto const of_row = attend(c, shape, pages.keys[s], pages.values[s], queries.row(row), first + r, span.tokens,
                                 span.masked ? mask.data() + r * span.tokens : nullptr);
      std::copy(of_row.begin(), of_row.end(), correct.view().row(row));
    }
  }
  AttentionSpans const host_spans{std::span<AttentionSpan const>(spans)};
  AttentionSpans const device_spans(device.put(spans), host_spans);
  KvView<Act> const kv{device.put(page_data), pages.key_offset, pages.value_offset, c.page_tokens, c.kv_heads * c.dim};
  auto const out_device = device.put(out);
  attention(device.be, kv, shape, device_spans, MatrixView<Act const, DeviceSpace>(device.put(q)), out_device);
  auto const result = device.get(out_device);
  REQUIRE(result.gaps_untouched());
  CHECK(same_bits(result.row(0), out.row(0), c.heads * c.dim));
  CHECK(worst_row(result.view().row_range(1, rows - 1), correct.view().row_range(1, rows - 1)) <= bound<Act>());
  return result;
}

TEMPLATE_TEST_CASE("device: a row of each sequence, grouped heads, ragged lengths", "", float, bf16, f16) {
  std::vector<Span> const ragged{{1, 1}, {1, 255}, {1, 256}, {1, 257}, {1, 40}, {1, 700}};
  for (index_t const shared : {1, 2, 3, 8, 9}) {
    INFO("heads per head of keys: " << shared);
    check<TestType>({2 * shared, 2, 64, ragged});
  }
  for (index_t const dim : {80, 96, 128, 256, 20, 7}) {
    INFO("head_dim " << dim);
    check<TestType>({3, 1, dim, {{1, 300}, {1, 17}}, true, 0, 32, dim % 8 == 0 ? 8 : 0});
  }
}

TEST_CASE("device: a row of a sequence with a window, a mask, all keys") {
  check<float>({2, 1, 64, {{1, 700}, {1, 100}}, true, 300});
  check<bf16>({2, 1, 64, {{1, 700}, {1, 100}}, true, 64});
  check<float>({2, 2, 64, {{1, 300}, {1, 5}}, false});
  check<float>({2, 2, 64, {{1, 300, true}, {1, 5}}});  // the masked row sees nothing
}

TEMPLATE_TEST_CASE("device: prompts of ragged lengths", "", float, bf16, f16) {
  for (index_t const dim : {64, 80, 96, 128, 256}) {
    INFO("head_dim " << dim);
    check<TestType>({2, 1, dim, {{65, 65}, {3, 70}, {17, 40}}, true, 0, 16, 8});
  }
  for (index_t const dim : {20, 7, 300}) {  // no tensor core has these
    INFO("head_dim " << dim);
    check<TestType>({2, 2, dim, {{33, 33}, {2, 70}}});
  }
}

TEMPLATE_TEST_CASE("device: prompts with windows, masks, all keys, beside decoded rows", "", float, bf16, f16) {
  check<TestType>({2, 1, 64, {{100, 100}, {1, 90}, {30, 150}}, true, 20});
  check<TestType>({2, 1, 64, {{70, 70, true}, {5, 90, true}, {1, 30}}});
  check<TestType>({2, 2, 64, {{70, 70, true}, {40, 40}}, false});
}

TEMPLATE_TEST_CASE("device: contexts of 4,096 tokens", "", float, bf16) {
  check<TestType>({2, 1, 64, {{1, 4096}}, true, 0, 64});
  check<TestType>({1, 1, 64, {{70, 4096}}, true, 0, 64});
}

TEMPLATE_TEST_CASE("device: attention of a sequence does not depend on its neighbours", "", float, bf16) {
  for (Span const& span : {Span{1, 300}, Span{40, 90}}) {
    auto const alone = check<TestType>({4, 2, 64, {span}});
    auto const beside = check<TestType>({4, 2, 64, {span, {1, 700}, {70, 130}}});
    for (index_t r = 1; r <= span.rows; ++r) CHECK(same_bits(alone.row(r), beside.row(r), 4 * 64));
  }
}

}  // namespace
