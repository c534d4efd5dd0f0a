// SPDX-License-Identifier: Apache-2.0
// What stands before and behind the layers of BERT and RoBERTa: three embeddings and their norm, and a classifier.
#pragma once

#include <graft/arch/config.hpp>
#include <graft/arch/ends.hpp>

namespace graft {

/// h = layer_norm(W_e[token] + W_t[type] + W_p[position + offset]), offset = padding index + 1 for RoBERTa, else 0.
/// A padding token is a token like any other, except that RoBERTa gives it the padding index as its position.
///
/// Without a head the output of a row is its last hidden state [d]. With one, (dense, out) are BERT's and RoBERTa's
///     classifier, [labels] off the sequence's first token:  out(tanh(dense(h)))
///         pooler.dense, classifier                                        classifier.dense, classifier.out_proj
///     masked language model, [V] for every token:           out(layer_norm(f(dense(h))))
///         cls.predictions.transform.dense, cls.predictions.decoder        lm_head.dense, lm_head.decoder
template <class B>
struct BertEnds {
  using Act = typename B::Act;
  using View = MatrixView<Act, typename B::Space>;
  using ConstView = MatrixView<Act const, typename B::Space>;

  Embedding<B> embedding;                                        ///< [V, d]
  Weight positions, token_types;                                 ///< [positions, d], [token types, d]
  VectorView<Real<B> const, typename B::Space> norm, norm_bias;  ///< [d]
  double eps = 0;
  index_t position_offset = 0;
  bool has_head = false;
  Activation head_activation = Activation::tanh;
  VectorView<Real<B> const, typename B::Space> head_norm, head_norm_bias;  ///< [d], of a masked language model
  Head<B> dense, out;                                                      ///< [d, d], [labels, d] or [V, d]

  static void add_sites(ModelConfig const& c, SiteTable& sites) {
    std::string const embedding = c.prefix + "embeddings.word_embeddings";
    sites.add({-1, "word_embeddings", embedding, c.vocabulary, c.width, SiteKind::embedding});
    // a bare model has a pooler too: adapters may sit there, though its last hidden states do not depend on it
    sites.add_linear(-1, dense_name(c), dense_path(c), c.width, c.width);
    if (c.classifier || c.language_model) add_head(sites, c, out_path(c), embedding);
  }

  static BertEnds load(ModelConfig const& c, WeightMap const& w, SiteTable const& sites, DenseVectors<B>& vectors) {
    std::string const embeddings = c.prefix + "embeddings.";
    BertEnds ends;
    ends.embedding = Embedding<B>::load(w, sites, vectors, embeddings + "word_embeddings", c.vocabulary, c.width);
    ends.positions = vectors.matrix(w, embeddings + "position_embeddings.weight", c.positions, c.width);
    ends.token_types = vectors.matrix(w, embeddings + "token_type_embeddings.weight", c.token_types, c.width);
    ends.norm = vectors.load(w, embeddings + "LayerNorm.weight", c.width);
    ends.norm_bias = vectors.load(w, embeddings + "LayerNorm.bias", c.width);
    ends.eps = c.norm_eps;
    ends.position_offset = c.position_offset;
    ends.has_head = c.classifier || c.language_model;
    if (!ends.has_head) return ends;
    ends.dense = Head<B>::load(w, sites, vectors, dense_path(c));
    if (c.language_model) {
      std::string const head_norm = roberta(c) ? "lm_head.layer_norm" : "cls.predictions.transform.LayerNorm";
      ends.head_norm = vectors.load(w, head_norm + ".weight", c.width);
      ends.head_norm_bias = vectors.load(w, head_norm + ".bias", c.width);
      ends.head_activation = roberta(c) ? Activation::gelu : c.activation;
    }
    ends.out = Head<B>::load(w, sites, vectors, out_path(c), c.has_tied_head() ? &ends.embedding.weight : nullptr);
    return ends;
  }

  /// Labels, V, or d without a head.
  index_t output_width() const { return has_head ? out.layer.weight.rows : embedding.weight.cols; }

  /// h [n, d]
  template <class Be>
  void embed(Be& be, EndStep<B> const& step, View h) const {
    embedding.forward(be, step, h);
    gather_rows(be, token_types, step.token_types, h, true);
    gather_rows(be, positions, step.positions, h, true);
    layer_norm(be, ConstView(h), norm, norm_bias, eps, h);
  }

  /// result [m, output_width] of the wanted rows h [m, d]; of a classifier they are first tokens.
  template <class Be>
  void logits(Be& be, EndStep<B> const& step, View h, View result) const {
    if (!has_head) return copy(be, ConstView(h), result);
    auto const scope = be.scope();
    auto const x = be.arena().template matrix<Act>(h.rows, h.cols);
    dense.forward(be, step, ConstView(h), x);
    activate(be, head_activation, x);
    if (head_norm.empty()) return out.forward(be, step, ConstView(x), result);
    auto const normalized = be.arena().template matrix<Act>(h.rows, h.cols);
    layer_norm(be, ConstView(x), head_norm, head_norm_bias, eps, normalized);
    out.forward(be, step, ConstView(normalized), result);
  }

 private:
  static bool roberta(ModelConfig const& c) { return c.architecture == "roberta"; }
  // a module's name in its class, and its path
  static std::string dense_name(ModelConfig const& c) {
    if (c.language_model) return roberta(c) ? "lm_head.dense" : "cls.predictions.transform.dense";
    return roberta(c) && c.classifier ? "classifier.dense" : "pooler.dense";
  }
  static std::string dense_path(ModelConfig const& c) {
    return (dense_name(c) == "pooler.dense" ? c.prefix : "") + dense_name(c);
  }
  static std::string out_path(ModelConfig const& c) {
    if (c.language_model) return roberta(c) ? "lm_head.decoder" : "cls.predictions.decoder";
    return roberta(c) ? "classifier.out_proj" : "classifier";
  }
};

}  // namespace graft
