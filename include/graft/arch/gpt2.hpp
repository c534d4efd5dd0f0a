// SPDX-License-Identifier: Apache-2.0
// GPT-2.
#pragma once

#include <graft/arch/config.hpp>
#include <graft/arch/ends.hpp>
#include <graft/arch/weights.hpp>
#include <graft/layer/transformer_layer.hpp>

#include <string>
#include <string_view>
#include <vector>

namespace graft {

/// h = W_e[token] + W_p[position];  logits = layer_norm(h) W_h^T, W_h = W_e when tied. A classifier's
/// head is "score", [labels, d].
template <class B>
struct Gpt2Ends {
  using Act = typename B::Act;
  using View = MatrixView<Act, typename B::Space>;
  using ConstView = MatrixView<Act const, typename B::Space>;

  Embedding<B> embedding;                                        ///< [V, d]
  Weight positions;                                              ///< [positions, d]
  VectorView<Real<B> const, typename B::Space> norm, norm_bias;  ///< [d]
  Head<B> head;                                                  ///< [V, d]
  double eps = 0;

  static void add_sites(ModelConfig const& c, SiteTable& sites) {
    sites.add({-1, "wte", c.prefix + "wte", c.vocabulary, c.width, SiteKind::embedding});
    add_head(sites, c, c.decoder_head(), c.prefix + "wte");
  }

  static Gpt2Ends load(ModelConfig const& c, WeightMap const& w, SiteTable const& sites, DenseVectors<B>& dense) {
    Gpt2Ends ends;
    ends.embedding = Embedding<B>::load(w, sites, dense, c.prefix + "wte", c.vocabulary, c.width);
    ends.positions = dense.matrix(w, c.prefix + "wpe.weight", c.positions, c.width);
    ends.norm = dense.load(w, c.prefix + "ln_f.weight", c.width);
    ends.norm_bias = dense.load(w, c.prefix + "ln_f.bias", c.width);
    ends.head = Head<B>::load(w, sites, dense, c.decoder_head(), c.has_tied_head() ? &ends.embedding.weight : nullptr);
    ends.eps = c.norm_eps;
    return ends;
  }

  index_t output_width() const { return head.layer.weight.rows; }

  /// h [n, d]
  template <class Be>
  void embed(Be& be, EndStep<B> const& step, View h) const {
    embedding.forward(be, step, h);
    gather_rows(be, positions, step.positions, h, true);
  }

  /// logits [m, V] or [m, labels] of the wanted rows h [m, d], which are overwritten.
  template <class Be>
  void logits(Be& be, EndStep<B> const& step, View h, View out) const {
    layer_norm(be, ConstView(h), norm, norm_bias, eps, h);
    head.forward(be, step, ConstView(h), out);
  }
};

/// Pre-norm decoder with layer norms, learned positions and one projection for query, key and value:
///     h += c_proj(attention(q, k, v)),  [q | k | v] = c_attn(x)                 x = layer_norm(h)
///     h += c_proj(gelu(c_fc(x)))                                                x = layer_norm(h)
/// Sites: c_attn (one module over 3d outputs), attn.c_proj, c_fc, mlp.c_proj, and the block's output. PEDRO scales the
/// query's and the value's third of c_attn, and c_fc before the activation.
struct Gpt2 {
  template <class B>
  struct Block {
    using Vector = VectorView<Real<B> const, typename B::Space>;
    index_t layer = 0;
    double eps = 0;
    AttentionShape shape;
    Activation activation = Activation::gelu_tanh;
    Vector norm_1, norm_1_bias, norm_2, norm_2_bias;  ///< [d]
    Linear<B> qkv, o, up, down;
    Site output;
  };

  template <class B>
  using Ends = Gpt2Ends<B>;

  static constexpr bool causal = true;
  static constexpr bool learned_positions = true;

  static std::string layer_path(ModelConfig const& config, index_t layer) { return text(config.prefix, "h.", layer); }

  static std::vector<OptionalTensor> optional_tensors(ModelConfig const&) {
    return {{"attn.c_attn.bias", true},
            {"attn.c_proj.bias", true},
            {"mlp.c_fc.bias", true},
            {"mlp.c_proj.bias", true},
            {"lm_head.bias", false, OptionalTensor::Presence::never},
            {"score.bias", false, OptionalTensor::Presence::never}};
  }

  static void add_sites(ModelConfig const& c, SiteTable& sites) {
    for (index_t l = 0; l < c.layers; ++l) {
      std::string const path = layer_path(c, l);
      index_t const d = c.width;
      Site const qkv = sites.add_linear(l, "c_attn", path + ".attn.c_attn", d, 3 * d);
      sites.add_linear(l, "attn.c_proj", path + ".attn.c_proj", d, d);
      Site const up = sites.add_linear(l, "c_fc", path + ".mlp.c_fc", d, c.ffn);
      sites.add_linear(l, "mlp.c_proj", path + ".mlp.c_proj", c.ffn, d);
      Site const block = sites.add({l, "block_out", path, d, d, SiteKind::hidden});
      sites.add_layer({block.index, {qkv.index, 0, d}, {qkv.index, 2 * d, d}, {up.index, 0, c.ffn}, {}});
    }
  }

  template <class B>
  static Block<B> load(ModelConfig const& c, WeightMap const& w, SiteTable const& sites, DenseVectors<B>& dense,
                       index_t l) {
    std::string const path = layer_path(c, l);
    Block<B> block;
    block.layer = l;
    block.eps = c.norm_eps;
    block.shape = c.attention(l, causal);
    block.activation = c.activation;
    block.norm_1 = dense.load(w, path + ".ln_1.weight", c.width);
    block.norm_1_bias = dense.load(w, path + ".ln_1.bias", c.width);
    block.norm_2 = dense.load(w, path + ".ln_2.weight", c.width);
    block.norm_2_bias = dense.load(w, path + ".ln_2.bias", c.width);
    block.qkv = dense.linear(w, sites, path + ".attn.c_attn");
    block.o = dense.linear(w, sites, path + ".attn.c_proj");
    block.up = dense.linear(w, sites, path + ".mlp.c_fc");
    block.down = dense.linear(w, sites, path + ".mlp.c_proj");
    block.output = {sites.layers()[static_cast<std::size_t>(l)].block, c.width, c.width};
    return block;
  }

  template <class Be, class B>
  static void forward(Be& be, Block<B> const& block, Step<B> const& step,
                      MatrixView<typename B::Act, typename B::Space> h) {
    using Act = typename B::Act;
    using ConstView = MatrixView<Act const, typename B::Space>;
    auto const scope = be.scope();
    auto const normalized = be.arena().template matrix<Act>(h.rows, h.cols);  // [n,d]
    layer_norm(be, ConstView(h), block.norm_1, block.norm_1_bias, block.eps, normalized);
    observe_prompt(be, block.layer, *step.plan, ConstView(normalized), ConstView(h));
    for (auto const& chunk : step.chunks) {
      auto const chunk_scope = be.scope();
      auto const rows = h.row_range(chunk.first, chunk.rows);
      auto const x = normalized.row_range(chunk.first, chunk.rows);
      auto const normalized_again = be.arena().template matrix<Act>(x.rows, x.cols);
      add_mapped_layer_norm(be, attend(be, block, step, chunk, x), rows, block.norm_2, block.norm_2_bias, block.eps,
                            normalized_again);
      add_mapped(be, feed_forward(be, block, chunk, normalized_again), rows);
      apply_block_output(be, block.output, *chunk.plan, rows);
    }
  }

 private:
  // c_proj(attention(c_attn(x))); x [n,d] is normalised
  template <class Be, class B, class View>
  static Unmapped<Be> attend(Be& be, Block<B> const& block, Step<B> const& step, StepChunk<B> const& chunk, View x) {
    using Act = typename B::Act;
    using ConstView = MatrixView<Act const, typename B::Space>;
    index_t const d = x.cols;
    auto const qkv = be.arena().template matrix<Act>(x.rows, 3 * d);
    linear(be, block.qkv, *chunk.plan, ConstView(x), qkv);
    auto const kv = step.kv_of(block.layer);
    store_kv(be, kv, chunk.spans, ConstView(qkv.col_range(d, d)), ConstView(qkv.col_range(2 * d, d)));
    auto const attended = be.arena().template matrix<Act>(x.rows, d);
    attention(be, kv, block.shape, chunk.spans, ConstView(qkv.col_range(0, d)), attended);
    return linear_unmapped(be, block.o, *chunk.plan, ConstView(attended));
  }

  // c_proj(f(c_fc(x))); x [n,d] is normalised
  template <class Be, class B, class View>
  static Unmapped<Be> feed_forward(Be& be, Block<B> const& block, StepChunk<B> const& chunk, View x) {
    using ConstView = MatrixView<typename B::Act const, typename B::Space>;
    auto const up = linear_unmapped(be, block.up, *chunk.plan, ConstView(x));
    auto const active = activate_mapped(be, block.activation, up);
    return linear_unmapped(be, block.down, *chunk.plan, ConstView(active));
  }
};

}  // namespace graft
