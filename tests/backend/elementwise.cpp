// SPDX-License-Identifier: Apache-2.0
// Norms, activations, gathers and rotary embedding against their formulas in double; and each row's bits depend on that
// row alone.
#include <graft/backend/cpu/elementwise.hpp>
#include <graft/testing/buffer.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/random.hpp>
#include <tests/catch.hpp>

#include <cmath>
#include <functional>
#include <limits>
#include <vector>

namespace {

using namespace graft;
using namespace graft::testing;

template <class R>
VectorView<R const> row_of(Buffer<R> const& buffer) {
  return {buffer.row(0), buffer.view().cols};
}

TEMPLATE_TEST_CASE("norms equal their formulas", "", float, double) {
  using R = TestType;
  Random random(1);
  CpuBackend<R> be;
  for (index_t const d : {1, 7, 64, 100, 576}) {
    Buffer<R> x(9, d, 3), y(9, d, 2), weight(1, d), bias(1, d);
    for (auto* buffer : {&weight, &bias}) fill_normal(buffer->view(), random, 1, 0.5);
    fill_normal(x.view(), random, 0.3, 2);
    Matrix rms(9, d), layer(9, d);
    for (index_t n = 0; n < 9; ++n) {
      double squares = 0, mean = 0, variance = 0;
      for (index_t k = 0; k < d; ++k)
        squares += to_double(x.row(n)[k]) * to_double(x.row(n)[k]), mean += to_double(x.row(n)[k]);
      mean /= static_cast<double>(d);
      for (index_t k = 0; k < d; ++k) variance += std::pow(to_double(x.row(n)[k]) - mean, 2);
      for (index_t k = 0; k < d; ++k) {
        double const w = to_double(weight.row(0)[k]), b = to_double(bias.row(0)[k]), v = to_double(x.row(n)[k]);
        rms(n, k) = v / std::sqrt(squares / static_cast<double>(d) + 1e-5) * w;
        layer(n, k) = (v - mean) / std::sqrt(variance / static_cast<double>(d) + 1e-5) * w + b;
      }
    }
    // sums of up to 576 squares in lanes, a root, three products
    double const bound = 60 * unit_roundoff<R>();
    rms_norm(be, std::as_const(x).view(), row_of(weight), 1e-5, y.view());
    CHECK(worst_row(y.view(), rms) <= bound);
    layer_norm(be, std::as_const(x).view(), row_of(weight), row_of(bias), 1e-5, y.view());
    CHECK(worst_row(y.view(), layer) <= bound);
    REQUIRE(y.gaps_untouched());
    // in place
    Buffer<R> z = x;
    rms_norm(be, std::as_const(z).view(), row_of(weight), 1e-5, z.view());
    CHECK(worst_row(z.view(), rms) <= bound);
    layer_norm(be, std::as_const(x).view(), row_of(weight), row_of(bias), 1e-5, x.view());
    CHECK(worst_row(x.view(), layer) <= bound);
  }
}

TEST_CASE("a norm of heads is the norm of each head", "[isa]") {
  Random random(2);
  CpuBackend<> be;
  Buffer<float> x(5, 3 * 20, 1), weight(1, 20);
  fill_normal(x.view(), random);
  fill_normal(weight.view(), random, 1, 0.2);
  Buffer<float> heads = x;
  rms_norm_heads(be, heads.view(), row_of(weight), 1e-6);
  for (index_t h = 0; h < 3; ++h) {
    Buffer<float> y(5, 20);
    rms_norm(be, MatrixView<float const>(x.view().col_range(20 * h, 20)), row_of(weight), 1e-6, y.view());
    CHECK(same_bits(y.view(), heads.view().col_range(20 * h, 20)));
  }
}

double formula(Activation f, double x) {
  switch (f) {
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::gelu:
      return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
    case Activation::relu:
      return std::max(x, 0.0);
    default:
      return std::tanh(x);
  }
}
constexpr Activation activations[] = {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu,
                                      Activation::tanh};

TEST_CASE("the exponential is within 2 units in the last place from -87 to 88") {
  double worst = 0;
  for (double x = -87; x <= 88; x += 1.0 / 4096 + 1e-7) {
    float const value = static_cast<float>(x);
    double const right = std::exp(to_double(value)), ulp = right * 2 * unit_roundoff<float>();
    worst = std::max(worst, std::fabs(to_double(exp_of(value)) - right) / ulp);
  }
  CHECK(worst <= 2);
  CHECK(exp_of(0.0f) == 1);
  CHECK(exp_of(-1000.0f) == 0);
  CHECK(exp_of(-std::numeric_limits<float>::infinity()) == 0);
  CHECK(exp_of(1000.0f) >= 1.6e38f);
  CHECK(std::isnan(exp_of(std::numeric_limits<float>::quiet_NaN())));
}

TEMPLATE_TEST_CASE("activations equal their formulas, plain and gated", "", float, double) {
  using R = TestType;
  Random random(3);
  CpuBackend<R> be;
  for (Activation const f : activations) {
    Buffer<R> x(11, 101, 3), up(11, 101, 1);
    fill_normal(x.view(), random, 0, 4);
    fill_normal(up.view(), random);
    x.row(0)[0] = 60, x.row(0)[1] = -60, x.row(0)[2] = 0, x.row(0)[3] = -300;
    Matrix plain(11, 101), gated(11, 101);
    for (index_t n = 0; n < 11; ++n)
      for (index_t k = 0; k < 101; ++k) {
        plain(n, k) = formula(f, to_double(x.row(n)[k]));
        gated(n, k) = plain(n, k) * to_double(up.row(n)[k]);
      }
    INFO("activation " << int(f));
    Buffer<R> y = x;
    activate(be, f, y.view());
    // far left of zero 1 + erf cancels, so values are exact relative to x = 4 rather than to themselves
    CHECK(worst_row(y.view(), plain) <= 16 * unit_roundoff<R>());
    for (index_t n = 0; n < 11; ++n)
      for (index_t k = 0; k < 101; ++k)
        REQUIRE(std::fabs(to_double(y.row(n)[k]) - plain(n, k)) <=
                16 * unit_roundoff<R>() * (4 + std::fabs(plain(n, k))));
    activate_gated(be, f, x.view(), std::as_const(up).view());
    CHECK(worst_row(x.view(), gated) <= 16 * unit_roundoff<R>());
    REQUIRE(x.gaps_untouched());
  }
}

TEST_CASE("rows of any format are gathered, or added") {
  Random random(4);
  CpuBackend<> be;
  for (Format const format : {Format::f32, Format::bf16, Format::q8_0, Format::q6_k}) {
    index_t const rows = 12, d = 256;
    std::vector<std::byte> bytes(static_cast<std::size_t>(rows * row_bytes(format, d)));
    Buffer<float> values(rows, d), decoded(rows, d);
    fill_normal(values.view(), random);
    Weight const table{bytes.data(), format, rows, d, nullptr};
    for (index_t r = 0; r < rows; ++r) {
      encode_row(format, values.row(r), d, bytes.data() + r * row_bytes(format, d));
      table.row(r, decoded.row(r));
    }
    std::vector<std::int32_t> index;
    for (int n = 0; n < 19; ++n) index.push_back(static_cast<std::int32_t>(pick(random, 0, rows - 1)));
    Buffer<float> h(19, d, 3), sum(19, d);
    gather_rows(be, table, index.data(), h.view());
    fill_normal(sum.view(), random);
    Buffer<float> const before = sum;
    gather_rows(be, table, index.data(), sum.view(), true);
    index_t wrong = 0;
    for (index_t n = 0; n < 19; ++n) {
      float const* const expected = decoded.row(index[static_cast<std::size_t>(n)]);
      wrong += !same_bits<float>(h.row(n), expected, d);
      for (index_t k = 0; k < d; ++k) wrong += sum.row(n)[k] != before.row(n)[k] + expected[k];
    }
    CHECK(wrong == 0);
    REQUIRE(h.gaps_untouched());
  }
}

TEMPLATE_TEST_CASE("rotary embedding turns k with k + half, and leaves the rest of a head", "", float, double) {
  using R = TestType;
  Random random(5);
  CpuBackend<R> be;
  for (auto const& [head_dim, angles] : {std::pair<index_t, index_t>{64, 32}, {20, 10}, {20, 4}, {2, 1}}) {
    index_t const heads = 3, rows = 10;
    Buffer<R> x(rows, heads * head_dim, 5), cosine(rows, angles), sine(rows, angles);
    fill_normal(x.view(), random);
    fill_normal(cosine.view(), random);
    fill_normal(sine.view(), random);
    Matrix expected(x.view());
    for (index_t n = 0; n < rows; ++n)
      for (index_t h = 0; h < heads; ++h)
        for (index_t k = 0; k < angles; ++k) {
          index_t const a = h * head_dim + k, b = a + angles;
          double const u = to_double(x.row(n)[a]), v = to_double(x.row(n)[b]);
          expected(n, a) = u * to_double(cosine.row(n)[k]) - v * to_double(sine.row(n)[k]);
          expected(n, b) = v * to_double(cosine.row(n)[k]) + u * to_double(sine.row(n)[k]);
        }
    rotate(be, std::as_const(cosine).view(), std::as_const(sine).view(), head_dim, x.view());
    CHECK(worst_row(x.view(), expected) <= 4 * unit_roundoff<R>());  // two products and a sum
    REQUIRE(x.gaps_untouched());
  }
}

TEST_CASE("every row's bits depend on that row alone, whatever its place, alignment and executor") {
  Random random(6);
  index_t const d = 205, rows = 19;
  Buffer<float> x(rows, d), up(rows, d), weight(1, d), bias(1, d), angle(1, 20);
  for (auto* buffer : {&x, &up, &weight, &bias, &angle}) fill_normal(buffer->view(), random);
  using Step = std::function<void(CpuBackend<>&, MatrixView<float>, MatrixView<float const>)>;
  std::vector<Step> steps{
      [&](auto& be, auto y, auto) { rms_norm(be, MatrixView<float const>(y), row_of(weight), 1e-5, y); },
      [&](auto& be, auto y, auto) {
        layer_norm(be, MatrixView<float const>(y), row_of(weight), row_of(bias), 1e-5, y);
      },
      [&](auto& be, auto y, auto) { rms_norm_heads(be, y, row_of(weight).part(0, 41), 1e-5); },
      [&](auto& be, auto y, auto u) { add(be, u, y); },
      [&](auto& be, auto y, auto) {
        MatrixView<float const> const same{angle.row(0), y.rows, 20, 0};  // one angle for all rows
        rotate(be, same, same, 41, y);
      }};
  for (Activation const f : activations) {
    steps.push_back([f](auto& be, auto y, auto) { activate(be, f, y); });
    steps.push_back([f](auto& be, auto y, auto u) { activate_gated(be, f, y, u); });
  }
  CpuBackend<> serial;
  ThreadPool pool(3);
  CpuBackend<> threaded(pool);
  for (std::size_t s = 0; s < steps.size(); ++s) {
    Buffer<float> expected(rows, d);
    for (index_t n = 0; n < rows; ++n) {
      std::copy_n(x.row(n), d, expected.row(n));
      steps[s](serial, expected.view().row_range(n, 1), std::as_const(up).view().row_range(n, 1));
    }
    INFO("operation " << s);
    for (auto* be : {&serial, &threaded}) {
      auto const order = permutation(rows, random);
      Buffer<float> y(rows, d, 2), u(rows, d, 1);
      for (index_t n = 0; n < rows; ++n) {
        std::copy_n(x.row(order[static_cast<std::size_t>(n)]), d, y.row(n));
        std::copy_n(up.row(order[static_cast<std::size_t>(n)]), d, u.row(n));
      }
      steps[s](*be, y.view(), std::as_const(u).view());
      index_t different = 0;
      for (index_t n = 0; n < rows; ++n)
        different += !same_bits(y.row(n), expected.row(order[static_cast<std::size_t>(n)]), d);
      CHECK(different == 0);
    }
    Buffer<float> sliced = x;
    for (index_t slice = 0; slice < 2; ++slice) {
      SliceExecutor executor(slice, 2);
      CpuBackend<> part(executor);
      steps[s](part, sliced.view(), std::as_const(up).view());
    }
    CHECK(same_bits(sliced.view(), expected.view()));
  }
}

}  // namespace
