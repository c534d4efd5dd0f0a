// SPDX-License-Identifier: Apache-2.0
// Y = X W^T + b for every weight format against double loops over the decoded rows, and the bit-exactness that mixed
// batches rest on: a row's result depends neither on the rows beside it nor on who runs the chunks.
#include <graft/backend/cpu/product.hpp>
#include <graft/testing/buffer.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/random.hpp>
#include <tests/backend/stored_weight.hpp>
#include <tests/catch.hpp>

#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

namespace {

using namespace graft;
using namespace graft::testing;
using graft_test::StoredWeight;

/// Largest error of Y against plain double loops, in units of what rounding explains.
///
/// Each output sums up to 512 bytes of inputs (a panel) one after the other and then the panels, so a term meets at
/// most panel + (number of panels) + 2 roundings (with or without fused multiply-add), and |error| <= steps u sum |x w|
/// + |b|. The reference's own error, and that of F64 weights narrowed to f32, get the last terms.
template <class R>
double worst_error(MatrixView<R const> x, Weight const& w, VectorView<R const> bias, MatrixView<R const> y) {
  double const terms = static_cast<double>(w.cols), panel = 512.0 / sizeof(R);
  double const steps = std::min(terms, panel) + std::ceil(terms / panel) + 2;
  double const narrowed = w.format == Format::f64 ? 1 : 0;
  double const relative = (steps + narrowed) * unit_roundoff<R>() + (terms + 2) * unit_roundoff<double>();
  std::vector<double> row(static_cast<std::size_t>(w.cols));
  double worst = 0;
  for (index_t o = 0; o < w.rows; ++o) {
    w.row(o, row.data());
    for (index_t n = 0; n < x.rows; ++n) {
      double sum = bias.empty() ? 0 : to_double(bias[o]), magnitude = std::fabs(sum);
      for (index_t k = 0; k < w.cols; ++k) {
        double const product = to_double(x(n, k)) * row[static_cast<std::size_t>(k)];
        sum += product;
        magnitude += std::fabs(product);
      }
      double const allowed = relative * magnitude + std::numeric_limits<double>::min();
      worst = worse(worst, std::fabs(to_double(y(n, o)) - sum) / allowed);
    }
  }
  return worst;
}

/// One random product in strided buffers; returns worst_error.
template <class R>
double check(Format format, index_t n, index_t o, index_t i, bool with_bias, bool reordered, Random& random) {
  StoredWeight stored(format, o, i, random);
  std::vector<std::int32_t> order;
  if (reordered) {
    for (index_t const k : permutation(o, random)) order.push_back(static_cast<std::int32_t>(k));
    stored.weight.row_order = order.data();
  }
  Buffer<R> x(n, i, 3), y(n, o, 5);
  fill_normal(x.view(), random);
  std::vector<R> bias(static_cast<std::size_t>(with_bias ? o : 0));
  fill_normal(VectorView<R>{bias.data(), static_cast<index_t>(bias.size())}, random);
  VectorView<R const> const b{bias.data(), static_cast<index_t>(bias.size())};
  CpuBackend<R> be;
  product(be, std::as_const(x).view(), stored.weight, b, y.view());
  REQUIRE(y.gaps_untouched());
  return worst_error<R>(std::as_const(x).view(), stored.weight, b, std::as_const(y).view());
}

std::vector<Format> weight_formats() {
  std::vector<Format> formats;
  for (int k = 0; k < format_count; ++k)
    if (format_info(static_cast<Format>(k)).weight) formats.push_back(static_cast<Format>(k));
  return formats;
}

/// Widths that do and do not divide the tiles, as far as the format's blocks allow; 1025 and 2050 cross a panel.
std::vector<index_t> widths(Format format) {
  switch (format_info(format).block) {
    case 1:
      return {1, 7, 33, 96, 576, 1025, 2050};
    case 32:
      return {32, 96, 576, 1056, 2080};
    default:
      return {256, 768, 1280, 2304};
  }
}

TEMPLATE_TEST_CASE("product agrees with double loops in every weight format", "", float, double) {
  Random random(1);
  for (Format const format : weight_formats())
    for (index_t const i : widths(format))
      for (index_t const o : {1, 67}) {
        INFO(format_info(format).name << ", " << o << " x " << i);
        for (index_t const n : {1, 5}) CHECK(check<TestType>(format, n, o, i, i % 2 == 0, false, random) <= 1);
      }
}

TEMPLATE_TEST_CASE("product takes any number of rows and outputs", "", float, double) {
  Random random(2);
  for (Format const format : {Format::f32, Format::bf16, Format::q8_0, Format::q4_1})
    for (index_t n = 1; n <= 33; ++n) {
      index_t const o = pick(random, {1, 3, 4, 5, 63, 64, 65, 130}), i = pick(random, {96, 576});
      INFO(format_info(format).name << ", " << n << " rows, " << o << " x " << i);
      CHECK(check<TestType>(format, n, o, i, n % 2 == 0, false, random) <= 1);
    }
}

TEST_CASE("product without rows or with rows stored in another order", "[isa]") {
  Random random(3);
  CHECK(check<float>(Format::f32, 0, 65, 96, true, false, random) == 0);
  for (Format const format : weight_formats()) {
    INFO(format_info(format).name);
    CHECK(check<float>(format, 3, 70, 256, true, true, random) <= 1);
  }
}

TEST_CASE("a part of a weight's rows is a weight") {
  Random random(4);
  StoredWeight stored(Format::q8_0, 40, 64, random);
  std::vector<std::int32_t> order;
  for (index_t const k : permutation(40, random)) order.push_back(static_cast<std::int32_t>(k));
  for (bool const reordered : {false, true}) {
    stored.weight.row_order = reordered ? order.data() : nullptr;
    Weight const part = stored.weight.row_range(7, 20);
    Buffer<float> x(3, 64), whole(3, 40), y(3, 20);
    fill_normal(x.view(), random);
    CpuBackend<> be;
    product(be, std::as_const(x).view(), stored.weight, {}, whole.view());
    product(be, std::as_const(x).view(), part, {}, y.view());
    CHECK(same_bits(y.view(), whole.view().col_range(7, 20)));
  }
}

TEMPLATE_TEST_CASE("a row's product does not depend on its place or on the other rows, bit for bit", "", float,
                   double) {
  using R = TestType;
  Random random(5);
  for (Format const format : weight_formats()) {
    index_t const o = 67, i = format_info(format).block == 1 ? 1030 : 1280, count = 33;
    StoredWeight const stored(format, o, i, random);
    Buffer<R> x(count, i), alone(count, o);
    fill_normal(x.view(), random);
    CpuBackend<R> be;
    for (index_t n = 0; n < count; ++n)
      product<R>(be, std::as_const(x).view().row_range(n, 1), stored.weight, {}, alone.view().row_range(n, 1));
    for (index_t const rows : {2, 3, 4, 5, 8, 15, 33}) {
      auto const order = permutation(count, random);
      Buffer<R> some(rows, i, 5), y(rows, o);
      for (index_t n = 0; n < rows; ++n) std::copy_n(x.row(order[static_cast<std::size_t>(n)]), i, some.row(n));
      product(be, std::as_const(some).view(), stored.weight, {}, y.view());
      index_t different = 0;
      for (index_t n = 0; n < rows; ++n)
        different += !same_bits(y.row(n), alone.row(order[static_cast<std::size_t>(n)]), o);
      INFO(format_info(format).name << ", " << rows << " rows");
      CHECK(different == 0);
    }
  }
}

TEST_CASE("the product's bits do not depend on the executor") {
  Random random(6);
  index_t const n = 9, o = 5 * 64 + 3, i = 1056;
  StoredWeight const stored(Format::q4_1, o, i, random);
  Buffer<float> x(n, i), expected(n, o);
  fill_normal(x.view(), random);
  CpuBackend<> serial;
  product(serial, std::as_const(x).view(), stored.weight, {}, expected.view());
  for (index_t const threads : {2, 3}) {
    ThreadPool pool(threads);
    CpuBackend<> be(pool);
    Buffer<float> y(n, o);
    product(be, std::as_const(x).view(), stored.weight, {}, y.view());
    CHECK(same_bits(y.view(), expected.view()));
  }
  for (index_t const slices : {2, 3, 8}) {
    Buffer<float> y(n, o);
    for (index_t slice = 0; slice < slices; ++slice) {
      SliceExecutor executor(slice, slices);
      CpuBackend<> be(executor);
      product(be, std::as_const(x).view(), stored.weight, {}, y.view());
    }
    CHECK(same_bits(y.view(), expected.view()));
  }
}

TEST_CASE("chunks have every output once, 64 each and the rest in halves") {
  for (index_t outputs = 0; outputs < 300; ++outputs)
    for (index_t const last : {cpu::last_chunk_outputs, cpu::product_chunk_outputs}) {
      cpu::OutputChunks const chunks{outputs, last};
      index_t end = 0;
      for (index_t k = 0; k < chunks.count(); ++k) {
        REQUIRE(chunks.begin(k) == end);
        REQUIRE(end < chunks.begin(k + 1));
        REQUIRE(end % last == 0);
        end = chunks.begin(k + 1);
      }
      REQUIRE(end == outputs);
    }
  CHECK(cpu::OutputChunks{576, 32}.count() == 8 + 2);
  CHECK(cpu::OutputChunks{576, 64}.count() == 9);
}

TEST_CASE("the epilogue runs once per chunk, when its columns are final") {
  Random random(7);
  for (index_t const o : {1, 64, 65, 200}) {
    StoredWeight const stored(Format::f32, o, 40, random);
    Buffer<float> x(6, 40), y(6, o), expected(6, o);
    fill_normal(x.view(), random);
    CpuBackend<> serial;
    product(serial, std::as_const(x).view(), stored.weight, {}, expected.view());
    ThreadPool pool(3);
    CpuBackend<> be(pool);
    std::vector<std::atomic<int>> seen(static_cast<std::size_t>(o));
    std::atomic<int> calls{0}, unfinished{0};
    product(be, std::as_const(x).view(), stored.weight, {}, y.view(), [&](index_t o0, index_t o1) {
      ++calls;
      if (!same_bits(y.view().col_range(o0, o1 - o0), expected.view().col_range(o0, o1 - o0))) ++unfinished;
      for (index_t k = o0; k < o1; ++k) ++seen[static_cast<std::size_t>(k)];
    });
    CHECK(calls == cpu::OutputChunks{o, cpu::last_chunk_outputs}.count());
    CHECK(unfinished == 0);
    for (auto const& times : seen) REQUIRE(times == 1);
  }
}

TEST_CASE("numbers that are not finite stay in their row and column") {
  Random random(8);
  StoredWeight const stored(Format::f32, 6, 33, random);
  Buffer<float> x(5, 33), clean(5, 6), y(5, 6);
  fill_normal(x.view(), random);
  CpuBackend<> be;
  product(be, std::as_const(x).view(), stored.weight, {}, clean.view());
  x.row(2)[32] = std::numeric_limits<float>::quiet_NaN();
  product(be, std::as_const(x).view(), stored.weight, {}, y.view());
  for (index_t n = 0; n < 5; ++n)
    for (index_t o = 0; o < 6; ++o)
      if (n == 2)
        CHECK(std::isnan(y.row(n)[o]));
      else
        CHECK(y.row(n)[o] == clean.row(n)[o]);
}

TEST_CASE("a dense matrix is a weight when its rows are contiguous") {
  Random random(9);
  Buffer<float> w(6, 10), strided(6, 10, 2), x(2, 10), y(2, 6);
  fill_normal(w.view(), random);
  fill_normal(x.view(), random);
  CpuBackend<> be;
  Weight const weight = dense_weight(std::as_const(w).view());
  product(be, std::as_const(x).view(), weight, {}, y.view());
  CHECK(worst_row(y.view(), Matrix(x.view()) * transposed(Matrix(w.view()))) <= 1e-6);  // 10 terms of 2^-24 each
  CHECK_THROWS_WITH(dense_weight(std::as_const(strided).view()), Catch::Contains("stride is 12, columns are 10"));
}

}  // namespace
