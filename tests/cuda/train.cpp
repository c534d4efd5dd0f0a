// SPDX-License-Identifier: Apache-2.0
// Training on the CUDA backend: gradients of every policy against torch's autograd, of mixed batches and whole
// trainings against the CPU's.
#include <tests/catch.hpp>
#include <tests/train/golden_gradients.hpp>

#include <graft/backend/cpu/cpu.hpp>
#include <graft/backend/cuda/cuda.cuh>
#include <graft/testing/close.hpp>
#include <graft/testing/random.hpp>
#include <graft/train/trainer.hpp>

#include <cstdio>

namespace {

using namespace graft_test;

TEST_CASE("gradients of adapters on the CUDA backend equal torch's autograd") {
  auto const [adapters, worst] = check_gradients<CudaBackend<float>>(1e-4);  // the bound of the CPU's f32
  CHECK(adapters >= 20);
  std::printf("%d adapters, worst relative L2 of a tensor's gradient %.1e\n", adapters, worst);
}

/// A small Llama, and modules with random numbers on all sites that accept them.
template <class B>
struct Setting {
  using M = Model<Llama, AllAdapters, B>;
  ModelFiles files = open_model(std::string(GRAFT_TEST_DATA "/models/llama_pedro"));
  B be;
  M model{files.config, files.weights};

  template <class P>
  Module<P, B> module(std::string const& name, P const& policy, bool noisy) {
    std::vector<index_t> at;
    for (index_t s = 0; s < model.sites().size(); ++s) {
      auto const& site = model.sites()[s];
      if ((site.layer >= 0 || site.kind == SiteKind::embedding) && policy.accepts(site)) at.push_back(s);
    }
    auto made = make_module<P, B>(name, policy, model.sites(), at, 3);
    Random random(7);
    if (noisy)
      for (auto& value : made.parameters()) value += static_cast<float>(0.05 * random.normal());
    return made;
  }
};

/// Gradients of modules of all policies in one batch: alone, in weighted lists, beside frozen ones, with dropout.
template <class B>
std::vector<std::vector<float>> mixed_gradients(bool recompute) {
  Setting<B> s;
  auto& bank = s.model.bank();
  RoAdRotation road;
  road.group_size = 2;
  bank.load(s.be, s.module("road", road, true));
  bank.load(s.be, s.module("ia3", IA3Scaling{.feedforward_modules = {"down_proj"}}, true));
  bank.load(s.be, s.module("lora", LoRADelta{.rank = 3, .alpha = 6}, true));
  bank.load(s.be, s.module("frozen lora", LoRADelta{.rank = 2, .alpha = 6}, true));
  bank.load(s.be, s.module("pedro", PedroGenerator{.rank = 4}, true));
  PedroGenerator other{.rank = 3, .pooling = PedroGenerator::Pooling::max};
  other.pooler_input = PedroGenerator::PoolerInput::raw, other.activation = PedroGenerator::Activation::gelu;
  other.q_scaling = PedroGenerator::QueryScaling::after_rope;
  bank.load(s.be, s.module("frozen pedro", other, true));
  std::vector<std::vector<AdapterUse>> const lists = {
      {{"road", 1}},
      {{"ia3", 1}, {"road", 0.5}, {"lora", 1}, {"pedro", 0.8}},
      {{"lora", 0.7}, {"frozen lora", 0.2}, {"pedro", 0.3}, {"frozen pedro", 0.6}},
      {},
      {{"ia3", 0.4}},
      {{"road", 1}}};
  Random random(11);
  std::vector<std::vector<std::int32_t>> tokens;
  std::vector<TrainingSequence<B>> batch;
  std::vector<index_t> wanted;
  std::vector<LossRow> rows;
  index_t first = 0;
  tokens.reserve(lists.size());
  for (auto const& list : lists) {
    auto& line = tokens.emplace_back();
    for (index_t k = testing::pick(random, 3, 9); k > 0; --k)
      line.push_back(static_cast<std::int32_t>(testing::pick(random, 0, s.files.config.vocabulary - 1)));
    batch.push_back({line, bank.resolve(list), static_cast<index_t>(line.size()) - 1, {}, first == 0 ? 0 : 0.3, 5});
    for (std::size_t k = 0; k + 1 < line.size(); ++k) {
      wanted.push_back(first + static_cast<index_t>(k));
      rows.push_back({line[k + 1], 0.1});
    }
    first += static_cast<index_t>(line.size());
  }
  Gradients<B> gradients;
  for (auto const* name : {"road", "ia3", "lora", "pedro"}) gradients.want(bank.find(name));
  TrainingPass<typename Setting<B>::M> pass(s.model, s.be, {.recompute = {recompute}, .head_rows = 5});
  for (int turn = 0; turn < 2; ++turn) {  // gradients add up
    pass.forward(batch, gradients);
    CrossEntropy<B> loss(s.be, rows);
    pass.head(wanted, loss);
    pass.backward();
  }
  std::vector<std::vector<float>> result;
  for (auto const* name : {"road", "ia3", "lora", "pedro"}) {
    auto const own = gradients.of(name);
    result.emplace_back(own.begin(), own.end());
  }
  return result;
}

double distance(std::vector<float> const& a, std::vector<float> const& b) {
  auto const size = static_cast<index_t>(a.size());
  return testing::relative_l2(matrix_view(a.data(), 1, size), matrix_view(b.data(), 1, size));
}

TEST_CASE("gradients of a mixed batch on the CUDA backend equal the CPU's") {
  auto const host = mixed_gradients<CpuBackend<float>>(false);
  auto const device = mixed_gradients<CudaBackend<float>>(false), again = mixed_gradients<CudaBackend<float>>(true);
  auto const rounded = mixed_gradients<CudaBackend<bf16>>(false);
  for (std::size_t k = 0; k < host.size(); ++k) {
    INFO("module " << k);
    CHECK(distance(device[k], host[k]) <= 1e-4);  // f32 on both sides, as for the golden gradients
    CHECK(again[k] == device[k]);                 // recomputed: the same bits, and no sum depends on chance
    // Activations in bf16, parameters and gradients in f32. About 100 roundings of 2^-9 stand one behind the other on
    // the way through both layers and back: 0.02 if they were independent and nothing amplified them; adapters far from
    // the identity do, hence 4 times that.
    double const error = distance(rounded[k], host[k]);
    CHECK(error <= 0.08);
    CHECK(error >= 1e-4);  // it is bf16
  }
}

struct Outcome {
  std::vector<double> losses;
  double validation = 0;
};

template <class B, class P>
Outcome outcome_of(P const& policy, double rate) {
  Setting<B> s;
  auto module = s.module("m", policy, false);
  Random random(5);
  TrainingData data;
  for (auto* examples : {&data.train, &data.validation})
    for (int n = 0; n < 4; ++n) {
      auto& example = examples->emplace_back();
      example.prompt = example.first_loss = testing::pick(random, 2, 4);
      for (index_t k = example.prompt + 3; k > 0; --k)
        example.tokens.push_back(static_cast<std::int32_t>(testing::pick(random, 0, s.files.config.vocabulary - 1)));
    }
  data.validation = data.train;
  TrainerOptions options;
  options.steps = 6, options.batch = 2, options.accumulate = 2, options.rate = rate;
  options.dropout = std::same_as<P, LoRADelta> ? 0.1 : 0;
  Trainer<typename Setting<B>::M, P> trainer(s.model, s.be, module, data, options);
  Outcome outcome;
  TrainerHooks hooks;
  hooks.progress = [&](TrainingProgress const& progress) { outcome.losses.push_back(progress.loss); };
  outcome.validation = *trainer.run(hooks).best_loss;
  return outcome;
}

// Adam divides by the gradient's size, so that a number whose gradient is nothing but rounding may move by a whole
// rate, and others do not notice: losses agree less well than gradients.
void check_outcome(Outcome const& device, Outcome const& host, double bound) {
  REQUIRE(device.losses.size() == host.losses.size());
  for (std::size_t k = 0; k < host.losses.size(); ++k) {
    INFO("step " << k << ": " << device.losses[k] << " " << host.losses[k]);
    CHECK(std::abs(device.losses[k] - host.losses[k]) <= bound * host.losses[k]);
  }
  CHECK(std::abs(device.validation - host.validation) <= bound * host.validation);
  CHECK(device.validation < 0.95 * device.losses[0]);
}

TEST_CASE("a training on the CUDA backend goes as the CPU's") {
  LoRADelta const lora{.rank = 4, .alpha = 8};
  auto const host = outcome_of<CpuBackend<float>>(lora, 1e-2);
  check_outcome(outcome_of<CudaBackend<float>>(lora, 1e-2), host, 1e-3);
  check_outcome(outcome_of<CudaBackend<bf16>>(lora, 1e-2), host, 2e-2);  // logits of bf16 are 2^-9 off
}

}  // namespace
