// SPDX-License-Identifier: Apache-2.0
// GGUF's names of architectures and tensors and Hugging Face's, and the row order of llama's query and key.
#pragma once

#include <graft/arch/config.hpp>

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace graft {

/// Whether GGUF files of this architecture, as GGUF calls it, are read and written.
inline bool in_gguf(std::string_view architecture) {
  return architecture == "llama" || architecture == "qwen2" || architecture == "qwen3" || architecture == "gpt2";
}
/// What GGUF calls the architecture of a model that has one there.
inline std::string gguf_architecture(ModelConfig const& config) {
  return config.architecture == "mistral" ? "llama" : config.architecture;
}

/// {GGUF, Hugging Face} names of a layer's modules, without "blk.N." and "<prefix>layers.N.".
inline std::vector<std::pair<std::string_view, std::string_view>> gguf_layer_names(std::string_view architecture) {
  if (architecture == "gpt2")
    return {{"attn_norm", "ln_1"}, {"attn_qkv", "attn.c_attn"}, {"attn_output", "attn.c_proj"},
            {"ffn_norm", "ln_2"},  {"ffn_up", "mlp.c_fc"},      {"ffn_down", "mlp.c_proj"}};
  return {{"attn_norm", "input_layernorm"},    {"attn_q", "self_attn.q_proj"},
          {"attn_k", "self_attn.k_proj"},      {"attn_v", "self_attn.v_proj"},
          {"attn_output", "self_attn.o_proj"}, {"attn_q_norm", "self_attn.q_norm"},
          {"attn_k_norm", "self_attn.k_norm"}, {"ffn_norm", "post_attention_layernorm"},
          {"ffn_gate", "mlp.gate_proj"},       {"ffn_up", "mlp.up_proj"},
          {"ffn_down", "mlp.down_proj"}};
}
/// The same for modules outside the layers; Hugging Face's side is complete.
inline std::vector<std::pair<std::string, std::string>> gguf_outer_names(std::string_view architecture) {
  if (architecture == "gpt2")
    return {{"token_embd", "transformer.wte"},
            {"position_embd", "transformer.wpe"},
            {"output_norm", "transformer.ln_f"},
            {"output", "lm_head"}};
  return {{"token_embd", "model.embed_tokens"}, {"output_norm", "model.norm"}, {"output", "lm_head"}};
}

inline std::string hf_layers_prefix(std::string_view architecture) {
  return architecture == "gpt2" ? "transformer.h." : "model.layers.";
}

/// "blk.3.attn_q.weight" -> "model.layers.3.self_attn.q_proj.weight"; nothing for a name that is not known.
inline std::optional<std::string> hf_name(std::string_view architecture, std::string_view gguf) {
  auto const dot = gguf.rfind('.');
  if (dot == std::string_view::npos) return std::nullopt;
  std::string_view const suffix = gguf.substr(dot), module = gguf.substr(0, dot);
  if (suffix != ".weight" && suffix != ".bias") return std::nullopt;
  for (auto const& [from, to] : gguf_outer_names(architecture))
    if (module == from) return to + std::string(suffix);
  if (!module.starts_with("blk.")) return std::nullopt;
  auto const second = module.find('.', 4);
  if (second == std::string_view::npos || second == 4) return std::nullopt;
  std::string_view const number = module.substr(4, second - 4), local = module.substr(second + 1);
  for (char c : number)
    if (c < '0' || c > '9') return std::nullopt;
  for (auto const& [from, to] : gguf_layer_names(architecture))
    if (local == from)
      return hf_layers_prefix(architecture) + std::string(number) + "." + std::string(to) + std::string(suffix);
  return std::nullopt;
}

/// "model.layers.3.self_attn.q_proj.weight" -> "blk.3.attn_q.weight".
inline std::optional<std::string> gguf_name(std::string_view architecture, std::string_view hf) {
  auto const dot = hf.rfind('.');
  if (dot == std::string_view::npos) return std::nullopt;
  std::string_view const suffix = hf.substr(dot), module = hf.substr(0, dot);
  for (auto const& [to, from] : gguf_outer_names(architecture))
    if (module == from) return to + std::string(suffix);
  std::string const prefix = hf_layers_prefix(architecture);
  if (!module.starts_with(prefix)) return std::nullopt;
  auto const end = module.find('.', prefix.size());
  if (end == std::string_view::npos) return std::nullopt;
  for (auto const& [to, from] : gguf_layer_names(architecture))
    if (module.substr(end + 1) == from)
      return "blk." + std::string(module.substr(prefix.size(), end - prefix.size())) + "." + std::string(to) +
             std::string(suffix);
  return std::nullopt;
}

/// How many heads' rows of this module GGUF stores permuted (adjacent-pair RoPE), 0: stored in order. Architecture
/// "llama" only, its query and key only.
inline index_t gguf_permuted_heads(ModelConfig const& config, std::string_view hf_module) {
  if (gguf_architecture(config) != "llama") return 0;
  if (hf_module.ends_with("self_attn.q_proj")) return config.heads;
  if (hf_module.ends_with("self_attn.k_proj")) return config.kv_heads;
  return 0;
}

/// [rows]: where GGUF stores Hugging Face's row k. Inside a head of d rows, row i lies at 2 (i mod d/2) + i / (d/2).
inline std::vector<std::int32_t> gguf_row_order(index_t rows, index_t heads) {
  std::vector<std::int32_t> order(static_cast<std::size_t>(rows));
  index_t const d = rows / heads, half = d / 2;
  for (index_t k = 0; k < rows; ++k) {
    index_t const i = k % d;
    order[static_cast<std::size_t>(k)] = static_cast<std::int32_t>(k - i + 2 * (i % half) + i / half);
  }
  return order;
}

}  // namespace graft
