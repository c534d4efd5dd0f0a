// SPDX-License-Identifier: Apache-2.0
// Special cases of several policies on one layer: f32 and 16-bit buffers, the paper's combination spelled out, maps of
// unequal groups, and maps on a layer's input.
#include <tests/adapter/loaded.hpp>
#include <tests/catch.hpp>

namespace {

using namespace graft_test;
using Variant = RoAdRotation::Variant;
using Pedro = PedroGenerator;
using Full = Adapters<IA3Scaling, RoAdRotation, LoRADelta, Pedro>;  // the command's list

TEST_CASE("random mixes are the definition's in f32") {
  CHECK(worst_of_random<Full, float>(Shape::separate, 3) <= bound<float>);
  CHECK(worst_of_random<Adapters<LoRADelta, IA3Scaling, Pedro, RoAdRotation>, float>(Shape::fused, 4) <= bound<float>);
}

TEST_CASE("16-bit buffers are rounded once per call and map, nothing more") {
  Loaded<Full, float> engine(Shape::separate, 5);
  std::vector<Request<bf16>> requests;
  for (auto const& uses : {std::vector<AdapterUse>{{"r2", 1}, {"l3", 0.5}}, {}, {{"j", 1}, {"lb", 1}}, {{"p", 1}}})
    requests.push_back(engine.request<bf16>(uses, 3, 3));
  // at most: the input map, the product, the output map and the delta
  CHECK(worst(engine, requests) <= 4 * testing::unit_roundoff<bf16>());
}

TEST_CASE("the policies' worked examples, spelled out") {
  // one layer of one site each: y for x = e_k shows the whole matrix
  auto const matrix = [](auto& engine, std::vector<AdapterUse> uses, index_t s) {
    auto request = engine.request(std::move(uses), width);
    auto& x = request.inputs[static_cast<std::size_t>(s)];
    for (index_t n = 0; n < width; ++n)
      for (index_t k = 0; k < width; ++k) x.row(n)[k] = n == k;
    auto const results = engine.run({&engine.backend}, std::vector<Request<double> const*>{&request});
    Matrix const y = testing::transposed(Matrix(results[0][static_cast<std::size_t>(s)].view()));
    return y;  // column k: W e_k + b
  };
  // what remains of R(Wx + b) + BAx when the parts are taken away again
  Loaded<Adapters<RoAdRotation, LoRADelta>, double> paper(Shape::separate, 6);
  Matrix const base = matrix(paper, {}, 0), rotated = matrix(paper, {{"r2", 1}}, 0),
               delta = matrix(paper, {{"l3", 1}}, 0) - base;
  CHECK(testing::relative_l2(matrix(paper, {{"l3", 1}, {"r2", 1}}, 0), rotated + delta) <= 1e-14);
  CHECK(testing::relative_l2(matrix(paper, {{"r2", 1}, {"l3", -2}}, 0), rotated + (-2.0) * delta) <= 1e-14);

  Loaded<Adapters<LoRADelta, RoAdRotation>, double> other(Shape::separate, 6);  // the same numbers, R(Wx + b + BAx)
  Matrix const rotated_all = matrix(other, {{"l3", 1}, {"r2", 1}}, 0);
  CHECK(testing::relative_l2(rotated_all, rotated + delta) > 1e-2);
}

/// Rotations of another group size than RoAd's, under a name of their own.
struct OtherRotation : RoAdRotation {
  static constexpr std::string_view peft_type = "OTHER";
};

TEST_CASE("row maps of unequal groups follow one another, and PEDRO beside them is refused with the place") {
  Engine<Adapters<RoAdRotation, IA3Scaling, OtherRotation, LoRADelta>, double> chained(Shape::separate, 7);
  auto const linear = sites_of_kind(chained.bank.sites(), SiteKind::linear);
  chained.load("r", RoAdRotation{Variant::road_2, 6}, linear);
  chained.load("i", IA3Scaling{}, linear);
  chained.load("o", OtherRotation{{Variant::road_4, 4}}, linear);
  chained.load("l", LoRADelta{.rank = 3, .bias = true}, linear);
  std::vector<Request<double>> requests;
  requests.push_back(chained.request({{"r", 1}, {"o", 1}}, 2));
  requests.push_back(chained.request({{"l", 1}, {"o", 0.5}, {"i", 0.7}, {"r", 1}}, 2));
  CHECK(worst(chained, requests) <= bound<double>);

  Engine<Adapters<RoAdRotation, OtherRotation, Pedro>, double> mixed(Shape::separate, 8);
  mixed.load("r", RoAdRotation{Variant::road_2, 6}, linear);
  mixed.load("o", OtherRotation{{Variant::road_4, 4}}, linear);
  mixed.load("p", Pedro{.rank = 2}, sites_of_kind(mixed.bank.sites(), SiteKind::hidden));
  auto const set = mixed.bank.resolve({{"r", 1}, {"o", 1}, {"p", 1}});
  CHECK_THROWS_WITH((SequenceState<CpuBackend<double>>(set, mixed.bank.sites())),
                    Catch::Contains("at layers.0.q_proj a prompt-made map meets row maps of different groups"));
}

/// Rotations of a layer's input, which do not commute with scalings of it.
struct InputRotation : RoAdRotation {
  static constexpr std::string_view peft_type = "INPUT";
  template <class B>
  RowMapForm form(SiteInfo const& site, State<B> const& state) const {
    RowMapForm result = RoAdRotation::form<B>(site, state);
    result.side = Side::input;
    return result;
  }
};
template <class B>
Effect effect_of(InputRotation const& policy, RoAdRotation::State<B> const& state, SiteInfo const& site) {
  Effect const effect = graft_test::effect_of<B>(static_cast<RoAdRotation const&>(policy), state, site);
  return {.output = {}, .input = effect.output, .delta = {}};
}

TEMPLATE_TEST_CASE("input maps wrap inwards", "", (Adapters<InputRotation, IA3Scaling, LoRADelta>),
                   (Adapters<IA3Scaling, InputRotation, LoRADelta>), (Adapters<LoRADelta, InputRotation, IA3Scaling>),
                   (Adapters<LoRADelta, IA3Scaling, InputRotation>), (Adapters<InputRotation, LoRADelta, IA3Scaling>)) {
  Engine<TestType, double> engine(Shape::separate, 9);
  std::vector<index_t> const at{engine.bank.sites().find("layers.0.q_proj")};  // as many inputs as outputs
  engine.load("r", InputRotation{{Variant::road_2, 6}}, at);
  engine.load("i", IA3Scaling{.feedforward_modules = {"q_proj"}}, at);
  engine.load("l", LoRADelta{.rank = 3}, at);
  std::vector<Request<double>> requests;
  requests.push_back(engine.request({{"r", 1}, {"i", 1}, {"l", 1}}, 3));
  requests.push_back(engine.request({{"l", -0.5}, {"r", 0.7}, {"i", 2}}, 2));
  requests.push_back(engine.request({{"r", 1}, {"l", 1}}, 1));
  CHECK(worst(engine, requests) <= bound<double>);
}

}  // namespace
