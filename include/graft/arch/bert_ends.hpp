// SPDX-License-Identifier: Apache-2.0
// What stands before and behind the layers of BERT and RoBERTa: three embeddings and their norm, and a classifier.
#pragma once

#include <graft/arch/config.hpp>
#include <graft/arch/ends.hpp>

namespace graft {

/// h = layer_norm(W_e[token] + W_t[type] + W_p[position + offset]), offset = padding index + 1 for RoBERTa, else 0.
/// A padding token is a token like any other: leave it out.
///
/// Without a head the output of a row is its last hidden state [d]. A classifier's output is [labels], read off the
/// sequence's first token: logits = out(tanh(dense(h))), where (dense, out) are BERT's (pooler.dense, classifier) and
/// RoBERTa's (classifier.dense, classifier.out_proj).
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
  bool classifier = false;
  Head<B> dense, out;  ///< [d, d], [labels, d]

  static void add_sites(ModelConfig const& c, SiteTable& sites) {
    sites.add(
        {-1, "word_embeddings", c.prefix + "embeddings.word_embeddings", c.vocabulary, c.width, SiteKind::embedding});
    // a bare model has a pooler too: adapters may sit there, though its last hidden states do not depend on it
    sites.add_linear(-1, dense_name(c), dense_path(c), c.width, c.width);
    if (c.classifier) sites.add_linear(-1, out_path(c), out_path(c), c.width, static_cast<index_t>(c.labels.size()));
  }

  static BertEnds load(ModelConfig const& c, WeightMap const& w, SiteTable const& sites, DenseVectors<B>& vectors) {
    std::string const embeddings = c.prefix + "embeddings.";
    BertEnds ends;
    ends.embedding = Embedding<B>::load(w, sites, embeddings + "word_embeddings", c.vocabulary, c.width);
    ends.positions = w.matrix(embeddings + "position_embeddings.weight", c.positions, c.width);
    ends.token_types = w.matrix(embeddings + "token_type_embeddings.weight", c.token_types, c.width);
    ends.norm = vectors.load(w, embeddings + "LayerNorm.weight", c.width);
    ends.norm_bias = vectors.load(w, embeddings + "LayerNorm.bias", c.width);
    ends.eps = c.norm_eps;
    ends.position_offset = c.position_offset;
    ends.classifier = c.classifier;
    if (c.classifier) {
      ends.dense = Head<B>::load(w, sites, vectors, dense_path(c));
      ends.out = Head<B>::load(w, sites, vectors, out_path(c));
    }
    return ends;
  }

  /// Labels of a classifier, else d.
  index_t output_width() const { return classifier ? out.layer.weight.rows : embedding.weight.cols; }

  /// h [n, d]
  template <class Be>
  void embed(Be& be, EndStep<B> const& step, View h) const {
    embedding.forward(be, step, h);
    gather_rows(be, token_types, step.token_types.data(), h, true);
    add_positions(be, positions, step.positions, position_offset, h);
    layer_norm(be, ConstView(h), norm, norm_bias, eps, h);
  }

  /// result [m, output_width] of the wanted rows h [m, d]; of a classifier they are first tokens.
  template <class Be>
  void logits(Be& be, EndStep<B> const& step, View h, View result) const {
    if (!classifier) return copy(be, ConstView(h), result);
    auto const scope = be.scope();
    auto const pooled = be.arena().template matrix<Act>(h.rows, h.cols);
    dense.forward(be, step, ConstView(h), pooled);
    activate(be, Activation::tanh, pooled);
    out.forward(be, step, ConstView(pooled), result);
  }

 private:
  static bool roberta_head(ModelConfig const& c) { return c.architecture == "roberta" && c.classifier; }
  static std::string dense_name(ModelConfig const& c) { return roberta_head(c) ? "classifier.dense" : "pooler.dense"; }
  static std::string dense_path(ModelConfig const& c) { return (roberta_head(c) ? "" : c.prefix) + dense_name(c); }
  static std::string out_path(ModelConfig const& c) { return roberta_head(c) ? "classifier.out_proj" : "classifier"; }
};

}  // namespace graft
