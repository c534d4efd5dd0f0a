// SPDX-License-Identifier: Apache-2.0
// dX += dY W, dW += dY^T X, db += sum dY and gathers backwards, against double loops: every format and shape, the bits
// of a row whatever stands beside it, and any executor.
#include <graft/backend/cpu/product_transposed.hpp>
#include <graft/backend/cpu/rows.hpp>
#include <graft/backend/cpu/weight_backward.hpp>
#include <graft/testing/buffer.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/reference.hpp>
#include <tests/backend/stored_weight.hpp>
#include <tests/catch.hpp>

#include <cmath>
#include <limits>
#include <vector>

namespace {

using namespace graft;
using namespace graft::testing;
using graft_test::StoredWeight;
using graft_test::weight_formats;

/// Largest error of after = before + a b, in units of what rounding explains. Sums of at most 128 products each meet
/// one rounding per term, and their sums another each: steps = min(k, 128) + k / 128 + 2 times u times the sizes of the
/// terms. F64 weights narrowed to f32 and the reference's own k roundings get the last terms.
template <class R>
double worst_error(Matrix const& before, Matrix const& a, Matrix const& b, MatrixView<R const> after) {
  double const k = static_cast<double>(a.cols);
  double const relative =
      (std::fmin(k, 128) + std::ceil(k / 32) + 3) * unit_roundoff<R>() + (k + 2) * unit_roundoff<double>();
  double worst = 0;
  for (index_t m = 0; m < after.rows; ++m)
    for (index_t j = 0; j < after.cols; ++j) {
      double sum = before(m, j), size = std::fabs(sum);
      for (index_t s = 0; s < a.cols; ++s) {
        sum += a(m, s) * b(s, j);
        size += std::fabs(a(m, s) * b(s, j));
      }
      worst = worse(worst,
                    std::fabs(to_double(after(m, j)) - sum) / (relative * size + std::numeric_limits<double>::min()));
    }
  return worst;
}

// In native precision dY is what it is rounded to, where the level multiplies bf16; the pairs of a panel of 256 rows of
// W then meet two roundings each, and its sum one.
double check_native(index_t n, index_t o, index_t i, bool reordered, Random& random) {
  StoredWeight const stored(Format::bf16, o, i, random, reordered);
  Buffer<float> dy(n, o, 3), dx(n, i, 5);
  fill_normal(dy.view(), random);
  fill_normal(dx.view(), random);
  Matrix const before(dx.view());
  CpuBackend<> be;
  be.set_precision(Precision::native);
  product_transposed(be, std::as_const(dy).view(), stored.weight, dx.view());
  REQUIRE(dx.gaps_untouched());
  Matrix seen(dy.view());
  if (be.isa() >= Isa::vnni)
    for (auto& value : seen.values) value = static_cast<float>(bf16(static_cast<float>(value)));
  auto const k = static_cast<double>(o);
  // worst_error counts the roundings of products in f32
  double const counted = std::fmin(k, 128) + std::ceil(k / 32) + 3, steps = std::fmin(k, 256) + std::ceil(k / 256) + 2;
  double const error = worst_error<float>(before, seen, dense(stored.weight), std::as_const(dx).view());
  return be.isa() >= Isa::vnni ? error * counted / steps : error;
}

template <class R>
double check(Format format, index_t n, index_t o, index_t i, bool reordered, Random& random) {
  StoredWeight const stored(format, o, i, random, reordered);
  Buffer<R> dy(n, o, 3), dx(n, i, 5);
  fill_normal(dy.view(), random);
  fill_normal(dx.view(), random);
  Matrix const before(dx.view());
  CpuBackend<R> be;
  product_transposed(be, std::as_const(dy).view(), stored.weight, dx.view());
  REQUIRE(dx.gaps_untouched());
  return worst_error<R>(before, Matrix(dy.view()), dense(stored.weight), std::as_const(dx).view());
}

std::vector<index_t> widths(Format format) {
  switch (format_info(format).block) {
    case 1:
      return {1, 7, 33, 70, 96, 200};
    case 32:
      return {32, 96, 160};
    default:
      return {256, 768};
  }
}

TEMPLATE_TEST_CASE("the transposed product agrees with double loops in every weight format", "", float, double) {
  Random random(1);
  for (Format const format : weight_formats())
    for (index_t const i : widths(format))
      for (index_t const o : {1, 67, 300}) {
        INFO(format_info(format).name << ", " << o << " x " << i);
        CHECK(check<TestType>(format, 5, o, i, o == 67, random) <= 1);
      }
}

TEMPLATE_TEST_CASE("the transposed product takes any number of rows", "", float, double) {
  Random random(2);
  for (Format const format : {Format::f32, Format::bf16, Format::q4_1})
    for (index_t n = 0; n <= 17; ++n) {
      INFO(format_info(format).name << ", " << n << " rows");
      CHECK(check<TestType>(format, n, pick(random, {1, 3, 127, 128, 129}), 96, n % 2 == 0, random) <= 1);
    }
}

TEST_CASE("in native precision the transposed product rounds rows that meet bf16, and nothing else", "[isa]") {
  Random random(7);
  // panels of 64 columns and 256 rows of weights, tasks of 256 rows, 4096 columns rounded at a time
  for (index_t const i : {1, 15, 64, 71, 200})
    for (index_t const o : {1, 2, 67, 256, 300, 513}) {
      INFO(o << " x " << i);
      CHECK(check_native(7, o, i, o == 67, random) <= 1);
    }
  for (index_t const n : {0, 1, 2, 5, 13, 256, 257, 300}) {
    INFO(n << " rows");
    CHECK(check_native(n, 129, 70, false, random) <= 1);
  }
  CHECK(check_native(3, 4096 + 77, 40, false, random) <= 1);

  StoredWeight const integers(Format::q8_0, 33, 64, random);
  Buffer<float> dy(5, 33), exact(5, 64), native(5, 64);
  fill_normal(dy.view(), random);
  CpuBackend<> be;
  clear(be, exact.view()), clear(be, native.view());
  product_transposed(be, std::as_const(dy).view(), integers.weight, exact.view());
  be.set_precision(Precision::native);
  product_transposed(be, std::as_const(dy).view(), integers.weight, native.view());
  CHECK(same_bits(exact.view(), native.view()));
}

TEMPLATE_TEST_CASE("a row's transposed product does not depend on the other rows, bit for bit", "", float, double) {
  using R = TestType;
  Random random(3);
  auto const precision = GENERATE(Precision::exact, Precision::native);
  for (Format const format : weight_formats()) {
    index_t const o = 300, i = format_info(format).block == 1 ? 71 : 256, count = 41;
    StoredWeight const stored(format, o, i, random);
    Buffer<R> dy(count, o), start(count, i);
    fill_normal(dy.view(), random);
    fill_normal(start.view(), random);
    Buffer<R> alone = start;
    CpuBackend<R> be;
    be.set_precision(precision);
    for (index_t n = 0; n < count; ++n)
      product_transposed(be, std::as_const(dy).view().row_range(n, 1), stored.weight, alone.view().row_range(n, 1));
    for (index_t const rows : {2, 5, 8, 31, 41}) {
      auto const order = permutation(count, random);
      Buffer<R> some(rows, o, 5), dx(rows, i, 1);
      for (index_t n = 0; n < rows; ++n) {
        std::copy_n(dy.row(order[static_cast<std::size_t>(n)]), o, some.row(n));
        std::copy_n(start.row(order[static_cast<std::size_t>(n)]), i, dx.row(n));
      }
      product_transposed(be, std::as_const(some).view(), stored.weight, dx.view());
      index_t different = 0;
      for (index_t n = 0; n < rows; ++n)
        different += !same_bits(dx.row(n), alone.row(order[static_cast<std::size_t>(n)]), i);
      INFO(format_info(format).name << ", " << rows << " rows");
      CHECK(different == 0);
    }
  }
}

TEST_CASE("numbers that are not finite stay in their row") {
  Random random(4);
  StoredWeight const stored(Format::f32, 33, 70, random);
  Buffer<float> dy(5, 33), dx(5, 70), clean(5, 70);
  fill_normal(dy.view(), random);
  fill_normal(dx.view(), random);
  clean = dx;
  CpuBackend<> be;
  product_transposed(be, std::as_const(dy).view(), stored.weight, clean.view());
  dy.row(2)[32] = std::numeric_limits<float>::quiet_NaN();
  product_transposed(be, std::as_const(dy).view(), stored.weight, dx.view());
  for (index_t n = 0; n < 5; ++n)
    for (index_t k = 0; k < 70; ++k)
      if (n == 2)
        CHECK(std::isnan(dx.row(n)[k]));
      else
        CHECK(dx.row(n)[k] == clean.row(n)[k]);
}

TEMPLATE_TEST_CASE("gradients of weights, biases and tables agree with double loops", "", float, double) {
  using R = TestType;
  Random random(5);
  CpuBackend<R> be;
  for (index_t const n : {1, 5, 130, 300})
    for (auto const& [o, i] : {std::pair<index_t, index_t>{1, 1}, {3, 70}, {65, 17}, {130, 200}}) {
      INFO(n << " rows, " << o << " x " << i);
      Buffer<R> dy(n, o, 3), x(n, i, 1), dw(o, i, 2), db(1, o);
      for (auto* buffer : {&dy, &x, &dw, &db}) fill_normal(buffer->view(), random);
      Matrix const weight_before(dw.view()), bias_before(db.view());
      weight_gradient(be, std::as_const(dy).view(), std::as_const(x).view(), dw.view());
      CHECK(worst_error<R>(weight_before, transposed(Matrix(dy.view())), Matrix(x.view()), std::as_const(dw).view()) <=
            1);
      REQUIRE(dw.gaps_untouched());
      Matrix ones(1, n);
      ones.values.assign(ones.values.size(), 1.0);
      bias_gradient(be, std::as_const(dy).view(), VectorView<R>{db.row(0), o});
      // one sum of n terms in order: (n + 1) / (min(n, 128) + ...) times the unit, at most 3
      CHECK(worst_error<R>(bias_before, ones, Matrix(dy.view()), std::as_const(db).view()) <= 3);

      // a table of 7 rows; some are met often, one never
      std::vector<std::int32_t> index;
      Matrix which(7, n);
      for (index_t k = 0; k < n; ++k) {
        index.push_back(static_cast<std::int32_t>(pick(random, 0, 5)));
        which(index.back(), k) = 1;
      }
      Buffer<R> table(7, i, 2);
      fill_normal(table.view(), random);
      Buffer<R> const table_before = table;
      gather_rows_backward(be, index.data(), std::as_const(x).view(), table.view());
      CHECK(worst_error<R>(Matrix(table_before.view()), which, Matrix(x.view()), std::as_const(table).view()) <= 1);
      CHECK(same_bits(table.row(6), table_before.row(6), i));
      REQUIRE(table.gaps_untouched());
    }
}

TEST_CASE("the bits of dense gradients do not depend on the executor", "[many_threads]") {
  Random random(6);
  auto const precision = GENERATE(Precision::exact, Precision::native);
  index_t const n = 300, o = 205, i = 5 * 64 + 3;
  StoredWeight const stored(Format::bf16, o, i, random);
  Buffer<float> dy(n, o), x(n, i), dx(n, i), dw(o, i), db(1, o), table(9, i);
  std::vector<std::int32_t> index;
  for (index_t k = 0; k < n; ++k) index.push_back(static_cast<std::int32_t>(pick(random, 0, 8)));
  for (auto* buffer : {&dy, &x, &dx, &dw, &db, &table}) fill_normal(buffer->view(), random);
  auto const run = [&](CpuBackend<>& be, Buffer<float>& gx, Buffer<float>& gw, Buffer<float>& gb, Buffer<float>& gt) {
    be.set_precision(precision);
    product_transposed(be, std::as_const(dy).view(), stored.weight, gx.view());
    weight_gradient(be, std::as_const(dy).view(), std::as_const(x).view(), gw.view());
    bias_gradient(be, std::as_const(dy).view(), VectorView<float>{gb.row(0), o});
    gather_rows_backward(be, index.data(), std::as_const(x).view(), gt.view());
  };
  Buffer<float> ex = dx, ew = dw, eb = db, et = table;
  CpuBackend<> serial;
  run(serial, ex, ew, eb, et);
  auto const equal = [&](CpuBackend<>& be, int calls, auto&& backend) {
    Buffer<float> gx = dx, gw = dw, gb = db, gt = table;
    for (int k = 0; k < calls; ++k) run(backend(be, k), gx, gw, gb, gt);
    return same_bits(gx.view(), ex.view()) && same_bits(gw.view(), ew.view()) && same_bits(gb.view(), eb.view()) &&
           same_bits(gt.view(), et.view());
  };
  for (index_t const threads : {2, 3}) {
    ThreadPool pool(threads);
    CpuBackend<> be(pool);
    CHECK(equal(be, 1, [](CpuBackend<>& all, int) -> CpuBackend<>& { return all; }));
  }
  SliceExecutor slices[] = {{0, 3}, {1, 3}, {2, 3}};
  CpuBackend<> parts[] = {CpuBackend<>(slices[0]), CpuBackend<>(slices[1]), CpuBackend<>(slices[2])};
  CHECK(equal(serial, 3, [&](CpuBackend<>&, int k) -> CpuBackend<>& { return parts[k]; }));
}

}  // namespace
