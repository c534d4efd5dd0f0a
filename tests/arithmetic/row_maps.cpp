// SPDX-License-Identifier: Apache-2.0
// Row maps as a group: products, inverses, powers and ways between two, against dense matrices in double; where a law
// does not hold, a counter-example.
#include <graft/arithmetic/materialize.hpp>
#include <tests/arithmetic/modules.hpp>
#include <tests/catch.hpp>

namespace {

using namespace graft_test;
using B = CpuBackend<double>;
using Road = Module<RoAdRotation, B>;
using Variant = RoAdRotation::Variant;

SiteTable one_site() {
  SiteTable sites;
  sites.add_linear(0, "q_proj", "q_proj", 10, 12);
  return sites;
}
Road road(Variant variant, Random& random, index_t group = 6) {
  return random_module<RoAdRotation, B>("r", {variant, group}, one_site(), {0}, random);
}
Matrix matrix(Road const& module) { return map_matrix(module, 0, one_site()); }

// A block of four numbers passes through a few operations and through (alpha, theta), all in double.
constexpr double bound = 100 * 0x1p-53;

TEST_CASE("products, inverses and sums of RoAd modules are those of their matrices") {
  auto const sites = one_site();
  Random random(1);
  for (int turn = 0; turn < 20; ++turn)
    for (auto const first : {Variant::road_1, Variant::road_2, Variant::road_4})
      for (auto const second : {Variant::road_1, Variant::road_2, Variant::road_4}) {
        auto const a = road(first, random), b = road(second, random);
        auto const product = compose(b, a, sites);
        CHECK(testing::relative_l2(matrix(product), matrix(b) * matrix(a)) <= bound);
        bool const plain = first == Variant::road_1 && second == Variant::road_1;
        CHECK(product.policy.variant == (plain ? Variant::road_1 : Variant::road_2));
        CHECK(product.entries[0].policy.variant == product.policy.variant);
        auto const undone = matrix(inverse(a, sites)) * matrix(a);
        // an inverse is as exact as the block is well conditioned; the worst of these 540 blocks has about 1e4
        CHECK(testing::relative_l2(undone, testing::identity(12)) <= 1e4 * bound);
      }
}

TEST_CASE("one alpha may be negative: it is stored as (|alpha|, theta + pi)") {
  auto const sites = one_site();
  Random random(2);
  auto a = road(Variant::road_1, random);
  a.entries[0].state.alpha[3] = -0.7;
  auto const same = materialize(1 * a, sites, "m");
  CHECK(testing::relative_l2(matrix(same), matrix(a)) <= bound);
  for (double const alpha : same.entries[0].state.alpha) CHECK(alpha > 0);
}

TEST_CASE("road_1 commutes, road_2 does not") {
  auto const sites = one_site();
  Random random(3);
  auto const a = road(Variant::road_1, random), b = road(Variant::road_1, random);
  CHECK(testing::relative_l2(matrix(compose(a, b, sites)), matrix(compose(b, a, sites))) <= bound);
  auto const c = road(Variant::road_2, random), d = road(Variant::road_2, random);
  CHECK(testing::relative_l2(matrix(compose(c, d, sites)), matrix(compose(d, c, sites))) > 0.1);
}

TEST_CASE("a product is not a sum, and a sum not a product") {
  auto const sites = one_site();
  Random random(4);
  auto const a = road(Variant::road_1, random), b = road(Variant::road_1, random);
  CHECK(testing::relative_l2(matrix(compose(a, b, sites)), matrix(materialize(a + b, sites, "m"))) > 0.1);
}

TEST_CASE("the identity, associativity, and inverses of products") {
  auto const sites = one_site();
  Random random(5);
  auto const one = make_module<RoAdRotation, B>("one", {Variant::road_1, 6}, sites, {0});
  Road nowhere;  // no site at all
  nowhere.policy.group_size = 6;
  for (auto const variant : {Variant::road_1, Variant::road_2}) {
    auto const a = road(variant, random), b = road(variant, random), c = road(variant, random);
    CHECK(testing::relative_l2(matrix(compose(one, a, sites)), matrix(a)) <= bound);
    CHECK(testing::relative_l2(matrix(compose(a, nowhere, sites)), matrix(a)) <= bound);
    CHECK(testing::relative_l2(matrix(compose(compose(a, b, sites), c, sites)),
                               matrix(compose(a, compose(b, c, sites), sites))) <= bound);
    CHECK(testing::relative_l2(matrix(inverse(compose(a, b, sites), sites)),
                               matrix(compose(inverse(b, sites), inverse(a, sites), sites))) <= 1e4 * bound);
    CHECK(testing::relative_l2(matrix(materialize(a + b, sites, "m")), matrix(materialize(b + a, sites, "m"))) <=
          bound);
  }
}

/// A road_2 module every block of which has a real logarithm: near the identity.
Road near_identity(Random& random) {
  auto module = road(Variant::road_2, random);
  for (double& theta : module.entries[0].state.theta) theta *= 0.4;
  for (double& alpha : module.entries[0].state.alpha) alpha = 1 + 0.3 * (alpha - 1);
  return module;
}

TEST_CASE("powers add and multiply, and a power of n is n products") {
  auto const sites = one_site();
  Random random(6);
  for (int turn = 0; turn < 20; ++turn) {
    auto turned = road(Variant::road_1, random);
    for (double& alpha : turned.entries[0].state.alpha) alpha = std::abs(alpha) + 0.1;
    for (auto const& a : {std::move(turned), near_identity(random)}) {
      CHECK(testing::relative_l2(matrix(power(a, 1, sites)), matrix(a)) <= 10 * bound);
      CHECK(testing::relative_l2(matrix(power(a, 0, sites)), testing::identity(12)) <= 10 * bound);
      CHECK(testing::relative_l2(matrix(power(a, 3, sites)), matrix(a) * matrix(a) * matrix(a)) <= 100 * bound);
      CHECK(testing::relative_l2(matrix(power(a, -1, sites)), matrix(inverse(a, sites))) <= 100 * bound);
      CHECK(testing::relative_l2(matrix(compose(power(a, 0.3, sites), power(a, 0.7, sites), sites)), matrix(a)) <=
            100 * bound);
      CHECK(testing::relative_l2(matrix(power(power(a, 0.5, sites), 2, sites)), matrix(a)) <= 100 * bound);
    }
  }
}

TEST_CASE("a power of road_1 is alpha^t and t theta") {
  auto const sites = one_site();
  Random random(7);
  auto a = road(Variant::road_1, random);
  auto& state = a.entries[0].state;
  for (index_t k = 0; k < 6; ++k) state.alpha[k] = 0.5 + 0.3 * static_cast<double>(k);
  for (index_t k = 0; k < 6; ++k) state.theta[k] = -3.1 + 1.1 * static_cast<double>(k);  // close to -pi, too
  auto const p = power(a, 0.37, sites);
  CHECK(p.policy.variant == Variant::road_1);
  for (index_t k = 0; k < 6; ++k) {
    CHECK(p.entries[0].state.alpha[k] == Approx(std::pow(state.alpha[k], 0.37)).epsilon(1e-13));
    CHECK(p.entries[0].state.theta[k] == Approx(0.37 * state.theta[k]).epsilon(1e-13));
  }
}

TEST_CASE("blocks of every kind have the power their logarithm says") {
  std::string const path = "x";
  BlockPlace const place{path, 0, 1};
  auto const squared_root = [&](MapBlock const& m) {
    auto const root = power(m, 0.5, place);
    auto const back = root * root;
    return std::max({std::abs(back.a - m.a), std::abs(back.b - m.b), std::abs(back.c - m.c), std::abs(back.d - m.d)});
  };
  CHECK(squared_root({2, 1, 0, 2}) <= 1e-14);          // one eigenvalue, not diagonal
  CHECK(squared_root({2, 1, 1e-12, 2}) <= 1e-14);      // two that are almost one
  CHECK(squared_root({2, 1, -1e-12, 2}) <= 1e-14);     // and a complex pair that is almost one
  CHECK(squared_root({5, 0, 0, 0.1}) <= 1e-14);        // far apart
  CHECK(squared_root({-3, 0, 0, -3}) <= 1e-14);        // a half turn
  CHECK(squared_root({-1, -1e-7, 1e-7, -1}) <= 1e-9);  // close to a half turn, where the root is steep
  CHECK_THROWS_WITH(power({-2, 0, 0, -3}, 0.5, place), Catch::Contains("has no real logarithm"));
  CHECK_THROWS_WITH(power({-2, 1, 0, -2}, 0.5, place), Catch::Contains("has no real logarithm"));
  CHECK_THROWS_WITH(power({1, 0, 0, -1}, 0.5, place), Catch::Contains("its determinant is -1"));
  CHECK_THROWS_WITH(power({0, 0, 0, 1}, 0.5, place), Catch::Contains("has no real logarithm"));
}

TEST_CASE("what has no meaning is refused, naming the block") {
  auto const sites = one_site();
  Random random(8);
  auto a = road(Variant::road_1, random);
  a.entries[0].state.alpha[4] = -0.5;  // second group, second pair: outputs 7 and 10
  CHECK_THROWS_WITH(power(a, 0.5, sites),
                    "graft: the block of outputs 7 and 10 of q_proj has alpha = -0.5; a rotation has powers where "
                    "alpha is positive");
  a.entries[0].state.alpha[4] = 0;
  CHECK_THROWS_WITH(inverse(a, sites),
                    "graft: the block of outputs 7 and 10 of q_proj has no inverse; its determinant is 0");
  CHECK_THROWS_WITH(materialize(1 * a, sites, "m"),
                    "graft: the block of outputs 7 and 10 of q_proj would have alpha = 0, which RoAd has no encoding "
                    "for");
  auto b = road(Variant::road_2, random);
  auto& state = b.entries[0].state;
  state.theta[0] = state.theta[3] = 0;
  state.alpha[0] = 1, state.alpha[3] = -1;  // a mirror
  CHECK_THROWS_WITH(power(b, 0.5, sites), Catch::Contains("the block of outputs 0 and 3 of q_proj has no real log"));
  auto c = road(Variant::road_1, random, 12);
  CHECK_THROWS_WITH(compose(a, c, sites), Catch::Contains("groups of 6 and r groups of 12"));
}

TEST_CASE("from one rotation to another: straight, and at constant speed") {
  auto const sites = one_site();
  Random random(9);
  auto a = road(Variant::road_1, random), b = road(Variant::road_1, random);
  for (auto* module : {&a, &b})
    for (double& alpha : module->entries[0].state.alpha) alpha = 1;
  for (double const t : {0.0, 0.25, 0.5, 1.0}) {
    CHECK(testing::relative_l2(matrix(interpolate(a, b, t, sites)), (1 - t) * matrix(a) + t * matrix(b)) <= bound);
    auto const turned = slerp(a, b, t, sites);
    for (index_t k = 0; k < 6; ++k) {
      CHECK(turned.entries[0].state.alpha[k] == Approx(1).epsilon(1e-13));
      double const from = a.entries[0].state.theta[k], to = b.entries[0].state.theta[k];
      if (std::abs(to - from) < 3) CHECK(turned.entries[0].state.theta[k] == Approx(from + t * (to - from)));
    }
  }
  double shortest = 1;
  for (double const alpha : interpolate(a, b, 0.5, sites).entries[0].state.alpha) shortest = std::min(shortest, alpha);
  CHECK(shortest < 0.95);  // a straight line cuts the corner
  auto const c = near_identity(random), d = near_identity(random);
  CHECK(testing::relative_l2(matrix(slerp(c, d, 0, sites)), matrix(c)) <= 10 * bound);
  CHECK(testing::relative_l2(matrix(slerp(c, d, 1, sites)), matrix(d)) <= 100 * bound);
}

TEST_CASE("(IA)3: products, inverses, powers, ways") {
  auto const sites = one_site();
  Random random(10);
  auto const make = [&](char const* name) {
    auto module = random_module<IA3Scaling, B>(name, {}, sites, {0}, random);
    for (index_t k = 0; k < 12; ++k)
      module.entries[0].state.l.data[k] = std::abs(module.entries[0].state.l.data[k]) + 0.1;
    return module;
  };
  auto const a = make("a"), b = make("b");
  double const *const la = a.entries[0].state.l.data, *const lb = b.entries[0].state.l.data;
  auto const product = compose(b, a, sites), undone = inverse(a, sites), root = power(a, 0.5, sites),
             way = slerp(a, b, 0.3, sites), straight = interpolate(a, b, 0.3, sites);
  for (index_t k = 0; k < 12; ++k) {
    CHECK(product.entries[0].state.l.data[k] == Approx(la[k] * lb[k]));
    CHECK(undone.entries[0].state.l.data[k] == Approx(1 / la[k]));
    CHECK(root.entries[0].state.l.data[k] == Approx(std::sqrt(la[k])));
    CHECK(way.entries[0].state.l.data[k] == Approx(std::pow(la[k], 0.7) * std::pow(lb[k], 0.3)));
    CHECK(straight.entries[0].state.l.data[k] == Approx(0.7 * la[k] + 0.3 * lb[k]));
  }
  a.entries[0].state.l.data[5] = 0;
  CHECK_THROWS_WITH(inverse(a, sites), "graft: element 5 of the scaling of q_proj is 0 and has no inverse");
  a.entries[0].state.l.data[5] = -1;
  CHECK_THROWS_WITH(power(a, 0.5, sites), Catch::Contains("element 5 of the scaling of q_proj is -1"));
}

TEST_CASE("in f32, what is stored differs from the dense result by the rounding of (alpha, theta)") {
  using F = CpuBackend<float>;
  auto const sites = one_site();
  Random random(11);
  for (int turn = 0; turn < 50; ++turn) {
    auto const a = random_module<RoAdRotation, F>("a", {Variant::road_2, 6}, sites, {0}, random);
    auto const b = random_module<RoAdRotation, F>("b", {Variant::road_4, 6}, sites, {0}, random);
    auto const dense_a = map_matrix(a, 0, sites), dense_b = map_matrix(b, 0, sites), one = testing::identity(12);
    // alpha to 2^-24 of itself, theta to 2^-24 of up to pi
    double const rounding = (1 + 3.15) * 0x1p-24;
    CHECK(testing::relative_l2(map_matrix(compose(b, a, sites), 0, sites), dense_b * dense_a) <= rounding);
    CHECK(testing::relative_l2(map_matrix(materialize(0.7 * a - 1.3 * b, sites, "m"), 0, sites),
                               one + 0.7 * (dense_a - one) - 1.3 * (dense_b - one)) <= rounding);
  }
}

}  // namespace
