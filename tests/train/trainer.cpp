// SPDX-License-Identifier: Apache-2.0
// The training loop: it learns, stops and goes on without a trace, and gives the same bits however it is run.
#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/pedro.hpp>
#include <graft/adapter/road.hpp>
#include <graft/arch/bert.hpp>
#include <graft/arch/llama.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/io/model_files.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/random.hpp>
#include <graft/train/trainer.hpp>
#include <tests/catch.hpp>
#include <tests/io/files.hpp>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

namespace {

using namespace graft;
using namespace graft_test;
using AllAdapters = Adapters<IA3Scaling, RoAdRotation, LoRADelta, PedroGenerator>;

template <class P>
std::vector<index_t> sites_for(SiteTable const& sites, P const& policy) {
  std::vector<index_t> at;
  for (index_t s = 0; s < sites.size(); ++s)
    if (sites[s].layer >= 0 && policy.accepts(sites[s])) at.push_back(s);
  return at;
}

/// Sequences of a prompt of 3 to 6 tokens and 2 to 4 more.
std::vector<Example> sentences(std::size_t count, index_t vocabulary, std::uint64_t seed) {
  Random random(seed);
  std::vector<Example> examples(count);
  for (auto& example : examples) {
    example.prompt = example.first_loss = testing::pick(random, 3, 6);
    for (index_t k = example.prompt + testing::pick(random, 2, 4); k > 0; --k)
      example.tokens.push_back(static_cast<std::int32_t>(testing::pick(random, 0, vocabulary - 1)));
  }
  return examples;
}

/// A tiny model, and a module on every site its policy can sit on.
template <class P, class B, class Arch = Llama>
struct Setting {
  using M = Model<Arch, AllAdapters, B>;
  using T = Trainer<M, P>;

  explicit Setting(P const& policy, std::string const& name = "llama_pedro", Executor* executor = nullptr)
      : be(executor == nullptr ? serial : *executor),
        files(open_model(std::string(GRAFT_TEST_DATA "/models/") + name)),
        model(files.config, files.weights),
        module(make_module<P, B>("m", policy, model.sites(), sites_for(model.sites(), policy), 3)) {}

  std::vector<Real<B>> values() {
    auto const view = module.parameters();
    return {view.begin(), view.end()};
  }
  index_t vocabulary() const { return files.config.vocabulary; }

  SerialExecutor serial;
  B be;
  ModelFiles files;
  M model;
  Module<P, B> module;
};

RoAdRotation road_2() {
  RoAdRotation policy;
  policy.group_size = 2;
  return policy;
}
PedroGenerator small_pedro() { return {.rank = 4}; }

template <class P>
void learns(P const& policy, double rate, double at_most) {
  Setting<P, CpuBackend<float>> s(policy);
  TrainingData data{sentences(6, s.vocabulary(), 5), {}, {}};
  TrainerOptions options;
  options.steps = 60, options.batch = 3, options.accumulate = 2, options.rate = rate;
  typename Setting<P, CpuBackend<float>>::T trainer(s.model, s.be, s.module, data, options);
  auto const before = trainer.evaluate(data.train);
  auto const result = trainer.run();
  auto const after = trainer.evaluate(data.train);
  INFO(P::peft_type << " " << before.mean() << " -> " << after.mean());
  CHECK(result.finished);
  CHECK(after.mean() < at_most * before.mean());
}

// The models are random, so what a method cannot move in 60 steps says nothing about it; each must get well below its
// start, which a wrong sign, scale or row would not.
TEST_CASE("every method learns six sentences by heart, as far as it can") {
  learns(LoRADelta{.rank = 8, .alpha = 16}, 1e-2, 0.2);
  learns(road_2(), 5e-2, 0.4);
  learns(IA3Scaling{.feedforward_modules = {"down_proj"}}, 1e-1, 0.5);
  learns(small_pedro(), 3e-2, 0.4);
}

struct Outcome {
  std::vector<float> values;
  double best = 0;
  index_t best_step = 0;
};

TrainerOptions difficult() {
  TrainerOptions options;
  options.steps = 11, options.batch = 3, options.accumulate = 2, options.rate = 2e-2, options.warmup = 0.2;
  options.dropout = 0.2, options.adamw.weight_decay = 0.01, options.loss = {0.1, 1e-4}, options.validate_every = 3;
  options.expansion_ratio = 4, options.seed = 9;
  return options;
}

/// Trains with validation and a second split; stops behind each of `stops` and goes on in a new program, as it were.
template <class P>
Outcome train(P const& policy, TrainerOptions const& options, std::vector<index_t> const& stops = {},
              index_t threads = 1) {
  TemporaryFolder out;
  CheckpointFolder checkpoints(out.path());
  nlohmann::ordered_json const description{{"seed", options.seed}};
  for (std::size_t part = 0;; ++part) {
    ThreadPool pool(threads);
    Setting<P, CpuBackend<float>> s(policy, "llama_pedro", &pool);
    TrainingData data{sentences(13, s.vocabulary(), 5), sentences(4, s.vocabulary(), 6),
                      sentences(5, s.vocabulary(), 7)};
    typename Setting<P, CpuBackend<float>>::T trainer(s.model, s.be, s.module, data, options);
    if (checkpoints.newest() >= 0) trainer.read(checkpoints.read());
    std::atomic<bool> stop = false;
    TrainerHooks hooks;
    hooks.stop = &stop;
    hooks.progress = [&](TrainingProgress const& progress) {
      stop = part < stops.size() && progress.step == stops[part];
    };
    hooks.save = [&] { trainer.write(checkpoints, description, [](std::filesystem::path const&) {}); };
    auto const result = trainer.run(hooks);
    CHECK(result.step == (part < stops.size() ? stops[part] : options.steps));
    if (result.finished) return {s.values(), *result.best_loss, result.best_step};
    CHECK(checkpoints.newest() == stops[part]);
  }
}

TEST_CASE("a training that was stopped ends with the same bits as one that was not") {
  auto const options = difficult();
  auto const whole = train(small_pedro(), options);
  for (auto const& stops : {std::vector<index_t>{1}, {5}, {2, 6, 10}}) {
    auto const parts = train(small_pedro(), options, stops);
    CHECK(parts.values == whole.values);
    CHECK(parts.best == whole.best);
    CHECK(parts.best_step == whole.best_step);
  }
  auto lora = options;
  lora.method = TrainerOptions::Method::sgd, lora.sgd = {.momentum = 0.9};
  CHECK(train(LoRADelta{.rank = 2}, lora, {4}).values == train(LoRADelta{.rank = 2}, lora).values);
}

TEST_CASE("threads and recomputed layers change no bit", "[many_threads]") {
  auto options = difficult();
  options.steps = 3;
  auto const expected = train(small_pedro(), options);
  CHECK(train(small_pedro(), options, {}, 2).values == expected.values);
  options.recompute = true;
  CHECK(train(small_pedro(), options, {}, 3).values == expected.values);
  auto const again = train(LoRADelta{.rank = 2}, options, {}, 3);
  options.recompute = false;
  CHECK(train(LoRADelta{.rank = 2}, options).values == again.values);
}

TEST_CASE("accumulated batches are one batch") {
  TrainerOptions whole = difficult(), parts = whole;
  whole.steps = parts.steps = 3;
  whole.dropout = parts.dropout = 0;  // which mask an example gets depends on nothing but step and place
  whole.batch = 6, whole.accumulate = 1;
  auto const one = train(LoRADelta{.rank = 2}, whole).values, two = train(LoRADelta{.rank = 2}, parts).values;
  // sums of the same terms in another order: f32's roundings, which Adam's first steps on tiny gradients may enlarge
  auto const size = static_cast<index_t>(one.size());
  CHECK(testing::relative_l2(matrix_view(one.data(), 1, size), matrix_view(two.data(), 1, size)) < 1e-4);
  parts.dropout = whole.dropout = 0.5;
  CHECK(train(LoRADelta{.rank = 2}, parts).values != two);
}

TEST_CASE("two modules trained in one batch equal the two trained apart") {
  using B = CpuBackend<double>;
  using S = Setting<LoRADelta, B>;
  S s(LoRADelta{.rank = 3});
  auto road = make_module<RoAdRotation, B>("r", road_2(), s.model.sites(), sites_for(s.model.sites(), road_2()), 4);
  std::vector<std::vector<Example>> const data{sentences(3, s.vocabulary(), 5), sentences(4, s.vocabulary(), 6)};
  auto const run = [&](std::vector<std::size_t> const& which) {
    auto lora_now = s.module.clone();
    auto road_now = road.clone();
    auto const adamw = [](auto ranges) { return std::make_unique<AdamW<double>>(std::move(ranges)); };
    ModuleOptimizer<LoRADelta, B> lora_steps(lora_now, adamw);
    ModuleOptimizer<RoAdRotation, B> road_steps(road_now, adamw);
    TrainingPass pass(s.model, s.be);
    std::vector<double> losses;
    for (int step = 0; step < 4; ++step) {
      Gradients<B> gradients;
      lora_steps.publish(s.be, s.model.bank(), gradients);
      road_steps.publish(s.be, s.model.bank(), gradients);
      std::vector<TrainingSequence<B>> sequences;
      std::vector<index_t> wanted;
      std::vector<LossRow> rows;
      index_t row = 0;
      for (std::size_t k = 0; k < 4; ++k)  // sequences of both, in turn
        for (std::size_t w : which) {
          if (k >= data[w].size()) continue;
          auto const& example = data[w][k];
          sequences.push_back({example.tokens, s.model.bank().resolve({{w == 0 ? "m" : "r"}}), example.prompt});
          for (index_t t = example.first_loss; t < static_cast<index_t>(example.tokens.size()); ++t) {
            wanted.push_back(row + t - 1);
            rows.push_back({example.tokens[static_cast<std::size_t>(t)], w == 0 ? 0.1 : 0.05, static_cast<index_t>(w)});
          }
          row += static_cast<index_t>(example.tokens.size());
        }
      pass.forward(sequences, gradients);
      CrossEntropy<B> loss(s.be, rows);
      pass.head(wanted, loss);
      pass.backward();
      for (std::size_t w : which) {
        losses.push_back(loss.sums(static_cast<index_t>(w)).mean());
        if (w == 0) lora_steps.step(s.be, gradients, group_rates(0.02), 0.5);
        if (w == 1) road_steps.step(s.be, gradients, group_rates(0.05), 0.7);
      }
    }
    auto const a = lora_now.parameters(), b = road_now.parameters();
    testing::Vector all(a.begin(), a.end());
    all.insert(all.end(), b.begin(), b.end());
    return all;
  };
  auto const both = run({0, 1}), first = run({0}), second = run({1});
  testing::Vector none = s.values();
  none.insert(none.end(), road.parameters().begin(), road.parameters().end());
  auto const size = static_cast<std::size_t>(s.module.parameters().size);
  testing::Vector apart(first.begin(), first.begin() + static_cast<std::ptrdiff_t>(size));
  apart.insert(apart.end(), second.begin() + static_cast<std::ptrdiff_t>(size), second.end());
  auto const view = [](testing::Vector const& v) { return matrix_view(v.data(), 1, static_cast<index_t>(v.size())); };
  CHECK(testing::relative_l2(view(both), view(apart)) < 1e-12);  // another batch, another order of some sums
  CHECK(testing::relative_l2(view(both), view(none)) > 1e-2);
  CHECK(std::equal(first.begin() + static_cast<std::ptrdiff_t>(size), first.end(),
                   none.begin() + static_cast<std::ptrdiff_t>(size)));  // what is not in the batch stays
}

// One step of gradient descent from the same start says what was learned from: the parts of a module in one batch
// against each part as a module of its own, on its task's examples alone.
TEST_CASE("parts of a module learn in one batch what each learns alone") {
  using B = CpuBackend<double>;
  RoAdRotation const policy{.variant = RoAdRotation::Variant::road_2, .group_size = 4, .positions = {{1, -1}}};
  Setting<RoAdRotation, B> s(policy), apart(policy);
  Random random(4);
  for (double& value : s.module.parameters()) value += 0.3 * random.normal();
  auto data = sentences(9, s.vocabulary(), 6);
  std::vector<Example> of_task[3];  // the last one's part is the whole module
  index_t rows[3] = {}, all = 0;
  for (std::size_t k = 0; k < data.size(); ++k) {
    data[k].part = k % 3 < 2 ? static_cast<index_t>(k % 3) : -1;
    of_task[k % 3].push_back(data[k]);
    rows[k % 3] += data[k].loss_rows(), all += data[k].loss_rows();
  }
  TrainerOptions options;
  options.steps = 1, options.batch = 9, options.rate = 1, options.clip = 0;
  options.method = TrainerOptions::Method::sgd, options.schedule = Schedule::Kind::constant;

  auto expected = s.values();
  for (index_t task = 0; task < 3; ++task) {
    auto const range = [task](index_t outputs) {
      return task < 2 ? part_of_blocks(outputs, task, 2) : BlockRange{0, outputs / 2};
    };
    apart.module = subspace(s.module, apart.model.sites(), range);
    auto const start = apart.values();
    for (auto& example : of_task[task]) example.part = -1;
    Setting<RoAdRotation, B>::T(apart.model, apart.be, apart.module, {of_task[task], {}, {}}, options).run();
    auto const end = apart.values();
    auto const belongs = parameters_of_blocks(s.module, s.model.sites(), range);
    double const share = static_cast<double>(rows[task]) / static_cast<double>(all);
    for (std::size_t k = 0; k < expected.size(); ++k)
      if (belongs[k]) expected[k] += share * (end[k] - start[k]);
  }
  options.parts = 2;
  Setting<RoAdRotation, B>::T trainer(s.model, s.be, s.module, {data, {}, {}}, options);
  trainer.run();
  auto const found = s.values();
  double worst = 0;
  for (std::size_t k = 0; k < found.size(); ++k) worst = std::max(worst, std::abs(found[k] - expected[k]));
  CHECK(worst <= 1e-12);  // sums of the same terms in another order
  CHECK(std::any_of(found.begin(), found.end(), [](double x) { return x != 0 && x != 1; }));

  options.parts = 1;
  CHECK_THROWS_WITH((Setting<RoAdRotation, B>::T(s.model, s.be, s.module, {data, {}, {}}, options)),
                    "graft: an example is for part 1 of the module, which has 1 parts");
  Setting<LoRADelta, B> lora(LoRADelta{.rank = 2});
  CHECK_THROWS_WITH((Setting<LoRADelta, B>::T(lora.model, lora.be, lora.module, {data, {}, {}}, options)),
                    "graft: only RoAd has blocks that can be shared out among tasks, not LORA");
}

TEST_CASE("bi-level: the rational moves on the second split's gradient alone, everything else on the first's") {
  using B = CpuBackend<double>;
  using S = Setting<PedroGenerator, B>;
  TrainerOptions options;
  options.method = TrainerOptions::Method::sgd;  // its steps show the gradient itself
  options.steps = 1, options.batch = 4, options.rate = 0.5, options.clip = 0;
  options.schedule = Schedule::Kind::constant;
  auto const step = [&](std::vector<Example> const& train, std::vector<Example> const& second, double activation) {
    S s(small_pedro());
    Random random(2);
    for (double& value : s.module.parameters())
      value += 0.05 * random.normal();  // at the start l = 1 hides the rational
    auto const before = s.values();
    auto here = options;
    here.activation_ratio = activation;
    S::T trainer(s.model, s.be, s.module, {train, {}, second}, here);
    trainer.run();
    auto values = s.values();
    for (std::size_t k = 0; k < values.size(); ++k) values[k] -= before[k];
    return values;
  };
  S s(small_pedro());
  auto const ranges = parameter_ranges(s.module);
  auto const part = [&](std::vector<double> const& values, bool activation) {
    std::vector<double> result;
    for (auto const& range : ranges)
      if ((range.group == ParameterGroup::activation) == activation)
        result.insert(result.end(), values.begin() + range.first, values.begin() + range.first + range.size);
    return result;
  };
  auto const none = [](std::vector<double> const& values) {
    return std::all_of(values.begin(), values.end(), [](double v) { return v == 0; });
  };
  auto const a = sentences(4, s.vocabulary(), 5), b = sentences(4, s.vocabulary(), 6),
             c = sentences(4, s.vocabulary(), 7);
  auto const both = step(a, b, 1), frozen = step(a, {}, 0), other = step(a, c, 1), still = step(a, b, 0);
  CHECK_FALSE(none(part(both, true)));
  CHECK_FALSE(none(part(both, false)));
  CHECK(part(both, false) == part(frozen, false));  // what the first split alone does
  CHECK(part(both, false) == part(other, false));   // the second split does not matter to it
  CHECK(part(both, true) != part(other, true));
  CHECK(none(part(still, true)));

  // and its step is minus the rate times the second split's gradient, at the parameters the first step left
  Random random(2);
  for (double& value : s.module.parameters()) value += 0.05 * random.normal();
  auto const moved = part(both, false);
  std::size_t next = 0;
  for (auto const& range : ranges)
    if (range.group != ParameterGroup::activation)
      for (index_t k = 0; k < range.size; ++k) s.module.parameters()[range.first + k] += moved[next++];
  S::T trainer(s.model, s.be, s.module, {b, {}, {}}, options);
  auto const at = [&](double change, index_t k) {
    s.module.parameters()[k] += change;
    double const loss = trainer.evaluate(b).mean();
    s.module.parameters()[k] -= change;
    return loss;
  };
  auto const rational = part(both, true);
  next = 0;
  for (auto const& range : ranges)
    if (range.group == ParameterGroup::activation)
      for (index_t k = range.first; k < range.first + range.size; ++k, ++next) {
        double const h = 1e-5;  // the largest of these gradients is about 1e-2; the quotient is good to 1e-10
        double const slope = (at(h, k) - at(-h, k)) / (2 * h);
        CHECK(rational[next] == Approx(-options.rate * slope).epsilon(1e-5).margin(1e-8));
      }
}

template <class Arch>
void classifies(std::string const& name, std::string const& head_name) {
  using B = CpuBackend<float>;
  Setting<LoRADelta, B, Arch> s(LoRADelta{.rank = 4}, name);
  using T = typename decltype(s)::T;
  Random random(4);
  std::vector<Example> examples(8);
  for (std::size_t k = 0; k < examples.size(); ++k) {
    for (int t = 0; t < 6; ++t)
      examples[k].tokens.push_back(static_cast<std::int32_t>(testing::pick(random, 0, s.vocabulary() - 1)));
    examples[k].label = static_cast<std::int32_t>(k % s.files.config.labels.size());
    examples[k].prompt = 6;
  }
  auto const& weight = s.files.weights.tensors.at(head_name);
  SavedTensor head{{weight.rows, weight.cols}, std::vector<float>(static_cast<std::size_t>(weight.rows * weight.cols))};
  for (index_t r = 0; r < weight.rows; ++r) weight.row(r, head.values.data() + r * weight.cols);
  s.module.saved[head_name] = head;
  auto const start = s.values();
  TrainerOptions options;
  options.steps = 40, options.batch = 4, options.rate = 2e-2;
  T trainer(s.model, s.be, s.module, {examples, examples, {}}, options);
  CHECK(trainer.parameters() == static_cast<index_t>(start.size() + head.values.size()));
  std::optional<double> accuracy;
  TrainerHooks hooks;
  hooks.progress = [&](TrainingProgress const& progress) {
    if (progress.validation_accuracy) accuracy = progress.validation_accuracy;
  };
  trainer.run(hooks);
  CHECK(accuracy == 1.0);
  CHECK(s.values() != start);
  CHECK(s.module.saved[head_name].values != head.values);
  CHECK_THROWS_AS((T(s.model, s.be, s.module, {{}, {}, {}}, options)), ContractError);
}

TEST_CASE("classifiers learn with a head of their own, which reads the first token or the last") {
  classifies<Bert>("bert_classifier", "classifier.weight");
  classifies<Llama>("llama_classifier", "score.weight");
}

TEST_CASE("a model with one label learns numbers") {
  Setting<LoRADelta, CpuBackend<float>, Bert> three(LoRADelta{.rank = 4}, "bert_classifier");
  auto files = three.files;
  files.config.labels = {"score"};
  files.weights.tensors.at("classifier.weight").rows = 1;  // the first output alone
  files.weights.tensors.at("classifier.bias").cols = 1;
  Model<Bert, AllAdapters, CpuBackend<float>> model(files.config, files.weights);
  std::vector<Example> examples(6);
  for (std::size_t k = 0; k < examples.size(); ++k) {
    examples[k].tokens = {1, static_cast<std::int32_t>(5 + 3 * k), static_cast<std::int32_t>(70 - 5 * k), 2};
    examples[k].prompt = 4, examples[k].target = 0.3 * static_cast<double>(k) - 1;
  }
  TrainerOptions options;
  options.steps = 60, options.batch = 3, options.accumulate = 2, options.rate = 1e-2;
  Trainer<decltype(model), LoRADelta> trainer(model, three.be, three.module, {examples, examples, {}}, options);
  double const before = trainer.evaluate(examples).mean();
  auto const result = trainer.run();
  double const after = trainer.evaluate(examples).mean();
  INFO(before << " -> " << after);
  CHECK(after < 0.05 * before);  // the targets vary by 0.26 about their mean: no constant gets there
  CHECK(*result.best_loss == after);
}

TEST_CASE("a training that went wrong says so") {
  Setting<LoRADelta, CpuBackend<float>> s(LoRADelta{.rank = 2});
  TrainerOptions options;
  options.rate = 1e30, options.clip = 0, options.steps = 50, options.method = TrainerOptions::Method::sgd;
  decltype(s)::T trainer(s.model, s.be, s.module, {sentences(3, s.vocabulary(), 1), {}, {}}, options);
  CHECK_THROWS_WITH(trainer.run(), Catch::Contains("a lower learning rate"));
}

}  // namespace
