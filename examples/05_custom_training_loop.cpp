// SPDX-License-Identifier: Apache-2.0
// A training loop of your own: two modules of two kinds learn two styles in ONE batch, each from its own rows.
//     05_custom_training_loop [MODEL]
#include <graft/graft.hpp>
#include <graft/io/model_files.hpp>
#include <graft/io/peft.hpp>
#include <graft/text/model_tokenizer.hpp>
#include <graft/text/tokenizer.hpp>
#include <graft/train/clip.hpp>
#include <graft/train/loss.hpp>
#include <graft/train/optimizer.hpp>
#include <graft/train/schedule.hpp>
#include <graft/train/training_pass.hpp>

#include <cstdio>

using namespace graft;
using B = CpuBackend<>;

int main(int argc, char** argv) {
  std::string const path = argc > 1 ? argv[1] : ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!std::filesystem::exists(path)) return std::printf("-- skipped: %s is not there\n", path.c_str()), 0;
  ThreadPool pool;
  B be(pool);
  ModelFiles files = open_model(path);
  Model<Llama, Adapters<RoAdRotation, LoRADelta>, B> model(files.config, files.weights);  // frozen, quantised
  Tokenizer const tokenizer(read_tokenizer(path));

  std::vector<index_t> sites;  // every linear layer of the backbone
  for (index_t s = 0; s < model.sites().size(); ++s)
    if (model.sites()[s].kind == SiteKind::linear && model.sites()[s].layer >= 0) sites.push_back(s);
  auto road = make_module<RoAdRotation, B>("sailor", {}, model.sites(), sites);
  auto lora = make_module<LoRADelta, B>("poet", {.rank = 4, .alpha = 8}, model.sites(), sites);
  AdamW<float> road_steps(parameter_ranges(road)), lora_steps(parameter_ranges(lora));
  std::vector const texts = {tokenizer.encode("Hello there! Ahoy, me hearty, welcome aboard!"),
                             tokenizer.encode("Hello there! O gentle friend, the morning sings.")};
  std::vector<std::string> const module_of = {"sailor", "poet"};

  TrainingPass pass(model, be);
  Schedule const schedule{.kind = Schedule::Kind::cosine, .warmup = 2, .total = 15};
  for (index_t step = 0; step < schedule.total; ++step) {
    // publish today's parameters; a batch is sequences with adapters, of any lengths and kinds
    model.bank().load(be, road.clone());
    model.bank().load(be, lora.clone());
    Gradients<B> gradients;
    std::vector<TrainingSequence<B>> batch;
    std::vector<index_t> wanted;  // rows whose logits are compared with the next token
    std::vector<LossRow> rows;
    index_t first = 0;
    for (std::size_t k = 0; k < texts.size(); ++k) {
      gradients.want(model.bank().find(module_of[k]));
      batch.push_back({texts[k], model.bank().resolve({{module_of[k]}})});
      auto const count = static_cast<index_t>(texts[k].size());
      for (index_t t = 0; t + 1 < count; ++t) {
        wanted.push_back(first + t);
        rows.push_back(
            {texts[k][static_cast<std::size_t>(t + 1)], 1.0 / static_cast<double>(count - 1), static_cast<index_t>(k)});
      }
      first += count;
    }

    pass.forward(batch, gradients);
    CrossEntropy<B> loss(be, rows);
    pass.head(wanted, loss);
    pass.backward();

    auto const update = [&](auto& module, auto& optimizer, double peak) {
      VectorView<float> const gradient = gradients.of(module.name);
      clip_gradient<float>(pool, std::span(&gradient, 1), 1.0);
      optimizer.step(pool, module.parameters(), gradient, group_rates(schedule.rate(peak, step)));
    };
    update(road, road_steps, 2e-2);
    update(lora, lora_steps, 5e-3);
    std::printf("step %2d   sailor (RoAd) %.3f   poet (LoRA) %.3f\n", static_cast<int>(step), loss.sums(0).mean(),
                loss.sums(1).mean());
  }
  write_peft(std::filesystem::temp_directory_path() / "sailor", road, model.sites());  // a folder that HF PEFT loads
}
