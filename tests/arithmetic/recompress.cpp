// SPDX-License-Identifier: Apache-2.0
// Recompression: the best approximation, the error that is reported, and conversions that need it.
#include <graft/arithmetic/conversions.hpp>
#include <graft/arithmetic/materialize.hpp>
#include <tests/arithmetic/modules.hpp>
#include <tests/catch.hpp>

namespace {

using namespace graft_test;
using F = CpuBackend<float>;
using D = CpuBackend<double>;

SiteTable one_site(index_t in, index_t out) {
  SiteTable sites;
  sites.add_linear(0, "q_proj", "q_proj", in, out);
  return sites;
}

TEST_CASE("a product's singular values are those of the dense matrix") {
  Random random(1);
  for (auto const& [o, r, i] : {std::tuple{20, 4, 30}, {30, 12, 12}, {5, 8, 40}, {40, 8, 5}, {3, 9, 4}}) {
    auto const b = testing::random_matrix(o, r, random), a = testing::random_matrix(r, i, random);
    auto const dense = b * a;
    auto const thin = svd_of_product(b.view(), a.view()), full = svd(dense.view());
    index_t const k = static_cast<index_t>(thin.s.size());
    REQUIRE(k == std::min({o, r, i}));
    for (std::size_t j = 0; j < thin.s.size(); ++j) CHECK(thin.s[j] == Approx(full.s[j]).epsilon(1e-12));
    Matrix u{MatrixView<double const>(thin.u.view())}, vt{MatrixView<double const>(thin.vt.view())};
    CHECK(testing::relative_l2(testing::transposed(u) * u, testing::identity(k)) <= 1e-13);
    CHECK(testing::relative_l2(vt * testing::transposed(vt), testing::identity(k)) <= 1e-13);
    for (index_t row = 0; row < o; ++row)
      for (index_t c = 0; c < k; ++c) u(row, c) *= thin.s[static_cast<std::size_t>(c)];
    CHECK(testing::relative_l2(u * vt, dense) <= 1e-13);
  }
}

TEST_CASE("a sum of three modules compressed to a rank has the smallest error there is, and says which") {
  auto const sites = one_site(70, 50);
  Random random(2);
  auto const a = random_module<LoRADelta, F>("a", {.rank = 6, .alpha = 12}, sites, {0}, random);
  auto const b = random_module<LoRADelta, F>("b", {.rank = 4, .alpha = 2, .rank_stabilized = true}, sites, {0}, random);
  auto const c = random_module<LoRADelta, F>("c", {.rank = 9, .alpha = 9}, sites, {0}, random);
  auto const sum = materialize(0.7 * a - b + 0.3 * c, sites, "m");
  auto const dense = 0.7 * delta_matrix(a, 0, sites) - delta_matrix(b, 0, sites) + 0.3 * delta_matrix(c, 0, sites);
  auto const exact = svd(dense.view());
  for (index_t rank : {1, 3, 8, 18, 19, 30}) {
    auto const small = recompress(sum, {.rank = rank}, sites);
    REQUIRE(small.errors.size() == 1);
    CHECK(small.module.entries[0].policy.rank == std::min<index_t>(rank, 19));
    double tail = 0;
    for (std::size_t k = static_cast<std::size_t>(rank); k < exact.s.size(); ++k) tail += exact.s[k] * exact.s[k];
    double const reported = small.errors[0].error, norm = frobenius(dense);
    CHECK(std::abs(reported - std::sqrt(tail)) <= 1e-6 * norm);  // no matrix of this rank is closer
    CHECK(std::abs(reported - frobenius(delta_matrix(small.module, 0, sites) - dense)) <= 1e-5 * norm);
    CHECK(small.errors[0].norm == Approx(norm).epsilon(1e-6));
    CHECK(small.relative_error() == Approx(reported / norm).epsilon(1e-6));
  }
}

TEST_CASE("compression to an error or an energy takes the smallest rank that keeps it") {
  auto const sites = one_site(60, 40);
  Random random(3);
  auto const module = random_module<LoRADelta, D>("m", {.rank = 20, .alpha = 5}, sites, {0}, random);
  auto const s = svd(delta_matrix(module, 0, sites).view()).s;
  auto const tail = [&](std::size_t from) {
    double sum = 0;
    for (std::size_t k = from; k < s.size(); ++k) sum += s[k] * s[k];
    return std::sqrt(sum);
  };
  double const norm = tail(0);
  for (double const allowed : {0.01, 0.1, 0.3, 0.7}) {
    for (bool const as_energy : {false, true}) {
      Truncation truncation;
      (as_energy ? truncation.energy : truncation.error) = as_energy ? 1 - allowed * allowed : allowed;
      auto const small = recompress(module, truncation, sites);
      auto const rank = static_cast<std::size_t>(small.errors[0].rank);
      CHECK(tail(rank) <= allowed * norm * (1 + 1e-9));
      CHECK((rank == 1 || tail(rank - 1) > allowed * norm));
      CHECK(small.errors[0].error == Approx(tail(rank)).margin(1e-12));
    }
  }
  CHECK(recompress(module, {.rank = 2, .error = 0.01}, sites).errors[0].rank == 2);  // a rank is a limit
  CHECK_THROWS_WITH(recompress(module, {.error = 1.5}, sites), Catch::Contains("an error in [0, 1)"));
}

TEST_CASE("compression without a limit finds the true rank and changes nothing") {
  auto const sites = one_site(60, 40);
  Random random(4);
  auto const a = random_module<LoRADelta, F>("a", {.rank = 5, .alpha = 5, .bias = true}, sites, {0}, random);
  auto same = random_module<LoRADelta, F>("b", {.rank = 5, .alpha = 5, .bias = true}, sites, {0}, random);
  std::copy(a.parameters().begin(), a.parameters().end(), same.parameters().begin());
  auto const twice = materialize(a + 0.5 * same, sites, "t");
  CHECK(twice.entries[0].policy.rank == 10);
  auto const padded = recompress(twice, {}, sites);
  CHECK(padded.errors[0].rank == 5);
  CHECK(testing::relative_l2(delta_matrix(padded.module, 0, sites), 1.5 * delta_matrix(a, 0, sites)) <= 1e-6);
  for (index_t o = 0; o < 40; ++o)
    CHECK(padded.module.entries[0].state.b_bias[o] == Approx(1.5 * a.entries[0].state.b_bias[o]).epsilon(1e-6));
}

TEST_CASE("road_1 as road_2 and road_4, road_2 as road_4, keep every coefficient's bits") {
  using Variant = RoAdRotation::Variant;
  auto const sites = one_site(10, 12);
  Random random(5);
  F be;
  auto const coefficients = [&](Module<RoAdRotation, F> const& module) {
    std::vector<float> values(24);
    module.entries[0].policy.coefficients(be, module.entries[0].state,
                                          RowMapRow<float>{values.data(), values.data() + 12, nullptr, 12, 6, nullptr});
    return values;
  };
  auto const one = random_module<RoAdRotation, F>("r", {Variant::road_1, 6}, sites, {0}, random);
  auto const two = random_module<RoAdRotation, F>("r", {Variant::road_2, 6}, sites, {0}, random);
  CHECK(coefficients(to_variant(one, Variant::road_2, sites)) == coefficients(one));
  CHECK(coefficients(to_variant(one, Variant::road_4, sites)) == coefficients(one));
  CHECK(coefficients(to_variant(two, Variant::road_4, sites)) == coefficients(two));
  CHECK(to_variant(one, Variant::road_4, sites).policy.variant == Variant::road_4);
  CHECK_THROWS_WITH(to_variant(two, Variant::road_1, sites),
                    "graft: road_2 of module r at q_proj has more parameters than road_1; it cannot be made one");
}

TEST_CASE("(IA)3 on outputs is RoAd with angles of 0 and pi") {
  auto const sites = one_site(10, 12);
  Random random(6);
  auto const scaling = random_module<IA3Scaling, D>("i", {}, sites, {0}, random);
  scaling.entries[0].state.l.data[3] = -0.4;
  auto const road = to_road(scaling, 6, sites);
  CHECK(testing::relative_l2(map_matrix(road, 0, sites), map_matrix(scaling, 0, sites)) <= 1e-15);
  scaling.entries[0].state.l.data[3] = 0;
  CHECK_THROWS_WITH(to_road(scaling, 6, sites),
                    "graft: element 3 of the scaling of q_proj is 0, which RoAd has no encoding for");
  auto const input = random_module<IA3Scaling, D>("i", {.feedforward_modules = {"q_proj"}}, sites, {0}, random);
  CHECK_THROWS_WITH(to_road(input, 6, sites), "graft: module i scales the input of q_proj; RoAd acts on outputs only");
}

template <class P>
void check_as_lora(P const& policy, bool with_bias) {
  auto const sites = one_site(18, 12);
  Random random(7);
  auto const module = random_module<P, D>("m", policy, sites, {0}, random);
  testing::Buffer<float> w(12, 18);
  testing::fill_normal(w.view(), random);
  std::vector<float> bias(with_bias ? 12 : 0);
  testing::fill_normal(VectorView<float>{bias.data(), static_cast<index_t>(bias.size())}, random);
  BaseWeights const base{[&](index_t) { return dense_weight(w.view()); }, [&](index_t) { return bias; }};
  auto const map = effect_of<D>(module.entries[0].policy, module.entries[0].state, sites[0]);
  Matrix const weight{MatrixView<float const>(w.view())};
  Matrix const dense = map.output ? map.output->m * weight - weight : weight * map.input->m - weight;
  auto const all = to_lora(module, base, {}, sites);
  CHECK(testing::relative_l2(delta_matrix(all.module, 0, sites), dense) <= 1e-6);
  auto const some = to_lora(module, base, {.rank = 4}, sites);
  CHECK(some.module.entries[0].policy.rank == 4);
  CHECK(some.errors[0].error > 0.1 * some.errors[0].norm);
  CHECK(some.errors[0].error == Approx(frobenius(delta_matrix(some.module, 0, sites) - dense)));
  auto const& state = all.module.entries[0].state;
  if (!with_bias || map.input) {
    CHECK(state.b_bias.empty());
    return;
  }
  Vector const b(bias.begin(), bias.end());
  Vector const moved = map.output->m * b;
  REQUIRE(state.b_bias.size == 12);
  for (std::size_t o = 0; o < 12; ++o) CHECK(state.b_bias[static_cast<index_t>(o)] == Approx(moved[o] - b[o]));
}

TEST_CASE("row maps on a known base become LoRA with a bias") {
  for (bool const with_bias : {false, true}) {
    check_as_lora<RoAdRotation>({RoAdRotation::Variant::road_2, 6}, with_bias);
    check_as_lora<IA3Scaling>({}, with_bias);
    check_as_lora<IA3Scaling>({.feedforward_modules = {"q_proj"}}, with_bias);
  }
}

}  // namespace
