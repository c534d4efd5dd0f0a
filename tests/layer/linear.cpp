// SPDX-License-Identifier: Apache-2.0
// A linear layer with its adapters fused in equals the host-engine calls around a product, bit for bit.
#include <tests/catch.hpp>

#include <graft/adapter/bank.hpp>
#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/road.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/layer/linear.hpp>
#include <graft/layer/transformer_layer.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/random.hpp>

#include <algorithm>

using namespace graft;
using graft::testing::same_bits;

namespace {

using B = CpuBackend<float>;
using Uses = std::vector<AdapterUse>;

/// A module with random tensors at the given sites.
template <class P>
Module<P, B> random_module(std::string name, P const& policy, SiteTable const& sites, std::vector<index_t> const& at,
                           std::uint64_t seed, double mean, double deviation) {
  auto module = make_module<P, B>(std::move(name), policy, sites, at, seed);
  Random random(seed);
  graft::testing::fill_normal(module.parameters(), random, mean, deviation);
  return module;
}

template <class List, index_t inputs = 36>
struct Fixture {
  static constexpr index_t outputs = 192;
  B be;
  Bank<List, B> bank{sites()};
  std::vector<float> weight_values = values(outputs * inputs, 1), bias_values = values(outputs, 2);
  std::vector<std::byte> stored;
  Linear<B> layer{{}, {bias_values.data(), outputs}, bank.sites().bind("down_proj", inputs, outputs)};

  static SiteTable sites() {
    SiteTable table;
    table.add_linear(0, "down_proj", "down_proj", inputs, outputs);
    table.add_layer({});
    return table;
  }
  static std::vector<float> values(index_t count, std::uint64_t seed) {
    Random random(seed);
    std::vector<float> result(static_cast<std::size_t>(count));
    graft::testing::fill_normal(VectorView<float>{result.data(), count}, random);
    return result;
  }

  explicit Fixture(Format format = Format::f32)
      : stored(static_cast<std::size_t>(outputs * row_bytes(format, inputs))) {
    for (index_t o = 0; o < outputs; ++o)
      encode_row(format, weight_values.data() + o * inputs, inputs, stored.data() + o * row_bytes(format, inputs));
    layer.weight = {stored.data(), format, outputs, inputs, nullptr};
    auto const& all = bank.sites();
    std::vector<index_t> const at{0};
    bank.load(be, random_module("lora", LoRADelta{.rank = 5, .bias = true}, all, at, 3, 0, 0.3));
    bank.load(be, random_module("road_64", RoAdRotation{}, all, at, 4, 0.5, 0.3));
    bank.load(be, random_module("road_6", RoAdRotation{.group_size = 6}, all, at, 5, 0.5, 0.3));
    IA3Scaling input_side, output_side;
    input_side.feedforward_modules = {"down_proj"};
    output_side.feedforward_modules.clear();
    bank.load(be, random_module("ia3_in", input_side, all, at, 6, 1, 0.3));
    bank.load(be, random_module("ia3_out", output_side, all, at, 7, 1, 0.3));
  }

  /// Rows of requests through `linear` and through the calls of apply.hpp.
  void check(std::vector<Uses> const& requests, index_t rows_each) {
    std::vector<SequenceState<B>> states;
    std::vector<RequestRows<B>> rows;
    for (auto const& uses : requests) states.emplace_back(bank.resolve(uses), bank.sites());
    for (auto& state : states) rows.push_back({&state, rows_each});
    Plan<B> plan;
    plan.build(rows);
    index_t const n = plan.rows();
    auto const x_values = values(n * inputs, 8);
    auto const x = matrix_view(x_values.data(), n, inputs);
    std::vector<float> fused(static_cast<std::size_t>(n * outputs)), apart = fused;
    auto const y = matrix_view(fused.data(), n, outputs), z = matrix_view(apart.data(), n, outputs);
    linear(be, layer, plan, x, y);
    CHECK(x_values == values(n * inputs, 8));  // left alone

    auto changed_values = x_values, base_values = x_values;
    auto const changed = matrix_view(changed_values.data(), n, inputs),
               base = matrix_view(base_values.data(), n, inputs);
    apply_input(be, layer.site, plan, changed, base);
    product(be, MatrixView<float const>(base), layer.weight, layer.bias, z);
    apply_output(be, layer.site, plan, changed, z);
    CHECK(same_bits(y, z));
  }
};

template <class List, index_t inputs = 36>
void check_all(Format format = Format::f32, Precision precision = Precision::exact) {
  Fixture<List, inputs> f(format);
  f.be.set_precision(precision);
  std::vector<Uses> const one_by_one{{},
                                     {{"lora", 1}},
                                     {{"road_64", 1}},
                                     {{"ia3_in", 1}},
                                     {{"ia3_out", 1}},
                                     {{"lora", 0.5}, {"road_64", 2}},
                                     {{"lora", 1}, {"ia3_in", 1}},
                                     {{"road_64", 1}, {"ia3_in", 0.5}},
                                     {{"lora", 1}, {"road_64", 1}, {"ia3_in", 1}, {"ia3_out", 1}}};
  for (auto const& uses : one_by_one) f.check({uses}, 3);
  f.check(one_by_one, 1);
  f.check(one_by_one, 11);
  auto with_odd_groups = one_by_one;  // groups of 6 reach over the product's chunks
  with_odd_groups.push_back({{"road_6", 1}, {"lora", 1}});
  f.check(with_odd_groups, 2);
}

/// h += W h, an architecture of a user.
struct Residual {
  template <class Backend>
  using Block = Linear<Backend>;
  template <class Backend>
  static void forward(Backend& be, Linear<Backend> const& block, Step<Backend> const& step,
                      MatrixView<typename Backend::Act, typename Backend::Space> h) {
    ArenaScope scope(be.arena());
    auto const y = be.arena().template matrix<typename Backend::Act>(h.rows, h.cols);
    using View = MatrixView<typename Backend::Act const, typename Backend::Space>;
    linear(be, block, *step.plan, View(h), y);
    add(be, View(y), h);
  }
};

}  // namespace

TEST_CASE("a fused linear layer is its parts") {
  check_all<Adapters<IA3Scaling, RoAdRotation, LoRADelta>>();
  check_all<Adapters<RoAdRotation, LoRADelta, IA3Scaling>>();
  check_all<Adapters<LoRADelta, IA3Scaling, RoAdRotation>>();
  for (Format const format : {Format::bf16, Format::q8_0}) {  // x is rounded
    check_all<Adapters<IA3Scaling, RoAdRotation, LoRADelta>, 96>(format, Precision::native);
    check_all<Adapters<LoRADelta, IA3Scaling, RoAdRotation>, 96>(format, Precision::native);
  }
}

TEST_CASE("a transformer layer takes any architecture") {
  B be;
  index_t const d = 8;
  SiteTable sites;
  Site const site = sites.add_linear(0, "square", "square", d, d);
  sites.add_layer({});
  Bank<Adapters<LoRADelta>, B> bank(sites);
  bank.load(be, random_module("lora", LoRADelta{.rank = 2}, bank.sites(), {0}, 3, 0, 0.3));
  auto const w = Fixture<Adapters<LoRADelta>>::values(d * d, 1);
  Linear<B> const block{dense_weight(matrix_view(w.data(), d, d)), {}, site};
  TransformerLayer<Residual, Adapters<LoRADelta>, B> const layer(block);

  Uses const use{{"lora", 1}};
  SequenceState<B> state(bank.resolve(use), bank.sites());
  RequestRows<B> const rows[] = {{&state, 2}, {nullptr, 1}};
  Plan<B> plan;
  plan.build(rows);
  Step<B> step;
  step.plan = &plan;
  auto h = Fixture<Adapters<LoRADelta>>::values(3 * d, 2);
  std::vector<float> y(h.size());
  auto const before = h;
  layer.forward(be, step, matrix_view(h.data(), 3, d));
  linear(be, layer.block(), plan, matrix_view(before.data(), 3, d), matrix_view(y.data(), 3, d));
  for (std::size_t k = 0; k < h.size(); ++k) CHECK(h[k] == before[k] + y[k]);
}
