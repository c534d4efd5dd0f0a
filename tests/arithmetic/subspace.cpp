// SPDX-License-Identifier: Apache-2.0
// Blocks of a rotation used apart and together, and interchange in the rows of a rotation.
#include <graft/arithmetic/materialize.hpp>
#include <graft/arithmetic/subspace.hpp>
#include <tests/arithmetic/modules.hpp>
#include <tests/catch.hpp>

namespace {

using namespace graft_test;
using B = CpuBackend<double>;
using Variant = RoAdRotation::Variant;

SiteTable one_site() {
  SiteTable sites;
  sites.add_linear(0, "q_proj", "q_proj", 10, 12);
  return sites;
}

TEST_CASE("halves of a module work apart, and together are the module, as a product, a sum and a list") {
  auto const sites = one_site();
  Random random(1);
  for (auto const variant : {Variant::road_1, Variant::road_2, Variant::road_4}) {
    auto const whole = random_module<RoAdRotation, B>("r", {variant, 4}, sites, {0}, random);
    auto const half = [&](index_t part) {
      return subspace(whole, sites, [&](index_t outputs) { return part_of_blocks(outputs, part, 2); });
    };
    auto const a = half(0), b = half(1);
    auto const all = map_matrix(whole, 0, sites), first = map_matrix(a, 0, sites), rest = map_matrix(b, 0, sites);
    for (index_t r = 0; r < 12; ++r)
      for (index_t c = 0; c < 12; ++c) {
        // groups of 4 pair k with k + 2: blocks 0 to 2 are outputs 0 2, 1 3, 4 6
        bool const mine = r < 4 || r == 4 || r == 6;
        CHECK(first(r, c) == (mine ? all(r, c) : r == c ? 1 : 0));
        CHECK(rest(r, c) == (mine ? (r == c ? 1 : 0) : all(r, c)));
      }
    CHECK(testing::relative_l2(first * rest, all) <= 1e-15);
    CHECK(testing::relative_l2(rest * first, all) <= 1e-15);
    CHECK(testing::relative_l2(map_matrix(materialize(a + b, sites, "m"), 0, sites), all) <= 1e-14);
  }
  auto const whole = random_module<RoAdRotation, B>("r", {Variant::road_1, 4}, sites, {0}, random);
  CHECK_THROWS_WITH(subspace(whole, sites,
                             [](index_t) {
                               return BlockRange{4, 3};
                             }),
                    "graft: blocks 4 to 7 of q_proj, which has 6");
}

TEST_CASE("parts are as equal as can be and leave no block out") {
  for (index_t const parts : {1, 2, 3, 4, 7}) {
    index_t next = 0;
    for (index_t part = 0; part < parts; ++part) {
      auto const range = part_of_blocks(12, part, parts);
      CHECK(range.first == next);
      CHECK((range.count == 6 / parts || range.count == 6 / parts + (6 % parts == 0 ? 0 : 1)));
      next += range.count;
    }
    CHECK(next == 6);
  }
  CHECK_THROWS_WITH(part_of_blocks(12, 2, 2),
                    "graft: of 2 parts of a rotation's blocks none is number 2; they count from 0");
  CHECK_THROWS_AS(part_of_blocks(12, -1, 2), ContractError);
  CHECK_THROWS_AS(part_of_blocks(12, 0, 0), ContractError);
}

TEST_CASE("rows of a rotation are orthogonal in different blocks, and inside a block those of road_1 alone") {
  auto const sites = one_site();
  Random random(6);
  for (auto const variant : {Variant::road_1, Variant::road_2, Variant::road_4}) {
    Matrix const r = map_matrix(random_module<RoAdRotation, B>("r", {variant, 4}, sites, {0}, random), 0, sites);
    Matrix const products = r * testing::transposed(r);
    double inside = 0;
    for (index_t j = 0; j < 12; ++j)
      for (index_t k = 0; k < j; ++k) {
        if (k == partner(j, 4))
          inside = std::max(inside, std::abs(products(j, k)));
        else
          CHECK(products(j, k) == 0);
      }
    CHECK((inside <= 1e-15) == (variant == Variant::road_1));
  }
}

TEST_CASE("an interchange takes the source in the rows' subspace and the base elsewhere") {
  auto const sites = one_site();
  Random random(2);
  auto module = random_module<RoAdRotation, B>("r", {Variant::road_1, 4}, sites, {0}, random);
  for (double& alpha : module.entries[0].state.alpha) alpha = 1;
  Matrix const rotation = map_matrix(module, 0, sites);
  Vector const b = testing::random_vector(12, random), s = testing::random_vector(12, random);
  std::vector<index_t> const rows{1, 4, 6, 9};
  auto const dii = [&](std::vector<index_t> const& at, Vector const& base, Vector const& source) {
    return distributed_interchange(module, 0, std::span<index_t const>(at), base, source, sites);
  };
  Matrix r(4, 12);
  for (index_t k = 0; k < 4; ++k)
    for (index_t c = 0; c < 12; ++c) r(k, c) = rotation(rows[static_cast<std::size_t>(k)], c);
  Vector expected = b, difference = r * s;
  testing::add_scaled(difference, -1, r * b);
  testing::add_scaled(expected, 1, testing::transposed(r) * difference);
  auto const near = [](Vector const& x, Vector const& y) {
    double worst = 0;
    for (std::size_t k = 0; k < x.size(); ++k) worst = std::max(worst, std::abs(x[k] - y[k]));
    return worst <= 1e-14;
  };
  auto const found = dii(rows, b, s);
  CHECK(near(found, expected));
  CHECK(near(dii(rows, b, b), b));          // nothing to exchange
  CHECK(near(dii(rows, found, s), found));  // once is enough
  CHECK(near(r * found, r * s));            // the source's coordinates
  std::vector<index_t> all(12);
  for (index_t k = 0; k < 12; ++k) all[static_cast<std::size_t>(k)] = k;
  CHECK(near(dii(all, b, s), s));
}

TEST_CASE("h + R (h - R^T h) is R h for a rotation, and is not with alpha; such rows are refused") {
  auto const sites = one_site();
  Random random(3);
  auto module = random_module<RoAdRotation, B>("r", {Variant::road_1, 4}, sites, {0}, random);
  Vector const h = testing::random_vector(12, random);
  auto const distance = [&] {
    Matrix const r = map_matrix(module, 0, sites);
    Vector inner = h, outer = h;
    testing::add_scaled(inner, -1, testing::transposed(r) * h);
    testing::add_scaled(outer, 1, r * inner);
    testing::add_scaled(outer, -1, r * h);
    double worst = 0;
    for (double const x : outer) worst = std::max(worst, std::abs(x));
    return worst;
  };
  CHECK(distance() > 0.01);
  std::vector<index_t> const row{5};
  CHECK_THROWS_WITH(distributed_interchange(module, 0, std::span<index_t const>(row), h, h, sites),
                    "graft: the block of outputs 5 and 7 of q_proj has rows that are not orthonormal; an interchange "
                    "needs alpha = 1");
  for (double& alpha : module.entries[0].state.alpha) alpha = 1;
  CHECK(distance() <= 1e-14);
}

}  // namespace
