// SPDX-License-Identifier: Apache-2.0
// BERT and RoBERTa.
#pragma once

#include <graft/arch/bert_ends.hpp>
#include <graft/arch/config.hpp>
#include <graft/arch/weights.hpp>
#include <graft/layer/transformer_layer.hpp>

#include <string>
#include <string_view>
#include <vector>

namespace graft {

/// Post-norm encoder in which every token sees every token:
///     h = layer_norm(h + attention.output.dense(attention(query(h), key(h), value(h))))
///     h = layer_norm(h + output.dense(gelu(intermediate.dense(h))))
/// Sites: query key value attention.output.dense intermediate.dense output.dense, and the block's output. PEDRO reads
/// the whole input as its prompt (what the query sees is the residual stream itself) and scales query, value and
/// intermediate.dense before the activation.
struct Bert {
  template <class B>
  struct Block {
    using Vector = VectorView<Real<B> const, typename B::Space>;
    index_t layer = 0;
    double eps = 0;
    AttentionShape shape;
    Activation activation = Activation::gelu;
    Vector attention_norm, attention_norm_bias, norm, norm_bias;  ///< [d]
    Linear<B> q, k, v, o, up, down;
    Site output;
  };

  template <class B>
  using Ends = BertEnds<B>;

  static constexpr bool causal = false;
  static constexpr bool learned_positions = true;

  static std::string layer_path(ModelConfig const& config, index_t layer) {
    return text(config.prefix, "encoder.layer.", layer);
  }

  static std::vector<OptionalTensor> optional_tensors(ModelConfig const& c) {
    std::vector<OptionalTensor> tensors;
    for (char const* module : {"attention.self.query", "attention.self.key", "attention.self.value",
                               "attention.output.dense", "intermediate.dense", "output.dense"})
      tensors.push_back({text(module, ".bias"), true});
    bool const bert = c.architecture == "bert";
    auto const ends = [&](std::string const& dense, std::string const& out) {
      for (auto const& module : {dense, out}) tensors.push_back({module + ".bias"});
    };
    if (c.classifier)
      bert ? ends(c.prefix + "pooler.dense", "classifier") : ends("classifier.dense", "classifier.out_proj");
    if (c.language_model)
      bert ? ends("cls.predictions.transform.dense", "cls.predictions.decoder")
           : ends("lm_head.dense", "lm_head.decoder");
    return tensors;
  }

  static void add_sites(ModelConfig const& c, SiteTable& sites) {
    for (index_t l = 0; l < c.layers; ++l) {
      std::string const path = layer_path(c, l), self = path + ".attention.self.";
      index_t const d = c.width;
      Site const query = sites.add_linear(l, "query", self + "query", d, d);
      sites.add_linear(l, "key", self + "key", d, d);
      Site const value = sites.add_linear(l, "value", self + "value", d, d);
      sites.add_linear(l, "attention.output.dense", path + ".attention.output.dense", d, d);
      Site const up = sites.add_linear(l, "intermediate.dense", path + ".intermediate.dense", d, c.ffn);
      sites.add_linear(l, "output.dense", path + ".output.dense", c.ffn, d);
      Site const block = sites.add({l, "block_out", path, d, d, SiteKind::hidden});
      sites.add_layer({block.index, {query.index, 0, d}, {value.index, 0, d}, {up.index, 0, c.ffn}, {}});
    }
  }

  template <class B>
  static Block<B> load(ModelConfig const& c, WeightMap const& w, SiteTable const& sites, DenseVectors<B>& dense,
                       index_t l) {
    std::string const path = layer_path(c, l), self = path + ".attention.self.";
    Block<B> block;
    block.layer = l;
    block.eps = c.norm_eps;
    block.shape = c.attention(l, causal);
    block.activation = c.activation;
    block.attention_norm = dense.load(w, path + ".attention.output.LayerNorm.weight", c.width);
    block.attention_norm_bias = dense.load(w, path + ".attention.output.LayerNorm.bias", c.width);
    block.norm = dense.load(w, path + ".output.LayerNorm.weight", c.width);
    block.norm_bias = dense.load(w, path + ".output.LayerNorm.bias", c.width);
    block.q = dense.linear(w, sites, self + "query");
    block.k = dense.linear(w, sites, self + "key");
    block.v = dense.linear(w, sites, self + "value");
    block.o = dense.linear(w, sites, path + ".attention.output.dense");
    block.up = dense.linear(w, sites, path + ".intermediate.dense");
    block.down = dense.linear(w, sites, path + ".output.dense");
    block.output = {sites.layers()[static_cast<std::size_t>(l)].block, c.width, c.width};
    return block;
  }

  template <class Be, class B>
  static void forward(Be& be, Block<B> const& block, Step<B> const& step,
                      MatrixView<typename B::Act, typename B::Space> h) {
    using ConstView = MatrixView<typename B::Act const, typename B::Space>;
    observe_prompt(be, block.layer, *step.plan, ConstView(h), ConstView(h));
    // a token sees those of later chunks too, so all keys are made before the first row changes
    for (auto const& chunk : step.chunks) make_keys(be, block, step, chunk, h.row_range(chunk.first, chunk.rows));
    for (auto const& chunk : step.chunks) {
      auto const rows = h.row_range(chunk.first, chunk.rows);
      attend(be, block, step, chunk, rows);
      feed_forward(be, block, chunk, rows);
      apply_block_output(be, block.output, *chunk.plan, rows);
    }
  }

 private:
  template <class Be, class B, class View>
  static void make_keys(Be& be, Block<B> const& block, Step<B> const& step, StepChunk<B> const& chunk, View h) {
    using Act = typename B::Act;
    using ConstView = MatrixView<Act const, typename B::Space>;
    auto const scope = be.scope();
    auto const k = be.arena().template matrix<Act>(h.rows, h.cols);
    auto const v = be.arena().template matrix<Act>(h.rows, h.cols);
    linear(be, block.k, *chunk.plan, ConstView(h), k);
    linear(be, block.v, *chunk.plan, ConstView(h), v);
    store_kv(be, step.kv_of(block.layer), chunk.spans, ConstView(k), ConstView(v));
  }

  template <class Be, class B, class View>
  static void attend(Be& be, Block<B> const& block, Step<B> const& step, StepChunk<B> const& chunk, View h) {
    using Act = typename B::Act;
    using ConstView = MatrixView<Act const, typename B::Space>;
    auto const scope = be.scope();
    auto const q = be.arena().template matrix<Act>(h.rows, h.cols);
    auto const attended = be.arena().template matrix<Act>(h.rows, h.cols);
    linear(be, block.q, *chunk.plan, ConstView(h), q);
    attention(be, step.kv_of(block.layer), block.shape, chunk.spans, ConstView(q), attended);
    auto const o = linear_unmapped(be, block.o, *chunk.plan, ConstView(attended));
    add_mapped_layer_norm(be, o, h, block.attention_norm, block.attention_norm_bias, block.eps, h);
  }

  template <class Be, class B, class View>
  static void feed_forward(Be& be, Block<B> const& block, StepChunk<B> const& chunk, View h) {
    using ConstView = MatrixView<typename B::Act const, typename B::Space>;
    auto const scope = be.scope();
    auto const up = linear_unmapped(be, block.up, *chunk.plan, ConstView(h));
    auto const active = activate_mapped(be, block.activation, up);
    auto const down = linear_unmapped(be, block.down, *chunk.plan, ConstView(active));
    add_mapped_layer_norm(be, down, h, block.norm, block.norm_bias, block.eps, h);
  }
};

}  // namespace graft
