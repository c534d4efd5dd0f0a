// SPDX-License-Identifier: Apache-2.0
// The paper's operators against its formulas written out for every method, and the identities that hold.
#include <graft/arithmetic/materialize.hpp>
#include <graft/arithmetic/paper.hpp>
#include <tests/arithmetic/modules.hpp>
#include <tests/catch.hpp>

#include <map>

namespace {

using namespace graft_test;
namespace paper = graft::arithmetic::paper;
using B = CpuBackend<double>;
using paper::Factor;

SiteTable two_sites() {
  SiteTable sites;
  sites.add_linear(0, "q_proj", "q_proj", 10, 12);
  sites.add_linear(0, "v_proj", "v_proj", 10, 6);
  return sites;
}

/// All tensors of a module by name.
template <class P>
std::map<std::string, Vector> tensors(Module<P, B> module) {
  std::map<std::string, Vector> result;
  module.for_each([&](index_t site, char const* suffix, auto& tensor) {
    index_t count = 1;
    if constexpr (requires { tensor.rows; })
      count = tensor.rows * tensor.cols;
    else
      count = tensor.size;
    result[text(site, ' ', suffix)] = Vector(tensor.data, tensor.data + count);
  });
  return result;
}
template <class P>
std::map<std::string, Vector> tensors_of(Module<P, B> const& module) {
  Module<P, B> copy;
  copy.entries = module.entries;  // views of the same memory
  return tensors(std::move(copy));
}

/// Every tensor of `result` is formula(name, k) for its elements, to the rounding of a few operations.
template <class P, class Formula>
void check_formula(Module<P, B> const& result, Formula const& formula) {
  for (auto const& [name, values] : tensors_of(result))
    for (std::size_t k = 0; k < values.size(); ++k)
      REQUIRE(values[k] == Approx(formula(name, k)).epsilon(1e-14).margin(1e-15));
}

struct Three {
  SiteTable sites = two_sites();
  Random random{3};
  template <class P>
  auto make(P const& policy) {
    std::array<Module<P, B>, 3> modules;
    for (auto& module : modules) module = random_module<P, B>("m", policy, sites, {0, 1}, random);
    return modules;
  }
};

TEST_CASE("addition is a weighted mean of every parameter") {
  Three three;
  auto const check = [&](auto const& policy) {
    auto const [a, b, c] = three.make(policy);
    auto const ta = tensors_of(a), tb = tensors_of(b), tc = tensors_of(c);
    check_formula(paper::add({ModuleTerm{&a, 1.0}, {&b, 2.0}, {&c, 5.0}}), [&](std::string const& n, std::size_t k) {
      return (ta.at(n)[k] + 2 * tb.at(n)[k] + 5 * tc.at(n)[k]) / 8;
    });
    check_formula(paper::add({ModuleTerm{&a, 0.5}, {&a, 0.5}}),
                  [&](std::string const& n, std::size_t k) { return ta.at(n)[k]; });
  };
  check(LoRADelta{.rank = 4, .alpha = 6, .bias = true});
  check(IA3Scaling{.feedforward_modules = {"v_proj"}});
  check(RoAdRotation{RoAdRotation::Variant::road_2, 6});
}

TEST_CASE("adding LoRA parameters has cross terms, adding modules has none") {
  Three three;
  auto const [a, b, c] = three.make(LoRADelta{.rank = 4, .alpha = 4});
  auto const mean = 0.5 * delta_matrix(a, 0, three.sites) + 0.5 * delta_matrix(b, 0, three.sites);
  auto const by_parameters = delta_matrix(paper::add({ModuleTerm{&a, 0.5}, {&b, 0.5}}), 0, three.sites);
  CHECK(testing::relative_l2(by_parameters, mean) > 0.1);
  Matrix const a1(a.entries[0].state.a), a2(b.entries[0].state.a), b1(a.entries[0].state.b), b2(b.entries[0].state.b);
  CHECK(testing::relative_l2(by_parameters, 0.25 * ((b1 + b2) * (a1 + a2))) <= 1e-14);
  CHECK(testing::relative_l2(delta_matrix(materialize(0.5 * a + 0.5 * b, three.sites, "m"), 0, three.sites), mean) <=
        1e-14);
}

TEST_CASE("negation turns the change round, twice gives the module back") {
  Three three;
  auto const [lora, lora_2, lora_3] = three.make(LoRADelta{.rank = 4, .alpha = 6, .bias = true});
  for (auto const factor : {Factor::a, Factor::b}) {
    auto const negated = paper::negate(lora, factor);
    CHECK(testing::relative_l2(delta_matrix(negated, 0, three.sites), -1.0 * delta_matrix(lora, 0, three.sites)) == 0);
    CHECK(negated.entries[0].state.b_bias[3] == -lora.entries[0].state.b_bias[3]);
    auto const untouched = factor == Factor::a ? "0 lora_B.weight" : "0 lora_A.weight";
    CHECK(tensors_of(negated).at(untouched) == tensors_of(lora).at(untouched));
    CHECK(tensors_of(paper::negate(negated, factor)) == tensors_of(lora));
    auto const scaled = paper::scaled_negation(lora, 0.7, factor);
    CHECK(testing::relative_l2(delta_matrix(scaled, 0, three.sites), -0.7 * delta_matrix(lora, 0, three.sites)) <=
          1e-15);
  }
  auto const [ia3, ia3_2, ia3_3] = three.make(IA3Scaling{});
  auto const l = tensors_of(ia3);
  check_formula(paper::negate(ia3), [&](auto const& n, std::size_t k) { return 2 - l.at(n)[k]; });
  check_formula(paper::scaled_negation(ia3, 0.7), [&](auto const& n, std::size_t k) { return 1.7 - 0.7 * l.at(n)[k]; });
  check_formula(paper::negate(paper::negate(ia3)), [&](auto const& n, std::size_t k) { return l.at(n)[k]; });
  auto const [road, road_2, road_3] = three.make(RoAdRotation{RoAdRotation::Variant::road_1, 6});
  auto const r = tensors_of(road);
  check_formula(paper::scaled_negation(road, 0.7), [&](std::string const& n, std::size_t k) {
    return n.ends_with("alpha") ? 1 - 0.7 * (r.at(n)[k] - 1) : -0.7 * r.at(n)[k];
  });
}

TEST_CASE("the factor that is negated matters once modules are added") {
  Three three;
  auto const [a, b, c] = three.make(LoRADelta{.rank = 4, .alpha = 4});
  auto const by_a = paper::negate(b, Factor::a), by_b = paper::negate(b, Factor::b);
  auto const sum_a = delta_matrix(paper::add({ModuleTerm{&a, 0.5}, {&by_a, 0.5}}), 0, three.sites);
  auto const sum_b = delta_matrix(paper::add({ModuleTerm{&a, 0.5}, {&by_b, 0.5}}), 0, three.sites);
  CHECK(testing::relative_l2(sum_a, sum_b) > 0.1);
}

TEST_CASE("analogy is lambda classifier + (1 - lambda) (target + neg source)") {
  Three three;
  double const t = 0.86;
  auto const [a, b, c] = three.make(LoRADelta{.rank = 4, .alpha = 6});
  auto const ta = tensors_of(a), tb = tensors_of(b), tc = tensors_of(c);
  for (auto const factor : {Factor::a, Factor::b})
    check_formula(paper::analogy(a, b, c, t, factor), [&](std::string const& n, std::size_t k) {
      bool const is_a = n.ends_with("lora_A.weight");
      double const sign = is_a == (factor == Factor::a) ? -1 : 1;
      return t * ta.at(n)[k] + (1 - t) * tb.at(n)[k] + sign * (1 - t) * tc.at(n)[k];
    });
  auto [i, j, l] = three.make(IA3Scaling{});
  auto const ti = tensors_of(i), tj = tensors_of(j), tl = tensors_of(l);
  i.saved["score.weight"] = {{1, 2}, {3, 4}};
  auto const transferred = paper::analogy(i, j, l, t);
  check_formula(transferred, [&](std::string const& n, std::size_t k) {  // as the paper's code has it
    return (1 - t) + t * ti.at(n)[k] + (1 - t) * tj.at(n)[k] - (1 - t) * tl.at(n)[k];
  });
  CHECK(transferred.saved.at("score.weight").values == std::vector<float>{3, 4});
}

TEST_CASE("detoxification is A + lambda (A - A_t), B + lambda (B + B_t)") {
  Three three;
  auto const [a, toxic, unused] = three.make(LoRADelta{.rank = 4, .alpha = 6});
  auto const ta = tensors_of(a), tt = tensors_of(toxic);
  check_formula(paper::detoxify(a, toxic, 0.4), [&](std::string const& n, std::size_t k) {
    double const sign = n.ends_with("lora_A.weight") ? -1 : 1;
    return ta.at(n)[k] + 0.4 * (ta.at(n)[k] + sign * tt.at(n)[k]);
  });
  auto const [l, lt, m] = three.make(IA3Scaling{});
  auto const tl = tensors_of(l), tlt = tensors_of(lt);
  check_formula(paper::detoxify(l, lt, 0.4),
                [&](std::string const& n, std::size_t k) { return tl.at(n)[k] + 0.4 * (tl.at(n)[k] - tlt.at(n)[k]); });
}

TEST_CASE("Fisher-weighted addition weighs every parameter by its own importance") {
  Three three;
  auto const [a, b, c] = three.make(IA3Scaling{});
  std::vector<double> fa(18), fb(18);
  for (auto& f : fa) f = three.random.uniform();
  for (auto& f : fb) f = 3 * three.random.uniform();
  fa[4] = fb[4] = 0;  // the floor decides: weights by norm alone
  double na = 0, nb = 0;
  for (std::size_t k = 0; k < 18; ++k) na += fa[k] * fa[k], nb += fb[k] * fb[k];
  na = std::sqrt(na), nb = std::sqrt(nb);
  std::vector<ModuleTerm<IA3Scaling, B>> const terms{{&a, 0.3}, {&b, 0.7}};
  std::vector<VectorView<double const>> const fisher{{fa.data(), 18}, {fb.data(), 18}};
  auto const sum = paper::fisher_add<IA3Scaling, B>(terms, fisher);
  for (std::size_t k = 0; k < 18; ++k) {
    double const wa = 0.3 * std::max(fa[k], 1e-6) / na, wb = 0.7 * std::max(fb[k], 1e-6) / nb;
    auto const at = static_cast<index_t>(k);
    CHECK(sum.parameters()[at] == Approx((wa * a.parameters()[at] + wb * b.parameters()[at]) / (wa + wb)));
  }
}

TEST_CASE("PEDRO: a negated generator makes 2 - l, a mean of equal ones the same") {
  Engine<Adapters<PedroGenerator>, double> engine(Shape::separate, 3);
  Random random(4);
  auto const& sites = engine.bank.sites();
  for (auto const offset : {PedroGenerator::Offset::one, PedroGenerator::Offset::bias}) {
    auto const p = random_module<PedroGenerator, B>("p", {.rank = 4, .offset = offset}, sites,
                                                    sites_of_kind(sites, SiteKind::hidden), random);
    auto const negated = paper::scaled_negation(p, 0.6);
    auto const& one = p.entries[0];
    auto const& two = negated.entries[0];
    auto const mean = paper::add({ModuleTerm{&p, 3.0}, {&p, 1.0}});
    B be;
    auto const hidden = testing::random_matrix(5, width, random);
    auto const vectors = [&](auto const& entry) {
      std::vector<double> scratch(static_cast<std::size_t>(entry.policy.template scratch_size<B>(entry.state, 5)));
      std::vector<double> l(static_cast<std::size_t>(entry.state.up.rows));
      entry.policy.generate(be, entry.state, hidden.view(), hidden.view(),
                            VectorView<double>{scratch.data(), static_cast<index_t>(scratch.size())},
                            VectorView<double>{l.data(), static_cast<index_t>(l.size())});
      return l;
    };
    auto const l = vectors(one), n = vectors(two);
    for (std::size_t k = 0; k < l.size(); ++k) CHECK(n[k] == Approx(-0.6 * l[k]).margin(1e-13));
    auto const same = vectors(mean.entries[0]);
    for (std::size_t k = 0; k < l.size(); ++k) CHECK(same[k] == Approx(l[k]).margin(1e-13));
  }
}

TEST_CASE("parameters that do not correspond are refused with a sentence") {
  Three three;
  auto const a = random_module<LoRADelta, B>("a", {.rank = 4, .alpha = 6}, three.sites, {0, 1}, three.random);
  auto const rank = random_module<LoRADelta, B>("b", {.rank = 3, .alpha = 6}, three.sites, {0, 1}, three.random);
  auto const scale = random_module<LoRADelta, B>("c", {.rank = 4, .alpha = 5}, three.sites, {0, 1}, three.random);
  auto const sites = random_module<LoRADelta, B>("d", {.rank = 4, .alpha = 6}, three.sites, {0}, three.random);
  CHECK_THROWS_WITH(paper::add({ModuleTerm{&a, 1.0}, {&rank, 1.0}}),
                    "graft: arithmetic on parameters needs equal ranks, scalings and options; a and b differ at site "
                    "0");
  CHECK_THROWS_WITH(paper::add({ModuleTerm{&a, 1.0}, {&scale, 1.0}}), Catch::Contains("a and c differ at site 0"));
  CHECK_THROWS_WITH(paper::add({ModuleTerm{&a, 1.0}, {&sites, 1.0}}),
                    "graft: arithmetic on parameters needs the same sites; a has 2, d has 1");
  CHECK_THROWS_WITH(paper::add({ModuleTerm{&a, 1.0}, {&a, -1.0}}), "graft: weights that sum to 0 cannot be normalised");
}

}  // namespace
