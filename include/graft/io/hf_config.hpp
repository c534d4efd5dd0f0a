// SPDX-License-Identifier: Apache-2.0
// config.json of a Hugging Face model folder.
#pragma once

#include <graft/arch/config.hpp>
#include <graft/io/json_object.hpp>

#include <cstdint>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

namespace graft {
namespace detail {

inline Activation hf_activation(JsonObject const& config, std::string const& key, std::string const& fallback) {
  auto const name = config.get_or<std::string>(key, fallback);
  if (name == "silu" || name == "swish") return Activation::silu;
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_new" || name == "gelu_pytorch_tanh") return Activation::gelu_tanh;
  if (name == "relu") return Activation::relu;
  config.fail("activation ", in_quotes(name), " is not supported (silu, gelu, gelu_new, relu are)");
}

inline RopeConfig hf_rope(JsonObject const& config, ModelConfig const& model) {
  RopeConfig rope;
  // transformers 5 keeps everything in rope_parameters, before it rope_theta stood beside rope_scaling
  bool const gathered = config.has("rope_parameters");
  std::string const key = gathered ? "rope_parameters" : "rope_scaling";
  rope.theta = config.get_or<double>("rope_theta", 10000);
  double partial = config.get_or<double>("partial_rotary_factor", 1);
  if (config.has(key)) {
    auto const r = config.object(key);
    rope.theta = r.get_or<double>("rope_theta", rope.theta);
    partial = r.get_or<double>("partial_rotary_factor", partial);
    auto const type = r.get_or<std::string>("rope_type", r.get_or<std::string>("type", "default"));
    auto const original = static_cast<double>(model.positions);
    if (type == "default") {
    } else if (type == "linear") {
      rope.scaling = RopeConfig::Scaling::linear;
      rope.factor = r.get<double>("factor");
    } else if (type == "llama3") {
      rope.scaling = RopeConfig::Scaling::llama3;
      rope.factor = r.get<double>("factor");
      rope.low_frequency_factor = r.get<double>("low_freq_factor");
      rope.high_frequency_factor = r.get<double>("high_freq_factor");
      rope.original_positions = r.get_or<double>("original_max_position_embeddings", original);
    } else if (type == "yarn") {
      rope.scaling = RopeConfig::Scaling::yarn;
      rope.original_positions = r.get_or<double>("original_max_position_embeddings",
                                                 config.get_or<double>("original_max_position_embeddings", original));
      // null, but not left out: what the positions say
      rope.factor = r.json().contains("factor") && !r.has("factor") ? original / rope.original_positions
                                                                    : r.get<double>("factor");
      rope.beta_fast = r.get_or<double>("beta_fast", 32);
      rope.beta_slow = r.get_or<double>("beta_slow", 1);
      rope.truncate = r.get_or<bool>("truncate", true);
      if (r.has("attention_factor")) {
        rope.attention_factor = r.get<double>("attention_factor");
      } else if (r.get_or<double>("mscale", 0) != 0 && r.get_or<double>("mscale_all_dim", 0) != 0) {
        auto const mscale = [&](double m) { return rope.factor <= 1 ? 1 : 0.1 * m * std::log(rope.factor) + 1; };
        rope.attention_factor = mscale(r.get<double>("mscale")) / mscale(r.get<double>("mscale_all_dim"));
      }
    } else {
      r.fail("RoPE scaling ", in_quotes(type), " is not supported (default, linear, llama3, yarn are)");
    }
    if (rope.scaling != RopeConfig::Scaling::none && !(rope.factor > 0)) r.fail("RoPE's factor must be positive");
  }
  if (!(rope.theta > 0)) config.fail("rope_theta must be positive");
  // transformers rotates whole heads here, and where RoPE is scaled it stops
  if (partial != 1) config.fail("partial_rotary_factor is ", partial, "; ", model.architecture, " rotates whole heads");
  rope.dimensions = model.head_dim;
  if (rope.dimensions % 2 != 0) config.fail("RoPE over the ", rope.dimensions, " columns of a head is not possible");
  return rope;
}

/// What stands behind a decoder's last layer.
inline void hf_decoder_head(JsonObject const& config, ModelConfig& m, std::string const& model_class) {
  m.classifier = model_class.ends_with("ForSequenceClassification");
  m.language_model = !m.classifier;
  if (m.classifier)
    m.padding = config.get_or<index_t>("pad_token_id", -1);
  else if (!model_class.empty() && !model_class.ends_with("ForCausalLM") && !model_class.ends_with("LMHeadModel"))
    config.fail("a ", model_class, " is not supported for ", m.architecture,
                " (the causal language model and ForSequenceClassification are)");
}

inline void hf_decoder(JsonObject const& config, ModelConfig& m) {
  m.prefix = "model.";
  m.vocabulary = config.size("vocab_size");
  m.width = config.size("hidden_size");
  m.layers = config.size("num_hidden_layers", m.most_layers);
  m.heads = config.size("num_attention_heads");
  // what transformers takes where the key is absent; null means something else
  auto const absent = [&](char const* key, index_t fallback) { return config.json().contains(key) ? 0 : fallback; };
  bool const qwen = m.architecture.starts_with("qwen"), mistral = m.architecture == "mistral";
  index_t const kv_heads = absent("num_key_value_heads", qwen ? 32 : mistral ? 8 : 0);
  m.kv_heads = config.size_or("num_key_value_heads", kv_heads != 0 ? kv_heads : m.heads);
  m.head_dim = config.size_or("head_dim", m.architecture == "qwen3" ? 128 : m.width / m.heads);
  m.ffn = config.size("intermediate_size");
  m.positions = config.size_or("max_position_embeddings", 2048);
  m.norm_eps = config.get_or<double>("rms_norm_eps", 1e-6);
  m.tied = config.get_or<bool>("tie_word_embeddings", false);
  m.attention_bias = m.architecture == "qwen2" || (!mistral && config.get_or<bool>("attention_bias", false));
  m.mlp_bias = m.architecture == "llama" && config.get_or<bool>("mlp_bias", false);
  m.activation = hf_activation(config, "hidden_act", "silu");
  m.rope = hf_rope(config, m);
  if (mistral || (qwen && config.get_or<bool>("use_sliding_window", false)))
    m.window = config.size_or("sliding_window", absent("sliding_window", 4096));
  if (qwen && m.window != 0) {
    auto const first = config.get_or<index_t>("max_window_layers", 28);  // layers below it attend to everything
    m.windowed.resize(static_cast<std::size_t>(m.layers));
    for (index_t l = 0; l < m.layers; ++l) m.windowed[static_cast<std::size_t>(l)] = l >= first;
  }
  if (config.has("layer_types") && qwen) {
    auto const types = config.get<std::vector<std::string>>("layer_types");
    if (static_cast<index_t>(types.size()) != m.layers)
      config.fail("layer_types has ", types.size(), " entries for ", m.layers, " layers");
    m.windowed.assign(types.size(), false);
    for (std::size_t l = 0; l < types.size(); ++l) {
      if (types[l] != "full_attention" && types[l] != "sliding_attention")
        config.fail("layer type ", in_quotes(types[l]), " is not supported");
      m.windowed[l] = types[l] == "sliding_attention";
    }
  }
}

inline void hf_gpt2(JsonObject const& config, ModelConfig& m) {
  m.prefix = "transformer.";
  m.vocabulary = config.size("vocab_size");
  m.width = config.size("n_embd");
  m.layers = config.size("n_layer", m.most_layers);
  m.heads = m.kv_heads = config.size("n_head");
  m.head_dim = m.width / m.heads;
  m.ffn = config.size_or("n_inner", 4 * m.width);
  m.positions = config.size_or("n_positions", 1024);
  m.norm_eps = config.get_or<double>("layer_norm_epsilon", 1e-5);
  m.tied = config.get_or<bool>("tie_word_embeddings", true);
  m.activation = hf_activation(config, "activation_function", "gelu_new");
  for (auto const* key : {"scale_attn_by_inverse_layer_idx", "add_cross_attention"})
    if (config.get_or<bool>(key, false)) config.fail(in_quotes(key), " is not supported");
  if (!config.get_or<bool>("scale_attn_weights", true)) config.fail("unscaled attention is not supported");
}

inline void hf_bert(JsonObject const& config, ModelConfig& m, std::string const& model_class) {
  m.prefix = model_class.ends_with("Model") ? "" : m.architecture + ".";
  m.vocabulary = config.size("vocab_size");
  m.width = config.size("hidden_size");
  m.layers = config.size("num_hidden_layers", m.most_layers);
  m.heads = m.kv_heads = config.size("num_attention_heads");
  m.head_dim = m.width / m.heads;
  m.ffn = config.size("intermediate_size");
  m.positions = config.size("max_position_embeddings");
  m.norm_eps = config.get_or<double>("layer_norm_eps", 1e-12);
  m.activation = hf_activation(config, "hidden_act", "gelu");
  m.token_types = config.size_or("type_vocab_size", 2);
  if (m.architecture == "roberta") {
    m.padding = config.get_or<index_t>("pad_token_id", 1);
    m.position_offset = m.padding + 1;
    if (m.padding < 0 || m.position_offset >= m.positions)
      config.fail("pad_token_id is ", m.padding, ", which leaves no position of the model's ", m.positions);
  }
  if (auto const type = config.get_or<std::string>("position_embedding_type", "absolute"); type != "absolute")
    config.fail("position embeddings of type ", in_quotes(type), " are not supported");
  for (auto const* key : {"is_decoder", "add_cross_attention"})
    if (config.get_or<bool>(key, false)) config.fail(in_quotes(key), " is not supported");
  m.tied = config.get_or<bool>("tie_word_embeddings", true);
  m.language_model = model_class.ends_with("ForMaskedLM");
  m.classifier = model_class.ends_with("ForSequenceClassification");
  if (!m.language_model && !m.classifier && !model_class.ends_with("Model"))
    config.fail("a ", model_class, " is not supported (the bare model, ForMaskedLM and ForSequenceClassification are)");
}

/// Where transformers ends a continuation: generation_config.json says it, or config.json; one token or several.
inline std::vector<std::int32_t> hf_end_tokens(JsonObject const& config, std::filesystem::path const& generation) {
  constexpr char key[] = "eos_token_id";
  auto const tokens = [&](JsonObject const& from) -> std::vector<std::int32_t> {
    if (!from.has(key)) return {};
    if (from.json().at(key).is_array()) return from.get<std::vector<std::int32_t>>(key);
    return {static_cast<std::int32_t>(from.get<index_t>(key))};
  };
  std::error_code ignored;
  if (std::filesystem::exists(generation, ignored)) {
    JsonObject const own(generation.string(), read_json(generation));
    if (own.has(key)) return tokens(own);
  }
  return tokens(config);
}

}  // namespace detail

/// The configuration of a model folder; FormatError names what graft does not know.
inline ModelConfig read_hf_config(std::filesystem::path const& path) {
  JsonObject const config(path.string(), read_json(path));
  ModelConfig m;
  m.name = path.parent_path().filename().string();
  m.architecture = config.get<std::string>("model_type");
  auto const classes = config.get_or<std::vector<std::string>>("architectures", {});
  std::string const model_class = classes.empty() ? "" : classes[0];
  if (m.architecture == "llama" || m.architecture == "mistral" || m.architecture == "qwen2" ||
      m.architecture == "qwen3")
    detail::hf_decoder(config, m), detail::hf_decoder_head(config, m, model_class);
  else if (m.architecture == "gpt2")
    detail::hf_gpt2(config, m), detail::hf_decoder_head(config, m, model_class);
  else if (m.is_encoder())
    detail::hf_bert(config, m, model_class.empty() ? "Model" : model_class);
  else
    config.fail("architecture ", in_quotes(m.architecture),
                " is not supported (llama, mistral, qwen2, qwen3, gpt2, bert, roberta are)");
  m.end_tokens = detail::hf_end_tokens(config, path.parent_path() / "generation_config.json");
  if (m.classifier) {
    index_t labels = config.has("num_labels") ? config.size("num_labels", m.most_labels) : 2;
    if (config.has("id2label")) labels = static_cast<index_t>(config.json().at("id2label").size());
    m.labels.resize(static_cast<std::size_t>(labels));
    for (index_t k = 0; k < labels; ++k) m.labels[static_cast<std::size_t>(k)] = text("LABEL_", k);
    if (config.has("id2label")) {
      auto const names = config.object("id2label");
      for (index_t k = 0; k < labels; ++k)
        m.labels[static_cast<std::size_t>(k)] = names.get_or<std::string>(std::to_string(k), text("LABEL_", k));
    }
  }
  if (m.heads % m.kv_heads != 0) config.fail(m.heads, " heads cannot share ", m.kv_heads, " key/value heads");
  if (!config.has("head_dim") && m.width % m.heads != 0)
    config.fail("hidden_size ", m.width, " is no multiple of ", m.heads, " heads");
  return m;
}

}  // namespace graft
