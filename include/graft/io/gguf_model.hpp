// SPDX-License-Identifier: Apache-2.0
// A model as llama.cpp expects it in a GGUF file: metadata keys, tensor names, row order and formats.
#pragma once

#include <graft/arch/config.hpp>
#include <graft/core/error.hpp>
#include <graft/core/format.hpp>
#include <graft/io/gguf.hpp>
#include <graft/io/gguf_config.hpp>
#include <graft/io/gguf_names.hpp>
#include <graft/io/model_files.hpp>
#include <graft/io/model_weights.hpp>
#include <graft/io/model_writer.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace graft {

/// What is to be written as one GGUF file. The tokenizer's keys (tokenizer.*) are the caller's to add.
struct GgufModel {
  GgufMetadata metadata;
  std::vector<TensorConversion> tensors;
  std::vector<std::string> notes;                 ///< what a user should know of the file, a line each
  std::vector<std::shared_ptr<void const>> keep;  ///< what the tensors point into
};

namespace detail {

/// llama.cpp's general.file_type of a file whose matrices mostly have this format.
inline std::uint32_t gguf_file_type(Format format) {
  switch (format) {
    case Format::f16:
      return 1;
    case Format::q4_0:
      return 2;
    case Format::q4_1:
      return 3;
    case Format::q8_0:
      return 7;
    case Format::q5_0:
      return 8;
    case Format::q5_1:
      return 9;
    case Format::q4_k:
      return 14;  // "Q4_K - Small": no tensor gets a better format than asked for but the head
    case Format::q5_k:
      return 16;
    case Format::q6_k:
      return 18;
    case Format::bf16:
      return 32;
    default:
      return 0;
  }
}

/// The keys that depend on the formats chosen.
inline void set_gguf_formats(GgufModel& model) {
  std::map<Format, std::size_t> bytes;
  for (auto const& tensor : model.tensors)
    if (tensor.to.shape.size() > 1) bytes[tensor.to.format] += tensor.to.bytes;
  auto const most = std::max_element(bytes.begin(), bytes.end(), [](auto& a, auto& b) { return a.second < b.second; });
  model.metadata.set("general.file_type", gguf_file_type(most == bytes.end() ? Format::f32 : most->first));
  bool const quantised =
      std::any_of(bytes.begin(), bytes.end(), [](auto& b) { return format_info(b.first).block > 1; });
  if (quantised) model.metadata.set("general.quantization_version", std::uint32_t{2});
}

inline void set_gguf_rope(GgufMetadata& meta, std::string const& arch, RopeConfig const& rope,
                          std::string const& source) {
  auto const fail = [&](auto const&... parts) { raise<FormatError>(source, ": ", parts...); };
  meta.set(arch + ".rope.dimension_count", static_cast<std::uint32_t>(rope.dimensions));
  meta.set(arch + ".rope.freq_base", static_cast<float>(rope.theta));
  if (rope.scaling == RopeConfig::Scaling::none || rope.scaling == RopeConfig::Scaling::llama3) return;
  bool const yarn = rope.scaling == RopeConfig::Scaling::yarn;
  meta.set(arch + ".rope.scaling.type", yarn ? "yarn" : "linear");
  meta.set(arch + ".rope.scaling.factor", static_cast<float>(rope.factor));
  if (!yarn) return;
  if (!rope.truncate) fail("YaRN with \"truncate\": false cannot be said in a GGUF file");
  if (rope.original_positions != std::floor(rope.original_positions))
    fail("YaRN over ", rope.original_positions, " original positions cannot be said in a GGUF file");
  meta.set(arch + ".rope.scaling.original_context_length", static_cast<std::uint32_t>(rope.original_positions));
  meta.set(arch + ".rope.scaling.yarn_beta_fast", static_cast<float>(rope.beta_fast));
  meta.set(arch + ".rope.scaling.yarn_beta_slow", static_cast<float>(rope.beta_slow));
  if (rope.attention_factor != 0)  // llama.cpp multiplies its own 0.1 ln(factor) + 1 by it
    meta.set(arch + ".rope.scaling.attn_factor",
             static_cast<float>(rope.attention_factor / (0.1 * std::log(rope.factor) + 1)));
}

/// Metadata of a model that a GGUF file can hold, without the tokenizer; FormatError names what it cannot.
inline GgufMetadata gguf_model_metadata(ModelConfig const& m, std::string const& source) {
  auto const fail = [&](auto const&... parts) { raise<FormatError>(source, ": ", parts...); };
  if (m.is_encoder())
    fail("a ", m.architecture, " model cannot be converted to GGUF (llama, mistral, qwen2, qwen3 and gpt2 can)");
  bool const gpt2 = m.architecture == "gpt2";
  if (m.activation != (gpt2 ? Activation::gelu_tanh : Activation::silu))
    fail("its activation function is not the one that ", m.architecture, " has in GGUF files");
  auto const windowed = std::count(m.windowed.begin(), m.windowed.end(), true);
  if (m.window != 0 && windowed != 0 && windowed != m.layers)
    fail("a sliding window in ", windowed, " of ", m.layers, " layers cannot be said in a GGUF file");
  bool const window = m.window != 0 && (m.windowed.empty() || windowed == m.layers);

  std::string const arch = gguf_architecture(m);
  GgufMetadata meta;
  auto const set = [&](char const* key, index_t value) { meta.set(arch + key, static_cast<std::uint32_t>(value)); };
  meta.set("general.architecture", arch);
  meta.set("general.type", "model");
  meta.set("general.name", m.name);
  set(".vocab_size", m.vocabulary);
  set(".context_length", m.positions);
  set(".embedding_length", m.width);
  set(".block_count", m.layers);
  set(".feed_forward_length", m.ffn);
  set(".attention.head_count", m.heads);
  if (gpt2) {
    meta.set(arch + ".attention.layer_norm_epsilon", static_cast<float>(m.norm_eps));
    return meta;
  }
  set(".attention.head_count_kv", m.kv_heads);
  set(".attention.key_length", m.head_dim);
  set(".attention.value_length", m.head_dim);
  if (window) set(".attention.sliding_window", m.window);
  meta.set(arch + ".attention.layer_norm_rms_epsilon", static_cast<float>(m.norm_eps));
  if (arch == "llama" && m.rope.dimensions != m.head_dim)
    fail("RoPE over ", m.rope.dimensions, " of ", m.head_dim, " columns of a head cannot be said in a GGUF file");
  set_gguf_rope(meta, arch, m.rope, source);
  return meta;
}

/// Keys that are in the file, and that graft obeys, but llama.cpp does not for architecture llama.
inline void note_what_llama_cpp_ignores(ModelConfig const& m, GgufModel& model) {
  if (m.architecture == "mistral" && m.window != 0)
    model.notes.push_back(
        text("llama.cpp ignores the sliding window: its answers are others after ", m.window, " tokens"));
  if (m.rope.scaling == RopeConfig::Scaling::yarn && (m.rope.beta_fast != 32 || m.rope.beta_slow != 1))
    model.notes.push_back(text("llama.cpp ignores the file's YaRN betas: give it --yarn-beta-fast ", m.rope.beta_fast,
                               " --yarn-beta-slow ", m.rope.beta_slow));
}

/// The inverse of gguf_row_order: which of Hugging Face's rows GGUF's row k is.
inline std::vector<std::int32_t> gguf_permutation(index_t rows, index_t heads) {
  auto const order = gguf_row_order(rows, heads);
  std::vector<std::int32_t> inverse(order.size());
  for (std::size_t k = 0; k < order.size(); ++k)
    inverse[static_cast<std::size_t>(order[k])] = static_cast<std::int32_t>(k);
  return inverse;
}

inline TensorRole gguf_role(std::string_view name, bool tied) {
  if (name == (tied ? "token_embd.weight" : "output.weight")) return TensorRole::head;
  return name == "position_embd.weight" ? TensorRole::learned_positions : TensorRole::matrix;
}

/// All names of a GGUF file of this architecture, in the order llama.cpp's own converter writes them.
inline std::vector<std::string> gguf_tensor_names(std::string_view architecture, index_t layers) {
  std::vector<std::string> names;
  auto const add = [&](std::string const& module) {
    for (char const* suffix : {".weight", ".bias"}) names.push_back(module + suffix);
  };
  auto const outer = gguf_outer_names(architecture);
  for (auto const& [name, hf] : outer)
    if (name.ends_with("_embd")) add(name);
  for (index_t layer = 0; layer < layers; ++layer)
    for (auto const& [name, hf] : gguf_layer_names(architecture)) add(text("blk.", layer, ".", name));
  for (auto const& [name, hf] : outer)
    if (!name.ends_with("_embd")) add(name);
  return names;
}

/// Llama 3's scaling as what llama.cpp divides frequencies by.
inline std::vector<float> llama3_divisors(RopeConfig const& rope) {
  RopeConfig plain = rope;
  plain.scaling = RopeConfig::Scaling::none;
  auto const unscaled = rope_frequencies(plain), scaled = rope_frequencies(rope);
  std::vector<float> divisors;
  for (std::size_t k = 0; k < scaled.size(); ++k) divisors.push_back(static_cast<float>(unscaled[k] / scaled[k]));
  return divisors;
}

}  // namespace detail

/// A GGUF file of the model in a Hugging Face folder, with matrices of format `type` (none: as they are). FormatError
/// names what a GGUF file cannot say, or the tensor that has no place in one. `file` must outlive the result's use.
inline GgufModel gguf_model(ModelConfig config, TensorFile const& file, std::optional<Format> type) {
  detail::untie_another_head(config, file);
  auto const fail = [&](auto const&... parts) { raise<FormatError>(file.path(), ": ", parts...); };
  GgufModel model;
  model.metadata = detail::gguf_model_metadata(config, file.path());
  std::map<std::string, TensorInfo const*> sources;  // by GGUF name
  bool const prefixed = detail::is_prefixed(config, file);
  for (auto const& tensor : file.tensors()) {
    // buffers: causal masks of GPT-2, angles of old Llama checkpoints
    if (tensor.shape.empty() || tensor.shape.size() > 2 || tensor.name.ends_with(".inv_freq")) continue;
    auto const in_class = detail::class_name(config, tensor.name, prefixed);
    if (!detail::is_of_class(config, in_class)) continue;
    auto const name = gguf_name(config.architecture, in_class);
    if (!name)
      fail("tensor ", in_quotes(tensor.name), " has no place in a GGUF file of a ", config.architecture, " model");
    if (config.tied && name->starts_with("output.")) continue;
    if (!format_info(tensor.format).weight)
      fail("tensor ", in_quotes(tensor.name), " of type ", format_info(tensor.format).name, " cannot be a weight");
    if (!sources.emplace(*name, &tensor).second) fail("tensor ", in_quotes(tensor.name), " occurs twice");
  }
  if (auto const* const head = file.find("lm_head.weight");
      config.tied && head != nullptr && !sources.contains("token_embd.weight"))
    sources["token_embd.weight"] = head;

  FormatChoice choose(type, true);
  for (auto const& name : detail::gguf_tensor_names(config.architecture, config.layers)) {
    auto const found = sources.find(name);
    if (found == sources.end()) continue;
    TensorInfo const& tensor = *found->second;
    TensorInfo seen = tensor;  // in GGUF's order of dimensions
    bool const turned = config.architecture == "gpt2" && tensor.shape.size() == 2 && detail::is_conv1d(tensor.name);
    if (turned) std::swap(seen.shape[0], seen.shape[1]);
    Format const format = choose(seen, detail::gguf_role(name, config.tied));
    auto converted = turned ? transposed_conversion(tensor, name, format) : conversion(tensor, name, format);
    auto const hf = *hf_name(config.architecture, name);
    if (index_t const heads = gguf_permuted_heads(config, hf.substr(0, hf.rfind('.'))); heads != 0) {
      if (tensor.shape[0] != heads * config.head_dim)
        fail("tensor ", in_quotes(tensor.name), " has ", tensor.shape[0], " rows, expected ", heads, " heads of ",
             config.head_dim);
      converted.row_order = detail::gguf_permutation(tensor.shape[0], heads);
    }
    model.tensors.push_back(std::move(converted));
    sources.erase(found);
  }
  if (!sources.empty())
    fail("tensor ", in_quotes(sources.begin()->second->name), " belongs to no layer of ", config.layers);
  if (config.rope.scaling == RopeConfig::Scaling::llama3) {
    auto const divisors = std::make_shared<std::vector<float>>(detail::llama3_divisors(config.rope));
    TensorInfo const tensor =
        tensor_info("rope_freqs.weight", {static_cast<index_t>(divisors->size())}, divisors->data());
    model.tensors.push_back(conversion(tensor, tensor.name, Format::f32));
    model.keep.push_back(divisors);
  }
  model.notes = choose.notes();
  detail::note_what_llama_cpp_ignores(config, model);
  detail::set_gguf_formats(model);
  return model;
}

/// The same GGUF file with matrices of another format. Everything else stays, the tokenizer's keys too.
inline GgufModel gguf_model(Gguf const& file, std::optional<Format> type) {
  ModelConfig const config = read_gguf_config(file);
  GgufModel model;
  model.metadata = file.metadata;
  FormatChoice choose(type, true);
  for (auto const& tensor : file.tensors.tensors()) {
    if (tensor.shape.size() > 2 || (tensor.name != "rope_freqs.weight" && !hf_name(config.architecture, tensor.name)))
      raise<FormatError>(file.tensors.path(), ": tensor ", in_quotes(tensor.name), " has no place in a ",
                         config.architecture, " model");
    model.tensors.push_back(
        conversion(tensor, tensor.name, choose(tensor, detail::gguf_role(tensor.name, config.tied))));
  }
  model.notes = choose.notes();
  detail::set_gguf_formats(model);
  return model;
}

}  // namespace graft
