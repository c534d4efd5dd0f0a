// SPDX-License-Identifier: Apache-2.0
// PEDRO: vectors made from the prompt.
#pragma once

#include <graft/adapter/parameter_group.hpp>
#include <graft/adapter/policy.hpp>
#include <graft/backend/activation.hpp>
#include <graft/backend/rational.hpp>

#include <array>
#include <cmath>
#include <limits>
#include <string_view>

namespace graft {

/// One light vector generator per layer turns the prompt into three vectors that scale Q, V and the feed-forward's Up:
///
///     h = pool(prompt rows of the layer's input)                        [d]
///     l = 1 + W_up f(W_down h) (+ b)     W_down [r, d], W_up [q+v+u, r]   [q+v+u] = l_q, l_v, l_u
///     Q' = l_q * Q,   V' = l_v * V,   U' = l_u * U
///
/// W_up starts at zero, so l = 1. Made once, on the prompt, and reused for every generated token; V is cached scaled.
/// f is a learnable rational that starts as GELU. Xie et al. 2024, arXiv:2409.17834. The paper's body could not be read
/// in full: every uncertain choice is an option, the default named first; see docs/pedro.md.
/// Several modules of one request: 1 + sum w (l - 1). It cannot be merged into weights. HF PEFT does not have it.
struct PedroGenerator {
  static constexpr std::string_view peft_type = "PEDRO";

  enum class Pooling : std::uint8_t { last, mean, max, attention };
  static constexpr std::array<std::string_view, 4> names(Pooling) { return {"last", "mean", "max", "attention"}; }
  enum class PoolerInput : std::uint8_t { normalized, raw };  ///< what q_proj sees, or the residual stream
  static constexpr std::array<std::string_view, 2> names(PoolerInput) { return {"normalized", "raw"}; }
  enum class Offset : std::uint8_t { one, bias };  ///< l = 1 + W_up z, or l = W_up z + b with b = 1 at the start
  static constexpr std::array<std::string_view, 2> names(Offset) { return {"one", "bias"}; }
  enum class QueryScaling : std::uint8_t { before_rope, after_rope };
  static constexpr std::array<std::string_view, 2> names(QueryScaling) { return {"before_rope", "after_rope"}; }
  enum class Activation : std::uint8_t { rational_a, rational_b, gelu, silu, relu };
  static constexpr std::array<std::string_view, 5> names(Activation) {
    return {"rational_a", "rational_b", "gelu", "silu", "relu"};
  }

  index_t rank = 12;  ///< r; 12 on LLaMA-2-7B is 8,945,664 parameters, rational coefficients not counted
  Pooling pooling = Pooling::last;
  PoolerInput pooler_input = PoolerInput::normalized;
  Offset offset = Offset::one;
  bool up_bias = false;  ///< with Offset::one: a bias that starts at 0
  QueryScaling q_scaling = QueryScaling::before_rope;
  Activation activation = Activation::rational_a;
  index_t numerator_degree = 5, denominator_degree = 4;

  template <class B>
  struct State {
    ParameterMatrix<B> down;               ///< [r, d]
    ParameterMatrix<B> up;                 ///< [q+v+u, r]
    Parameters<B> up_bias;                 ///< [q+v+u] or absent
    Parameters<B> numerator, denominator;  ///< [m+1], [n], or absent
    Parameters<B> pool;                    ///< [d], learned attention pooling only

    void for_each(auto&& f) {
      f("pedro_down.weight", down);
      f("pedro_up.weight", up);
      f("pedro_up.bias", up_bias);
      f("pedro_num", numerator);
      f("pedro_den", denominator);
      f("pedro_pool.weight", pool);
    }
  };

  void options(auto&& v) {
    v.option("r", rank);
    v.option("pooling", pooling);
    v.option("pooler_input", pooler_input);
    v.option("offset", offset);
    v.option("up_bias", up_bias);
    v.option("q_scaling", q_scaling);
    v.option("activation", activation);
    v.option("numerator_degree", numerator_degree);
    v.option("denominator_degree", denominator_degree);
  }

  /// The rational's coefficients are the upper level of the paper's bi-level training.
  ParameterGroup parameter_group(std::string_view suffix) const {
    bool const rational = suffix == "pedro_num" || suffix == "pedro_den";
    return rational ? ParameterGroup::activation : ParameterGroup::main;
  }

  bool rational_activation() const { return activation <= Activation::rational_b; }
  /// What l - 1 is a sum on top of.
  double start() const { return offset == Offset::one ? 0 : -1; }
  bool rotated_query() const { return q_scaling == QueryScaling::after_rope; }
  bool accepts(SiteInfo const& site) const { return site.kind == SiteKind::hidden; }

  /// A bias that is in the file is used, whatever the configuration forgot to say.
  PedroGenerator as_stored(SiteInfo const&, auto&& shape_of) const {
    PedroGenerator here = *this;
    here.up_bias = up_bias || (offset == Offset::one && !shape_of("pedro_up.bias").empty());
    return here;
  }
  void describe(auto const& policies_at_sites, auto&&) {
    for (auto const& [site, here] : policies_at_sites) up_bias = up_bias || here.up_bias;
  }

  template <class B>
  void shape(SiteInfo const& site, LayerSites const* layer, State<B>& state) const {
    expects(layer != nullptr && layer->query.site >= 0, "graft: ", site.path,
            " has no query, value and up projections for PEDRO to scale");
    expects(rank > 0 && numerator_degree >= 0 && denominator_degree >= 0,
            "graft: PEDRO's rank r must be positive and its degrees not negative, they are ", rank, ", ",
            numerator_degree, " and ", denominator_degree);
    index_t const d = site.out, l = layer->query.size + layer->value.size + layer->up.size;
    state.down = {nullptr, rank, d, d};
    state.up = {nullptr, l, rank, rank};
    state.up_bias = {nullptr, offset == Offset::bias || up_bias ? l : 0};
    state.numerator = {nullptr, rational_activation() ? numerator_degree + 1 : 0};
    state.denominator = {nullptr, rational_activation() ? denominator_degree : 0};
    state.pool = {nullptr, pooling == Pooling::attention ? d : 0};
  }

  template <class B>
  void init(State<B>& state, auto& random) const {
    double const bound = 1 / std::sqrt(static_cast<double>(state.down.cols));
    for (index_t k = 0; k < state.down.size(); ++k)
      state.down.data[k] = static_cast<Real<B>>(random.uniform(-bound, bound));
    if (offset == Offset::bias)
      for (Real<B>& b : state.up_bias) b = 1;
    if (!rational_activation()) return;
    auto const form = activation == Activation::rational_a ? RationalForm::a : RationalForm::b;
    for (auto const& fit : gelu_fits) {
      if (fit.form != form || static_cast<index_t>(fit.numerator.size()) != state.numerator.size ||
          static_cast<index_t>(fit.denominator.size()) != state.denominator.size)
        continue;
      for (index_t k = 0; k < state.numerator.size; ++k) state.numerator[k] = static_cast<Real<B>>(fit.numerator[k]);
      for (index_t k = 0; k < state.denominator.size; ++k)
        state.denominator[k] = static_cast<Real<B>>(fit.denominator[k]);
      return;
    }
    raise<ContractError>("graft: no GELU start is known for a rational of degrees (", numerator_degree, ", ",
                         denominator_degree, "); known are (5, 4) and (6, 5)");
  }

  /// f(x)
  template <class R>
  R activate(R x, R const* a, R const* b) const {
    using std::erf, std::exp;
    switch (activation) {
      case Activation::rational_a:
        return rational(RationalForm::a, a, numerator_degree, b, denominator_degree, x);
      case Activation::rational_b:
        return rational(RationalForm::b, a, numerator_degree, b, denominator_degree, x);
      case Activation::gelu:
        return x / 2 * (1 + erf(x * R(0.70710678118654752440)));
      case Activation::silu:
        return x / (1 + exp(-x));
      default:
        return x > 0 ? x : 0;
    }
  }

  /// h [d] = pool(x [p, d]); scores of attention pooling are x_t . w, unscaled. share: [p] scratch.
  template <class B>
  void pool(State<B> const& state, MatrixView<typename B::Act const, typename B::Space> x, Real<B>* share,
            Real<B>* h) const {
    using R = Real<B>;
    index_t const p = x.rows, d = x.cols;
    switch (pooling) {
      case Pooling::last:
        for (index_t k = 0; k < d; ++k) h[k] = static_cast<R>(x(p - 1, k));
        return;
      case Pooling::mean:
        for (index_t k = 0; k < d; ++k) h[k] = 0;
        for (index_t t = 0; t < p; ++t)
          for (index_t k = 0; k < d; ++k) h[k] += static_cast<R>(x(t, k));
        for (index_t k = 0; k < d; ++k) h[k] /= static_cast<R>(p);
        return;
      case Pooling::max:
        for (index_t k = 0; k < d; ++k) h[k] = static_cast<R>(x(0, k));
        for (index_t t = 1; t < p; ++t)
          for (index_t k = 0; k < d; ++k)
            if (h[k] < static_cast<R>(x(t, k))) h[k] = static_cast<R>(x(t, k));
        return;
      case Pooling::attention: {
        R highest = -std::numeric_limits<R>::infinity(), sum = 0;
        for (index_t t = 0; t < p; ++t) {
          share[t] = 0;
          for (index_t k = 0; k < d; ++k) share[t] += static_cast<R>(x(t, k)) * state.pool[k];
          if (highest < share[t]) highest = share[t];
        }
        for (index_t t = 0; t < p; ++t) sum += share[t] = std::exp(share[t] - highest);
        for (index_t k = 0; k < d; ++k) h[k] = 0;
        for (index_t t = 0; t < p; ++t)
          for (index_t k = 0; k < d; ++k) h[k] += share[t] / sum * static_cast<R>(x(t, k));
      }
    }
  }

  /// What `generate` computes, for a backend that makes the vectors itself.
  template <class B>
  VectorGenerator<Real<B>> generator(State<B> const& state) const {
    using Made = VectorGenerator<Real<B>>;
    auto const or_null = [](auto const& tensor) { return tensor.empty() ? nullptr : tensor.data; };
    return {state.down.data,
            state.up.data,
            or_null(state.up_bias),
            or_null(state.numerator),
            or_null(state.denominator),
            or_null(state.pool),
            rank,
            state.down.cols,
            state.up.rows,
            numerator_degree,
            denominator_degree,
            static_cast<typename Made::Pooling>(pooling),
            static_cast<typename Made::Function>(activation),
            pooler_input == PoolerInput::raw,
            static_cast<Real<B>>(start())};
  }

  /// Elements of scratch `generate` needs for a prompt of p rows.
  template <class B>
  index_t scratch_size(State<B> const& state, index_t p) const {
    return state.down.cols + rank + p;
  }

  /// out [q+v+u] = l - 1, from the prompt's rows: `normalized` is what q_proj sees, `raw` the residual stream. [p, d]
  template <class B>
  void generate(B&, State<B> const& state, MatrixView<typename B::Act const, typename B::Space> normalized,
                MatrixView<typename B::Act const, typename B::Space> raw, VectorView<Real<B>> scratch,
                VectorView<Real<B>> out) const {
    using R = Real<B>;
    R* const h = scratch.data;         // [d]
    R* const z = h + state.down.cols;  // [r]
    pool<B>(state, pooler_input == PoolerInput::normalized ? normalized : raw, z + rank, h);
    for (index_t r = 0; r < rank; ++r) {
      R sum = 0;
      for (index_t k = 0; k < state.down.cols; ++k) sum += state.down(r, k) * h[k];
      z[r] = activate(sum, state.numerator.data, state.denominator.data);
    }
    for (index_t j = 0; j < out.size; ++j) {
      R sum = static_cast<R>(start()) + (state.up_bias.empty() ? R{0} : state.up_bias[j]);
      for (index_t r = 0; r < rank; ++r) sum += state.up(j, r) * z[r];
      out[j] = sum;
    }
  }

  /// Given dy = dL/df: returns dL/dx and adds to the gradients of a rational's coefficients.
  template <class R>
  R activate_backward(R x, R dy, R const* a, R const* b, R* da, R* db) const {
    auto const through = [&](RationalForm form) {
      return rational_backward(form, a, numerator_degree, b, denominator_degree, x, dy, da, db);
    };
    switch (activation) {
      case Activation::rational_a:
        return through(RationalForm::a);
      case Activation::rational_b:
        return through(RationalForm::b);
      case Activation::gelu:
        return dy * activation_derivative(graft::Activation::gelu, x);
      case Activation::silu:
        return dy * activation_derivative(graft::Activation::silu, x);
      default:
        return dy * activation_derivative(graft::Activation::relu, x);
    }
  }

  /// Given dh [d]: adds to dx [p, d] and to the gradient of the pooling's own vector. What `max` took, the first where
  /// several are equal, gets its gradient. share: [p] as `pool` left it, slope: [p] scratch.
  template <class B>
  void pool_backward(State<B> const& state, MatrixView<typename B::Act const, typename B::Space> x,
                     Real<B> const* share, Real<B> const* dh, Real<B>* slope, State<B>& g,
                     MatrixView<typename B::Act, typename B::Space> dx) const {
    using R = Real<B>;
    index_t const p = x.rows, d = x.cols;
    auto const add = [&](index_t t, index_t k, R value) { dx(t, k) += static_cast<typename B::Act>(value); };
    switch (pooling) {
      case Pooling::last:
        for (index_t k = 0; k < d; ++k) add(p - 1, k, dh[k]);
        return;
      case Pooling::mean:
        for (index_t t = 0; t < p; ++t)
          for (index_t k = 0; k < d; ++k) add(t, k, dh[k] / static_cast<R>(p));
        return;
      case Pooling::max:
        for (index_t k = 0; k < d; ++k) {
          index_t highest = 0;
          for (index_t t = 1; t < p; ++t)
            if (x(highest, k) < x(t, k)) highest = t;
          add(highest, k, dh[k]);
        }
        return;
      case Pooling::attention: {  // of shares w_t = softmax(s)_t: ds_t = w_t (dw_t - sum_u w_u dw_u)
        R sum = 0, mean = 0;
        for (index_t t = 0; t < p; ++t) sum += share[t];
        for (index_t t = 0; t < p; ++t) {
          slope[t] = 0;
          for (index_t k = 0; k < d; ++k) slope[t] += dh[k] * static_cast<R>(x(t, k));
          mean += share[t] / sum * slope[t];
        }
        for (index_t t = 0; t < p; ++t) {
          R const w = share[t] / sum, ds = w * (slope[t] - mean);
          for (index_t k = 0; k < d; ++k) {
            g.pool[k] += ds * static_cast<R>(x(t, k));
            add(t, k, w * dh[k] + ds * state.pool[k]);
          }
        }
      }
    }
  }

  /// Elements of scratch `backward` needs for a prompt of p rows.
  template <class B>
  index_t backward_scratch_size(State<B> const& state, index_t p) const {
    return 2 * (state.down.cols + rank + p);
  }

  /// The gradients of g's tensors and of the prompt's rows, dnormalized or draw [p, d], whichever is pooled; all +=.
  /// normalized and raw are what `generate` saw, dl [q+v+u] is dL/d(l - 1).
  template <class B>
  void backward(B&, State<B> const& state, MatrixView<typename B::Act const, typename B::Space> normalized,
                MatrixView<typename B::Act const, typename B::Space> raw, VectorView<Real<B>> scratch,
                VectorView<Real<B> const> dl, State<B>& g, MatrixView<typename B::Act, typename B::Space> dnormalized,
                MatrixView<typename B::Act, typename B::Space> draw) const {
    using R = Real<B>;
    bool const reads_normalized = pooler_input == PoolerInput::normalized;
    auto const x = reads_normalized ? normalized : raw;
    index_t const d = state.down.cols;
    R* const h = scratch.data;   // [d]
    R* const dh = h + d;         // [d]
    R* const z = dh + d;         // [r]
    R* const dz = z + rank;      // [r]
    R* const share = dz + rank;  // [p], and [p] behind it
    pool<B>(state, x, share, h);
    for (index_t r = 0; r < rank; ++r) {
      z[r] = dz[r] = 0;
      for (index_t k = 0; k < d; ++k) z[r] += state.down(r, k) * h[k];
    }
    for (index_t j = 0; j < dl.size; ++j) {
      if (!state.up_bias.empty()) g.up_bias[j] += dl[j];
      for (index_t r = 0; r < rank; ++r) dz[r] += dl[j] * state.up(j, r);
    }
    for (index_t k = 0; k < d; ++k) dh[k] = 0;
    for (index_t r = 0; r < rank; ++r) {
      R const f = activate(z[r], state.numerator.data, state.denominator.data);
      for (index_t j = 0; j < dl.size; ++j) g.up(j, r) += dl[j] * f;
      R const slope = activate_backward(z[r], dz[r], state.numerator.data, state.denominator.data, g.numerator.data,
                                        g.denominator.data);
      for (index_t k = 0; k < d; ++k) {
        g.down(r, k) += slope * h[k];
        dh[k] += slope * state.down(r, k);
      }
    }
    pool_backward<B>(state, x, share, dh, share + x.rows, g, reads_normalized ? dnormalized : draw);
  }
};

}  // namespace graft
