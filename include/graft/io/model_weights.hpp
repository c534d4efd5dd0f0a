// SPDX-License-Identifier: Apache-2.0
// A file's tensors as weights under the names, and in the row order, of Hugging Face's classes.
#pragma once

#include <graft/arch/architectures.hpp>
#include <graft/arch/weights.hpp>
#include <graft/core/error.hpp>
#include <graft/core/format.hpp>
#include <graft/core/types.hpp>
#include <graft/io/checked.hpp>
#include <graft/io/gguf.hpp>
#include <graft/io/gguf_names.hpp>
#include <graft/io/tensor_file.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace graft::detail {

/// GPT-2's Conv1D keeps [in, out]: the same numbers in the same format, turned once at load.
inline Weight transposed(std::string const& path, TensorInfo const& tensor, WeightMap& map) {
  Weight const from = as_weight(path, tensor);
  auto const width = static_cast<std::size_t>(format_info(from.format).bytes);
  if (format_info(from.format).block != 1)
    raise<FormatError>(path, ": tensor ", in_quotes(tensor.name), " is quantised and cannot be transposed");
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
  bool const encoder = config.is_encoder();
  if (encoder && name.ends_with(".gamma")) name.replace(name.size() - 6, 6, ".weight");
  if (encoder && name.ends_with(".beta")) name.replace(name.size() - 5, 5, ".bias");
  std::string const with = config.architecture + ".";
  if (encoder && config.prefix.empty() && name.starts_with(with)) return name.substr(with.size());
  bool head = false;
  for (std::string_view const module : {"lm_head.", "classifier.", "score.", "cls."})
    head = head || name.starts_with(module);
  return prefixed || head ? name : config.prefix + name;
}

/// Whether the model's class in transformers has a tensor of this name.
inline bool is_of_class(ModelConfig const& config, std::string_view name) {
  auto const tensors =
      with_architecture(config.architecture, [&]<class Arch>() { return Arch::optional_tensors(config); });
  return std::none_of(tensors.begin(), tensors.end(), [&](OptionalTensor const& one) {
    bool const is_this = one.in_layers ? name.ends_with("." + one.name) : name == one.name;
    return is_this && one.presence == OptionalTensor::Presence::never;
  });
}

/// A masked language model may keep its decoder's bias beside the decoder alone; one of the decoder's own comes first.
inline constexpr std::pair<char const*, char const*> decoder_biases[] = {
    {"cls.predictions.bias", "cls.predictions.decoder.bias"}, {"lm_head.bias", "lm_head.decoder.bias"}};

/// Whether the names of a backbone's tensors begin as those of the model around it.
inline bool is_prefixed(ModelConfig const& config, TensorFile const& file) {
  auto const& tensors = file.tensors();
  return std::any_of(tensors.begin(), tensors.end(),
                     [&](auto const& one) { return one.name.starts_with(config.prefix); });
}

/// A file that holds another head than its embedding has two of them, whatever its configuration says; transformers
/// sees it the same way.
inline void untie_another_head(ModelConfig& config, TensorFile const& file) {
  if (!config.tied || !config.language_model) return;
  bool const prefixed = is_prefixed(config, file);
  TensorInfo const *embedding = nullptr, *head = nullptr;
  for (auto const& tensor : file.tensors()) {
    if (!format_info(tensor.format).weight || tensor.shape.size() != 2) continue;
    std::string const name = class_name(config, tensor.name, prefixed);
    for (std::string_view const end : {"embed_tokens.weight", "wte.weight", "word_embeddings.weight"})
      if (name.ends_with(end)) embedding = &tensor;
    for (std::string_view const own : {"lm_head.weight", "lm_head.decoder.weight", "cls.predictions.decoder.weight"})
      if (name == own) head = &tensor;
  }
  if (embedding == nullptr || head == nullptr) return;
  config.tied = same_values(as_weight(file.path(), *embedding), as_weight(file.path(), *head));
}

inline WeightMap hf_weights(ModelConfig& config, TensorFile const& file) {
  untie_another_head(config, file);
  WeightMap map;
  map.path = file.path();
  map.keep.push_back(file.storage());
  bool const prefixed = is_prefixed(config, file);
  for (auto const& tensor : file.tensors()) {
    if (!format_info(tensor.format).weight) continue;               // buffers such as position_ids
    if (tensor.shape.empty() || tensor.shape.size() > 2) continue;  // GPT-2's saved causal masks
    std::string const name = class_name(config, tensor.name, prefixed);
    if (!is_of_class(config, name)) continue;
    map.tensors[name] = config.architecture == "gpt2" && is_conv1d(name) ? transposed(file.path(), tensor, map)
                                                                         : as_weight(file.path(), tensor);
  }
  if (config.tied && !map.contains(config.prefix + "embed_tokens.weight") && map.contains("lm_head.weight") &&
      config.architecture != "gpt2")
    map.tensors[config.prefix + "embed_tokens.weight"] = map.tensors["lm_head.weight"];
  for (auto const& [beside, of_decoder] : decoder_biases)
    if (map.contains(beside) && !map.contains(of_decoder)) map.tensors[of_decoder] = map.tensors[beside];
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
      raise<FormatError>(map.path, ": tensor ", in_quotes(tensor.name), " has no place in a ", config.architecture,
                         " model");
    Weight weight = as_weight(map.path, tensor);
    bool const bias = name->ends_with(".bias");
    index_t const heads = gguf_permuted_heads(config, name->substr(0, name->rfind('.')));
    if (heads != 0) {
      index_t const rows = bias ? weight.cols : weight.rows;
      if (rows != heads * config.head_dim)
        raise<FormatError>(map.path, ": tensor ", in_quotes(tensor.name), " has ", rows, " rows, expected ", heads,
                           " heads of ", config.head_dim);
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

}  // namespace graft::detail
