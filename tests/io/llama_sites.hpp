// SPDX-License-Identifier: Apache-2.0
// The sites of a Llama, for tests that need no model.
#pragma once

#include <graft/adapter/site.hpp>
#include <graft/io/json.hpp>

#include <filesystem>
#include <string>

namespace graft_test {

struct LlamaSizes {
  graft::index_t layers = 2, width = 8, heads = 2, kv_heads = 1, head_dim = 4, ffn = 12, vocabulary = 10;
  bool tied = false;
};

inline graft::SiteTable llama_sites(LlamaSizes const& c) {
  using graft::SiteKind;
  graft::SiteTable sites;
  sites.add({-1, "embed_tokens", "model.embed_tokens", c.vocabulary, c.width, SiteKind::embedding});
  for (graft::index_t l = 0; l < c.layers; ++l) {
    std::string const path = "model.layers." + std::to_string(l);
    graft::index_t const q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
    auto const query = sites.add_linear(l, "q_proj", path + ".self_attn.q_proj", c.width, q);
    sites.add_linear(l, "k_proj", path + ".self_attn.k_proj", c.width, kv);
    auto const value = sites.add_linear(l, "v_proj", path + ".self_attn.v_proj", c.width, kv);
    sites.add_linear(l, "o_proj", path + ".self_attn.o_proj", q, c.width);
    sites.add_linear(l, "gate_proj", path + ".mlp.gate_proj", c.width, c.ffn);
    auto const up = sites.add_linear(l, "up_proj", path + ".mlp.up_proj", c.width, c.ffn);
    sites.add_linear(l, "down_proj", path + ".mlp.down_proj", c.ffn, c.width);
    auto const rotated = sites.add({l, "rotated_q", path, q, q, SiteKind::rotated_q});
    auto const block = sites.add({l, "block_out", path, c.width, c.width, SiteKind::hidden});
    sites.add_layer(
        {block.index, {query.index, 0, q}, {value.index, 0, kv}, {up.index, 0, c.ffn}, {rotated.index, 0, q}});
  }
  sites.add({-1, "lm_head", "lm_head", c.width, c.vocabulary, SiteKind::linear, c.tied ? "model.embed_tokens" : ""});
  return sites;
}

/// The sizes of a Hugging Face model folder.
inline LlamaSizes llama_sizes(std::filesystem::path const& folder) {
  auto const config = graft::read_json(folder / "config.json");
  graft::index_t const heads = config.at("num_attention_heads"), width = config.at("hidden_size");
  graft::index_t const head_dim = config.contains("head_dim") && !config["head_dim"].is_null()
                                      ? config["head_dim"].get<graft::index_t>()
                                      : width / heads;
  return {config.at("num_hidden_layers"),   width,    heads,
          config.at("num_key_value_heads"), head_dim, config.at("intermediate_size"),
          config.at("vocab_size")};
}

}  // namespace graft_test
