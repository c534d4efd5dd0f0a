// SPDX-License-Identifier: Apache-2.0
// Several policies on one layer: the order of Adapters<...> is the order of wrapping, and within a policy a request's
// list is a weighted sum. Every result is compared with the definition, evaluated densely in double.
#include <tests/adapter/loaded.hpp>
#include <tests/catch.hpp>

namespace {

using namespace graft_test;
using Variant = RoAdRotation::Variant;
using Pedro = PedroGenerator;

/// Relative error allowed against the definition: the longest chain is 108 products, a rotation, up to 80 ranks and
/// scalings, each sum cancelling little; 200 roundings cover it.
template <class Act>
constexpr double bound = 200 * graft::testing::unit_roundoff<Act>();

/// Runs the requests in one batch and returns the largest relative error at any site of any request.
template <class E, class T>
double worst(E& engine, std::vector<Request<T>> const& requests) {
  std::vector<Request<T> const*> pointers;
  for (auto const& request : requests) pointers.push_back(&request);
  auto const results = engine.run({&engine.backend}, pointers);
  double largest = 0;
  for (std::size_t q = 0; q < requests.size(); ++q)
    for (index_t s = 0; s < engine.bank.sites().size(); ++s) {
      double const error =
          testing::worst_row(results[q][static_cast<std::size_t>(s)].view(), engine.expected(requests[q], s));
      if (!(error <= largest)) largest = error;
    }
  return largest;
}

/// Random batches with random weighted lists over everything loaded.
template <class List, class Act>
void check_random(Shape shape, std::uint64_t seed) {
  Loaded<List, Act> engine(shape, seed);
  for (int trial = 0; trial < 6; ++trial) {
    std::vector<Request<Act>> requests;
    for (int q = 0; q < 5; ++q) requests.push_back(engine.random_request(0.35, testing::pick(engine.random, 1, 4)));
    CHECK(worst(engine, requests) <= bound<Act>);
  }
}

TEMPLATE_TEST_CASE("every order of policies is the definition's, in random mixes", "",
                   (Adapters<RoAdRotation, LoRADelta>), (Adapters<LoRADelta, RoAdRotation>),
                   (Adapters<IA3Scaling, LoRADelta>), (Adapters<LoRADelta, IA3Scaling>),
                   (Adapters<RoAdRotation, Pedro>), (Adapters<Pedro, RoAdRotation>),
                   (Adapters<IA3Scaling, RoAdRotation, LoRADelta, Pedro>),
                   (Adapters<Pedro, LoRADelta, RoAdRotation, IA3Scaling>),
                   (Adapters<RoAdRotation, Pedro, IA3Scaling, LoRADelta>),
                   (Adapters<LoRADelta, IA3Scaling, Pedro, RoAdRotation>)) {
  check_random<TestType, double>(Shape::separate, 1);
  check_random<TestType, double>(Shape::fused, 2);
  check_random<TestType, float>(Shape::separate, 3);
  check_random<TestType, float>(Shape::fused, 4);
}

using Full = Adapters<IA3Scaling, RoAdRotation, LoRADelta, Pedro>;  // the command's list

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

}  // namespace
