// SPDX-License-Identifier: Apache-2.0
// A model's configuration from GGUF metadata.
#pragma once

#include <graft/arch/config.hpp>
#include <graft/io/gguf.hpp>

#include <string>

namespace graft {

inline ModelConfig read_gguf_config(Gguf const& file) {
  auto const& meta = file.metadata;
  auto const& path = file.tensors.path();
  auto const fail = [&](auto const&... parts) { raise<FormatError>(text(path, ": ", parts...)); };
  auto const architecture = std::string(meta.template get<std::string_view>("general.architecture"));
  if (architecture != "llama" && architecture != "qwen2" && architecture != "qwen3" && architecture != "gpt2")
    fail("architecture ", in_quotes(architecture), " is not supported in GGUF files (llama, qwen2, qwen3, gpt2 are)");
  auto const size = [&](std::string const& key) {
    auto const value = static_cast<index_t>(meta.template get<std::uint32_t>(architecture + "." + key));
    if (value <= 0 || value > index_t{1} << 31)
      fail("metadata key ", in_quotes(architecture + "." + key), " is ", value, ", expected a size from 1 to 2^31");
    return value;
  };
  auto const size_or = [&](std::string const& key, index_t fallback) {
    return meta.contains(architecture + "." + key) ? size(key) : fallback;
  };
  auto const number_or = [&](std::string const& key, double fallback) {
    return static_cast<double>(meta.get_or(architecture + "." + key, static_cast<float>(fallback)));
  };

  ModelConfig m;
  m.architecture = architecture;
  m.name = meta.contains("general.name") ? std::string(meta.template get<std::string_view>("general.name")) : path;
  m.prefix = architecture == "gpt2" ? "transformer." : "model.";
  m.layers = size("block_count");
  if (m.layers > m.most_layers) fail(m.layers, " layers are not believable");
  m.width = size("embedding_length");
  m.ffn = size("feed_forward_length");
  m.heads = size("attention.head_count");
  m.kv_heads = size_or("attention.head_count_kv", m.heads);
  if (m.heads % m.kv_heads != 0) fail(m.heads, " heads cannot share ", m.kv_heads, " key/value heads");
  if (m.width % m.heads != 0 && !meta.contains(architecture + ".attention.key_length"))
    fail("embedding length ", m.width, " is no multiple of ", m.heads, " heads");
  m.head_dim = size_or("attention.key_length", m.width / m.heads);
  if (size_or("attention.value_length", m.head_dim) != m.head_dim)
    fail("keys and values of different length are not supported");
  m.positions = size("context_length");
  m.window = size_or("attention.sliding_window", 0);
  m.vocabulary = 0;
  if (auto const* embedding = file.tensors.find("token_embd.weight");
      embedding != nullptr && embedding->shape.size() == 2)
    m.vocabulary = embedding->shape[0];
  if (m.vocabulary == 0) fail("tensor 'token_embd.weight' is missing or not a matrix");
  m.tied = file.tensors.find("output.weight") == nullptr;
  if (architecture == "gpt2") {
    m.activation = Activation::gelu_tanh;
    m.norm_eps = number_or("attention.layer_norm_epsilon", 1e-5);
    return m;
  }
  m.norm_eps = number_or("attention.layer_norm_rms_epsilon", 1e-5);
  m.rope.dimensions = size_or("rope.dimension_count", m.head_dim);
  if (m.rope.dimensions % 2 != 0 || m.rope.dimensions > m.head_dim)
    fail("RoPE over ", m.rope.dimensions, " columns is not possible");
  m.rope.theta = number_or("rope.freq_base", 10000);
  if (!(m.rope.theta > 0)) fail("RoPE's base is ", m.rope.theta, ", expected a positive number");
  auto const scaling = meta.contains(architecture + ".rope.scaling.type")
                           ? std::string(meta.template get<std::string_view>(architecture + ".rope.scaling.type"))
                           : std::string("linear");  // as in llama.cpp; by 1, so not at all, without a factor
  if (scaling == "linear") {
    m.rope.factor = number_or("rope.scaling.factor", number_or("rope.scale_linear", 1));  // the second: files of 2023
    if (m.rope.factor != 0 && m.rope.factor != 1) m.rope.scaling = RopeConfig::Scaling::linear;
  } else if (scaling == "yarn") {
    m.rope.scaling = RopeConfig::Scaling::yarn;
    m.rope.factor = number_or("rope.scaling.factor", 1);
    m.rope.original_positions = static_cast<double>(size_or("rope.scaling.original_context_length", m.positions));
    m.rope.beta_fast = number_or("rope.scaling.yarn_beta_fast", 32);
    m.rope.beta_slow = number_or("rope.scaling.yarn_beta_slow", 1);
    if (auto const factor = number_or("rope.scaling.attn_factor", 0); factor != 0)
      m.rope.attention_factor = factor * (0.1 * std::log(m.rope.factor) + 1);
  } else if (scaling != "none") {
    fail("RoPE scaling ", in_quotes(scaling), " is not supported (none, linear, yarn are)");
  }
  if (auto const* divisors = file.tensors.find("rope_freqs.weight")) {
    if (divisors->format != Format::f32 || divisors->shape != std::vector<index_t>{m.rope.dimensions / 2})
      fail("tensor 'rope_freqs.weight' should be F32 [", m.rope.dimensions / 2, "]");
    auto const* values = reinterpret_cast<float const*>(divisors->data);
    m.rope.divisors.assign(values, values + m.rope.dimensions / 2);
  }
  return m;
}

}  // namespace graft
