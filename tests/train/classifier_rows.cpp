// SPDX-License-Identifier: Apache-2.0
// A classifier is trained on the answer that a context gives, at the row and with the positions it is read with.
#include <graft/adapter/lora.hpp>
#include <graft/arch/bert.hpp>
#include <graft/arch/llama.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/io/model_files.hpp>
#include <graft/model/context.hpp>
#include <graft/train/trainer.hpp>
#include <tests/catch.hpp>

#include <cmath>
#include <span>
#include <string>
#include <vector>

namespace {

using namespace graft;
using DoubleBackend = CpuBackend<double>;

/// The cross-entropy of an example from what the model answers, before and in training.
template <class Arch>
void check(std::string const& name) {
  auto const files = open_model(GRAFT_TEST_DATA "/models/" + name);
  Model<Arch, Adapters<LoRADelta>, DoubleBackend> model(files.config, files.weights);
  Example const example{.tokens = {5, 9, 1, 7, 1}, .prompt = 5, .label = 1, .target = {}};  // 1 is padding
  REQUIRE(files.config.padding == 1);
  DoubleBackend be;
  Context context(model, be);
  auto sequence = context.start();
  SequenceInput<DoubleBackend> const input{&sequence, example.tokens};
  std::vector<double> logits(files.config.labels.size());
  context.classify(std::span(&input, 1), matrix_view(logits.data(), 1, static_cast<index_t>(logits.size())));
  double sum = 0;
  for (double const logit : logits) sum += std::exp(logit - logits[1]);

  auto module =
      make_module<LoRADelta, DoubleBackend>("m", LoRADelta{.rank = 2}, model.sites(), {0});  // starts without effect
  Trainer<decltype(model), LoRADelta> trainer(model, be, module, {{example}, {}, {}}, {});
  // the same operations in double
  CHECK(trainer.evaluate(std::span(&example, 1)).mean() == Approx(std::log(sum)).epsilon(1e-12));
}

TEST_CASE("a classifier learns from the row in which it answers") {
  check<Llama>("llama_classifier");
  check<Bert>("roberta_classifier");
}

TEST_CASE("what predicts masked tokens is not trained as if it predicted the next") {
  auto const files = open_model(GRAFT_TEST_DATA "/models/bert_masked");
  Model<Bert, Adapters<LoRADelta>, DoubleBackend> model(files.config, files.weights);
  auto module = make_module<LoRADelta, DoubleBackend>("m", LoRADelta{.rank = 2}, model.sites(), {0});
  Example const example{.tokens = {5, 9, 3}, .prompt = 1, .first_loss = 1, .target = {}};
  DoubleBackend be;
  using T = Trainer<decltype(model), LoRADelta>;
  CHECK_THROWS_WITH(T(model, be, module, {{example}, {}, {}}, {}), Catch::Contains("predicts masked tokens"));
}

}  // namespace
