// SPDX-License-Identifier: Apache-2.0
// Training steps on a GPU: a model of SmolLM2's shapes with made-up weights in bf16, 32 sequences of 128 tokens,
// adapters at all linear layers, AdamW, the norm clipped at 1.
//     cuda_train [--small]
// A row is one method: the median of the steps behind the first ones, and what the device's free memory has shrunk by
// since before the model was made, which is the program's own memory and no part of CUDA's.
#include <graft/adapter/lora.hpp>
#include <graft/adapter/road.hpp>
#include <graft/arch/llama.hpp>
#include <graft/backend/cuda/cuda.cuh>
#include <graft/model/model.hpp>
#include <graft/train/trainer.hpp>

#include <bench/on_device.cuh>

namespace {

using namespace graft;
using B = CudaBackend<bf16>;
using BenchModel = Model<Llama, Adapters<RoAdRotation, LoRADelta>, B>;

template <class P>
void train(char const* name, P const& policy, bool small, bool recompute) {
  B be;
  double const free_at_first = bench::free_memory();
  bench::Sizes const sizes = small ? bench::small_sizes() : bench::smollm2();
  index_t const batch = small ? 1 : 32, length = small ? 4 : 128, warm = small ? 0 : 3, steps = warm + (small ? 1 : 20);
  BenchModel model(bench::config_of(sizes), bench::weights_of(sizes));
  auto trained = make_module<P, B>("trained", policy, model.sites(), bench::sites_of(model.sites(), SiteKind::linear));
  TrainingData data;
  Random random(3);
  for (index_t k = 0; k < batch; ++k) {
    auto& example = data.train.emplace_back();
    example.first_loss = 1;
    for (index_t t = 0; t < length; ++t)
      example.tokens.push_back(static_cast<std::int32_t>(random.uniform(0, static_cast<double>(sizes.vocabulary))));
  }
  TrainerOptions options;
  options.steps = steps, options.batch = batch, options.recompute = recompute;
  Trainer<BenchModel, P> trainer(model, be, trained, std::move(data), options);

  std::vector<double> seconds, losses;
  double last = bench::now(), least_free = free_at_first;
  TrainerHooks hooks;
  hooks.progress = [&](TrainingProgress const& progress) {
    be.synchronize();
    double const at = bench::now();
    if (progress.step > warm) seconds.push_back(at - last);
    last = at;
    losses.push_back(progress.loss);
    least_free = std::min(least_free, bench::free_memory());
  };
  trainer.run(hooks);
  double const step = bench::median(seconds);
  bench::Row("training")
      .with("model", sizes.name)
      .with("adapters", name)
      .with("recompute", recompute ? "yes" : "no")
      .with("batch", batch)
      .with("tokens", length)
      .with("seconds", step)
      .with("tokens_per_second", static_cast<double>(batch * length) / step)
      .with("memory_bytes", free_at_first - least_free)
      .with("first_loss", losses.front())
      .with("last_loss", losses.back());
}

}  // namespace

int main(int argc, char** argv) {
  bench::Arguments const arguments(argc, argv);
  for (bool const recompute : {false, true}) {
    train("road 1", RoAdRotation{}, arguments.small, recompute);
    train("lora", LoRADelta{.rank = 16, .alpha = 32}, arguments.small, recompute);
  }
  return 0;
}
