// SPDX-License-Identifier: Apache-2.0
// Embeddings and heads that requests of one batch replace by their own, beside adapters on the same modules.
#include <tests/catch.hpp>

#include <graft/adapter/bank.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/plan.hpp>
#include <graft/arch/ends.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/random.hpp>

#include <algorithm>

using namespace graft;
using graft::testing::same_bits;

namespace {

using B = CpuBackend<float>;
using Values = std::vector<float>;

index_t const inputs = 24, outputs = 70, vocabulary = 11;

Values random_values(index_t count, std::uint64_t seed) {
  Random random(seed);
  Values values(static_cast<std::size_t>(count));
  graft::testing::fill_normal(VectorView<float>{values.data(), count}, random, 0, 0.5);
  return values;
}
MatrixView<float const> matrix(Values const& values, index_t cols) {
  return matrix_view(values.data(), static_cast<index_t>(values.size()) / cols, cols);
}

/// A model that is an embedding and a head.
struct Fixture {
  B be;
  Values table = random_values(vocabulary * inputs, 1), weight = random_values(outputs * inputs, 2),
         bias = random_values(outputs, 3);
  Bank<Adapters<LoRADelta>, B> bank{sites()};
  Embedding<B> embedding{dense_weight(matrix(table, inputs)), bank.sites().bind("embed", vocabulary, inputs),
                         "embed.weight"};
  Head<B> head{
      {dense_weight(matrix(weight, inputs)), {bias.data(), outputs}, bank.sites().bind("head", inputs, outputs)},
      "head.weight",
      "head.bias"};

  static SiteTable sites() {
    SiteTable table;
    table.add({-1, "embed", "embed", vocabulary, inputs, SiteKind::embedding});
    table.add_linear(-1, "head", "head", inputs, outputs);
    table.add_linear(0, "q_proj", "layers.0.q_proj", inputs, inputs);
    table.add_layer({});
    return table;
  }

  Module<LoRADelta, B> lora(std::string const& name, std::vector<index_t> const& at, std::uint64_t seed) {
    auto module = make_module<LoRADelta, B>(name, LoRADelta{.rank = 3}, bank.sites(), at, seed);
    auto const values = random_values(module.parameters().size, seed);
    std::copy(values.begin(), values.end(), module.parameters().begin());
    return module;
  }

  struct Outcome {
    Values embedded, logits;
  };
  /// Two rows per request.
  Outcome run(std::vector<std::vector<AdapterUse>> const& requests) {
    std::vector<SequenceState<B>> states;
    std::vector<RequestRows<B>> rows;
    std::vector<RequestSpan<B>> spans;
    for (auto const& uses : requests) states.emplace_back(bank.resolve(uses), bank.sites());
    index_t n = 0;
    for (auto& state : states) {
      rows.push_back({&state, 2});
      spans.push_back({n, 2, state.adapters().get()});
      n += 2;
    }
    Plan<B> plan;
    plan.build(rows);
    std::vector<std::int32_t> tokens;
    for (index_t k = 0; k < n; ++k) tokens.push_back(static_cast<std::int32_t>((3 * k + 1) % vocabulary));
    EndStep<B> const step{tokens.data(), nullptr, nullptr, spans, &plan};
    Outcome out{Values(static_cast<std::size_t>(n * inputs)), Values(static_cast<std::size_t>(n * outputs))};
    embedding.forward(be, step, matrix_view(out.embedded.data(), n, inputs));
    x = random_values(n * inputs, 9);
    head.forward(be, step, matrix(x, inputs), matrix_view(out.logits.data(), n, outputs));
    return out;
  }
  Values x;
};

SavedTensor saved(std::vector<index_t> shape, Values values) { return {std::move(shape), std::move(values)}; }

std::string refused(auto&& call) {
  try {
    call();
  } catch (ContractError const& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("each request meets the head and the embedding its adapters bring") {
  Fixture f;
  Values const own_table = random_values(vocabulary * inputs, 11), own_weight = random_values(outputs * inputs, 12),
               own_bias = random_values(outputs, 13), other_weight = random_values(outputs * inputs, 14);
  auto full = f.lora("full", {2}, 21);
  full.saved["embed.weight"] = saved({vocabulary, inputs}, own_table);
  full.saved["head.weight"] = saved({outputs, inputs}, own_weight);
  full.saved["head.bias"] = saved({outputs}, own_bias);
  auto weight_only = f.lora("weight_only", {2}, 22);
  weight_only.saved["head.weight"] = saved({outputs, inputs}, other_weight);
  f.bank.load(f.be, std::move(full));
  f.bank.load(f.be, std::move(weight_only));
  f.bank.load(f.be, f.lora("delta", {0, 1}, 23));

  std::vector<std::vector<AdapterUse>> const requests{
      {}, {{"full", 1}}, {{"full", 1}}, {{"delta", 1}}, {{"weight_only", 0.5}}, {{"full", 1}, {"delta", 1}}, {}};
  auto const mixed = f.run(requests);

  // the model a request sees: its own tensors in place of the model's, and the delta where it asks for it
  auto const check = [&](std::size_t k, Values const& table, Values const& weight, Values const& bias, bool delta) {
    INFO("request " << k);
    Fixture alone;
    std::copy(table.begin(), table.end(), alone.table.begin());
    std::copy(weight.begin(), weight.end(), alone.weight.begin());
    std::copy(bias.begin(), bias.end(), alone.bias.begin());
    alone.bank.load(alone.be, alone.lora("delta", {0, 1}, 23));
    std::vector<std::vector<AdapterUse>> uses(requests.size());
    if (delta) uses[k] = {{"delta", 1}};
    auto const expected = alone.run(uses);
    auto const e = static_cast<index_t>(k) * 2 * inputs, l = static_cast<index_t>(k) * 2 * outputs;
    CHECK(same_bits(mixed.embedded.data() + e, expected.embedded.data() + e, 2 * inputs));
    CHECK(same_bits(mixed.logits.data() + l, expected.logits.data() + l, 2 * outputs));
  };
  check(0, f.table, f.weight, f.bias, false);
  check(1, own_table, own_weight, own_bias, false);
  check(2, own_table, own_weight, own_bias, false);
  check(3, f.table, f.weight, f.bias, true);
  check(4, f.table, other_weight, f.bias, false);  // a replacement is not weighted
  check(5, own_table, own_weight, own_bias, true);
  check(6, f.table, f.weight, f.bias, false);
}

TEST_CASE("a bank refuses replacements nobody would use") {
  Fixture f;
  auto const with = [&](std::string const& tensor, std::vector<index_t> shape, index_t count) {
    return refused([&] {
      auto module = f.lora("a", {2}, 1);
      module.saved[tensor] = saved(std::move(shape), random_values(count, 1));
      f.bank.load(f.be, std::move(module));
    });
  };
  std::string const shape = "graft: the head.weight of adapter a does not have the model's shape";
  CHECK(with("head.weight", {outputs, inputs}, outputs * inputs) == "");
  CHECK(with("head.weight", {inputs, outputs}, outputs * inputs) == shape);
  CHECK(with("head.weight", {outputs, inputs}, 5) == shape);
  CHECK(with("head.bias", {outputs}, outputs) == "");
  CHECK(with("embed.weight", {vocabulary, inputs}, vocabulary * inputs) == "");
  for (auto const* tensor : {"layers.0.q_proj.weight", "norm.weight", "embed.bias", "head", "head.scale", "weight"})
    CHECK(with(tensor, {inputs, inputs}, inputs * inputs) ==
          text("graft: adapter a brings its own ", tensor,
               ", but only embeddings and heads can be replaced for one request"));
}

TEST_CASE("a request takes one replacement of a tensor") {
  Fixture f;
  for (auto const& [name, seed] : {std::pair{"a", 1}, {"b", 2}, {"copy_of_a", 1}}) {
    auto module = f.lora(name, {2}, 1);
    module.saved["head.weight"] =
        saved({outputs, inputs}, random_values(outputs * inputs, static_cast<std::uint64_t>(seed)));
    f.bank.load(f.be, std::move(module));
  }
  CHECK(refused([&] {
          f.bank.resolve({{"a", 1}, {"b", 1}});
        }) == "graft: adapters a and b bring different tensors head.weight; a request can use one of them");
  CHECK(refused([&] { f.bank.resolve({{"a", 1}, {"copy_of_a", 1}}); }) == "");
}
