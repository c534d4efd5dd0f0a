// SPDX-License-Identifier: Apache-2.0
// A model's configuration from GGUF metadata.
#pragma once

#include <graft/arch/config.hpp>
#include <graft/core/error.hpp>
#include <graft/core/format.hpp>
#include <graft/core/types.hpp>
#include <graft/io/checked.hpp>
#include <graft/io/gguf.hpp>
#include <graft/io/gguf_names.hpp>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

namespace graft {

namespace detail {

/// The keys of a model's metadata, without the architecture that they begin with.
class GgufConfigReader {
 public:
  explicit GgufConfigReader(Gguf const& file)
      : file_(file), architecture_(file.metadata.get<std::string>("general.architecture")) {
    if (!in_gguf(architecture_))
      fail("architecture ", in_quotes(architecture_),
           " is not supported in GGUF files (llama, qwen2, qwen3, gpt2 are)");
  }

  ModelConfig read() const {
    ModelConfig m;
    m.architecture = architecture_;
    m.name = file_.metadata.get_or<std::string>("general.name", file_.tensors.path());
    m.prefix = architecture_ == "gpt2" ? "transformer." : "model.";
    read_sizes(m);
    if (architecture_ == "gpt2") {
      m.activation = Activation::gelu_tanh;
      m.norm_eps = number_or("attention.layer_norm_epsilon", 1e-5);
      return m;
    }
    m.norm_eps = number_or("attention.layer_norm_rms_epsilon", 1e-5);
    m.rope = rope(m);
    return m;
  }

 private:
  template <class... Parts>
  [[noreturn]] void fail(Parts const&... parts) const {
    raise<FormatError>(file_.tensors.path(), ": ", parts...);
  }
  std::string full(std::string const& key) const { return architecture_ + "." + key; }
  bool has(std::string const& key) const { return file_.metadata.contains(full(key)); }
  index_t size(std::string const& key) const {
    auto const value = static_cast<index_t>(file_.metadata.get<std::uint32_t>(full(key)));
    if (value <= 0 || value > index_t{1} << 31)
      fail("metadata key ", in_quotes(full(key)), " is ", value, ", expected a size from 1 to 2^31");
    return value;
  }
  index_t size_or(std::string const& key, index_t fallback) const { return has(key) ? size(key) : fallback; }
  double number_or(std::string const& key, double fallback) const {
    return static_cast<double>(file_.metadata.get_or(full(key), static_cast<float>(fallback)));
  }

  void read_sizes(ModelConfig& m) const {
    m.layers = size("block_count");
    if (m.layers > m.most_layers) fail(m.layers, " layers are not believable");
    m.width = size("embedding_length");
    m.ffn = size("feed_forward_length");
    m.heads = size("attention.head_count");
    m.kv_heads = size_or("attention.head_count_kv", m.heads);
    if (m.heads % m.kv_heads != 0) fail(m.heads, " heads cannot share ", m.kv_heads, " key/value heads");
    if (m.width % m.heads != 0 && !has("attention.key_length"))
      fail("embedding length ", m.width, " is no multiple of ", m.heads, " heads");
    m.head_dim = size_or("attention.key_length", m.width / m.heads);
    if (size_or("attention.value_length", m.head_dim) != m.head_dim)
      fail("keys and values of different length are not supported");
    m.positions = size("context_length");
    m.window = size_or("attention.sliding_window", 0);
    auto const* const embedding = file_.tensors.find("token_embd.weight");
    m.vocabulary = embedding != nullptr && embedding->shape.size() == 2 ? embedding->shape[0] : 0;
    if (m.vocabulary == 0) fail("tensor 'token_embd.weight' is missing or not a matrix");
    m.tied = file_.tensors.find("output.weight") == nullptr;
  }

  RopeConfig rope(ModelConfig const& m) const {
    RopeConfig rope;
    rope.dimensions = size_or("rope.dimension_count", m.head_dim);
    if (rope.dimensions % 2 != 0 || rope.dimensions > m.head_dim)
      fail("RoPE over ", rope.dimensions, " columns is not possible");
    rope.theta = number_or("rope.freq_base", 10000);
    if (!(rope.theta > 0)) fail("RoPE's base is ", rope.theta, ", expected a positive number");
    // absent: linear, as in llama.cpp; by 1, so not at all, without a factor
    auto const scaling = file_.metadata.get_or<std::string>(full("rope.scaling.type"), "linear");
    if (scaling == "linear") {
      rope.factor = number_or("rope.scaling.factor", number_or("rope.scale_linear", 1));  // the second: files of 2023
      if (rope.factor != 0 && rope.factor != 1) rope.scaling = RopeConfig::Scaling::linear;
    } else if (scaling == "yarn") {
      rope.scaling = RopeConfig::Scaling::yarn;
      rope.factor = number_or("rope.scaling.factor", 1);
      rope.original_positions = static_cast<double>(size_or("rope.scaling.original_context_length", m.positions));
      rope.beta_fast = number_or("rope.scaling.yarn_beta_fast", 32);
      rope.beta_slow = number_or("rope.scaling.yarn_beta_slow", 1);
      if (auto const factor = number_or("rope.scaling.attn_factor", 0); factor != 0)
        rope.attention_factor = factor * (0.1 * std::log(rope.factor) + 1);
    } else if (scaling != "none") {
      fail("RoPE scaling ", in_quotes(scaling), " is not supported (none, linear, yarn are)");
    }
    if (auto const* divisors = file_.tensors.find("rope_freqs.weight")) {
      if (divisors->format != Format::f32 || divisors->shape != std::vector<index_t>{rope.dimensions / 2})
        fail("tensor 'rope_freqs.weight' should be F32 [", rope.dimensions / 2, "]");
      auto const* values = reinterpret_cast<float const*>(divisors->data);
      rope.divisors.assign(values, values + rope.dimensions / 2);
    }
    return rope;
  }

  Gguf const& file_;
  std::string architecture_;
};

}  // namespace detail

/// The configuration of a GGUF file's model; FormatError names the key or tensor that is missing, wrong or not
/// supported.
inline ModelConfig read_gguf_config(Gguf const& file) { return detail::GgufConfigReader(file).read(); }

}  // namespace graft
