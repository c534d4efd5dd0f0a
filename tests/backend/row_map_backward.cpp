// SPDX-License-Identifier: Apache-2.0
// Gradients of row maps against differences of apply_row_map in double, for every form and group; other buffer types
// against double; rows that are not listed; any executor.
#include <graft/backend/cpu/row_map.hpp>
#include <graft/backend/cpu/row_map_backward.hpp>
#include <graft/testing/buffer.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/gradient_check.hpp>
#include <graft/testing/maps.hpp>
#include <tests/catch.hpp>

#include <cmath>
#include <vector>

namespace {

using namespace graft;
using namespace graft::testing;
using D = CpuBackend<double>;

std::vector<std::int32_t> const listed{5, 0, 2, 7};
constexpr index_t row_count = 8;

/// Memory for dL/dc, dL/dd and dL/de.
template <class R>
struct Gradients {
  Gradients(index_t outputs, index_t g, bool with_c, bool with_d, bool with_e, R start)
      : c1(with_c ? n(outputs) : 0, start),
        d(with_d ? n(outputs) : 0, start),
        e(with_e ? n(outputs) : 0, start),
        size(outputs),
        group(g) {}
  static std::size_t n(index_t count) { return static_cast<std::size_t>(count); }
  RowMapRow<R> row() {
    auto const data = [](std::vector<R>& v) { return v.empty() ? nullptr : v.data(); };
    return {data(c1), data(d), data(e), size, group, nullptr};
  }
  std::vector<R> c1, d, e;
  index_t size, group;
};

TEST_CASE("gradients of row maps equal differences, every form and group", "[isa]") {
  Random random(1);
  D be;
  for (auto const& [size, group] : {std::pair<index_t, index_t>{12, 0}, {12, 2}, {18, 6}, {130, 26}, {130, 130}})
    for (int form = 0; form < 8; ++form) {
      bool const c = form & 1, d = form & 2, e = form & 4;
      if (d != (group != 0)) continue;
      INFO("size " << size << ", g " << group << ", c " << c << ", e " << e);
      auto map = OwnedMap<double>::random(random, size, group, c, e);
      RowMapRow<double const> const row = map.row(), *const table = &row;
      std::vector<std::int32_t> request(row_count, -1);
      for (auto const n : listed) request[static_cast<std::size_t>(n)] = 0;
      Buffer<double> z(row_count, size, 3), y(row_count, size), w(row_count, size, 1);
      fill_normal(z.view(), random);
      fill_normal(w.view(), random);
      for (std::int32_t n : {1, 3, 4, 6}) std::fill_n(z.row(n), size, NAN);  // what is not listed is not read
      auto const f = [&, size = size] {
        for (index_t n = 0; n < row_count; ++n) std::copy_n(z.row(n), size, y.row(n));
        apply_row_map(be, RowMapBatch<double>{&table, request.data(), 1, 0}, y.view());
        double sum = 0;
        for (auto const n : listed)
          for (index_t k = 0; k < size; ++k) sum += w.row(n)[k] * y.row(n)[k];
        return sum;
      };
      Buffer<double> dy(row_count, size, 2);
      for (index_t n = 0; n < row_count; ++n) std::copy_n(w.row(n), size, dy.row(n));
      Gradients<double> g(size, group, c, d, e, 0.5);
      row_map_backward(be, row, listed, std::as_const(z).view(), dy.view(), g.row());
      REQUIRE(dy.gaps_untouched());
      Matrix dz(row_count, size);
      for (auto const n : listed) std::copy_n(dy.row(n), size, dz.view().row(n));
      for (auto const n : listed)
        CHECK(gradient_error(f, z.view().row_range(n, 1), std::as_const(dz).view().row_range(n, 1)) <= 1);
      auto const check = [&](std::vector<double>& parameters, std::vector<double> gradient) {
        for (double& value : gradient) value -= 0.5;
        CHECK(gradient_error(f, VectorView<double>{parameters.data(), static_cast<index_t>(parameters.size())},
                             VectorView<double const>{gradient.data(), static_cast<index_t>(gradient.size())}) <= 1);
      };
      check(map.c1, g.c1);
      check(map.d, g.d);
      check(map.e, g.e);
      for (std::int32_t n : {1, 3, 4, 6}) CHECK(same_bits(dy.row(n), w.row(n), size));  // not listed

      // nobody wants the parameters' gradients: the same dz
      Buffer<double> other(row_count, size, 2);
      for (index_t n = 0; n < row_count; ++n) std::copy_n(w.row(n), size, other.row(n));
      row_map_backward(be, row, listed, std::as_const(z).view(), other.view(), RowMapRow<double>{});
      CHECK(same_bits(other.view(), dy.view()));
    }
}

TEST_CASE("a map that starts as the identity, its vectors absent, has gradients all the same") {
  Random random(2);
  D be;
  Buffer<double> z(row_count, 12), dy(row_count, 12);
  fill_normal(z.view(), random);
  fill_normal(dy.view(), random);
  Buffer<double> const w = dy;
  Gradients<double> g(12, 6, true, true, true, 0);
  row_map_backward(be, RowMapRow<double const>{nullptr, nullptr, nullptr, 12, 0, nullptr}, listed,
                   std::as_const(z).view(), dy.view(), g.row());
  CHECK(same_bits(dy.view(), w.view()));
  for (index_t j = 0; j < 12; ++j) {
    double c = 0, d = 0, e = 0;
    for (auto const n : listed)
      c += w.row(n)[j] * z.row(n)[j], d += w.row(n)[j] * z.row(n)[partner(j, 6)], e += w.row(n)[j];
    auto const at = static_cast<std::size_t>(j);
    CHECK((g.c1[at] == Approx(c).margin(1e-15) && g.d[at] == Approx(d).margin(1e-15)));
    CHECK(g.e[at] == Approx(e).margin(1e-15));
  }
}

/// The backward of one map over buffers of Z and G; parameters and buffers are the same numbers for every type.
template <class R, class Z, class G>
std::pair<Buffer<G>, Gradients<R>> run(CpuBackend<R>& be, index_t size, index_t group) {
  Random random(3);
  auto const drawn = OwnedMap<float>::random(random, size, group, true, true);
  OwnedMap<R> map;
  map.size = size, map.group = group;
  map.c1.assign(drawn.c1.begin(), drawn.c1.end());
  map.d.assign(drawn.d.begin(), drawn.d.end());
  Buffer<bf16> z16(40, size), dy16(40, size);  // numbers every type holds
  fill_normal(z16.view(), random);
  fill_normal(dy16.view(), random);
  Buffer<Z> z(40, size);
  Buffer<G> dy(40, size);
  std::vector<std::int32_t> rows;
  for (index_t n = 0; n < 40; ++n) {
    for (index_t k = 0; k < size; ++k) {
      z.row(n)[k] = static_cast<Z>(static_cast<float>(z16.row(n)[k]));
      dy.row(n)[k] = static_cast<G>(static_cast<float>(dy16.row(n)[k]));
    }
    if (n % 3 != 1) rows.push_back(static_cast<std::int32_t>(n));
  }
  Gradients<R> g(size, group, true, group != 0, true, R{0});
  row_map_backward(be, map.row(), rows, std::as_const(z).view(), dy.view(), g.row());
  return {dy, g};
}
template <class R>
Matrix as_row(std::vector<R> const& v) {
  return Matrix(MatrixView<R const>{v.data(), 1, static_cast<index_t>(v.size()), static_cast<index_t>(v.size())});
}

template <class R, class Z, class G>
void check_type() {
  for (auto const& [size, group] : {std::pair<index_t, index_t>{130, 0}, {192, 64}, {198, 6}}) {
    D exact;
    CpuBackend<R> be;
    auto const [dz, g] = run<R, Z, G>(be, size, group);
    auto const [expected_dz, expected] = run<double, double, double>(exact, size, group);
    // dz: one rounding to G and at most 4 in R; sums over 27 rows: at most 28 roundings of terms of one size
    CHECK(relative_l2(dz.view(), expected_dz.view()) <= unit_roundoff<G>() + 4 * unit_roundoff<R>());
    CHECK(relative_l2(as_row(g.c1), as_row(expected.c1)) <= 28 * unit_roundoff<R>());
    CHECK(relative_l2(as_row(g.d), as_row(expected.d)) <= 28 * unit_roundoff<R>());
    CHECK(relative_l2(as_row(g.e), as_row(expected.e)) <= 28 * unit_roundoff<R>());
  }
}

TEST_CASE("gradients of row maps on buffers of every type") {
  SECTION("f32") { check_type<float, float, float>(); }
  SECTION("bf16") { check_type<float, bf16, bf16>(); }
  SECTION("f16") { check_type<float, f16, f16>(); }
  SECTION("bf16 inputs, f32 gradients") { check_type<float, bf16, float>(); }
  SECTION("f64 parameters, f32 buffers") { check_type<double, float, float>(); }
}

TEST_CASE("the bits of a map's gradients do not depend on the executor", "[many_threads]") {
  for (auto const& [size, group] : {std::pair<index_t, index_t>{130, 0}, {384, 64}, {198, 66}}) {
    CpuBackend<float> serial;
    auto const [dz, g] = run<float, float, float>(serial, size, group);
    for (index_t const threads : {2, 3}) {
      ThreadPool pool(threads);
      CpuBackend<float> be(pool);
      auto const [other_dz, other] = run<float, float, float>(be, size, group);
      CHECK(same_bits(other_dz.view(), dz.view()));
      CHECK((other.c1 == g.c1 && other.d == g.d && other.e == g.e));
    }
  }
}

}  // namespace
