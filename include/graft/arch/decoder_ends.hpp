// SPDX-License-Identifier: Apache-2.0
// What stands before and behind the layers of Llama and its relatives: the embedding, the last norm and the head.
#pragma once

#include <graft/arch/config.hpp>
#include <graft/arch/ends.hpp>

namespace graft {

/// h = W_e[token];  logits = rms_norm(h) W_h^T, W_h = W_e when tied. A classifier's head is "score", [labels, d].
template <class B>
struct DecoderEnds {
  using Act = typename B::Act;
  using View = MatrixView<Act, typename B::Space>;
  using ConstView = MatrixView<Act const, typename B::Space>;

  Embedding<B> embedding;                             ///< [V, d]
  VectorView<Real<B> const, typename B::Space> norm;  ///< [d]
  Head<B> head;                                       ///< [V, d] or [labels, d]
  double eps = 0;

  static void add_sites(ModelConfig const& c, SiteTable& sites) {
    std::string const embedding = c.prefix + "embed_tokens";
    sites.add({-1, "embed_tokens", embedding, c.vocabulary, c.width, SiteKind::embedding});
    add_head(sites, c, c.decoder_head(), embedding);
  }

  static DecoderEnds load(ModelConfig const& c, WeightMap const& w, SiteTable const& sites, DenseVectors<B>& dense) {
    DecoderEnds ends;
    ends.embedding = Embedding<B>::load(w, sites, dense, c.prefix + "embed_tokens", c.vocabulary, c.width);
    ends.norm = dense.load(w, c.prefix + "norm.weight", c.width);
    ends.head = Head<B>::load(w, sites, dense, c.decoder_head(), c.has_tied_head() ? &ends.embedding.weight : nullptr);
    ends.eps = c.norm_eps;
    return ends;
  }

  index_t output_width() const { return head.layer.weight.rows; }

  /// h [n, d]
  template <class Be>
  void embed(Be& be, EndStep<B> const& step, View h) const {
    embedding.forward(be, step, h);
  }

  /// logits [m, V] or [m, labels] of the wanted rows h [m, d], which are overwritten.
  template <class Be>
  void logits(Be& be, EndStep<B> const& step, View h, View out) const {
    rms_norm(be, ConstView(h), norm, eps, h);
    head.forward(be, step, ConstView(h), out);
  }
};

}  // namespace graft
