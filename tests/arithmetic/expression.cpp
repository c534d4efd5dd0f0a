// SPDX-License-Identifier: Apache-2.0
// Expressions of modules: what they say, as the weighted list of a request and as a module, is what the dense
// definition says, for every method.
#include <graft/arithmetic/materialize.hpp>
#include <tests/arithmetic/modules.hpp>
#include <tests/catch.hpp>

namespace {

using namespace graft_test;
using List = Adapters<IA3Scaling, RoAdRotation, LoRADelta, PedroGenerator>;

/// Runs one request of `uses` and returns the largest error at any site against the definition of `meant`.
template <class E>
double error_of(E& engine, std::vector<AdapterUse> const& uses, std::vector<AdapterUse> const& meant) {
  auto request = engine.request(uses, 5, 5);
  std::vector<decltype(request) const*> const requests{&request};
  auto const results = engine.run({&engine.backend}, requests);
  request.uses = meant;
  double largest = 0;
  for (index_t s = 0; s < engine.bank.sites().size(); ++s)
    largest = testing::worse(
        largest, testing::worst_row(results[0][static_cast<std::size_t>(s)].view(), engine.expected(request, s)));
  return largest;
}

/// The list of an expression and the module made of it, against the dense definition. a sits on all sites, b on every
/// second one, c on every third.
template <class P>
void check(Shape shape, P const& a_policy, P const& b_policy, P const& c_policy, SiteKind kind, double bound) {
  Engine<List, double> engine(shape, 11);
  using B = CpuBackend<double>;
  Random random(5);
  auto const& sites = engine.bank.sites();
  auto const all = sites_of_kind(sites, kind);
  std::vector<index_t> second, third;
  for (std::size_t k = 0; k < all.size(); ++k) {
    if (k % 2 == 0) second.push_back(all[k]);
    if (k % 3 == 0) third.push_back(all[k]);
  }
  auto a = random_module<P, B>("a", a_policy, sites, all, random);
  auto b = random_module<P, B>("b", b_policy, sites, second, random);
  auto c = random_module<P, B>("c", c_policy, sites, third, random);

  auto const m = a + 0.4f * (a - b) - c / 4 + (-b) * 0.1;
  double const f = 0.4f;
  std::vector<AdapterUse> const meant{{"a", 1 + f}, {"b", -f - 0.1}, {"c", -0.25}};
  auto const list = uses(m);
  REQUIRE(list.size() == 3);
  for (std::size_t k = 0; k < 3; ++k) {
    CHECK(list[k].name == meant[k].name);
    CHECK(list[k].weight == Approx(meant[k].weight).epsilon(1e-15));
  }
  auto made = materialize(m, sites, "m");
  CHECK(made.name == "m");
  engine.definition.add(a), engine.definition.add(b), engine.definition.add(c);
  engine.bank.load(engine.backend, std::move(a));
  engine.bank.load(engine.backend, std::move(b));
  engine.bank.load(engine.backend, std::move(c));
  engine.bank.load(engine.backend, std::move(made));
  CHECK(error_of(engine, list, meant) <= bound);
  CHECK(error_of(engine, {{"m", 1}}, meant) <= bound);
  CHECK(error_of(engine, {{"m", 1}}, {{"a", 1}, {"b", 1}}) > 1e-3);  // another sum is another module
}

// In double, with the engine's sums of at most 200 terms: see the bound of tests/adapter.
constexpr double bound = 1000 * 0x1p-53;

TEST_CASE("a weighted sum of LoRA modules of any ranks, scalings and sites is the sum of their deltas") {
  for (Shape const shape : {Shape::separate, Shape::fused}) {
    check<LoRADelta>(shape, {.rank = 3, .alpha = 6}, {.rank = 16, .alpha = 4, .rank_stabilized = true},
                     {.rank = 1, .alpha = 1}, SiteKind::linear, bound);
    check<LoRADelta>(shape, {.rank = 4, .alpha = 6}, {.rank = 2, .alpha = 3, .bias = true},
                     {.rank = 5, .alpha = 10, .bias = true}, SiteKind::linear, bound);
  }
}

TEST_CASE("a weighted sum of RoAd modules is I + sum w (R - I)") {
  using Variant = RoAdRotation::Variant;
  for (auto const variant : {Variant::road_1, Variant::road_2, Variant::road_4})
    check<RoAdRotation>(Shape::separate, {Variant::road_1, 6}, {variant, 6}, {Variant::road_1, 6}, SiteKind::linear,
                        bound);
}

TEST_CASE("a weighted sum of (IA)3 modules is 1 + sum w (l - 1), on whichever side each site has") {
  check<IA3Scaling>(Shape::separate, {}, {}, {}, SiteKind::linear, bound);
}

TEST_CASE("a weighted sum of PEDRO modules that pool and activate alike is one generator") {
  using P = PedroGenerator;
  for (Shape const shape : {Shape::separate, Shape::fused}) {
    check<P>(shape, {.rank = 4}, {.rank = 7}, {.rank = 2}, SiteKind::hidden, bound);
    check<P>(shape, {.rank = 4, .pooling = P::Pooling::mean, .offset = P::Offset::bias},
             {.rank = 3, .pooling = P::Pooling::mean, .up_bias = true}, {.rank = 2, .pooling = P::Pooling::mean},
             SiteKind::hidden, bound);
    check<P>(shape, {.rank = 4, .offset = P::Offset::bias, .activation = P::Activation::silu},
             {.rank = 3, .offset = P::Offset::bias, .activation = P::Activation::silu},
             {.rank = 3, .offset = P::Offset::bias, .activation = P::Activation::silu}, SiteKind::hidden, bound);
  }
}

TEST_CASE("generators that pool or activate differently are no single one, but a request can list them") {
  using P = PedroGenerator;
  using B = CpuBackend<double>;
  Engine<List, double> engine(Shape::separate, 12);
  Random random(6);
  auto const& sites = engine.bank.sites();
  auto const layers = sites_of_kind(sites, SiteKind::hidden);
  auto a = random_module<P, B>("a", {.rank = 4}, sites, layers, random);
  auto b = random_module<P, B>("b", {.rank = 4, .pooling = P::Pooling::max}, sites, layers, random);
  auto c = random_module<P, B>("c", {.rank = 4}, sites, layers, random);
  c.entries[1].state.numerator[2] += 0.01;
  auto d = random_module<P, B>("d", {.rank = 4, .q_scaling = P::QueryScaling::after_rope}, sites, layers, random);
  CHECK_THROWS_WITH(materialize(a + b, sites, "m"),
                    "graft: modules a and b pool the prompt differently at layers.0, so no generator makes the sum of "
                    "their vectors; give a request the weighted list of both");
  CHECK_THROWS_WITH(materialize(a - c, sites, "m"),
                    Catch::Contains("a and c activate the bottleneck differently at layers.1"));
  CHECK_THROWS_WITH(materialize(a + d, sites, "m"), Catch::Contains("place the query's scaling differently"));
  auto const list = uses(a + 0.5 * b - 2 * c);
  engine.definition.add(a), engine.definition.add(b), engine.definition.add(c);
  engine.bank.load(engine.backend, std::move(a));
  engine.bank.load(engine.backend, std::move(b));
  engine.bank.load(engine.backend, std::move(c));
  CHECK(error_of(engine, list, {{"a", 1}, {"b", 0.5}, {"c", -2}}) <= bound);
}

TEST_CASE("modules that cancel are left out; what cancels altogether does nothing") {
  using B = CpuBackend<double>;
  auto const sites = make_sites(Shape::separate);
  Random random(7);
  auto a = random_module<LoRADelta, B>("a", {.rank = 3}, sites, {0, 1}, random);
  auto b = random_module<LoRADelta, B>("b", {.rank = 2}, sites, {1}, random);
  auto const only_a = materialize(a + b - b, sites, "m");
  CHECK(only_a.entries.size() == 2);
  CHECK(only_a.entries[1].policy.rank == 3);
  CHECK(uses(a + b - b).size() == 1);
  auto const nothing = materialize(a - a, sites, "m");
  for (index_t site : {0, 1}) CHECK(frobenius(delta_matrix(nothing, site, sites)) == 0);
}

TEST_CASE("a LoRA sum says its ranks in one configuration") {
  using B = CpuBackend<float>;
  auto const sites = make_sites(Shape::separate);
  Random random(7);
  auto a =
      random_module<LoRADelta, B>("a", {.rank = 3, .alpha = 6, .rank_pattern = {{"x", 2}}}, sites, {0, 1, 2}, random);
  auto b = random_module<LoRADelta, B>("b", {.rank = 2, .alpha = 9, .rank_stabilized = true}, sites, {1, 2}, random);
  auto const sum = materialize(a + b, sites, "m");
  CHECK((sum.policy.rank == 5 && sum.policy.alpha == 5 && !sum.policy.rank_stabilized));
  CHECK(sum.policy.rank_pattern.empty());
  CHECK((sum.entries[0].policy.rank == 3 && sum.entries[0].policy.scale() == 1));
}

TEST_CASE("wrong sums are refused with a sentence") {
  using B = CpuBackend<float>;
  auto const sites = make_sites(Shape::separate);
  SiteTable other;
  other.add_linear(0, "q_proj", "layers.0.q_proj", 2 * width, width);
  Random random(8);
  auto a = random_module<LoRADelta, B>("a", {.rank = 3}, sites, {0}, random);
  auto b = random_module<LoRADelta, B>("b", {.rank = 3}, other, {0}, random);
  CHECK_THROWS_WITH(materialize(a + b, sites, "m"),
                    "graft: module b has a lora_A.weight of [3, 120] at layers.0.q_proj, in this model it would be "
                    "[3, 60]");
  using Variant = RoAdRotation::Variant;
  auto r = random_module<RoAdRotation, B>("r", {Variant::road_1, 6}, sites, {0}, random);
  auto s = random_module<RoAdRotation, B>("s", {Variant::road_1, 12}, sites, {0}, random);
  CHECK_THROWS_WITH(materialize(r + s, sites, "m"),
                    "graft: at layers.0.q_proj module r has groups of 6 and s groups of 12; their blocks pair "
                    "different outputs and cannot be computed with");
  auto i = random_module<IA3Scaling, B>("i", {}, sites, {0}, random);
  auto j = random_module<IA3Scaling, B>("j", {.feedforward_modules = {"q_proj"}}, sites, {0}, random);
  CHECK_THROWS_WITH(materialize(i - j, sites, "m"),
                    "graft: at layers.0.q_proj one of modules i and j scales the input and the other the output");
  CHECK_THROWS_WITH(materialize((1.0 / 0.0) * a, sites, "m"), "graft: the weight of module a is inf");
  auto twin = random_module<LoRADelta, B>("a", {.rank = 3}, sites, {0}, random);
  CHECK_THROWS_WITH(uses(a + twin), "graft: the modules of a list need names of their own; two are called a");
}

TEST_CASE("heads are added where their weights sum to 1, else refused or the first one's") {
  using B = CpuBackend<float>;
  auto const sites = make_sites(Shape::separate);
  Random random(9);
  auto a = random_module<IA3Scaling, B>("a", {}, sites, {0}, random);
  auto b = random_module<IA3Scaling, B>("b", {}, sites, {0}, random);
  auto c = random_module<IA3Scaling, B>("c", {}, sites, {0}, random);
  a.saved["score.weight"] = {{1, 2}, {1, 2}};
  b.saved["score.weight"] = {{1, 2}, {3, 6}};
  CHECK(materialize(0.25 * a + 0.75 * b - c, sites, "m").saved.at("score.weight").values ==
        std::vector<float>{2.5f, 5});
  CHECK(materialize(a - 2 * c, sites, "m").saved.at("score.weight").values == std::vector<float>{1, 2});
  CHECK_THROWS_WITH(materialize(a + b, sites, "m"),
                    Catch::Contains("bring their own score.weight sum to 2; without the base's tensor"));
  CHECK(materialize(a + b, sites, "m", Heads::first).saved.at("score.weight").values == std::vector<float>{1, 2});
}

TEST_CASE("copies of the base's own tensors stay as they are, whatever the weights") {
  using B = CpuBackend<float>;
  auto const sites = make_sites(Shape::separate);
  Random random(10);
  auto a = random_module<LoRADelta, B>("a", {}, sites, {0}, random);
  auto b = random_module<LoRADelta, B>("b", {}, sites, {0}, random);
  SavedTensor const of_base{{1, 2}, {3, 4}, true};
  a.saved["lm_head.weight"] = b.saved["lm_head.weight"] = of_base;
  for (auto const& m : {materialize(0.7 * a + 0.4 * b, sites, "m"), materialize(-a, sites, "m")}) {
    CHECK(m.saved.at("lm_head.weight").values == of_base.values);
    CHECK(m.saved.at("lm_head.weight").of_base);
  }
  b.saved["lm_head.weight"].values[0] = 5;  // not of the same base
  CHECK_THROWS_WITH(materialize(a + b, sites, "m"), Catch::Contains("bring their own lm_head.weight sum to 2"));
  CHECK(materialize(0.5 * a + 0.5 * b, sites, "m").saved.at("lm_head.weight").values == std::vector<float>{4, 4});
}

}  // namespace
