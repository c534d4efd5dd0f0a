// SPDX-License-Identifier: Apache-2.0
// What stands before and behind a decoder's layers: the embedding, the last norm and the head.
#pragma once

#include <graft/arch/config.hpp>
#include <graft/arch/weights.hpp>
#include <graft/layer/linear.hpp>

namespace graft {

/// Rows of one request among those whose logits are wanted; its adapters may bring a head of their own.
template <class B>
struct HeadRows {
  index_t first = 0, rows = 0;
  AdapterSet<B> const* adapters = nullptr;
};

/// What the ends of a model see of a step.
template <class B>
struct EndStep {
  std::span<std::int32_t const> tokens, token_types;  ///< [n]; token_types may be empty
  std::span<index_t const> positions;                 ///< [n]
  std::span<HeadRows<B> const> requests;
  Plan<B> const* plan = nullptr;
};

/// h = W_e[token];  logits = rms_norm(h) W_h^T, W_h = W_e when tied.
template <class B>
struct DecoderEnds {
  using Act = typename B::Act;
  using View = MatrixView<Act, typename B::Space>;
  using ConstView = MatrixView<Act const, typename B::Space>;

  Weight embedding;  ///< [V, d]
  Site embedding_site;
  VectorView<Real<B> const, typename B::Space> norm;  ///< [d]
  Linear<B> head;                                     ///< [V, d]
  std::string embedding_name, head_name;
  double eps = 0;

  static void add_sites(ModelConfig const& c, SiteTable& sites) {
    sites.add({-1, "embed_tokens", c.prefix + "embed_tokens", c.vocabulary, c.width, SiteKind::embedding});
    sites.add_linear(-1, "lm_head", "lm_head", c.width, c.vocabulary);
  }

  static DecoderEnds load(ModelConfig const& c, WeightMap const& w, SiteTable const& sites, DenseVectors<B>& dense) {
    DecoderEnds ends;
    ends.embedding_name = c.prefix + "embed_tokens.weight";
    ends.embedding = w.matrix(ends.embedding_name, c.vocabulary, c.width);
    ends.embedding_site = sites.bind(c.prefix + "embed_tokens", c.vocabulary, c.width);
    ends.norm = dense.load(w, c.prefix + "norm.weight", c.width);
    ends.head_name = "lm_head.weight";
    ends.head.weight = c.tied ? ends.embedding : w.matrix(ends.head_name, c.vocabulary, c.width);
    ends.head.bias = dense.load_if_present(w, "lm_head.bias", c.vocabulary);
    ends.head.site = sites.bind("lm_head", c.width, c.vocabulary);
    ends.eps = c.norm_eps;
    return ends;
  }

  index_t output_width() const { return head.weight.rows; }

  /// h [n, d]
  void embed(B& be, EndStep<B> const& step, View h) const {
    gather_rows(be, embedding, step.tokens.data(), h);
    for (auto const& request : step.requests)
      if (auto const own = saved_weight(request, embedding_name, embedding); !own.empty())
        gather_rows(be, own, step.tokens.data() + request.first, h.row_range(request.first, request.rows));
    if (auto const deltas = step.plan->low_rank(embedding_site.index); deltas.any())
      apply_low_rank_embedding(be, deltas, step.tokens.data(), embedding.rows, h);
  }

  /// logits [m, V] of the wanted rows h [m, d], which are overwritten.
  void logits(B& be, EndStep<B> const& step, View h, View out) const {
    rms_norm(be, ConstView(h), norm, eps, h);
    linear(be, head, *step.plan, ConstView(h), out);
    for (auto const& request : step.requests)
      if (auto const own = saved_weight(request, head_name, head.weight); !own.empty())
        product(be, ConstView(h.row_range(request.first, request.rows)), own, head.bias,
                out.row_range(request.first, request.rows));
  }

 private:
  static Weight saved_weight(HeadRows<B> const& request, std::string const& name, Weight const& like) {
    SavedTensor const* const saved = request.adapters == nullptr ? nullptr : request.adapters->saved(name);
    if (saved == nullptr) return {};
    expects(saved->shape == std::vector<index_t>{like.rows, like.cols}, "graft: the adapter's ", name,
            " does not have the model's shape [", like.rows, ", ", like.cols, "]");
    return dense_weight(matrix_view(saved->values.data(), like.rows, like.cols));
  }
};

}  // namespace graft
