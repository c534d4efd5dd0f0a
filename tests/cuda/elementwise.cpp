// SPDX-License-Identifier: Apache-2.0
// Norms, activations, sums, copies, gathers, rotary embedding and KV writes of the CUDA backend against their formulas
// in double.
#include <graft/backend/cuda/elementwise.cuh>
#include <graft/testing/buffer.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/random.hpp>
#include <tests/catch.hpp>
#include <tests/cuda/device.hpp>

#include <cmath>
#include <numeric>
#include <vector>

namespace {

using namespace graft;
using namespace graft::testing;
using graft_test::DeviceArray;
using graft_test::DeviceBuffer;

template <class T>
Buffer<T> normal(index_t rows, index_t cols, index_t gap, Random& random, double mean = 0, double deviation = 1) {
  Buffer<T> buffer(rows, cols, gap);
  fill_normal(buffer.view(), random, mean, deviation);
  return buffer;
}

VectorView<float const, DeviceSpace> row_of(DeviceBuffer<float> const& buffer) {
  return {buffer.view().data, buffer.view().cols};
}

/// One rounding to T of a result whose steps in float lose `steps` roundings.
template <class T>
double bound(double steps) {
  return (std::is_same_v<T, float> ? 0 : unit_roundoff<T>()) + steps * unit_roundoff<float>();
}

// Widths below a pack, of whole packs, and with a rest; gaps that keep rows aligned to 16 bytes, and not.
constexpr std::pair<index_t, index_t> shapes[] = {{1, 0}, {7, 3}, {64, 0}, {100, 2}, {128, 8}, {576, 1}, {2056, 0}};

TEMPLATE_TEST_CASE("norms on the device equal their formulas", "", float, bf16, f16) {
  using T = TestType;
  Random random(1);
  CudaBackend<T> be;
  for (auto const& [d, gap] : shapes) {
    INFO(d << " columns");
    auto const x = normal<T>(5, d, gap, random, 0.3, 2);
    auto const weight = normal<float>(1, d, 0, random, 1, 0.5), bias = normal<float>(1, d, 0, random, 1, 0.5);
    Matrix rms(5, d), layer(5, d);
    for (index_t n = 0; n < 5; ++n) {
      double squares = 0, mean = 0, variance = 0;
      for (index_t k = 0; k < d; ++k) {
        squares += to_double(x.row(n)[k]) * to_double(x.row(n)[k]);
        mean += to_double(x.row(n)[k]) / static_cast<double>(d);
      }
      for (index_t k = 0; k < d; ++k) variance += std::pow(to_double(x.row(n)[k]) - mean, 2);
      for (index_t k = 0; k < d; ++k) {
        double const w = to_double(weight.row(0)[k]), b = to_double(bias.row(0)[k]), v = to_double(x.row(n)[k]);
        rms(n, k) = v / std::sqrt(squares / static_cast<double>(d) + 1e-5) * w;
        layer(n, k) = (v - mean) / std::sqrt(variance / static_cast<double>(d) + 1e-5) * w + b;
      }
    }
    // sums of up to 2056 numbers by 257 threads, a root, three products
    double const allowed = bound<T>(60);
    DeviceBuffer<T> const from(x), y(5, d, gap), z(x);
    DeviceBuffer<float> const w(weight), b(bias);
    rms_norm(be, from.const_view(), row_of(w), 1e-5, y.view());
    CHECK(worst_row(y.host().view(), rms) <= allowed);
    layer_norm(be, from.const_view(), row_of(w), row_of(b), 1e-5, y.view());
    CHECK(worst_row(y.host().view(), layer) <= allowed);
    REQUIRE(y.host().gaps_untouched());
    rms_norm(be, z.const_view(), row_of(w), 1e-5, z.view());  // in place
    CHECK(worst_row(z.host().view(), rms) <= allowed);
  }
  REQUIRE(graft_test::finish() == "");
}

TEMPLATE_TEST_CASE("a norm of heads on the device is the norm of each head", "", float, bf16) {
  using T = TestType;
  Random random(2);
  CudaBackend<T> be;
  for (index_t const head_dim : {20, 64, 128}) {
    auto const x = normal<T>(5, 3 * head_dim, 1, random);
    DeviceBuffer<T> const heads(x), y(5, head_dim);
    DeviceBuffer<float> const weight(normal<float>(1, head_dim, 0, random, 1, 0.2));
    rms_norm_heads(be, heads.view(), row_of(weight), 1e-6);
    for (index_t h = 0; h < 3; ++h) {
      DeviceBuffer<T> const all(x);
      rms_norm(be, all.const_view().col_range(head_dim * h, head_dim), row_of(weight), 1e-6, y.view());
      CHECK(same_bits(std::as_const(y).host().view(), heads.host().view().col_range(head_dim * h, head_dim)));
    }
    REQUIRE(heads.host().gaps_untouched());
  }
  REQUIRE(graft_test::finish() == "");
}

TEMPLATE_TEST_CASE("activations on the device are those of the shared element functions", "", float, bf16, f16) {
  using T = TestType;
  Random random(3);
  CudaBackend<T> be;
  for (Activation const f :
       {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu, Activation::tanh}) {
    INFO("activation " << int(f));
    for (auto const& [cols, gap] : shapes) {
      auto x = normal<T>(3, cols, gap, random, 0, 4);
      auto const up = normal<T>(3, cols, gap, random);
      x.row(0)[0] = static_cast<T>(-60.f), x.row(1)[0] = static_cast<T>(60.f);
      Matrix plain(3, cols), gated(3, cols);
      for (index_t n = 0; n < 3; ++n)
        for (index_t k = 0; k < cols; ++k) {
          plain(n, k) = activate(f, to_double(x.row(n)[k]));
          gated(n, k) = plain(n, k) * to_double(up.row(n)[k]);
        }
      DeviceBuffer<T> const y(x), z(x), other(up);
      activate(be, f, y.view());
      activate_gated(be, f, z.view(), other.const_view());
      // far left of zero 1 + erf cancels, so values are exact relative to x = 4 rather than to themselves
      auto const got = y.host(), got_gated = z.host();
      index_t wrong = 0;
      for (index_t n = 0; n < 3; ++n)
        for (index_t k = 0; k < cols; ++k) {
          wrong += !(std::fabs(to_double(got.row(n)[k]) - plain(n, k)) <=
                     bound<T>(16) * std::fabs(plain(n, k)) + 16 * unit_roundoff<float>() * 4 + 0x1p-25);
          wrong += !(std::fabs(to_double(got_gated.row(n)[k]) - gated(n, k)) <=
                     bound<T>(16) * std::fabs(gated(n, k)) +
                         (16 * unit_roundoff<float>() * 4 + 0x1p-25) * (1 + std::fabs(to_double(up.row(n)[k]))));
        }
      CHECK(wrong == 0);  // 2^-25: half of f16's smallest subnormal
      REQUIRE(got.gaps_untouched());
      REQUIRE(got_gated.gaps_untouched());
    }
  }
  REQUIRE(graft_test::finish() == "");
}

TEMPLATE_TEST_CASE("sums and copies on the device are exact but for one rounding", "", float, bf16, f16) {
  using T = TestType;
  Random random(4);
  CudaBackend<T> be;
  for (auto const& [cols, gap] : shapes) {
    auto const x = normal<T>(70, cols, gap, random), h = normal<T>(70, cols, gap + 1, random);
    DeviceBuffer<T> const from(x), sum(h), to(70, cols, gap + 1);
    add(be, from.const_view(), sum.view());
    copy(be, from.const_view(), to.view());
    auto const got = sum.host(), copied = to.host();
    index_t wrong = 0;
    for (index_t n = 0; n < 70; ++n)
      for (index_t k = 0; k < cols; ++k) {
        float const expected = static_cast<float>(x.row(n)[k]) + static_cast<float>(h.row(n)[k]);
        wrong += static_cast<float>(got.row(n)[k]) != static_cast<float>(static_cast<T>(expected));
        wrong += static_cast<float>(copied.row(n)[k]) != static_cast<float>(x.row(n)[k]);
      }
    CHECK(wrong == 0);
    REQUIRE(got.gaps_untouched());
    REQUIRE(copied.gaps_untouched());
  }
  DeviceBuffer<T> const none(0, 8);
  add(be, none.const_view(), none.view());  // no rows, no launch
  REQUIRE(graft_test::finish() == "");
}

TEMPLATE_TEST_CASE("rows of every format the device reads are gathered, or added", "", float, bf16) {
  using T = TestType;
  Random random(5);
  CudaBackend<T> be;
  for (Format const format :
       {Format::f32, Format::f16, Format::bf16, Format::q8_0, Format::q4_0, Format::q4_1, Format::q6_k}) {
    INFO(format_info(format).name);
    index_t const rows = 12, d = 256 * 3;
    auto const values = normal<float>(rows, d, 0, random);
    std::vector<std::byte> bytes(static_cast<std::size_t>(rows * row_bytes(format, d)));
    Weight const table{bytes.data(), format, rows, d, nullptr};
    Buffer<float> decoded(rows, d);
    for (index_t r = 0; r < rows; ++r) {
      encode_row(format, values.row(r), d, bytes.data() + r * row_bytes(format, d));
      table.row(r, decoded.row(r));
    }
    std::vector<std::int32_t> index;
    for (int n = 0; n < 19; ++n) index.push_back(static_cast<std::int32_t>(pick(random, 0, rows - 1)));
    DeviceArray<std::byte> const stored(bytes);
    DeviceArray<std::int32_t> const chosen(index);
    Weight const resident{stored.data(), format, rows, d, nullptr};
    auto const before = normal<T>(19, d, 8, random);
    DeviceBuffer<T> const h(19, d, 3), sum(before);
    gather_rows(be, resident, chosen.data(), h.view());
    gather_rows(be, resident, chosen.data(), sum.view(), true);
    auto const got = h.host(), got_sum = sum.host();
    index_t wrong = 0;
    for (index_t n = 0; n < 19; ++n)
      for (index_t k = 0; k < d; ++k) {
        float const expected = decoded.row(index[static_cast<std::size_t>(n)])[k];
        wrong += static_cast<float>(got.row(n)[k]) != static_cast<float>(static_cast<T>(expected));
        float const total = static_cast<float>(before.row(n)[k]) + expected;
        wrong += static_cast<float>(got_sum.row(n)[k]) != static_cast<float>(static_cast<T>(total));
      }
    CHECK(wrong == 0);
    REQUIRE(got.gaps_untouched());
  }
  for (Format const format : {Format::f64, Format::q5_0, Format::q4_k}) {
    DeviceBuffer<T> const h(1, 256);
    CHECK_THROWS_AS(gather_rows(be, Weight{nullptr, format, 1, 256, nullptr}, nullptr, h.view()), ContractError);
  }
  REQUIRE(graft_test::finish() == "");
}

TEMPLATE_TEST_CASE("rotary embedding on the device turns k with k + half, and leaves the rest of a head", "", float,
                   bf16, f16) {
  using T = TestType;
  Random random(6);
  CudaBackend<T> be;
  for (auto const& [head_dim, angles] : {std::pair<index_t, index_t>{64, 32}, {128, 32}, {20, 10}, {20, 4}, {2, 1}}) {
    index_t const heads = 3, rows = 10;
    auto const x = normal<T>(rows, heads * head_dim, head_dim == 20 ? 5 : 8, random);
    auto const cosine = normal<float>(rows, angles, 0, random), sine = normal<float>(rows, angles, 0, random);
    Matrix expected(x.view());
    for (index_t n = 0; n < rows; ++n)
      for (index_t h = 0; h < heads; ++h)
        for (index_t k = 0; k < angles; ++k) {
          index_t const a = h * head_dim + k, b = a + angles;
          double const u = to_double(x.row(n)[a]), v = to_double(x.row(n)[b]);
          expected(n, a) = u * to_double(cosine.row(n)[k]) - v * to_double(sine.row(n)[k]);
          expected(n, b) = v * to_double(cosine.row(n)[k]) + u * to_double(sine.row(n)[k]);
        }
    DeviceBuffer<T> const y(x);
    DeviceBuffer<float> const c(cosine), s(sine);
    rotate(be, c.const_view(), s.const_view(), head_dim, y.view());
    CHECK(worst_row(y.host().view(), expected) <= bound<T>(4));  // two products and a sum
    REQUIRE(y.host().gaps_untouched());
  }
  REQUIRE(graft_test::finish() == "");
}

TEMPLATE_TEST_CASE("keys and values of ragged spans land in their pages and nowhere else", "", float, bf16) {
  using T = TestType;
  Random random(7);
  CudaBackend<T> be;
  for (index_t const width : {6, 64}) {
    index_t const page_tokens = 4, page_count = 12, layer_offset = 10,
                  page_size = layer_offset + 2 * page_tokens * width;
    struct Span {
      index_t first_token, rows;
    };
    std::vector<Span> const ragged{{0, 7}, {13, 1}, {3, 5}};
    auto const k = normal<T>(13, width, 2, random), v = normal<T>(13, width, 0, random);
    std::vector<T> const untouched(static_cast<std::size_t>(page_count * page_size), static_cast<T>(-3.f));
    std::vector<T> expected = untouched;
    DeviceArray<T> const pages(untouched);
    std::vector<T*> page_data;
    for (index_t p = 0; p < page_count; ++p) page_data.push_back(pages.data() + p * page_size);
    DeviceArray<T*> const page_table(page_data);
    std::vector<DeviceArray<std::int32_t>> tables;
    std::vector<AttentionSpan> spans;
    std::int32_t next = page_count - 1;
    index_t row = 0;
    AttentionSpans known;
    for (auto const& [first_token, rows] : ragged) {
      std::vector<std::int32_t> own;
      for (index_t t = 0; t < first_token + rows; t += page_tokens) own.push_back(next--);
      for (index_t r = 0; r < rows; ++r) {
        index_t const token = first_token + r;
        index_t const at =
            own[static_cast<std::size_t>(token / page_tokens)] * page_size + layer_offset + token % page_tokens * width;
        for (index_t c = 0; c < width; ++c) {
          expected[static_cast<std::size_t>(at + c)] = k.row(row + r)[c];
          expected[static_cast<std::size_t>(at + page_tokens * width + c)] = v.row(row + r)[c];
        }
      }
      tables.emplace_back(own);
      spans.push_back({tables.back().data(), row, rows, first_token, first_token + rows, nullptr});
      known.max_rows = std::max(known.max_rows, rows);
      row += rows;
    }
    DeviceArray<AttentionSpan> const resident(spans);
    std::span<AttentionSpan const>& where = known;
    where = {resident.data(), spans.size()};
    DeviceBuffer<T> const keys(k), values(v);
    KvView<T> const kv{page_table.data(), layer_offset, layer_offset + page_tokens * width, page_tokens, width};
    store_kv(be, kv, known, keys.const_view(), values.const_view());
    auto const got = pages.host();
    index_t wrong = 0;
    for (std::size_t j = 0; j < got.size(); ++j) wrong += static_cast<float>(got[j]) != static_cast<float>(expected[j]);
    CHECK(wrong == 0);
  }
  REQUIRE(graft_test::finish() == "");
}

}  // namespace
