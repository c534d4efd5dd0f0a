// SPDX-License-Identifier: Apache-2.0
// The measuring instruments: distances, bit comparisons, buffers, and the reference arithmetic on worked examples.
#include <graft/testing/buffer.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/maps.hpp>
#include <graft/testing/policies.hpp>
#include <graft/testing/random.hpp>
#include <graft/testing/reference.hpp>
#include <tests/catch.hpp>

#include <cmath>
#include <limits>
#include <set>

namespace {

using namespace graft;
using namespace graft::testing;

Matrix matrix(index_t rows, index_t cols, Vector values) {
  Matrix result(rows, cols);
  result.values = std::move(values);
  return result;
}

TEST_CASE("relative L2 distance") {
  Matrix const a = matrix(1, 2, {3, 4}), b = matrix(1, 2, {3, 4.5});
  CHECK(relative_l2(a, a) == 0);
  CHECK(relative_l2(b, a) == Approx(0.1));
  CHECK(relative_l2(a, matrix(1, 2, {0, 0})) == 5);  // nothing to be relative to
  double const nan = std::numeric_limits<double>::quiet_NaN();
  CHECK_FALSE(relative_l2(matrix(1, 2, {3, nan}), a) <= 1e9);
  CHECK_FALSE(relative_l2(a, matrix(1, 2, {3, nan})) <= 1e9);
  CHECK_THROWS_AS(relative_l2(a, matrix(2, 1, {3, 4})), ContractError);

  // one bad row does not hide behind large ones
  Matrix const right = matrix(2, 2, {1000, 1000, 1, 0}), wrong = matrix(2, 2, {1000, 1000, 0, 1});
  CHECK(relative_l2(wrong, right) < 1e-2);
  CHECK(worst_row(wrong, right) == Approx(std::sqrt(2)));
  CHECK_FALSE(worst_row(matrix(2, 2, {1000, nan, 1, 0}), right) <= 1e9);

  CHECK(worse(1, 2) == 2);
  CHECK(worse(2, 1) == 2);
  CHECK(std::isnan(worse(nan, 1)));
  CHECK(std::isnan(worse(1, nan)));

  std::vector<bf16> const half{bf16(3.0f), bf16(4.0f)};
  CHECK(relative_l2(matrix_view(half.data(), 1, 2), a) == 0);
}

TEST_CASE("bits are compared, not values") {
  float const zero[] = {0.0f, 1.0f}, minus[] = {-0.0f, 1.0f}, nan[] = {std::nanf("1"), 1.0f};
  CHECK(same_bits(zero, zero, 2));
  CHECK_FALSE(same_bits(zero, minus, 2));
  CHECK(same_bits(nan, nan, 2));
  CHECK_FALSE(same_bits(matrix_view(zero, 1, 2), matrix_view(zero, 2, 1)));
  CHECK(same_bits(matrix_view(zero, 1, 1, 2), matrix_view(zero, 1, 1)));
}

TEST_CASE("roundoffs are those of the types") {
  CHECK(static_cast<float>(bf16(1 + static_cast<float>(1.01 * unit_roundoff<bf16>()))) > 1);
  CHECK(static_cast<float>(bf16(1 + static_cast<float>(0.99 * unit_roundoff<bf16>()))) == 1);
  CHECK(static_cast<float>(f16(1 + static_cast<float>(1.01 * unit_roundoff<f16>()))) > 1);
  CHECK(static_cast<float>(f16(1 + static_cast<float>(0.99 * unit_roundoff<f16>()))) == 1);
  CHECK(unit_roundoff<float>() == std::numeric_limits<float>::epsilon() / 2);
  CHECK(unit_roundoff<double>() == std::numeric_limits<double>::epsilon() / 2);
}

TEST_CASE("a buffer notices who writes between its rows") {
  Buffer<float> buffer(3, 4, 2);
  CHECK(buffer.view().stride == 6);
  buffer.row(1)[3] = 7;
  CHECK(buffer.gaps_untouched());
  buffer.row(1)[4] = 7;
  CHECK_FALSE(buffer.gaps_untouched());
}

TEST_CASE("matrices") {
  Matrix const a = matrix(2, 3, {1, 2, 3, 4, 5, 6}), b = matrix(3, 2, {1, 0, 0, 1, 1, 1});
  CHECK((a * b).values == Vector{4, 5, 10, 11});
  CHECK((a * Vector{1, 1, 1}) == Vector{6, 15});
  CHECK(transposed(a).values == Vector{1, 4, 2, 5, 3, 6});
  CHECK((a - 2.0 * a).values == Vector{-1, -2, -3, -4, -5, -6});
  CHECK((identity(2) * a).values == a.values);
  CHECK_THROWS_WITH(a * a, Catch::Contains("product of 2 x 3 and 2 x 3"));
}

TEST_CASE("coefficients become matrices: pairs are half a group apart") {
  OwnedMap<double> map;
  map.size = 4, map.group = 4;
  map.c1 = {1, 2, 3, 4}, map.d = {10, 20, 30, 40}, map.e = {5, 6, 7, 8};
  auto const d = dense<double>(map.row());
  CHECK(d.m.values == Vector{2, 0, 10, 0, 0, 3, 0, 20, 30, 0, 4, 0, 0, 40, 0, 5});
  CHECK(d.e == Vector{5, 6, 7, 8});
  map.group = 2;
  CHECK(dense<double>(map.row()).m.values == Vector{2, 10, 0, 0, 20, 3, 0, 0, 0, 0, 4, 30, 0, 0, 40, 5});
}

TEST_CASE("layers are wrapped in the order they are written") {
  Matrix const w = matrix(1, 1, {2});
  Layer const base = linear(w, {1});  // 2 x + 1
  AffineMap const times_3{matrix(1, 1, {3}), {0}};
  CHECK(plus(after(base, times_3), matrix(1, 1, {10}))({1}) == Vector{19});    // 3 (2 + 1) + 10
  CHECK(after(plus(base, matrix(1, 1, {10})), times_3)({1}) == Vector{39});    // 3 (2 + 1 + 10)
  CHECK(before(plus(base, matrix(1, 1, {10})), times_3)({1}) == Vector{37});   // 2 3 + 1 + 10 3
  CHECK(weighted_sum({times_3, times_3}, {0.5, 1}, 1).m.values == Vector{4});  // 1 + 1.5 (3 - 1)
}

TEST_CASE("RoAd's worked example: a quarter turn of neighbours") {
  double const quarter = std::acos(0.0);
  Matrix const r = road_matrix(1, 2, {quarter}, {2}, 2);
  CHECK(relative_l2(r, matrix(2, 2, {0, -2, 2, 0})) <= 1e-15);
}

TEST_CASE("a permutation has every number once") {
  Random random(1);
  auto const order = permutation(50, random);
  CHECK(std::set<index_t>(order.begin(), order.end()).size() == 50);
  CHECK(order != permutation(50, random));
}

}  // namespace
