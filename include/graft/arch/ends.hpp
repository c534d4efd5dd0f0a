// SPDX-License-Identifier: Apache-2.0
// What all models have before and behind their layers: an embedding and heads, which a request's adapters may replace.
#pragma once

#include <graft/adapter/adapter_set.hpp>
#include <graft/arch/config.hpp>
#include <graft/arch/weights.hpp>
#include <graft/layer/linear.hpp>

#include <cstdint>
#include <span>
#include <string>
#include <utility>

namespace graft {

/// Consecutive rows of one request.
template <class B>
struct RequestSpan {
  index_t first = 0, rows = 0;
  AdapterSet<B> const* adapters = nullptr;  ///< null: none

  /// The replacement the request's adapters bring for a tensor of the model (modules_to_save), or null.
  Replacement<B> const* replacement(std::string const& tensor) const {
    return adapters == nullptr ? nullptr : adapters->replacement(tensor);
  }
};

/// What the ends of a model see of a step. Indices are [n], where the backend's kernels read them, and of no meaning
/// behind the layers.
template <class B>
struct EndStep {
  std::int32_t const *tokens = nullptr, *token_types = nullptr;
  std::int32_t const* positions = nullptr;  ///< rows of a table of learned positions
  std::span<RequestSpan<B> const> requests;
  Plan<B> const* plan = nullptr;
};

/// h = W[token], with the adapters of the batch.
template <class B>
struct Embedding {
  Weight weight;  ///< [V, d]
  Site site;
  std::string name;  ///< of the weight

  static Embedding load(WeightMap const& weights, SiteTable const& sites, DenseVectors<B>& dense,
                        std::string const& path, index_t vocabulary, index_t width) {
    return {dense.matrix(weights, path + ".weight", vocabulary, width), sites.bind(path, vocabulary, width),
            path + ".weight"};
  }

  /// h [n, d]
  template <class Be>
  void forward(Be& be, EndStep<B> const& step, MatrixView<typename B::Act, typename B::Space> h) const {
    gather_rows(be, weight, step.tokens, h);
    for (auto const& request : step.requests)
      if (auto const* own = request.replacement(name))
        gather_rows(be, own->weight, step.tokens + request.first, h.row_range(request.first, request.rows));
    apply_embedding(be, site, *step.plan, step.tokens, h);
  }
};

/// A vector that a request's adapters bring; training notes where its gradient goes.
template <class B>
VectorView<Real<B> const, typename B::Space> replaced_vector(B&, Replacement<B> const& own) {
  return own.vector;
}

/// Adds the site of the head over the vocabulary or the labels, which may share the embedding's weight.
inline void add_head(SiteTable& sites, ModelConfig const& c, std::string const& path, std::string const& embedding) {
  sites.add({-1, path, path, c.width, c.head_outputs(), SiteKind::linear, c.has_tied_head() ? embedding : ""});
}

/// A linear layer behind the transformer's layers, with the adapters of the batch.
template <class B>
struct Head {
  using Act = typename B::Act;
  using ConstView = MatrixView<Act const, typename B::Space>;

  Linear<B> layer;  ///< [o, i]
  std::string weight_name, bias_name;

  /// With `tied`, that weight instead of one from the file.
  static Head load(WeightMap const& weights, SiteTable const& sites, DenseVectors<B>& dense, std::string const& path,
                   Weight const* tied = nullptr) {
    return {dense.linear(weights, sites, path, tied), path + ".weight", path + ".bias"};
  }

  /// x [n, i] is left alone, y [n, o] written.
  template <class Be>
  void forward(Be& be, EndStep<B> const& step, ConstView x, MatrixView<Act, typename B::Space> y) const {
    bool any_own = false;
    for (auto const& request : step.requests) any_own = any_own || own_of(request) != Own{};
    if (!any_own) return linear(be, layer, *step.plan, x, y);

    // as linear, but neighbours that share a head are multiplied with it together
    auto const scope = be.scope();
    auto const input = adapted_input(be, layer.site, *step.plan, x);
    for (std::size_t k = 0; k < step.requests.size();) {
      Own const own = own_of(step.requests[k]);
      index_t const first = step.requests[k].first;
      index_t rows = 0;
      for (; k < step.requests.size() && own_of(step.requests[k]) == own; ++k) rows += step.requests[k].rows;
      Weight const& weight = own.first == nullptr ? layer.weight : own.first->weight;
      VectorView<Real<B> const, typename B::Space> bias = layer.bias;
      if (own.second != nullptr) bias = replaced_vector(be, *own.second);
      product(be, input.base.row_range(first, rows), weight, bias, y.row_range(first, rows));
    }
    apply_output(be, layer.site, *step.plan, input.delta, y);
  }

 private:
  using Own = std::pair<Replacement<B> const*, Replacement<B> const*>;  // weight, bias
  Own own_of(RequestSpan<B> const& request) const {
    return {request.replacement(weight_name), request.replacement(bias_name)};
  }
};

}  // namespace graft
