// SPDX-License-Identifier: Apache-2.0
// Two requests in one batch: one with a LoRA, one with a RoAd on top of it.   00_quick_start [MODEL.gguf [ADAPTERS]]
#include <graft/graft.hpp>
#include <graft/io/model_files.hpp>
#include <graft/io/peft.hpp>
#include <graft/text/model_tokenizer.hpp>
#include <graft/text/tokenizer.hpp>

#include <cstdio>

int main(int argc, char** argv) {
  using namespace graft;
  std::string const path = argc > 1 ? argv[1] : ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf";
  std::string const folder = argc > 2 ? argv[2] : "examples/data/adapters";
  if (!std::filesystem::exists(path)) return std::printf("-- skipped: %s is not there\n", path.c_str()), 0;

  ThreadPool pool;
  CpuBackend<> backend(pool);
  ModelFiles files = open_model(path);
  Model<Llama, Adapters<RoAdRotation, LoRADelta>, CpuBackend<>> model(files.config, files.weights);
  load_adapter(backend, model, "verses", folder + "/lora16-scripture");  // a PEFT folder
  load_adapter(backend, model, "pirate", folder + "/road2-pirate");

  Tokenizer const tokenizer(read_tokenizer(path));
  Context context(model, backend);
  std::vector<GenerationRequest> requests(2);
  auto const prompt = tokenizer.encode("And the king said");
  requests[0] = {.prompt = prompt, .adapters = {{"verses"}}, .max_tokens = 16, .stop = {tokenizer.eos()}};
  requests[1] = {
      .prompt = prompt, .adapters = {{"pirate"}, {"verses", 0.5}}, .max_tokens = 16, .stop = {tokenizer.eos()}};
  for (auto const& result : generate(context, std::span<GenerationRequest const>(requests), [](auto, auto) {}))
    std::printf("%s\n", tokenizer.decode(result.tokens).c_str());
}
