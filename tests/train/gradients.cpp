// SPDX-License-Identifier: Apache-2.0
// Gradients of whole models against central differences, in double: every architecture, every policy, one mixed batch.
#include <tests/catch.hpp>

#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/pedro.hpp>
#include <graft/adapter/road.hpp>
#include <graft/arch/architectures.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/io/model_files.hpp>
#include <graft/testing/random.hpp>
#include <graft/train/trainable_weights.hpp>
#include <graft/train/training_pass.hpp>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <string>

namespace {

using namespace graft;
using DoubleBackend = CpuBackend<double>;
using AllAdapters = Adapters<IA3Scaling, RoAdRotation, LoRADelta, PedroGenerator>;

ModelFiles files_of(std::string const& model) { return open_model(std::string(GRAFT_TEST_DATA "/models/") + model); }

// One sequence of the batch, and what it asks for.
struct Line {
  std::vector<std::int32_t> tokens;
  std::vector<AdapterUse> uses;
  index_t prompt = -1;
  double dropout = 0;
};

template <class T>
index_t elements(VectorView<T> const& tensor) {
  return tensor.size;
}
template <class T>
index_t elements(MatrixView<T> const& tensor) {
  return tensor.size();
}

std::vector<index_t> sites_for(SiteTable const& sites, auto const& policy, bool ends) {
  std::vector<index_t> result;
  for (index_t s = 0; s < sites.size(); ++s)
    if (policy.accepts(sites[s]) && (sites[s].layer >= 0 || ends)) result.push_back(s);
  return result;
}

template <class Arch>
class Fixture {
 public:
  using M = Model<Arch, AllAdapters, DoubleBackend>;

  explicit Fixture(ModelFiles files) : Fixture(std::move(files.config), std::move(files.weights)) {}
  Fixture(ModelConfig config, WeightMap weights) : model(std::move(config), std::move(weights)) {}

  // A module away from its start, so that no gradient hides behind a zero.
  template <class P>
  void add(std::string const& name, P const& policy, bool ends = false) {
    auto module = std::make_shared<Module<P, DoubleBackend>>(
        make_module<P, DoubleBackend>(name, policy, model.sites(), sites_for(model.sites(), policy, ends), 7));
    for (auto& value : module->parameters()) value += 0.2 * random.normal();
    module->for_each([&](index_t, std::string_view suffix, auto& tensor) {
      for (index_t k = 0; suffix == "pedro_den" && k < elements(tensor); ++k)
        tensor.data[k] = 0.3 + 0.1 * static_cast<double>(k);  // away from the kink of |b| at 0
    });
    publish[name] = [this, module] { model.bank().load(be, module->clone()); };
    values[name] = [module] { return module->parameters(); };
    each_tensor[name] = [module](auto const& f) {
      module->for_each([&](index_t site, char const* suffix, auto& tensor) {
        f(text(suffix, " at site ", site), tensor.data, elements(tensor));
      });
    };
    publish[name]();
  }

  // A loss of all logits with a gradient of no special form: sum of c * y + y^2 / 20.
  double loss(TrainingPass<M>& pass, std::vector<Line> const& lines, Gradients<DoubleBackend>& gradients, bool back) {
    std::vector<TrainingSequence<DoubleBackend>> sequences;
    std::vector<index_t> wanted;
    index_t row = 0;
    for (auto const& line : lines) {
      sequences.push_back({line.tokens, model.bank().resolve(line.uses), line.prompt, {}, line.dropout, 5});
      for (std::size_t k = 0; k < line.tokens.size(); ++k, ++row)
        if (!model.config().classifier || k == 0) wanted.push_back(row);
    }
    pass.forward(sequences, gradients);
    double sum = 0;
    auto const each = [&](index_t first, MatrixView<double> logits) {
      for (index_t n = 0; n < logits.rows; ++n)
        for (index_t v = 0; v < logits.cols; ++v) {
          double const c = std::sin(static_cast<double>(1 + 7 * (first + n) + 3 * v)), y = logits(n, v);
          sum += c * y + y * y / 20;
          logits(n, v) = c + y / 10;
        }
    };
    if (back) {
      pass.head(wanted, each);
      pass.backward();
    } else {
      pass.logits(wanted, each);
    }
    return sum;
  }

  // The gradient of every tensor of every module but "frozen" along a random direction through it. A central difference
  // of fourth order errs by h^4 times a fifth derivative and by eps / h times the loss: at h = 1e-4 both lie below 1e-8
  // of what is met here; 1e-6 leaves room for curvature.
  void compare(std::vector<Line> const& lines, std::vector<bool> const& recompute, std::size_t at_least) {
    TrainingPass<M> pass(model, be, {.recompute = recompute, .head_rows = 5});
    Gradients<DoubleBackend> gradients, none;
    for (auto const& [module, load] : publish)
      if (module != "frozen") gradients.want(model.bank().find(module));
    loss(pass, lines, gradients, true);
    std::size_t tensors = 0;
    for (auto const& [module, each] : each_tensor) {
      if (module == "frozen") continue;
      auto const gradient = gradients.of(module);
      double const* const start = values[module]().data;
      each([&, module = module](std::string const& tensor, double* at, index_t size) {
        std::vector<double> direction(static_cast<std::size_t>(size)), before(at, at + size);
        double along = 0;
        for (index_t k = 0; k < size; ++k) {
          direction[static_cast<std::size_t>(k)] = random.normal();
          along += direction[static_cast<std::size_t>(k)] * gradient[at - start + k];
        }
        auto const loss_at = [&](double step) {
          for (index_t k = 0; k < size; ++k)
            at[k] = before[static_cast<std::size_t>(k)] + step * direction[static_cast<std::size_t>(k)];
          publish[module]();
          double const result = loss(pass, lines, none, false);
          std::copy(before.begin(), before.end(), at);
          publish[module]();
          return result;
        };
        double const h = 1e-4;
        double const numeric = (8 * (loss_at(h) - loss_at(-h)) - (loss_at(2 * h) - loss_at(-2 * h))) / (12 * h);
        INFO(model.config().architecture << ": " << tensor << " of " << module);
        CHECK(along == Approx(numeric).epsilon(1e-6).margin(1e-6));
        ++tensors;
      });
    }
    CHECK(tensors >= at_least);
  }

  DoubleBackend be;
  M model;
  Random random{11};
  std::map<std::string, std::function<void()>> publish;
  std::map<std::string, std::function<VectorView<double>()>> values;
  std::map<std::string, std::function<void(std::function<void(std::string, double*, index_t)> const&)>> each_tensor;
};

RoAdRotation road(RoAdRotation::Variant variant, index_t group) {
  RoAdRotation policy;
  policy.variant = variant, policy.group_size = group;
  return policy;
}

template <class Arch>
void check(ModelFiles files, bool recompute) {
  Fixture<Arch> f(std::move(files));
  index_t const g = f.model.config().head_dim % 4 == 0 ? 4 : 2;
  f.add("road1", road(RoAdRotation::Variant::road_1, g));
  f.add("road4", road(RoAdRotation::Variant::road_4, 2));
  f.add("road2", road(RoAdRotation::Variant::road_2, g));
  auto intervention = road(RoAdRotation::Variant::road_2, g);
  intervention.positions = Positions::last_prompt();
  f.add("intervention", intervention);
  intervention.positions = {{0, 2, -2}};
  f.add("listed", intervention);
  LoRADelta lora;
  lora.rank = 3, lora.alpha = 5;
  f.add("lora", lora, true);
  lora.rank = 4;
  f.add("frozen", lora);
  lora.rank = 2, lora.bias = true, lora.alpha = 3;
  f.add("biased", lora);
  IA3Scaling ia3;
  ia3.feedforward_modules = {"down_proj", "o_proj", "mlp.c_proj", "output.dense"};
  f.add("ia3", ia3);
  PedroGenerator pedro;
  pedro.rank = 3;
  f.add("pedro", pedro);
  pedro.pooling = PedroGenerator::Pooling::attention, pedro.pooler_input = PedroGenerator::PoolerInput::raw;
  pedro.offset = PedroGenerator::Offset::bias, pedro.activation = PedroGenerator::Activation::gelu;
  pedro.q_scaling = PedroGenerator::QueryScaling::after_rope;
  f.add("pedro2", pedro);

  auto const vocabulary = static_cast<std::int32_t>(f.model.config().vocabulary);
  auto const tokens = [&](int count, int seed) {
    std::vector<std::int32_t> result;
    for (int k = 0; k < count; ++k) result.push_back((seed * 31 + k * 17 + k * k) % vocabulary);
    return result;
  };
  f.compare(
      {
          {tokens(6, 1), {{"road1", 1}}},
          {tokens(3, 2), {{"lora", 1}}, -1, 0.3},
          {tokens(5, 3), {{"pedro", 1}}, 3},
          {tokens(4, 4), {}},
          {tokens(7, 5), {{"ia3", 1}, {"road4", 0.6}, {"lora", 1}, {"biased", -0.5}, {"pedro2", 1}, {"pedro", 0.5}}, 4},
          {tokens(2, 6), {{"road1", 1}}},
          {tokens(5, 7), {{"road1", 0.4}, {"road2", 0.7}, {"lora", 1.5}, {"frozen", 1}}},
          {tokens(3, 8), {{"pedro2", 1}}},
          {tokens(3, 9), {{"ia3", 1}, {"frozen", 0.5}}, -1, 0.5},
          {tokens(4, 10), {{"intervention", 1}}, 3},
          {tokens(6, 11), {{"listed", 1}}, 5},
      },
      {recompute}, 50);
}

void check(std::string const& model, bool recompute = false) {
  auto files = files_of(model);
  std::string const architecture = files.config.architecture;
  with_architecture(architecture, [&]<class Arch>() { check<Arch>(std::move(files), recompute); });
}

}  // namespace

TEST_CASE("gradients of every policy in one mixed batch equal central differences: decoders") {
  check("llama_grouped_3_linear");
  check("llama_yarn", true);
  check("mistral");
  check("qwen2");
  check("qwen3");
  check("gpt2");
  check("llama_classifier");
}
TEST_CASE("gradients of every policy in one mixed batch equal central differences: encoders") {
  check("bert_classifier");
  check("roberta", true);
  check("roberta_masked");
}

TEST_CASE("every option of PEDRO has its gradient") {
  using P = PedroGenerator;
  for (auto pooling : {P::Pooling::last, P::Pooling::mean, P::Pooling::max, P::Pooling::attention})
    for (auto activation :
         {P::Activation::rational_a, P::Activation::rational_b, P::Activation::gelu, P::Activation::silu}) {
      Fixture<Llama> f(files_of("llama_multi_head"));
      P policy;
      policy.rank = 2, policy.pooling = pooling, policy.activation = activation;
      policy.pooler_input = static_cast<P::PoolerInput>(static_cast<int>(pooling) % 2);
      policy.offset = static_cast<P::Offset>(static_cast<int>(activation) % 2);
      policy.q_scaling = static_cast<P::QueryScaling>(static_cast<int>(activation) / 2 % 2);
      f.add("pedro", policy);
      f.compare({{{3, 1, 4, 1, 5, 9}, {{"pedro", 1}}, 4}, {{2, 6, 5}, {{"pedro", -0.7}}}}, {false}, 2);
    }
}

TEST_CASE("the gradient of every tensor of a backbone equals central differences") {
  for (std::string const name : {"llama_biased", "qwen3", "gpt2", "roberta_classifier"}) {
    auto const files = files_of(name);
    TrainableWeights weights(files.weights);
    with_architecture(files.config.architecture, [&]<class Arch>() {
      auto const loss = [&](Gradients<DoubleBackend>& gradients, bool back) {
        Fixture<Arch> f(files.config, weights.map());
        if (back)
          weights.for_each([&](std::string const& tensor, auto const&) { want_base(gradients, f.model, tensor); });
        TrainingPass<typename Fixture<Arch>::M> pass(f.model, f.be);
        double const result = f.loss(pass, {{{1, 2, 3, 4, 5}, {}}, {{7, 5, 3}, {}}}, gradients, back);
        std::map<std::string, std::vector<double>> found;
        weights.for_each([&](std::string const& tensor, auto const&) {
          if (!back) return;
          auto const g = base_gradient(gradients, f.model, tensor);
          found[tensor].assign(g.begin(), g.end());
        });
        return std::pair(result, found);
      };
      Gradients<DoubleBackend> wanted, none;
      auto const gradients = loss(wanted, true).second;
      Random random(2);
      weights.for_each([&](std::string const& tensor, MatrixView<float> values) {
        auto const& gradient = gradients.at(tensor);
        std::vector<float> const before(values.data, values.data + values.size());
        std::vector<double> direction(before.size());
        for (auto& v : direction) v = random.normal();
        std::vector<double> moved(before.size());  // by what f32 could hold of the step
        auto const loss_at = [&](double step, double sign) {
          for (std::size_t k = 0; k < before.size(); ++k) {
            values.data[k] = static_cast<float>(before[k] + step * direction[k]);
            moved[k] += sign * static_cast<double>(values.data[k]);
          }
          double const result = loss(none, false).first;
          std::copy(before.begin(), before.end(), values.data);
          return result;
        };
        double const numeric = loss_at(1e-3, 1) - loss_at(-1e-3, -1);
        double along = 0;
        for (std::size_t k = 0; k < before.size(); ++k) along += gradient[k] * moved[k];
        INFO(name << ": " << tensor);
        CHECK(along == Approx(numeric).epsilon(1e-3).margin(1e-6));  // h^2 = 1e-6 times a third derivative
      });
    });
  }
}

namespace {

// Gradients of an f32 module after one pass, for comparisons of bits. Sequences of a module are the same in any batch.
std::vector<float> gradients_of(std::string const& module, std::vector<std::string> const& in_batch, bool recompute,
                                index_t threads) {
  using F = CpuBackend<float>;
  using M = Model<Llama, AllAdapters, F>;
  auto files = files_of("llama_grouped_3_linear");
  M model(std::move(files.config), std::move(files.weights));
  ThreadPool pool(threads);
  F be(pool);
  Gradients<F> gradients;
  auto const load = [&]<class P>(std::string const& name, P const& policy) {
    auto made = make_module<P, F>(name, policy, model.sites(), sites_for(model.sites(), policy, false), 3);
    Random random(5);
    for (auto& value : made.parameters()) value += static_cast<float>(0.1 * random.normal());
    model.bank().load(be, std::move(made));
    gradients.want(model.bank().find(name));
  };
  load("road", road(RoAdRotation::Variant::road_1, 2));
  LoRADelta lora;
  lora.rank = 3;
  load("lora", lora);
  PedroGenerator pedro;
  pedro.rank = 2;
  load("pedro", pedro);
  index_t const length = 70;
  std::vector<std::int32_t> tokens;
  for (index_t k = 0; k < length; ++k)
    tokens.push_back(static_cast<std::int32_t>((k * k + 3 * k) % model.config().vocabulary));
  std::vector<TrainingSequence<F>> sequences;
  std::vector<index_t> wanted;
  for (std::size_t k = 0; k < in_batch.size(); ++k) {
    sequences.push_back({tokens, model.bank().resolve({{in_batch[k], 1}}), 5, {}, 0.1, in_batch[k].size()});
    for (index_t row = 0; row < length; row += 2) wanted.push_back(static_cast<index_t>(k) * length + row);
  }
  TrainingPass<M> pass(model, be, {.recompute = {recompute}, .head_rows = 7});
  pass.forward(sequences, gradients);
  pass.head(wanted, [](index_t, MatrixView<float> logits) {
    for (index_t n = 0; n < logits.rows; ++n)
      for (index_t v = 0; v < logits.cols; ++v) logits(n, v) = std::sin(logits(n, v));
  });
  pass.backward();
  auto const result = gradients.of(module);
  CHECK(std::any_of(result.begin(), result.end(), [](float g) { return g != 0; }));
  return {result.begin(), result.end()};
}

}  // namespace

TEST_CASE("recomputed layers, threads and other modules in the batch leave every bit of a gradient as it is",
          "[many_threads]") {
  for (std::string const module : {"road", "lora", "pedro"}) {
    INFO(module);
    std::string const other = module == "road" ? "lora" : "road", third = module == "pedro" ? "lora" : "pedro";
    auto const alone = gradients_of(module, {module, module}, false, 1);
    CHECK(alone == gradients_of(module, {module, module}, true, 1));
    CHECK(alone == gradients_of(module, {module, module}, false, 3));
    CHECK(alone == gradients_of(module, {module, other, module, third}, true, 2));
    CHECK_FALSE(alone == gradients_of(module, {module, other}, false, 1));  // one sequence less is another gradient
  }
}

TEST_CASE("a module's own head is trained with it") {
  Fixture<Bert> f(files_of("bert_classifier"));
  auto const labels = static_cast<index_t>(f.model.config().labels.size()), d = f.model.config().width;
  auto const policy = road(RoAdRotation::Variant::road_1, 2);
  auto module = make_module<RoAdRotation, DoubleBackend>("road", policy, f.model.sites(),
                                                         sites_for(f.model.sites(), policy, false), 1);
  auto const normal = [&](index_t size) {
    std::vector<float> values(static_cast<std::size_t>(size));
    for (auto& value : values) value = static_cast<float>(f.random.normal());
    return values;
  };
  module.saved["classifier.weight"] = {{labels, d}, normal(labels * d)};
  module.saved["classifier.bias"] = {{labels}, normal(labels)};
  TrainingPass<Fixture<Bert>::M> pass(f.model, f.be);
  auto const loss = [&](Gradients<DoubleBackend>& gradients, bool back) {
    f.model.bank().load(f.be, module.clone());
    if (back) gradients.want(f.model.bank().find("road"));
    return f.loss(pass, {{{3, 1, 4, 1, 5}, {{"road", 1}}}, {{2, 7}, {}}, {{6, 6, 6}, {{"road", 1}}}}, gradients, back);
  };
  Gradients<DoubleBackend> gradients, none;
  loss(gradients, true);
  for (auto& [tensor, saved] : module.saved)
    for (std::size_t k = 0; k < saved.values.size(); k += 7) {
      auto const gradient = gradients.of("road", tensor)[static_cast<index_t>(k)];
      float const before = saved.values[k];
      saved.values[k] = before + 1e-2f;
      double const high = saved.values[k], above = loss(none, false);
      saved.values[k] = before - 1e-2f;
      double const low = saved.values[k], below = loss(none, false);
      saved.values[k] = before;
      INFO(tensor << " " << k);
      // the loss is quadratic in the head, so a central difference is exact up to rounding
      CHECK(gradient == Approx((above - below) / (high - low)).epsilon(1e-7).margin(1e-8));
    }
}

TEST_CASE("a forward that overwrites what its way back needs is told so") {
  Arena gradient_memory;
  DoubleBackend be;
  Gradients<DoubleBackend> gradients;
  Recorder<DoubleBackend> recorder(be, gradient_memory);
  recorder.start(gradients);
  auto const gate = recorder.arena().matrix<double>(2, 4), up = recorder.arena().matrix<double>(2, 4);
  std::fill_n(gate.data, 8, 0.5), std::fill_n(up.data, 8, 0.25);
  activate_gated(recorder, Activation::silu, gate, MatrixView<double const>(up));
  activate(recorder, Activation::gelu, up);  // up was read by the operation before
  CHECK_THROWS_WITH(recorder.backward(), Catch::Contains("give each value a buffer of its own"));
  double elsewhere = 0;
  CHECK_THROWS_WITH(recorder.gradient({&elsewhere, 1, 1, 1}), Catch::Contains("does not come from the recorder"));
}
