// SPDX-License-Identifier: Apache-2.0
// A model from a GGUF file, a safetensors file or a Hugging Face folder, brought into one form: Hugging Face's names
// and row order, weights left in their files' formats and memory.
#pragma once

#include <graft/arch/config.hpp>
#include <graft/arch/weights.hpp>
#include <graft/core/error.hpp>
#include <graft/io/checked.hpp>
#include <graft/io/compiled.hpp>
#include <graft/io/gguf.hpp>

#if GRAFT_FILES_ARE_HERE
#include <graft/io/gguf_config.hpp>
#include <graft/io/hf_config.hpp>
#include <graft/io/model_weights.hpp>
#include <graft/io/safetensors.hpp>
#endif

#include <filesystem>
#include <initializer_list>
#include <optional>
#include <string>

namespace graft {

struct ModelFiles {
  ModelConfig config;
  WeightMap weights;
  std::optional<Gguf> gguf;      ///< when it came from one: the metadata hold the tokenizer
  std::filesystem::path folder;  ///< when it came from a folder
};

/// Reads the configuration and maps the weights of `path`: a .gguf file, a .safetensors file with config.json beside
/// it, or a folder with config.json and one or more safetensors files. FormatError says what is wrong with which file.
GRAFT_FILES ModelFiles open_model(std::filesystem::path const& path);

#if GRAFT_FILES_ARE_HERE
namespace detail {

/// A layer has tensors; more layers than those are refused before anything is made for each of them.
inline void check_layers(ModelFiles const& files) {
  if (static_cast<std::size_t>(files.config.layers) > files.weights.tensors.size())
    raise<FormatError>(text(files.weights.path, ": has ", files.weights.tensors.size(), " tensors for a model of ",
                            files.config.layers, " layers"));
}

/// A bias that is missing would be read as zeros, and a norm of query or key as none: those that the architecture
/// always has, and those that other layers have, must be there.
inline void check_optional(ModelFiles const& files) {
  auto const& config = files.config;
  bool const gpt2 = config.architecture == "gpt2", qwen2 = config.architecture == "qwen2",
             encoder = config.architecture == "bert" || config.architecture == "roberta";
  std::string const layer = config.prefix + (gpt2 ? "h." : encoder ? "encoder.layer." : "layers.");
  auto const require = [&](std::string const& name) {
    if (!files.weights.contains(name))
      raise<FormatError>(text(files.weights.path, ": tensor ", in_quotes(name), " is missing"));
  };
  auto const check = [&](bool always, std::initializer_list<char const*> modules, char const* parameter = ".bias") {
    for (auto const* module : modules) {
      auto const name = [&](index_t l) { return text(layer, l, '.', module, parameter); };
      bool any = always;
      for (index_t l = 0; l < config.layers; ++l) any = any || files.weights.contains(name(l));
      for (index_t l = 0; any && l < config.layers; ++l) require(name(l));
    }
  };
  if (gpt2) return check(true, {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"});
  if (encoder) {
    bool const bert = config.architecture == "bert";
    if (config.classifier)
      require(bert ? config.prefix + "pooler.dense.bias" : "classifier.dense.bias"),
          require(bert ? "classifier.bias" : "classifier.out_proj.bias");
    if (config.language_model)
      require(bert ? "cls.predictions.transform.dense.bias" : "lm_head.dense.bias"),
          require(bert ? "cls.predictions.decoder.bias" : "lm_head.decoder.bias");
    return check(true, {"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
                        "intermediate.dense", "output.dense"});
  }
  check(qwen2, {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"});
  check(false, {"self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"});
  check(config.architecture == "qwen3", {"self_attn.q_norm", "self_attn.k_norm"}, ".weight");
}

}  // namespace detail

GRAFT_FILES ModelFiles open_model(std::filesystem::path const& path) {
  namespace fs = std::filesystem;
  if (!fs::exists(path)) raise<FormatError>(text(path.string(), ": does not exist"));
  ModelFiles files;
  bool const folder = fs::is_directory(path);
  if (!folder && path.extension() != ".safetensors" && path.extension() != ".json") {
    files.gguf = read_gguf(path);
    files.config = read_gguf_config(*files.gguf);
    files.weights = detail::gguf_weights(files.config, *files.gguf);
    detail::check_layers(files);
    detail::check_optional(files);
    return files;
  }
  files.folder = folder ? path : path.parent_path();
  files.config = read_hf_config(files.folder / "config.json");
  files.weights = detail::hf_weights(
      files.config, folder || path.extension() == ".json" ? read_sharded_safetensors(path) : read_safetensors(path));
  detail::check_layers(files);
  detail::check_optional(files);
  return files;
}
#endif

}  // namespace graft
