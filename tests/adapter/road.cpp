// SPDX-License-Identifier: Apache-2.0
// RoAd's coefficients against the dense R of its definition, for every variant and group size.
#include <graft/adapter/module.hpp>
#include <graft/adapter/road.hpp>
#include <graft/backend/cpu/cpu_backend.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/maps.hpp>
#include <graft/testing/policies.hpp>
#include <tests/catch.hpp>

#include <cmath>

namespace {

using namespace graft;
using namespace graft::testing;
using Variant = RoAdRotation::Variant;

constexpr std::pair<Variant, int> variants[] = {{Variant::road_1, 1}, {Variant::road_2, 2}, {Variant::road_4, 4}};

SiteInfo linear_site(index_t in, index_t out) { return {0, "q_proj", "layers.0.q_proj", in, out, SiteKind::linear}; }

/// A policy's module at one site, with memory.
template <class B>
Module<RoAdRotation, B> module_at(RoAdRotation const& policy, index_t out) {
  SiteTable sites;
  sites.add(linear_site(out, out));
  return make_module<RoAdRotation, B>("r", policy, sites, {0});
}

template <class R>
Vector copy(VectorView<R> v) {
  Vector result;
  for (R const& x : v) result.push_back(to_double(x));
  return result;
}

TEMPLATE_TEST_CASE("coefficients are the entries of R, all variants and group sizes", "", float, double) {
  using B = CpuBackend<TestType>;
  Random random(1);
  B be;
  for (auto const& [variant, number] : variants)
    for (index_t const o : {12, 64, 384})
      for (index_t const g : {index_t{2}, index_t{6}, index_t{64}, o}) {
        if (o % g != 0) continue;
        auto module = module_at<B>({variant, g}, o);
        auto& [site, policy, state] = module.entries[0];
        fill_normal(state.theta, random, 0, 0.5);
        fill_normal(state.alpha, random, 1, 0.5);
        OwnedMap<TestType> map = OwnedMap<TestType>::random(random, o, g, true, false);  // to be overwritten
        policy.coefficients(be, state, RowMapRow<TestType>{map.c1.data(), map.d.data(), nullptr, o, g, nullptr});
        AffineMap const actual = dense<TestType>(map.row());
        Matrix const expected = road_matrix(number, g, copy(state.theta), copy(state.alpha), o);
        INFO("road_" << number << ", g " << g << ", o " << o);
        // a product of alpha with a sine or cosine of the parameters' type: three roundings
        CHECK(relative_l2(actual.m, expected) <= 4 * unit_roundoff<TestType>());
        CHECK(policy.template form<B>(linear_site(o, o), state).group == g);
      }
}

TEST_CASE("small rotations keep their digits in f32") {
  using B = CpuBackend<float>;
  B be;
  auto module = module_at<B>({Variant::road_1, 2}, 2);
  auto& state = module.entries[0].state;
  float c1[2], d[2];
  for (float const theta : {1e-3f, 1e-4f, 1e-5f}) {
    state.theta[0] = theta;
    module.entries[0].policy.coefficients(be, state, RowMapRow<float>{c1, d, nullptr, 2, 2, nullptr});
    double const t = to_double(theta), expected = -2 * std::sin(t / 2) * std::sin(t / 2);  // cos t - 1
    CHECK(std::fabs(c1[0] - expected) <= 4 * unit_roundoff<float>() * std::fabs(expected));
    CHECK(d[0] == -d[1]);
    CHECK(std::fabs(d[1] - std::sin(t)) <= 2 * unit_roundoff<float>() * t);
  }
}

TEST_CASE("RoAd starts as the identity, exactly") {
  using B = CpuBackend<float>;
  B be;
  Random random(2);
  for (auto const& [variant, number] : variants) {
    auto module = module_at<B>({variant, 6}, 12);
    OwnedMap<float> map = OwnedMap<float>::random(random, 12, 6, true, false);
    module.entries[0].policy.coefficients(be, module.entries[0].state,
                                          RowMapRow<float>{map.c1.data(), map.d.data(), nullptr, 12, 6, nullptr});
    for (float const c1 : map.c1) CHECK(c1 == 0);
    for (float const d : map.d) CHECK(d == 0);
  }
}

TEST_CASE("the rotated layer is the layer with rotated weight and bias") {
  Random random(3);
  Matrix const w = random_matrix(12, 7, random);
  Vector const b = random_vector(12, random), x = random_vector(7, random);
  for (auto const& [variant, number] : variants) {
    index_t const size = number == 1 ? 6 : number == 2 ? 12 : 24;
    Matrix const r = road_matrix(number, 6, random_vector(size, random), random_vector(size, random, 1), 12);
    Vector const y = after(linear(w, b), {r, Vector(12, 0.0)})(x), merged = linear(r * w, r * b)(x);
    for (std::size_t k = 0; k < 12; ++k) CHECK(y[k] == Approx(merged[k]).epsilon(1e-12).margin(1e-12));
  }
}

TEST_CASE("group sizes that cannot be are refused with the numbers") {
  using B = CpuBackend<float>;
  CHECK_THROWS_WITH(module_at<B>({Variant::road_1, 5}, 10),
                    Catch::Contains("group_size 5 must be even and divide the 10 "
                                    "outputs of layers.0.q_proj"));
  CHECK_THROWS_WITH(module_at<B>({Variant::road_1, 0}, 10), Catch::Contains("group_size 0 must be even"));
  CHECK_THROWS_WITH(module_at<B>({Variant::road_1, -2}, 10), Catch::Contains("group_size -2 must be even"));
  CHECK_THROWS_WITH(module_at<B>({Variant::road_1, 64}, 96), Catch::Contains("divide the 96 outputs"));
}

TEST_CASE("RoAd sits on linear layers and on the residual stream") {
  RoAdRotation const road;
  CHECK(road.accepts(linear_site(8, 8)));
  CHECK(road.accepts({0, "block_out", "layers.0", 8, 8, SiteKind::hidden}));
  CHECK_FALSE(road.accepts({-1, "embed_tokens", "embed_tokens", 100, 8, SiteKind::embedding}));
  CHECK_FALSE(road.accepts({0, "rotated_q", "layers.0.q_proj", 8, 8, SiteKind::rotated_q}));
}

}  // namespace
