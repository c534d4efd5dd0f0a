// SPDX-License-Identifier: Apache-2.0
// LoRA: low-rank adaptation.
#pragma once

#include <graft/adapter/parameter_group.hpp>
#include <graft/adapter/policy.hpp>

#include <cmath>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace graft {

/// Low-rank adaptation of a linear layer:  y += s (x A^T) B^T  (+ s b),   A [r, i], B [o, r], b [o].
/// s = alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA. At the start A is Kaiming-uniform(sqrt 5) and B zero.
/// On an embedding, x is the one-hot token: y += s B A[:, token].
/// Hu et al. 2021, arXiv:2106.09685, eq. (3); rsLoRA: Kalajdzievski 2023, arXiv:2312.03732.
/// Several LoRA modules of one request add up, each with its weight, as in HF PEFT.
struct LoRADelta {
  static constexpr std::string_view peft_type = "LORA";

  index_t rank = 8;
  double alpha = 8;
  bool rank_stabilized = false;
  bool bias = false;            ///< PEFT's lora_bias: B has a bias of its own, scaled too
  bool fan_in_fan_out = false;  ///< the base stores W as [in, out]; A and B do not care, files say it
  /// Module-path patterns with their own rank or alpha, first match wins (PEFT's rank_pattern, alpha_pattern).
  std::vector<std::pair<std::string, double>> rank_pattern{}, alpha_pattern{};

  template <class B>
  struct State {
    ParameterMatrix<B> a;  ///< [r, i]
    ParameterMatrix<B> b;  ///< [o, r]
    Parameters<B> b_bias;  ///< [o] or absent
    bool embedding = false;

    void for_each(auto&& f) {
      f(embedding ? "lora_embedding_A" : "lora_A.weight", a);
      f(embedding ? "lora_embedding_B" : "lora_B.weight", b);
      f("lora_B.bias", b_bias);
    }
  };

  void options(auto&& v) {
    v.option("r", rank);
    v.option("lora_alpha", alpha);
    v.option("use_rslora", rank_stabilized);
    v.option("lora_bias", bias);
    v.option("fan_in_fan_out", fan_in_fan_out);
    v.option("rank_pattern", rank_pattern);
    v.option("alpha_pattern", alpha_pattern);
    v.refuse_unless("bias", "trained biases of the base model", "none");
    v.refuse("use_dora", "DoRA");
    v.refuse("use_qalora", "QA-LoRA");
    v.refuse("alora_invocation_tokens", "activated LoRA");
    v.refuse("target_parameters", "LoRA on parameters");
    v.refuse("layer_replication", "layer replication");
    v.refuse("use_bdlora", "block-diagonal LoRA");
    v.refuse("kasa_config", "KaSA");
    v.refuse("arrow_config", "Arrow routing");
    v.refuse("velora_config", "VeLoRA");
    v.refuse("monteclora_config", "MonteCLoRA");
    v.refuse("trainable_token_indices", "trainable tokens");
    // these initialisations also change the base's weights, so A and B alone do not define the model
    v.refuse("init_lora_weights", "an initialisation that changes the base",
             {"pissa", "olora", "corda", "loftq", "lora_ga"});
  }

  bool accepts(SiteInfo const& site) const { return site.kind == SiteKind::linear || site.kind == SiteKind::embedding; }

  /// This policy with the rank and alpha of one site, where a pattern names it.
  LoRADelta at(auto&& matches) const {
    auto const first_match = [&](auto const& patterns, double otherwise) {
      for (auto const& [pattern, value] : patterns)
        if (matches(pattern)) return value;
      return otherwise;
    };
    LoRADelta here = *this;
    double const r = first_match(rank_pattern, static_cast<double>(rank));
    expects(r == std::floor(r), "graft: LoRA's rank_pattern says ", r, ", a rank is a whole number");
    here.rank = static_cast<index_t>(r);
    here.alpha = first_match(alpha_pattern, alpha);
    return here;
  }

  /// Adds patterns until this one configuration says what holds at every site.
  void describe(auto const& policies_at_sites, auto&& matches) {
    for (auto const& [site, here] : policies_at_sites) {
      LoRADelta const said = at([&, path = site->path](auto const& pattern) { return matches(pattern, path); });
      if (said.rank != here.rank)
        rank_pattern.insert(rank_pattern.begin(), {site->path, static_cast<double>(here.rank)});
      if (said.alpha != here.alpha) alpha_pattern.insert(alpha_pattern.begin(), {site->path, here.alpha});
    }
  }

  template <class B>
  void shape(SiteInfo const& site, LayerSites const*, State<B>& state) const {
    expects(rank > 0, "graft: LoRA's rank r must be positive, it is ", rank, " at ", site.path);
    expects(std::abs(scale()) <= std::numeric_limits<float>::max(), "graft: LoRA's lora_alpha ", alpha, " at ",
            site.path, " gives a scale that no float holds");
    state.embedding = site.kind == SiteKind::embedding;
    expects(!(bias && state.embedding), "graft: LoRA on the embedding ", site.path, " cannot have a lora_bias");
    state.a = {nullptr, rank, site.in, site.in};
    state.b = {nullptr, site.out, rank, rank};
    state.b_bias = {nullptr, bias ? site.out : 0};
  }

  template <class B>
  void init(State<B>& state, auto& random) const {
    double const bound = 1 / std::sqrt(static_cast<double>(state.a.cols));  // Kaiming-uniform with a = sqrt(5)
    for (index_t k = 0; k < state.a.size(); ++k) state.a.data[k] = static_cast<Real<B>>(random.uniform(-bound, bound));
  }

  /// LoRA+ (Hayou, Ghosh and Yu 2024, arXiv:2402.12354) trains B faster than A.
  ParameterGroup parameter_group(std::string_view suffix) const {
    bool const b = suffix.starts_with("lora_B") || suffix == "lora_embedding_B";
    return b ? ParameterGroup::expansion : ParameterGroup::main;
  }

  double scale() const {
    auto const r = static_cast<double>(rank);
    return alpha / (rank_stabilized ? std::sqrt(r) : r);
  }

  template <class B>
  LowRankViews<B> factors(B&, State<B> const& state) const {
    return {state.a, state.b, static_cast<Real<B>>(scale())};
  }
  template <class B>
  void backward(B&, State<B> const&, LowRankViews<B> const& grad, State<B>& g) const {
    auto const add = [](ParameterMatrix<B> const& from, ParameterMatrix<B> const& to) {
      for (index_t r = 0; r < to.rows; ++r)
        for (index_t c = 0; c < to.cols; ++c) to(r, c) += from(r, c);
    };
    add(grad.a, g.a);
    add(grad.b, g.b);
  }

  // the bias of B is a row map with e alone
  template <class B>
  RowMapForm form(SiteInfo const&, State<B> const& state) const {
    return {.present = !state.b_bias.empty(), .e = true, .c = false};
  }
  template <class B>
  void coefficients(B&, State<B> const& state, RowMapRow<Real<B>> const& out) const {
    for (index_t j = 0; j < out.size; ++j) out.e[j] = static_cast<Real<B>>(scale()) * state.b_bias[j];
  }
  template <class B>
  void backward(B&, State<B> const&, RowMapRow<Real<B> const> const& grad, State<B>& g) const {
    for (index_t j = 0; j < grad.size; ++j) g.b_bias[j] += static_cast<Real<B>>(scale()) * grad.e[j];
  }

  /// One site's parameters, or their gradients, where the host does not compute: piece k is one number of A, B or b.
  template <class R>
  struct Elements {
    R *a, *b, *bias;
    index_t rank, inputs, outputs, biases;
    R scale;

    GRAFT_HOST_DEVICE index_t size() const { return rank * (inputs + outputs) + biases; }
    GRAFT_HOST_DEVICE void publish(index_t k, SiteNumbers<R> const& out) const {
      index_t const in_b = k - rank * inputs, in_bias = in_b - rank * outputs;
      if (in_b < 0)
        out.a[k] = a[k];
      else if (in_bias < 0)
        out.b_transposed[transposed(in_b)] = b[in_b];
      else
        out.map.e[in_bias] = scale * bias[in_bias];
    }
    GRAFT_HOST_DEVICE void backward(index_t k, SiteNumbers<R const> const& grad, Elements const& g) const {
      index_t const in_b = k - rank * inputs, in_bias = in_b - rank * outputs;
      if (in_b < 0)
        g.a[k] += grad.a[k];
      else if (in_bias < 0)
        g.b[in_b] += grad.b_transposed[transposed(in_b)];
      else
        g.bias[in_bias] += scale * grad.map.e[in_bias];
    }

   private:
    GRAFT_HOST_DEVICE index_t transposed(index_t k) const { return k % rank * outputs + k / rank; }
  };
  template <class B>
  Elements<Real<B>> elements(State<B> const& state) const {
    return {state.a.data, state.b.data, state.b_bias.data, state.a.rows,
            state.a.cols, state.b.rows, state.b_bias.size, static_cast<Real<B>>(scale())};
  }
};

}  // namespace graft
