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
#include <graft/arch/architectures.hpp>
#include <graft/io/gguf_config.hpp>
#include <graft/io/hf_config.hpp>
#include <graft/io/model_weights.hpp>
#include <graft/io/safetensors.hpp>

#include <algorithm>
#include <string>
#include <vector>
#endif

#include <filesystem>
#include <optional>

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
    raise<FormatError>(files.weights.path, ": has ", files.weights.tensors.size(), " tensors for a model of ",
                       files.config.layers, " layers");
}

/// A bias that is missing would be read as zeros, and a norm of query or key as none: what the model always has, and
/// what some of its layers have, must be there.
inline void check_optional(ModelFiles const& files) {
  WeightMap const& weights = files.weights;
  with_architecture(files.config.architecture, [&]<class Arch>() {
    for (auto const& tensor : Arch::optional_tensors(files.config)) {
      std::vector<std::string> names;
      for (index_t l = 0; tensor.in_layers && l < files.config.layers; ++l)
        names.push_back(text(Arch::layer_path(files.config, l), '.', tensor.name));
      if (!tensor.in_layers) names.push_back(tensor.name);
      bool const needed = tensor.presence == OptionalTensor::Presence::always ||
                          std::any_of(names.begin(), names.end(), [&](auto& name) { return weights.contains(name); });
      for (auto const& name : names)
        if (needed && !weights.contains(name))
          raise<FormatError>(weights.path, ": tensor ", in_quotes(name), " is missing");
    }
  });
}

}  // namespace detail

GRAFT_FILES ModelFiles open_model(std::filesystem::path const& path) {
  namespace fs = std::filesystem;
  if (!fs::exists(path)) raise<FormatError>(path.string(), ": does not exist");
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
