// SPDX-License-Identifier: Apache-2.0
// The model that a program is given, and what a step of it reads and multiplies.
#pragma once

#include <graft/arch/config.hpp>
#include <graft/arch/weights.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/core/format.hpp>
#include <graft/io/model_files.hpp>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <utility>

#include <bench/limits.hpp>
#include <bench/made_up.hpp>

namespace bench {

struct SomeModel {
  std::string name;
  ModelConfig config;
  WeightMap weights;
};

/// The model in the file `path`, or for FORMAT:LAYERS, say Q8_0:4, so many layers in LLaMA-2-7B's shapes, with its
/// vocabulary and made-up weights. Ends the program where there is none.
inline SomeModel some_model(std::string const& path) {
  if (auto const colon = path.find(':'); colon != std::string::npos) {
    auto sizes = llama_2_7b();
    sizes.layers = std::stol(path.substr(colon + 1));
    for (Format format : {Format::f32, Format::bf16, Format::q8_0, Format::q4_0, Format::q4_1, Format::q5_0,
                          Format::q4_k, Format::q6_k})
      if (path.substr(0, colon) == format_info(format).name)
        return {text(sizes.layers, sizes.layers == 1 ? " layer" : " layers", " of LLaMA-2-7B in ",
                     format_info(format).name),
                config_of(sizes), weights_of(sizes, format, MadeUp::apart)};
    std::printf("%s: no such format; F32, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q4_K or Q6_K\n", path.c_str());
    std::exit(1);
  }
  if (!std::filesystem::exists(path)) {
    std::printf("%s is not there\n", path.c_str());
    std::exit(0);
  }
  auto files = open_model(path);
  return {std::filesystem::path(path).stem().string(), std::move(files.config), std::move(files.weights)};
}

/// Takes the model's name, a program's first argument, from the command line; without one, SmolLM2's.
inline std::string model_argument(int& argc, char**& argv) {
  if (argc < 2 || argv[1][0] == '-') return ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf";
  std::string path = argv[1];
  argv[1] = argv[0], ++argv, --argc;
  return path;
}

/// Where all tensors lie.
inline ReadLimit::Memory memory_of(WeightMap const& weights) {
  ReadLimit::Memory all;
  for (auto const& [path, weight] : weights.tensors)
    all.emplace_back(weight.data, static_cast<std::size_t>(weight.bytes()));
  std::ranges::sort(all, {}, [](auto const& tensor) { return tensor.data(); });
  ReadLimit::Memory joined;  // tensors of a file follow each other
  for (auto const& tensor : all)
    if (joined.empty() || tensor.data() > joined.back().data() + joined.back().size() + 64)
      joined.push_back(tensor);
    else
      joined.back() = {joined.back().data(), tensor.data() + tensor.size()};
  return joined;
}

/// What a decoder's weights ask for.
struct StepWork {
  double bytes = 0;                   ///< a step reads: of the layers and the head
  double of_layers = 0, of_head = 0;  ///< operations of the products, per token and per row of logits
  Format format = Format::f32;        ///< of the layers' weights

  /// What multiplies the layers' weights.
  Instruction instruction(Precision precision) const {
    if (precision == Precision::native && format == Format::bf16) return Instruction::bf16;
    if (precision == Precision::native && cpu::in_integers(format)) return Instruction::integers;
    return Instruction::fma;
  }
};
inline StepWork work_of(ModelConfig const& config, WeightMap const& weights) {
  StepWork work;
  auto const& head = weights.tensors.at(config.tied ? config.prefix + "embed_tokens.weight" : "lm_head.weight");
  work.bytes = static_cast<double>(head.bytes());
  work.of_head = 2.0 * static_cast<double>(head.rows * head.cols);
  for (auto const& [path, weight] : weights.tensors)
    if (path.find("layers.") != std::string::npos) {
      work.bytes += static_cast<double>(weight.bytes());
      if (weight.rows == 1) continue;
      work.of_layers += 2.0 * static_cast<double>(weight.rows * weight.cols);
      work.format = weight.format;
    }
  return work;
}

}  // namespace bench
