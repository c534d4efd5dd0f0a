// SPDX-License-Identifier: Apache-2.0
// Adapters folded into weights do what they do beside them, in every wrapping order, and come out again.
#include <graft/arithmetic/fold.hpp>
#include <tests/adapter/loaded.hpp>
#include <tests/catch.hpp>

#include <cstdio>

namespace {

using namespace graft_test;

/// The folded layer as a matrix and a bias in double.
struct Folded {
  Matrix w;
  Vector b;
  explicit Folded(DenseLayer const& layer) : w(layer.rows, layer.cols), b(layer.bias.begin(), layer.bias.end()) {
    std::copy(layer.weight.begin(), layer.weight.end(), w.values.begin());
  }
  Vector operator()(Vector const& x) const {
    Vector y = w * x;
    if (!b.empty()) testing::add_scaled(y, 1, b);
    return y;
  }
};

DenseLayer random_layer(SiteInfo const& site, Random& random, bool bias) {
  DenseLayer layer{site.out, site.in, std::vector<float>(static_cast<std::size_t>(site.out * site.in)), {}};
  testing::fill_normal(VectorView<float>{layer.weight.data(), site.out * site.in}, random, 0, 0.15);
  layer.bias.resize(bias ? static_cast<std::size_t>(site.out) : 0);
  testing::fill_normal(VectorView<float>{layer.bias.data(), static_cast<index_t>(layer.bias.size())}, random, 0, 0.5);
  return layer;
}

double distance(Vector const& a, Vector const& b) {
  Matrix x(1, static_cast<index_t>(a.size())), y(1, static_cast<index_t>(b.size()));
  x.values = a, y.values = b;
  return testing::relative_l2(x, y);
}

/// Modules without PEDRO, so that everything can be folded.
template <class List>
void check_order() {
  Loaded<List, double> engine(Shape::separate, 21);
  SerialExecutor executor;
  auto const& sites = engine.bank.sites();
  auto const linear = sites_of_kind(sites, SiteKind::linear);
  double worst = 0, worst_back = 0;
  index_t changed = 0;
  for (int turn = 0; turn < 12; ++turn) {
    std::vector<AdapterUse> uses;
    for (auto const& name : engine.names)
      if (engine.random.uniform() < 0.5) uses.push_back({name, engine.random.uniform(-1, 1.5)});
    if (uses.empty()) continue;
    auto const set = engine.bank.resolve(uses);
    check_mergeable(*set, sites);
    for (index_t site : linear) {
      bool const bias = turn % 2 == 0;
      auto layer = random_layer(sites[site], engine.random, bias);
      auto const before = layer;
      Vector const x = testing::random_vector(sites[site].in, engine.random);
      Vector const expected = engine.definition(testing::linear(Folded(layer).w, Folded(layer).b), site, uses, {})(x);
      fold_in(*set, sites, site, layer, executor);
      CHECK(changes(*set, site) == (before.weight != layer.weight || before.bias != layer.bias));
      changed += changes(*set, site);
      worst = testing::worse(worst, distance(Folded(layer)(x), expected));
      fold_out(*set, sites, site, layer, executor);
      worst_back = testing::worse(worst_back, testing::relative_l2(Folded(layer).w, Folded(before).w));
    }
  }
  CHECK(changed > 20);
  // f32: the sums of 108 products cancel little; 200 roundings
  CHECK(worst <= 200 * 0x1p-24);
  // the inverses of these random maps stretch rounding errors by their condition, up to some 10^3
  CHECK(worst_back <= 1e-3);
}

TEST_CASE("folded adapters of all methods, weights and orders do what the definition says") {
  check_order<Adapters<IA3Scaling, RoAdRotation, LoRADelta>>();
  check_order<Adapters<LoRADelta, RoAdRotation, IA3Scaling>>();
  check_order<Adapters<RoAdRotation, LoRADelta, IA3Scaling>>();
  check_order<Adapters<IA3Scaling, LoRADelta, RoAdRotation>>();
}

TEST_CASE("maps of unequal groups fold one after the other") {
  using B = CpuBackend<float>;
  auto const sites = make_sites(Shape::separate);
  Random random(3);
  NumberStorage<float> storage;
  std::vector<std::unique_ptr<RowMapRow<float const>[]>> chains;
  auto const map = [&](index_t group) {
    return storage.keep_map(width, true, true, true, group, [&](RowMapRow<float> const& made) {
      for (auto* vector : {made.c1, made.d, made.e})
        testing::fill_normal(VectorView<float>{vector, width}, random, 0, 0.3);
    });
  };
  AdapterSet<B> set;
  auto const outputs = map(6), wide = map(12), inputs = map(10), short_inputs = map(4);
  for (auto const stage : {Stage::output_inner, Stage::input_outer}) {
    auto& table = set.maps[static_cast<std::size_t>(stage)];
    table.resize(static_cast<std::size_t>(sites.size()));
    table[0] = stage == Stage::output_inner ? compose(outputs, wide, storage, chains)
                                            : compose(inputs, short_inputs, storage, chains);
    REQUIRE(table[0].next != nullptr);
  }
  auto layer = random_layer(sites[0], random, false);
  Matrix const w = Folded(layer).w;
  auto const expected = [&](Vector x) {
    x = testing::dense(set.maps[static_cast<std::size_t>(Stage::input_outer)][0])(x);
    return testing::dense(set.maps[static_cast<std::size_t>(Stage::output_inner)][0])(w * x);
  };
  SerialExecutor executor;
  fold_in(set, sites, 0, layer, executor);
  for (int turn = 0; turn < 5; ++turn) {
    Vector const x = testing::random_vector(width, random);
    CHECK(distance(Folded(layer)(x), expected(x)) <= 200 * 0x1p-24);
  }
  fold_out(set, sites, 0, layer, executor);
  CHECK(testing::relative_l2(Folded(layer).w, w) <= 1e-4);
  for (float const b : layer.bias) CHECK(std::abs(b) <= 1e-4f);
}

TEST_CASE("an embedding takes the transposed delta") {
  using B = CpuBackend<float>;
  SiteTable sites;
  sites.add({-1, "embed_tokens", "embed_tokens", 30, 8, SiteKind::embedding});
  Bank<Adapters<LoRADelta>, B> bank(sites);
  B be;
  Random random(4);
  auto module = make_module<LoRADelta, B>("e", {.rank = 3, .alpha = 6}, sites, {0});
  testing::fill_normal(module.entries[0].state.a, random);
  testing::fill_normal(module.entries[0].state.b, random);
  Matrix const delta = 2.0 * (Matrix(module.entries[0].state.b) * Matrix(module.entries[0].state.a));
  bank.load(be, std::move(module));
  DenseLayer layer{30, 8, std::vector<float>(240), {}};
  SerialExecutor executor;
  auto const set = bank.resolve({{"e", -0.5}});
  fold_in(*set, sites, 0, layer, executor);
  CHECK(testing::relative_l2(Folded(layer).w, -0.5 * testing::transposed(delta)) <= 1e-6);
}

TEST_CASE("what no weights can do is refused with the reason") {
  Loaded<Adapters<IA3Scaling, RoAdRotation, LoRADelta, PedroGenerator>, float> engine(Shape::separate, 22);
  auto const& sites = engine.bank.sites();
  CHECK_THROWS_WITH(check_mergeable(*engine.bank.resolve({{"p", 1}, {"r1", 1}}), sites),
                    "graft: PEDRO makes its vectors from each prompt; no weights do the same for all prompts, so p "
                    "cannot be merged");
  engine.load("hidden", RoAdRotation{RoAdRotation::Variant::road_1, 6}, sites_of_kind(sites, SiteKind::hidden));
  CHECK_THROWS_WITH(check_mergeable(*engine.bank.resolve({{"hidden", 1}}), sites),
                    Catch::Contains("an adapter acts on layers.0 itself, behind its layers"));
  auto module = make_module<IA3Scaling, CpuBackend<float>>("null", {}, sites, {0});
  module.entries[0].state.l.data[7] = 0;
  engine.bank.load(engine.backend, std::move(module));
  DenseLayer layer = random_layer(sites[0], engine.random, false);
  SerialExecutor executor;
  CHECK_THROWS_WITH(fold_out(*engine.bank.resolve({{"null", 1}}), sites, 0, layer, executor),
                    Catch::Contains("the block of outputs 7 and 7 of layers.0.q_proj has no inverse"));
}

/// A thousand times in and approximately out again, in the weights' own format; the change left, relative to W.
template <class Stored>
double drift(int cycles) {
  using B = CpuBackend<float>;
  SiteTable sites;
  sites.add_linear(0, "q_proj", "q_proj", 64, 64);
  Bank<Adapters<RoAdRotation>, B> bank(sites);
  B be;
  Random random(5);
  auto module = make_module<RoAdRotation, B>("r", {RoAdRotation::Variant::road_2, 64}, sites, {0});
  testing::fill_normal(module.entries[0].state.theta, random, 0, 0.5);
  testing::fill_normal(module.entries[0].state.alpha, random, 1, 0.1);
  bank.load(be, std::move(module));
  auto const set = bank.resolve({{"r", 1}});
  DenseLayer layer = random_layer(sites[0], random, false);
  auto const round = [&] {
    for (float& w : layer.weight) w = static_cast<float>(static_cast<Stored>(w));
  };
  round();
  auto const start = layer;
  SerialExecutor executor;
  for (int k = 0; k < cycles; ++k) {
    fold_in(*set, sites, 0, layer, executor);
    round();
    fold_out(*set, sites, 0, layer, executor);
    round();
  }
  return testing::relative_l2(Folded(layer).w, Folded(start).w);
}

TEST_CASE("approximate cycles drift: measured, which is why undo files exist") {
  double const f32_1 = drift<float>(1), f32_1000 = drift<float>(1000), bf16_1 = drift<bf16>(1),
               bf16_1000 = drift<bf16>(1000);
  std::printf("relative drift of W after 1 and 1000 approximate cycles: f32 %.2g %.2g, bf16 %.2g %.2g\n", f32_1,
              f32_1000, bf16_1, bf16_1000);
  CHECK(f32_1 <= 1e-6);
  CHECK(f32_1000 <= 1e-3);  // no more than a rounding a cycle, all in one direction
  CHECK(bf16_1 <= 0.02);    // and bf16 has 2^16 times larger ones
  CHECK(bf16_1000 > bf16_1);
}

}  // namespace
