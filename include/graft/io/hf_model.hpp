// SPDX-License-Identifier: Apache-2.0
// A model as transformers expects it in a folder: config.json, tensor names, row order and formats.
#pragma once

#include <graft/arch/config.hpp>
#include <graft/core/error.hpp>
#include <graft/core/format.hpp>
#include <graft/io/gguf.hpp>
#include <graft/io/gguf_config.hpp>
#include <graft/io/gguf_names.hpp>
#include <graft/io/json.hpp>
#include <graft/io/model_files.hpp>
#include <graft/io/model_weights.hpp>
#include <graft/io/model_writer.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace graft {

/// What is to be written as config.json and model.safetensors.
struct HfModel {
  nlohmann::ordered_json config;
  std::vector<TensorConversion> tensors;
  std::vector<std::string> notes;  ///< where formats are not the one asked for
};

namespace detail {

/// The number a float was rounded from: the shortest decimal that gives it. GGUF's 9.99999975e-06 was 1e-05.
inline double shortest_decimal(double value) {
  std::array<char, 32> digits;
  auto const end = std::to_chars(digits.data(), digits.data() + digits.size(), static_cast<float>(value)).ptr;
  double result = value;
  std::from_chars(digits.data(), end, result);
  return result;
}

inline char const* hf_dtype(Format format) {
  return format == Format::f16    ? "float16"
         : format == Format::bf16 ? "bfloat16"
         : format == Format::f64  ? "float64"
                                  : "float32";
}

/// The dtype most of the weights have.
inline char const* hf_dtype(std::vector<TensorConversion> const& tensors) {
  std::map<Format, std::size_t> bytes;
  for (auto const& tensor : tensors)
    if (format_info(tensor.to.format).weight) bytes[tensor.to.format] += tensor.to.bytes;
  auto const most = std::max_element(bytes.begin(), bytes.end(), [](auto& a, auto& b) { return a.second < b.second; });
  return hf_dtype(most == bytes.end() ? Format::f32 : most->first);
}

/// The Llama 3 scaling whose divisors a GGUF file holds; nothing when it is another.
inline std::optional<RopeConfig> llama3_scaling(RopeConfig const& rope) {
  RopeConfig guess = rope;
  guess.divisors.clear();
  auto const plain = rope_frequencies(guess);
  guess.scaling = RopeConfig::Scaling::llama3;
  guess.factor = shortest_decimal(*std::max_element(rope.divisors.begin(), rope.divisors.end()));
  // the file keeps results, not parameters; all published models have bands from 1 to 4 rotations of a power of two
  for (guess.original_positions = 16; guess.original_positions <= 1 << 22; guess.original_positions *= 2) {
    auto const scaled = rope_frequencies(guess);
    bool same = true;
    for (std::size_t k = 0; k < plain.size(); ++k)  // divisors are f32
      same = same && std::fabs(plain[k] / scaled[k] - rope.divisors[k]) <= 1e-6 * rope.divisors[k];
    if (same) return guess;
  }
  return std::nullopt;
}

inline nlohmann::ordered_json hf_rope_scaling(RopeConfig const& rope, std::string const& source) {
  RopeConfig r = rope;
  if (std::any_of(r.divisors.begin(), r.divisors.end(), [](double d) { return d != 1; })) {
    auto const found = r.scaling == RopeConfig::Scaling::none ? llama3_scaling(r) : std::nullopt;
    if (!found) raise<FormatError>(source, ": the divisors in 'rope_freqs.weight' are not those of Llama 3");
    r = *found;
  }
  switch (r.scaling) {
    case RopeConfig::Scaling::none:
      return nullptr;
    case RopeConfig::Scaling::linear:
      return {{"rope_type", "linear"}, {"factor", shortest_decimal(r.factor)}};
    case RopeConfig::Scaling::llama3:
      return {{"rope_type", "llama3"},
              {"factor", r.factor},
              {"low_freq_factor", r.low_frequency_factor},
              {"high_freq_factor", r.high_frequency_factor},
              {"original_max_position_embeddings", static_cast<index_t>(r.original_positions)}};
    case RopeConfig::Scaling::yarn: {
      nlohmann::ordered_json yarn = {{"rope_type", "yarn"},
                                     {"factor", shortest_decimal(r.factor)},
                                     {"original_max_position_embeddings", static_cast<index_t>(r.original_positions)},
                                     {"beta_fast", shortest_decimal(r.beta_fast)},
                                     {"beta_slow", shortest_decimal(r.beta_slow)}};
      if (r.attention_factor != 0) yarn["attention_factor"] = shortest_decimal(r.attention_factor);
      return yarn;
    }
  }
  return nullptr;
}

/// Which modules of the layers have a bias, the same in all of them.
class GgufBiases {
 public:
  GgufBiases(Gguf const& file, ModelConfig const& config) : file_(file), layers_(config.layers) {}
  /// Whether these modules have one; FormatError when only some do.
  bool all(std::initializer_list<char const*> modules) const {
    index_t count = 0;
    for (index_t layer = 0; layer < layers_; ++layer)
      for (auto const* module : modules)
        count += file_.tensors.find(text("blk.", layer, ".", module, ".bias")) != nullptr ? 1 : 0;
    if (count != 0 && count != layers_ * static_cast<index_t>(modules.size()))
      raise<FormatError>(file_.tensors.path(), ": only some of the modules like ", in_quotes(*modules.begin()),
                         " have a bias; no model class of transformers is like that");
    return count != 0;
  }

 private:
  Gguf const& file_;
  index_t layers_;
};

/// What config.json of a GPT-2 says of its sizes.
inline nlohmann::ordered_json hf_gpt2_config(ModelConfig const& m) {
  return {{"architectures", {"GPT2LMHeadModel"}},
          {"model_type", "gpt2"},
          {"vocab_size", m.vocabulary},
          {"n_embd", m.width},
          {"n_layer", m.layers},
          {"n_head", m.heads},
          {"n_inner", m.ffn},
          {"n_positions", m.positions},
          {"activation_function", "gelu_new"},
          {"layer_norm_epsilon", shortest_decimal(m.norm_eps)}};
}

/// What config.json of Llama and its relatives says of sizes, positions and biases.
inline nlohmann::ordered_json hf_llama_config(Gguf const& file, ModelConfig const& m) {
  auto const& source = file.tensors.path();
  auto const fail = [&](auto const&... parts) { raise<FormatError>(source, ": ", parts...); };
  bool const mistral = m.architecture == "llama" && m.window != 0, qwen2 = m.architecture == "qwen2";
  GgufBiases const biases(file, m);
  bool const q = biases.all({"attn_q", "attn_k", "attn_v"}), o = biases.all({"attn_output"}),
             mlp = biases.all({"ffn_gate", "ffn_up", "ffn_down"});
  std::string const name = mistral ? "Mistral" : qwen2 ? "Qwen2" : m.architecture == "qwen3" ? "Qwen3" : "Llama";
  if ((qwen2 ? !q || o : mistral ? q || o : q != o) || (mlp && (mistral || m.architecture != "llama")))
    fail("its biases are not those of transformers' ", name, "ForCausalLM");
  if (m.rope.dimensions != m.head_dim)
    fail("RoPE over ", m.rope.dimensions, " of ", m.head_dim, " columns of a head is not possible in transformers' ",
         name, "ForCausalLM");
  nlohmann::ordered_json config = {{"architectures", {name + "ForCausalLM"}},
                                   {"model_type", mistral ? "mistral" : m.architecture},
                                   {"vocab_size", m.vocabulary},
                                   {"hidden_size", m.width},
                                   {"num_hidden_layers", m.layers},
                                   {"num_attention_heads", m.heads},
                                   {"num_key_value_heads", m.kv_heads},
                                   {"head_dim", m.head_dim},
                                   {"intermediate_size", m.ffn},
                                   {"max_position_embeddings", m.positions},
                                   {"hidden_act", "silu"},
                                   {"rms_norm_eps", shortest_decimal(m.norm_eps)},
                                   {"rope_theta", shortest_decimal(m.rope.theta)},
                                   {"rope_scaling", hf_rope_scaling(m.rope, source)}};
  if (m.architecture == "llama" && !mistral) config["mlp_bias"] = mlp;
  if (!qwen2 && !mistral) config["attention_bias"] = q;
  if (mistral) config["sliding_window"] = m.window;
  if (m.architecture.starts_with("qwen")) {
    config["use_sliding_window"] = m.window != 0;
    config["sliding_window"] = m.window != 0 ? nlohmann::ordered_json(m.window) : nullptr;
    config["max_window_layers"] = m.window != 0 ? 0 : m.layers;
  }
  return config;
}

/// config.json of a GGUF file's model.
inline nlohmann::ordered_json hf_config(Gguf const& file, ModelConfig const& m) {
  auto config = m.architecture == "gpt2" ? hf_gpt2_config(m) : hf_llama_config(file, m);
  config["tie_word_embeddings"] = m.tied;
  for (char const* token : {"bos", "eos", "padding"}) {
    auto const id = file.metadata.get_or<std::int32_t>(text("tokenizer.ggml.", token, "_token_id"), -1);
    config[text(token == std::string_view("padding") ? "pad" : token, "_token_id")] =
        id >= 0 ? nlohmann::ordered_json(id) : nullptr;
  }
  return config;
}

}  // namespace detail

/// The Hugging Face folder of a GGUF file's model, with matrices of format `type`. Without one every value is kept:
/// blocks become F32, other formats stay. FormatError names what no model class of transformers can be.
inline HfModel hf_model(Gguf const& file, std::optional<Format> type) {
  ModelConfig const config = read_gguf_config(file);
  HfModel model;
  model.config = detail::hf_config(file, config);
  FormatChoice choose(type, false);
  for (auto const& tensor : file.tensors.tensors()) {
    if (tensor.name == "rope_freqs.weight") continue;  // config.json says it
    auto const fail = [&](auto const&... parts) {
      raise<FormatError>(file.tensors.path(), ": tensor ", in_quotes(tensor.name), parts...);
    };
    auto const name = hf_name(config.architecture, tensor.name);
    if (!name) fail(" has no place in a ", config.architecture, " model");
    if (tensor.shape.size() > 2) fail(" has ", tensor.shape.size(), " dimensions, expected 1 or 2");
    if (!format_info(tensor.format).weight) fail(" of type ", format_info(tensor.format).name, " cannot be a weight");
    bool const turned = config.architecture == "gpt2" && tensor.shape.size() == 2 && detail::is_conv1d(*name);
    Format const format = choose(tensor, TensorRole::matrix);
    auto converted = turned ? transposed_conversion(tensor, *name, format) : conversion(tensor, *name, format);
    if (index_t const heads = gguf_permuted_heads(config, name->substr(0, name->rfind('.'))); heads != 0) {
      if (tensor.shape[0] != heads * config.head_dim)
        fail(" has ", tensor.shape[0], " rows, expected ", heads, " heads of ", config.head_dim);
      converted.row_order = gguf_row_order(tensor.shape[0], heads);
    }
    model.tensors.push_back(std::move(converted));
  }
  model.config["torch_dtype"] = detail::hf_dtype(model.tensors);
  model.notes = choose.notes();
  return model;
}

/// The same model folder with weights of another format; names, shapes and buffers stay. `config` is its config.json.
inline HfModel hf_model(nlohmann::ordered_json config, TensorFile const& file, std::optional<Format> type) {
  HfModel model;
  model.config = std::move(config);
  FormatChoice choose(type, false);
  for (auto const& tensor : file.tensors())  // more than two dimensions: GPT-2's saved causal masks
    model.tensors.push_back(
        conversion(tensor, tensor.name, tensor.shape.size() > 2 ? tensor.format : choose(tensor, TensorRole::matrix)));
  bool const newer = model.config.contains("dtype");
  if (newer) model.config["dtype"] = detail::hf_dtype(model.tensors);
  if (!newer || model.config.contains("torch_dtype")) model.config["torch_dtype"] = detail::hf_dtype(model.tensors);
  model.notes = choose.notes();
  return model;
}

}  // namespace graft
