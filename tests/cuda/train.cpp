// SPDX-License-Identifier: Apache-2.0
// Training on the CUDA backend: gradients of every policy against torch's autograd, of mixed batches and whole
// trainings against the CPU's.
#include <tests/catch.hpp>
#include <tests/cuda/device.hpp>
#include <tests/io/files.hpp>
#include <tests/train/golden_gradients.hpp>

#include <graft/backend/cpu/cpu.hpp>
#include <graft/backend/cuda/cuda.cuh>
#include <graft/testing/close.hpp>
#include <graft/testing/random.hpp>
#include <graft/train/trainer.hpp>

#include <algorithm>
#include <cstdio>
#include <optional>

namespace {

using namespace graft_test;

/// y' = W x + b + e: a policy that says nothing about single elements, so that the host is asked.
struct BitFit {
  static constexpr std::string_view peft_type = "BITFIT";
  template <class B>
  struct State {
    Parameters<B> e;
    void for_each(auto&& f) { f("bitfit_bias", e); }
  };
  void options(auto&&) {}
  bool accepts(SiteInfo const& site) const { return site.kind == SiteKind::linear; }
  template <class B>
  void shape(SiteInfo const& site, LayerSites const*, State<B>& state) const {
    state.e = {nullptr, site.out};
  }
  template <class B>
  void init(State<B>&, auto&) const {}
  template <class B>
  RowMapForm form(SiteInfo const&, State<B> const&) const {
    return {.present = true, .e = true, .c = false};
  }
  template <class B>
  void coefficients(B&, State<B> const& state, RowMapRow<Real<B>> const& out) const {
    for (index_t j = 0; j < out.size; ++j) out.e[j] = state.e[j];
  }
  template <class B>
  void backward(B&, State<B> const&, RowMapRow<Real<B> const> const& grad, State<B>& g) const {
    for (index_t j = 0; j < grad.size; ++j) g.e[j] += grad.e[j];
  }
};

TEST_CASE("gradients of adapters on the CUDA backend equal torch's autograd") {
  auto const [adapters, worst] = check_gradients<CudaBackend<float>>(1e-4);  // the bound of the CPU's f32
  CHECK(adapters >= 20);
  std::printf("%d adapters, worst relative L2 of a tensor's gradient %.1e\n", adapters, worst);
}

/// A small Llama, and modules with random numbers on all sites that accept them.
template <class B, class List = AllAdapters>
struct Setting {
  using M = Model<Llama, List, B>;
  explicit Setting(std::string const& name = "llama_pedro")
      : files(open_model(std::string(GRAFT_TEST_DATA "/models/") + name)) {}
  ModelFiles files;
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
  /// A classifier's own head, trained with the module.
  void bring_head(auto& trained) {
    auto const& weight = files.weights.tensors.at("score.weight");
    SavedTensor saved{{weight.rows, weight.cols},
                      std::vector<float>(static_cast<std::size_t>(weight.rows * weight.cols))};
    for (index_t r = 0; r < weight.rows; ++r) weight.row(r, saved.values.data() + r * weight.cols);
    trained.saved["score.weight"] = saved;
  }
  std::int32_t token(Random& random) {
    return static_cast<std::int32_t>(testing::pick(random, 0, files.config.vocabulary - 1));
  }
};

/// A module's gradient as the device makes it, without the host.
template <class P, class B>
std::vector<float> gathered(B& be, Gradients<B>& gradients, PublishedModule<B> const& published) {
  auto const& module = *static_cast<Module<P, B> const*>(published.module.get());
  auto const own = module.parameters();
  DeviceArray<float> const parameters(std::span<float const>(own.data, static_cast<std::size_t>(own.size)));
  DeviceArray<float> const into(std::vector<float>(static_cast<std::size_t>(own.size)));
  gather_gradients(be, module, parameters.mutable_view(), published, *gradients.find_published(be, published),
                   into.mutable_view());
  return into.host();
}

double distance(std::vector<float> const& a, std::vector<float> const& b) {
  auto const size = static_cast<index_t>(a.size());
  return testing::relative_l2(matrix_view(a.data(), 1, size), matrix_view(b.data(), 1, size));
}

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
  std::vector<std::vector<float>> on_device;
  if constexpr (std::same_as<typename B::Space, DeviceSpace>)
    on_device = {gathered<RoAdRotation>(s.be, gradients, *bank.find("road")),
                 gathered<IA3Scaling>(s.be, gradients, *bank.find("ia3")),
                 gathered<LoRADelta>(s.be, gradients, *bank.find("lora")),
                 gathered<PedroGenerator>(s.be, gradients, *bank.find("pedro"))};
  std::vector<std::vector<float>> result;
  for (auto const* name : {"road", "ia3", "lora", "pedro"}) {
    auto const own = gradients.of(name);
    result.emplace_back(own.begin(), own.end());
  }
  for (std::size_t k = 0; k < on_device.size(); ++k)
    CHECK(distance(on_device[k], result[k]) <= 1e-6);  // the same sums of a few terms, with the device's sine
  return result;
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

/// Gradients of PEDRO modules that pool in every way, over prompts of one row and of many.
template <class B>
std::vector<std::vector<float>> pooled_gradients() {
  Setting<B> s;
  auto& bank = s.model.bank();
  std::vector<std::string> const names = {"last", "mean", "max", "attention"};
  for (std::size_t k = 0; k < names.size(); ++k)
    bank.load(s.be,
              s.module(names[k], PedroGenerator{.rank = 4, .pooling = static_cast<PedroGenerator::Pooling>(k)}, true));
  struct Line {
    std::vector<AdapterUse> adapters;
    index_t prompt;
    std::vector<std::int32_t> tokens = {};
  };
  std::vector<Line> lines = {{{{"mean", 1}, {"attention", 0.5}}, 70},
                             {{{"max", 0.7}, {"last", 0.4}}, 45},
                             {{{"attention", 1}}, 33},
                             {{{"attention", 0.6}}, 1},
                             {{{"mean", 1}}, 1}};
  Random random(5);
  std::vector<TrainingSequence<B>> batch;
  std::vector<index_t> wanted;
  std::vector<LossRow> rows;
  index_t first = 0;
  for (auto& line : lines) {
    for (index_t k = 0; k < line.prompt + 2; ++k) line.tokens.push_back(s.token(random));
    batch.push_back({line.tokens, bank.resolve(line.adapters), line.prompt});
    wanted.push_back(first + line.prompt);
    rows.push_back({line.tokens.back(), 1});
    first += line.prompt + 2;
  }
  Gradients<B> gradients;
  for (auto const& name : names) gradients.want(bank.find(name));
  TrainingPass<typename Setting<B>::M> pass(s.model, s.be);
  pass.forward(batch, gradients);
  CrossEntropy<B> loss(s.be, rows);
  pass.head(wanted, loss);
  pass.backward();
  std::vector<std::vector<float>> result;
  for (auto const& name : names) {
    auto const own = gradients.of(name);
    result.emplace_back(own.begin(), own.end());
  }
  return result;
}

TEST_CASE("gradients of vectors from long prompts on the CUDA backend equal the CPU's") {
  auto const host = pooled_gradients<CpuBackend<float>>();
  auto const device = pooled_gradients<CudaBackend<float>>();
  for (std::size_t k = 0; k < host.size(); ++k) {
    INFO("pooling " << k);
    CHECK(distance(device[k], host[k]) <= 1e-4);  // f32 on both sides, as for the golden gradients
  }
  CHECK(pooled_gradients<CudaBackend<float>>() == device);
}

/// Examples of equal lengths, so that batches of them differ in nothing but their order.
template <class S>
std::vector<Example> sentences(S& s, int count, std::uint64_t seed, bool equal = false) {
  Random random(seed);
  std::vector<Example> examples(static_cast<std::size_t>(count));
  for (auto& example : examples) {
    example.prompt = example.first_loss = equal ? 3 : testing::pick(random, 2, 4);
    for (index_t k = example.prompt + 3; k > 0; --k) example.tokens.push_back(s.token(random));
  }
  return examples;
}

struct Outcome {
  std::vector<double> losses, norms;
  std::vector<float> start, end;  ///< parameters, heads behind them
  double validation = 0;
};

/// `stop`: behind that step the training is written to files, and another one goes on with them.
template <class B, class List = AllAdapters, class P>
Outcome outcome_of(P const& policy, TrainerOptions options, index_t stop = -1, bool head = false) {
  using S = Setting<B, List>;
  Outcome outcome;
  TemporaryFolder out;
  CheckpointFolder checkpoints(out.path());
  for (bool finished = false; !finished;) {
    S s(head ? "llama_classifier" : "llama_pedro");
    auto module = s.module("m", policy, true);
    TrainingData data{sentences(s, 4, 5), {}, {}};
    if constexpr (std::same_as<P, PedroGenerator>) data.second = sentences(s, 3, 6);
    for (std::size_t k = 0; k < data.train.size(); ++k) {
      if (options.parts > 0 && k < 3) data.train[k].part = static_cast<index_t>(k) % options.parts;
      if (head) data.train[k].first_loss = 0, data.train[k].label = static_cast<std::int32_t>(k % 2);
    }
    data.validation = data.train;
    if (head) s.bring_head(module);
    auto const values = [&] {
      std::vector<float> all(module.parameters().begin(), module.parameters().end());
      for (auto const& [name, saved] : module.saved) all.insert(all.end(), saved.values.begin(), saved.values.end());
      return all;
    };
    if (outcome.start.empty()) outcome.start = values();
    Trainer<typename S::M, P> trainer(s.model, s.be, module, data, options);
    if (checkpoints.newest() >= 0) trainer.read(checkpoints.read());
    std::atomic<bool> stopped = false;
    TrainerHooks hooks;
    hooks.stop = &stopped;
    hooks.progress = [&](TrainingProgress const& progress) {
      outcome.losses.push_back(progress.loss), outcome.norms.push_back(progress.norm);
      stopped = progress.step == stop;
    };
    hooks.save = [&] { trainer.write(checkpoints, {}, [](std::filesystem::path const&) {}); };
    auto const result = trainer.run(hooks);
    finished = result.finished;
    CHECK(result.step == static_cast<index_t>(outcome.losses.size()));  // every step is told, in order
    outcome.end = values();
    if (finished) outcome.validation = *result.best_loss;
  }
  return outcome;
}

TrainerOptions steps_of(index_t steps, double rate) {
  TrainerOptions options;
  options.steps = options.validate_every = steps, options.batch = 2, options.accumulate = 2, options.rate = rate;
  return options;
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
  CHECK(device.validation < 0.98 * device.losses[0]);
}

template <class P>
void goes_as_on_the_host(P const& policy, double rate) {
  INFO(P::peft_type);
  auto options = steps_of(5, rate);
  options.dropout = std::same_as<P, LoRADelta> ? 0.1 : 0;
  options.adamw.weight_decay = 0.01;
  auto const host = outcome_of<CpuBackend<float>>(policy, options);
  check_outcome(outcome_of<CudaBackend<float>>(policy, options), host, 1e-3);
  if (std::same_as<P, LoRADelta>)
    check_outcome(outcome_of<CudaBackend<bf16>>(policy, options), host, 2e-2);  // logits of bf16 are 2^-9 off
}

TEST_CASE("a training on the CUDA backend goes as the CPU's") {
  RoAdRotation road{.group_size = 4};
  goes_as_on_the_host(LoRADelta{.rank = 4, .alpha = 8}, 1e-2);
  goes_as_on_the_host(road, 3e-2);
  goes_as_on_the_host(IA3Scaling{.feedforward_modules = {"down_proj"}}, 5e-2);
  goes_as_on_the_host(PedroGenerator{.rank = 4}, 1e-2);
}

// Steps of gradient descent show the gradient itself, of every parameter.
template <class List = AllAdapters, class P>
void descends_as_on_the_host(P const& policy, index_t parts = 0, bool head = false) {
  INFO(P::peft_type);
  auto options = steps_of(3, 0.5);
  options.method = TrainerOptions::Method::sgd, options.sgd.momentum = 0.5;
  options.clip = 0.3, options.parts = parts, options.expansion_ratio = 2, options.activation_ratio = 0.5;
  auto host = outcome_of<CpuBackend<float>, List>(policy, options, -1, head);
  auto device = outcome_of<CudaBackend<float>, List>(policy, options, -1, head);
  REQUIRE(device.start == host.start);
  for (auto* end : {&host.end, &device.end})
    for (std::size_t k = 0; k < end->size(); ++k) (*end)[k] -= host.start[k];
  CHECK(distance(device.end, host.end) <= 1e-3);  // three gradients that are 1e-4 off, each where the last one has led
  REQUIRE(device.norms.size() == host.norms.size());
  for (std::size_t k = 0; k < host.norms.size(); ++k) CHECK(device.norms[k] == Approx(host.norms[k]).epsilon(1e-3));
  CHECK(*std::max_element(host.norms.begin(), host.norms.end()) > 0.3);  // something was clipped
}

TEST_CASE("steps on the CUDA backend move every parameter as the CPU's") {
  for (auto const variant : {RoAdRotation::Variant::road_2, RoAdRotation::Variant::road_4})
    descends_as_on_the_host(RoAdRotation{.variant = variant, .group_size = 4});
  descends_as_on_the_host(LoRADelta{.rank = 3, .alpha = 6});  // the embedding too
  descends_as_on_the_host(IA3Scaling{.feedforward_modules = {"down_proj"}});
  PedroGenerator pedro{.rank = 3, .pooling = PedroGenerator::Pooling::attention};  // bi-level
  pedro.up_bias = true;
  descends_as_on_the_host(pedro);
  SECTION("a head that the module brings") { descends_as_on_the_host(LoRADelta{.rank = 2, .alpha = 4}, 0, true); }
  SECTION("by way of the host") {
    descends_as_on_the_host(RoAdRotation{.variant = RoAdRotation::Variant::road_2, .group_size = 4}, 2);  // parts
    descends_as_on_the_host<Adapters<BitFit, LoRADelta>>(BitFit{});
  }
}

TEST_CASE("a training on the CUDA backend that was stopped ends with the same bits") {
  auto const options = steps_of(4, 1e-2);
  LoRADelta const lora{.rank = 4, .alpha = 8};
  auto const whole = outcome_of<CudaBackend<bf16>>(lora, options, -1, true),
             parts = outcome_of<CudaBackend<bf16>>(lora, options, 2, true);
  CHECK(parts.end == whole.end);
  CHECK(parts.losses == whole.losses);
  CHECK(parts.validation == whole.validation);
}

/// Three steps of two modules that share requests: their maps are composed, so each step publishes them anew.
template <class B>
std::vector<float> shared_requests() {
  Setting<B> s;
  auto road = s.module("road", RoAdRotation{.group_size = 4}, true);
  auto ia3 = s.module("ia3", IA3Scaling{.feedforward_modules = {"down_proj"}}, true);
  auto const sgd = [](auto ranges) { return std::make_unique<Sgd<float, OptimizerRunner<B>>>(std::move(ranges)); };
  ModuleOptimizer<RoAdRotation, B> road_steps(road, sgd);
  ModuleOptimizer<IA3Scaling, B> ia3_steps(ia3, sgd);
  TrainingPass pass(s.model, s.be);
  auto const lines = sentences(s, 3, 8);
  Gradients<B> gradients;
  for (int step = 0; step < 3; ++step) {
    road_steps.publish(s.be, s.model.bank(), gradients);
    ia3_steps.publish(s.be, s.model.bank(), gradients);
    std::vector<TrainingSequence<B>> batch;
    std::vector<index_t> wanted;
    std::vector<LossRow> rows;
    index_t first = 0;
    for (auto const& line : lines) {
      batch.push_back({line.tokens, s.model.bank().resolve({{"road", 1}, {"ia3", 0.7}})});
      for (std::size_t k = 0; k + 1 < line.tokens.size(); ++k) {
        wanted.push_back(first + static_cast<index_t>(k));
        rows.push_back({line.tokens[k + 1], 0.1});
      }
      first += static_cast<index_t>(line.tokens.size());
    }
    pass.forward(batch, gradients);
    CrossEntropy<B> loss(s.be, rows);
    pass.head(wanted, loss);
    pass.backward();
    road_steps.step(s.be, gradients, group_rates(0.2));
    ia3_steps.step(s.be, gradients, group_rates(0.2));
  }
  road_steps.store(s.be), ia3_steps.store(s.be);
  std::vector<float> all(road.parameters().begin(), road.parameters().end());
  all.insert(all.end(), ia3.parameters().begin(), ia3.parameters().end());
  return all;
}

TEST_CASE("modules whose maps are composed learn on the CUDA backend as on the CPU") {
  CHECK(distance(shared_requests<CudaBackend<float>>(), shared_requests<CpuBackend<float>>()) <= 1e-4);
}

#if defined(GRAFT_CUDA_EMULATION)
/// How often the host waits, takes memory and starts kernels in each step of a training, from progress to progress.
template <class P>
void waits_once(P const& policy, bool head = false) {
  INFO(P::peft_type);
  using B = CudaBackend<bf16>;
  Setting<B> s(head ? "llama_classifier" : "llama_pedro");
  auto module = s.module("m", policy, true);
  if (head) s.bring_head(module);
  auto data = sentences(s, 4, 5, true);
  for (auto& example : data)
    if (head) example.first_loss = example.label = 0;
  TrainerOptions options;
  options.steps = 12, options.batch = 2, options.accumulate = 2, options.save_every = 100;
  Trainer<typename Setting<B>::M, P> trainer(s.model, s.be, module, {data, {}, {}}, options);
  auto& device = emulation::Device::get();
  struct Counts {
    std::size_t waits, reports, memory, kernels, copies;
  };
  std::vector<Counts> seen;
  TrainerHooks hooks;
  hooks.progress = [&](TrainingProgress const&) {
    seen.push_back({device.synchronizations - device.event_synchronizations, device.event_synchronizations,
                    emulation::Memory::get().allocations + device.pinned_allocations, device.calls.kernels,
                    device.calls.copies});
  };
  trainer.run(hooks);
  REQUIRE(seen.size() == 12);
  for (std::size_t k = 5; k + 1 < seen.size(); ++k) {  // the last step ends the training
    CHECK(seen[k].memory == seen[k - 1].memory);
    CHECK(seen[k].waits == seen[k - 1].waits);
    // the report of the step before, and at most one more where what was uploaded long ago must be gone
    CHECK(seen[k].reports - seen[k - 1].reports >= 1);
    CHECK(seen[k].reports - seen[k - 1].reports <= 2);
  }
  std::printf("a training step of 2 layers and 2 batches, %s: %zu launches and %zu copies\n",
              std::string(P::peft_type).c_str(), seen[9].kernels - seen[8].kernels, seen[9].copies - seen[8].copies);
  CHECK(finish() == "");
}

TEST_CASE("a step of a training takes no memory and waits for nothing but the step before") {
  waits_once(LoRADelta{.rank = 4, .alpha = 8});
  waits_once(RoAdRotation{.group_size = 4});
  waits_once(IA3Scaling{});
  waits_once(PedroGenerator{.rank = 4});
  waits_once(LoRADelta{.rank = 2}, true);
}
#endif

}  // namespace
