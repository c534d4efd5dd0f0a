// SPDX-License-Identifier: Apache-2.0
// A model from a GGUF file, a safetensors file or a Hugging Face folder, brought into one form: Hugging Face's names
// and row order, weights left in their files' formats and memory.
#pragma once

#include <graft/arch/weights.hpp>
#include <graft/io/gguf_config.hpp>
#include <graft/io/gguf_names.hpp>
#include <graft/io/hf_config.hpp>
#include <graft/io/safetensors.hpp>

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

namespace graft {

struct ModelFiles {
  ModelConfig config;
  WeightMap weights;
  std::optional<Gguf> gguf;      ///< when it came from one: the metadata hold the tokenizer
  std::filesystem::path folder;  ///< when it came from a folder
};

namespace detail {

inline Weight as_weight(std::string const& path, TensorInfo const& tensor) {
  if (!format_info(tensor.format).weight)
    raise<FormatError>(text(path, ": tensor ", in_quotes(tensor.name), " of type ", format_info(tensor.format).name,
                            " cannot be a weight"));
  if (tensor.shape.empty() || tensor.shape.size() > 2)
    raise<FormatError>(
        text(path, ": tensor ", in_quotes(tensor.name), " has ", tensor.shape.size(), " dimensions, expected 1 or 2"));
  bool const vector = tensor.shape.size() == 1;
  return {tensor.data, tensor.format, vector ? 1 : tensor.shape[0], tensor.shape.back(), nullptr};
}

/// GPT-2's Conv1D keeps [in, out]: the same numbers in the same format, turned once at load.
inline Weight transposed(std::string const& path, TensorInfo const& tensor, WeightMap& map) {
  Weight const from = as_weight(path, tensor);
  auto const width = static_cast<std::size_t>(format_info(from.format).bytes);
  if (format_info(from.format).block != 1)
    raise<FormatError>(text(path, ": tensor ", in_quotes(tensor.name), " is quantised and cannot be transposed"));
  std::shared_ptr<std::byte[]> const buffer(new std::byte[tensor.bytes]);
  for (index_t r = 0; r < from.rows; ++r)
    for (index_t c = 0; c < from.cols; ++c)
      std::copy_n(from.data + static_cast<std::size_t>(r * from.cols + c) * width, width,
                  buffer.get() + static_cast<std::size_t>(c * from.rows + r) * width);
  map.keep.push_back(buffer);
  return {buffer.get(), from.format, from.cols, from.rows, nullptr};
}

inline bool is_conv1d(std::string_view name) {
  for (std::string_view module : {"attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"})
    if (name.ends_with(module)) return true;
  return false;
}

/// The name a tensor has in the model's class: a backbone is saved with or without the prefix of the model around it,
/// and BERT's norms of old have the parameters "gamma" and "beta".
inline std::string class_name(ModelConfig const& config, std::string name, bool prefixed) {
  bool const encoder = config.architecture == "bert" || config.architecture == "roberta";
  if (encoder && name.ends_with(".gamma")) name.replace(name.size() - 6, 6, ".weight");
  if (encoder && name.ends_with(".beta")) name.replace(name.size() - 5, 5, ".bias");
  std::string const with = config.architecture + ".";
  if (encoder && config.prefix.empty() && name.starts_with(with)) return name.substr(with.size());
  bool head = false;
  for (std::string_view const module : {"lm_head.", "classifier.", "score.", "cls."})
    head = head || name.starts_with(module);
  return prefixed || head ? name : config.prefix + name;
}

/// A masked language model keeps its decoder's bias beside the decoder, and has it there alone where they are tied.
inline constexpr std::pair<char const*, char const*> decoder_biases[] = {
    {"cls.predictions.bias", "cls.predictions.decoder.bias"}, {"lm_head.bias", "lm_head.decoder.bias"}};
inline bool bias_beside_decoder(ModelConfig const& config, bool beside, bool of_decoder) {
  return beside && (config.tied || !of_decoder);
}

inline WeightMap hf_weights(ModelConfig& config, TensorFile const& file) {
  WeightMap map;
  map.path = file.path();
  map.keep.push_back(file.storage());
  bool prefixed = false;
  for (auto const& tensor : file.tensors()) prefixed = prefixed || tensor.name.starts_with(config.prefix);
  for (auto const& tensor : file.tensors()) {
    if (!format_info(tensor.format).weight) continue;               // buffers such as position_ids
    if (tensor.shape.empty() || tensor.shape.size() > 2) continue;  // GPT-2's saved causal masks
    std::string const name = class_name(config, tensor.name, prefixed);
    map.tensors[name] = config.architecture == "gpt2" && is_conv1d(name) ? transposed(file.path(), tensor, map)
                                                                         : as_weight(file.path(), tensor);
  }
  if (config.tied && !map.contains(config.prefix + "embed_tokens.weight") && map.contains("lm_head.weight") &&
      config.architecture != "gpt2")
    map.tensors[config.prefix + "embed_tokens.weight"] = map.tensors["lm_head.weight"];
  for (auto const& [beside, of_decoder] : decoder_biases)
    if (bias_beside_decoder(config, map.contains(beside), map.contains(of_decoder)))
      map.tensors[of_decoder] = map.tensors[beside];
  return map;
}

inline WeightMap gguf_weights(ModelConfig const& config, Gguf const& file) {
  WeightMap map;
  map.path = file.tensors.path();
  map.keep.push_back(file.tensors.storage());
  for (auto const& tensor : file.tensors.tensors()) {
    if (tensor.name == "rope_freqs.weight") continue;
    auto const name = hf_name(config.architecture, tensor.name);
    if (!name)
      raise<FormatError>(
          text(map.path, ": tensor ", in_quotes(tensor.name), " has no place in a ", config.architecture, " model"));
    Weight weight = as_weight(map.path, tensor);
    bool const bias = name->ends_with(".bias");
    index_t const heads = gguf_permuted_heads(config, name->substr(0, name->rfind('.')));
    if (heads != 0) {
      index_t const rows = bias ? weight.cols : weight.rows;
      if (rows != heads * config.head_dim)
        raise<FormatError>(text(map.path, ": tensor ", in_quotes(tensor.name), " has ", rows, " rows, expected ", heads,
                                " heads of ", config.head_dim));
      auto const order = std::make_shared<std::vector<std::int32_t>>(gguf_row_order(rows, heads));
      if (bias) {  // one row: put its few elements in order
        auto const values = std::make_shared<std::vector<float>>(static_cast<std::size_t>(rows));
        std::vector<float> stored(values->size());
        weight.row(0, stored.data());
        for (std::size_t k = 0; k < stored.size(); ++k) (*values)[k] = stored[static_cast<std::size_t>((*order)[k])];
        weight = {reinterpret_cast<std::byte const*>(values->data()), Format::f32, 1, rows, nullptr};
        map.keep.push_back(values);
      } else {
        weight.row_order = order->data();
        map.keep.push_back(order);
      }
    }
    map.tensors[*name] = weight;
  }
  return map;
}

/// A layer has tensors; more layers than those are refused before anything is made for each of them.
inline void check_layers(ModelFiles const& files) {
  if (static_cast<std::size_t>(files.config.layers) > files.weights.tensors.size())
    raise<FormatError>(text(files.weights.path, ": has ", files.weights.tensors.size(), " tensors for a model of ",
                            files.config.layers, " layers"));
}

}  // namespace detail

/// Reads the configuration and maps the weights of `path`: a .gguf file, a .safetensors file with config.json beside
/// it, or a folder with config.json and one or more safetensors files. FormatError says what is wrong with which file.
inline ModelFiles open_model(std::filesystem::path const& path) {
  namespace fs = std::filesystem;
  if (!fs::exists(path)) raise<FormatError>(text(path.string(), ": does not exist"));
  ModelFiles files;
  bool const folder = fs::is_directory(path);
  if (!folder && path.extension() != ".safetensors" && path.extension() != ".json") {
    files.gguf = read_gguf(path);
    files.config = read_gguf_config(*files.gguf);
    files.weights = detail::gguf_weights(files.config, *files.gguf);
    detail::check_layers(files);
    return files;
  }
  files.folder = folder ? path : path.parent_path();
  files.config = read_hf_config(files.folder / "config.json");
  files.weights = detail::hf_weights(
      files.config, folder || path.extension() == ".json" ? read_sharded_safetensors(path) : read_safetensors(path));
  detail::check_layers(files);
  return files;
}

}  // namespace graft
