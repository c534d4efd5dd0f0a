// SPDX-License-Identifier: Apache-2.0
// Decoders whose weights are made up, in the shapes of real ones.
#pragma once

#include <graft/adapter/site.hpp>
#include <graft/arch/config.hpp>
#include <graft/arch/weights.hpp>
#include <graft/core/format.hpp>
#include <graft/core/memory.hpp>
#include <graft/core/random.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace bench {

using namespace graft;

/// The shapes of a decoder.
struct Sizes {
  std::string name;
  index_t layers, width, ffn, heads, kv_heads, vocabulary;
  bool tied;
};
inline Sizes llama_2_7b() { return {"LLaMA-2-7B", 32, 4096, 11008, 32, 32, 32000, false}; }
inline Sizes smollm2() { return {"SmolLM2-135M", 30, 576, 1536, 9, 3, 49152, true}; }
/// For machines without a GPU, which emulate one: only to see that a program runs.
inline Sizes small_sizes() { return {"small", 1, 128, 192, 4, 2, 32, false}; }

inline ModelConfig config_of(Sizes const& s) {
  ModelConfig c;
  c.architecture = "llama", c.prefix = "model.", c.name = s.name;
  c.vocabulary = s.vocabulary, c.width = s.width, c.layers = s.layers;
  c.heads = s.heads, c.kv_heads = s.kv_heads, c.head_dim = s.width / s.heads, c.ffn = s.ffn;
  c.positions = 4096, c.tied = s.tied;
  c.rope.dimensions = c.head_dim;
  return c;
}

/// Whether all tensors are one piece of memory, which costs little and is enough where a device copies each, or each
/// has its own.
enum class MadeUp { shared, apart };

inline WeightMap weights_of(Sizes const& s, Format format = Format::bf16, MadeUp memory = MadeUp::shared) {
  using Bytes = Storage<std::byte, HostSpace>;
  WeightMap map;
  Random random(1);
  auto const make = [&](index_t rows, index_t cols) {  // 32 rows of random values, again and again
    auto const stored = static_cast<std::size_t>(row_bytes(format, cols));
    auto const bytes = std::make_shared<Bytes>(rows * static_cast<index_t>(stored));
    std::vector<float> values(static_cast<std::size_t>(cols));
    for (std::size_t k = 0; k < static_cast<std::size_t>(rows); ++k) {
      if (k < 32) {
        for (auto& v : values) v = static_cast<float>(random.uniform(-1, 1) / std::sqrt(static_cast<double>(s.width)));
        encode_row(format, values.data(), cols, bytes->data() + k * stored);
      } else {
        std::memcpy(bytes->data() + k * stored, bytes->data() + (k - 32) * stored, stored);
      }
    }
    map.keep.push_back(bytes);
    return bytes->data();
  };
  std::byte const* const one =
      memory == MadeUp::shared ? make(std::max({s.vocabulary, s.ffn, s.width}), s.width) : nullptr;
  auto const matrix = [&](std::string const& name, index_t rows, index_t cols) {
    map.tensors[name] = {one != nullptr ? one : make(rows, cols), format, rows, cols, nullptr};
  };
  auto const ones = std::make_shared<std::vector<float>>(static_cast<std::size_t>(s.width), 1.f);
  map.keep.push_back(ones);
  auto const norm = [&](std::string const& name) {
    map.tensors[name] = {reinterpret_cast<std::byte const*>(ones->data()), Format::f32, 1, s.width, nullptr};
  };
  index_t const kv = s.kv_heads * (s.width / s.heads);
  for (index_t l = 0; l < s.layers; ++l) {
    std::string const path = text("model.layers.", l);
    matrix(path + ".self_attn.q_proj.weight", s.width, s.width);
    matrix(path + ".self_attn.k_proj.weight", kv, s.width);
    matrix(path + ".self_attn.v_proj.weight", kv, s.width);
    matrix(path + ".self_attn.o_proj.weight", s.width, s.width);
    matrix(path + ".mlp.gate_proj.weight", s.ffn, s.width);
    matrix(path + ".mlp.up_proj.weight", s.ffn, s.width);
    matrix(path + ".mlp.down_proj.weight", s.width, s.ffn);
    norm(path + ".input_layernorm.weight");
    norm(path + ".post_attention_layernorm.weight");
  }
  matrix("model.embed_tokens.weight", s.vocabulary, s.width);
  if (!s.tied) matrix("lm_head.weight", s.vocabulary, s.width);
  norm("model.norm.weight");
  return map;
}

/// The sites of the linear layers inside the layers, or of the residual streams behind them.
inline std::vector<index_t> sites_of(SiteTable const& sites, SiteKind kind) {
  std::vector<index_t> all;
  for (index_t k = 0; k < sites.size(); ++k)
    if (sites[k].kind == kind && sites[k].layer >= 0) all.push_back(k);
  return all;
}

}  // namespace bench
