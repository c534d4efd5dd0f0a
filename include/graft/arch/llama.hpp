// SPDX-License-Identifier: Apache-2.0
// Llama and its relatives: SmolLM2, Llama 2 and 3, Mistral (sliding window), Qwen2 (biases), Qwen3 (query/key norms).
#pragma once

#include <graft/arch/config.hpp>
#include <graft/arch/decoder_ends.hpp>
#include <graft/arch/weights.hpp>
#include <graft/layer/transformer_layer.hpp>

#include <array>
#include <string>
#include <string_view>
#include <vector>

namespace graft {

/// Pre-norm decoder with RMS norms, rotary positions, grouped-query attention and a gated feed-forward:
///     h += o_proj(attention(rope(q_proj(x)), rope(k_proj(x)), v_proj(x)))       x = rms_norm(h)
///     h += down_proj(silu(gate_proj(x)) * up_proj(x))                           x = rms_norm(h)
/// Sites: q_proj k_proj v_proj o_proj gate_proj up_proj down_proj, and the block's output.
struct Llama {
  template <class B>
  struct Block {
    index_t layer = 0;
    double eps = 0;
    AttentionShape shape;
    Activation activation = Activation::silu;
    VectorView<Real<B> const, typename B::Space> input_norm, post_norm;  ///< [d]
    VectorView<Real<B> const, typename B::Space> q_norm, k_norm;         ///< [head_dim] or empty
    Linear<B> q, k, v, o, gate, up, down;
    Site rotated_q, output;
  };

  template <class B>
  using Ends = DecoderEnds<B>;

  static constexpr bool causal = true;

  static std::string layer_path(ModelConfig const& config, index_t layer) {
    return text(config.prefix, "layers.", layer);
  }

  /// transformers' classes know biases by their configuration, whatever a file holds, and norms of query and key by
  /// their kind.
  static std::vector<OptionalTensor> optional_tensors(ModelConfig const& c) {
    using Presence = OptionalTensor::Presence;
    bool const qwen2 = c.architecture == "qwen2";
    auto const stored_if = [](bool possible) { return possible ? Presence::if_stored : Presence::never; };
    Presence const norms = c.architecture == "qwen3" ? Presence::always : Presence::never,
                   qkv = qwen2 ? Presence::always : stored_if(c.attention_bias),
                   o = stored_if(c.attention_bias && !qwen2), mlp = stored_if(c.mlp_bias);
    return {{"self_attn.q_norm.weight", true, norms},
            {"self_attn.k_norm.weight", true, norms},
            {"self_attn.q_proj.bias", true, qkv},
            {"self_attn.k_proj.bias", true, qkv},
            {"self_attn.v_proj.bias", true, qkv},
            {"self_attn.o_proj.bias", true, o},
            {"mlp.gate_proj.bias", true, mlp},
            {"mlp.up_proj.bias", true, mlp},
            {"mlp.down_proj.bias", true, mlp},
            {"input_layernorm.bias", true, Presence::never},
            {"post_attention_layernorm.bias", true, Presence::never},
            {c.prefix + "norm.bias", false, Presence::never},
            {"lm_head.bias", false, Presence::never},
            {"score.bias", false, Presence::never}};
  }

  static void add_sites(ModelConfig const& c, SiteTable& sites) {
    for (index_t l = 0; l < c.layers; ++l) {
      std::string const path = layer_path(c, l), attention = path + ".self_attn.", mlp = path + ".mlp.";
      index_t const q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
      Site const query = sites.add_linear(l, "q_proj", attention + "q_proj", c.width, q);
      sites.add_linear(l, "k_proj", attention + "k_proj", c.width, kv);
      Site const value = sites.add_linear(l, "v_proj", attention + "v_proj", c.width, kv);
      sites.add_linear(l, "o_proj", attention + "o_proj", q, c.width);
      sites.add_linear(l, "gate_proj", mlp + "gate_proj", c.width, c.ffn);
      Site const up = sites.add_linear(l, "up_proj", mlp + "up_proj", c.width, c.ffn);
      sites.add_linear(l, "down_proj", mlp + "down_proj", c.ffn, c.width);
      Site const rotated = sites.add({l, "rotated_q", path, q, q, SiteKind::rotated_q});
      Site const block = sites.add({l, "block_out", path, c.width, c.width, SiteKind::hidden});
      sites.add_layer(
          {block.index, {query.index, 0, q}, {value.index, 0, kv}, {up.index, 0, c.ffn}, {rotated.index, 0, q}});
    }
  }

  template <class B>
  static Block<B> load(ModelConfig const& c, WeightMap const& w, SiteTable const& sites, DenseVectors<B>& dense,
                       index_t l) {
    std::string const path = layer_path(c, l), attention = path + ".self_attn.", mlp = path + ".mlp.";
    Block<B> block;
    block.layer = l;
    block.eps = c.norm_eps;
    block.shape = c.attention(l, causal);
    block.activation = c.activation;
    block.input_norm = dense.load(w, path + ".input_layernorm.weight", c.width);
    block.post_norm = dense.load(w, path + ".post_attention_layernorm.weight", c.width);
    block.q_norm = dense.load_if_present(w, attention + "q_norm.weight", c.head_dim);
    block.k_norm = dense.load_if_present(w, attention + "k_norm.weight", c.head_dim);
    auto const [q, k, v] =
        dense.linears(w, sites, std::array{attention + "q_proj", attention + "k_proj", attention + "v_proj"});
    auto const [gate, up] = dense.linears(w, sites, std::array{mlp + "gate_proj", mlp + "up_proj"});
    block.q = q, block.k = k, block.v = v;
    block.o = dense.linear(w, sites, attention + "o_proj");
    block.gate = gate, block.up = up;
    block.down = dense.linear(w, sites, mlp + "down_proj");
    auto const& layer = sites.layers()[static_cast<std::size_t>(l)];
    block.rotated_q = {layer.rotated_query.site, layer.rotated_query.size, layer.rotated_query.size};
    block.output = {layer.block, c.width, c.width};
    return block;
  }

  template <class Be, class B>
  static void forward(Be& be, Block<B> const& block, Step<B> const& step,
                      MatrixView<typename B::Act, typename B::Space> h) {
    using Act = typename B::Act;
    using ConstView = MatrixView<Act const, typename B::Space>;
    auto const scope = be.scope();
    auto const normalized = be.arena().template matrix<Act>(h.rows, h.cols);  // [n,d]
    rms_norm(be, ConstView(h), block.input_norm, block.eps, normalized);
    observe_prompt(be, block.layer, *step.plan, ConstView(normalized), ConstView(h));
    for (auto const& chunk : step.chunks) {
      auto const chunk_scope = be.scope();
      auto const rows = h.row_range(chunk.first, chunk.rows);
      auto const x = normalized.row_range(chunk.first, chunk.rows);
      auto const normalized_again = be.arena().template matrix<Act>(x.rows, x.cols);
      add_mapped_norm(be, attend(be, block, step, chunk, x), rows, block.post_norm, block.eps, normalized_again);
      add_mapped(be, feed_forward(be, block, chunk, normalized_again), rows);
      apply_block_output(be, block.output, *chunk.plan, rows);
    }
  }

 private:
  // o_proj(attention(x)); x [n,d] is normalised
  template <class Be, class B, class View>
  static Unmapped<Be> attend(Be& be, Block<B> const& block, Step<B> const& step, StepChunk<B> const& chunk, View x) {
    using Act = typename B::Act;
    using ConstView = MatrixView<Act const, typename B::Space>;
    auto const [q, k, v] = linear_unmapped(be, std::array{&block.q, &block.k, &block.v}, *chunk.plan, ConstView(x));
    auto const cosine = step.cosine.row_range(chunk.first, chunk.rows);
    auto const sine = step.sine.row_range(chunk.first, chunk.rows);
    auto const kv = step.kv_of(block.layer);
    auto const rotated = norm_rotate_store(be, block.q_norm, block.k_norm, block.eps, cosine, sine,
                                           block.shape.head_dim, kv, chunk.spans, q, k, v);
    apply_rotated(be, block.rotated_q, *chunk.plan, rotated);
    auto const attended = be.arena().template matrix<Act>(x.rows, rotated.cols);
    attention(be, kv, block.shape, chunk.spans, ConstView(rotated), attended);
    return linear_unmapped(be, block.o, *chunk.plan, ConstView(attended));
  }

  // down_proj(f(gate_proj(x)) * up_proj(x)); x [n,d] is normalised
  template <class Be, class B, class View>
  static Unmapped<Be> feed_forward(Be& be, Block<B> const& block, StepChunk<B> const& chunk, View x) {
    using ConstView = MatrixView<typename B::Act const, typename B::Space>;
    auto const [gate, up] = linear_unmapped(be, std::array{&block.gate, &block.up}, *chunk.plan, ConstView(x));
    auto const active = activate_gated_mapped(be, block.activation, gate, up);
    return linear_unmapped(be, block.down, *chunk.plan, ConstView(active));
  }
};

struct Mistral : Llama {};
struct Qwen2 : Llama {};
struct Qwen3 : Llama {};

}  // namespace graft
