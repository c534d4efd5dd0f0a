// SPDX-License-Identifier: Apache-2.0
// What a policy is, and Adapters<...>, the list of policies a model is built with.
//
// A policy is a small value of hyper-parameters with a nested State<B>, the tensors of one site. It says how its
// parameters become coefficients of a row map, factors of a low-rank delta, or vectors made from the prompt; the bank,
// mixed batches, files and layers need nothing else. docs/policies.md shows one in under 60 lines.
#pragma once

#include <graft/adapter/site.hpp>
#include <graft/backend/generator.hpp>
#include <graft/backend/low_rank.hpp>
#include <graft/backend/row_map.hpp>
#include <graft/core/random.hpp>
#include <graft/core/view.hpp>

#include <concepts>
#include <cstddef>
#include <memory>
#include <string_view>

namespace graft {

template <class B>
using Real = typename B::Real;
// A module's parameters are in host memory whatever the backend, and policies are host code: what a bank publishes is
// copied to where the backend's kernels read it.
template <class B>
using Parameters = VectorView<Real<B>>;  ///< a one-dimensional tensor of a state
template <class B>
using ParameterMatrix = MatrixView<Real<B>>;  ///< a two-dimensional one

/// What a row-map policy needs at one site, asked before memory is laid out.
struct RowMapForm {
  bool present = false;  ///< no map at all when false
  Side side = Side::output;
  bool d = false, e = false;  ///< which vectors beside c - 1 it fills
  bool c = true;
  index_t group = 0;  ///< of d
};

/// Visitors a policy is probed with; lambdas inside a requires-expression are not portable to nvcc.
namespace archetype {
struct Visitor {
  template <class... Args>
  void operator()(Args&&...) const {}
  template <class... Args>
  void option(Args&&...) const {}
  template <class... Args>
  void refuse(Args&&...) const {}
};
}  // namespace archetype

/// Every policy:
///   static constexpr std::string_view peft_type;           the value of "peft_type" in adapter_config.json
///   template <class B> struct State { void for_each(auto&& f); };   f("tensor_suffix", view) for every tensor
///   bool accepts(SiteInfo const&) const;                    whether it can sit there
///   void shape(SiteInfo const&, LayerSites const*, State&) const;   sets the sizes of the state's tensors
///   void init(State&, Random&) const;                       sets what does not start at zero
///   void options(v);                                        v.option("key", member) for every config key
/// Some also have
///   P at(matches) const;                   the policy at a site, where matches(pattern) is true of its path
///   P as_stored(site, shape_of) const;     what only stored tensors tell: shape_of("suffix"), empty when not there
///   void describe(policies_at_sites, matches);    (SiteInfo const*, P) pairs: what one configuration must say for all
///   void describe_targets(policies_at_sites, targets);   options that name modules, beside the target_modules written
///   static constexpr own_keys;             config keys HF PEFT lacks: written only where they are not the default
///   void backward(be, state, grad, g) const;      what makes it trainable: turns gradients of what it gives into
///       gradients of its parameters and adds those to g, a State of the same shapes (see the Trainable concepts);
///       without it a module can be loaded and applied, not trained
///   elements(state);                       what keeps a training on a GPU from asking the host (ElementwisePolicy)
template <class P, class B>
concept Policy = std::copyable<P> && requires(P& p, P const& c, typename P::template State<B>& state, SiteInfo const& s,
                                              LayerSites const* l, archetype::Visitor const& v, Random& random) {
  { P::peft_type } -> std::convertible_to<std::string_view>;
  { c.accepts(s) } -> std::same_as<bool>;
  c.template shape<B>(s, l, state);
  c.template init<B>(state, random);
  state.for_each(v);
  p.options(v);
};

/// form(site, state) says which vectors are needed, coefficients(be, state, out) fills them.
template <class P, class B>
concept RowMapPolicy = Policy<P, B> && requires(P const& p, B& be, typename P::template State<B> const& state,
                                                SiteInfo const& s, RowMapRow<Real<B>> const& out) {
  { p.template form<B>(s, state) } -> std::same_as<RowMapForm>;
  p.coefficients(be, state, out);
};

/// backward(be, state, grad, g): grad.c1, grad.d and grad.e hold dL/dc, dL/dd and dL/de of the vectors that
/// coefficients fills, the others are null.
template <class P, class B>
concept TrainableRowMap = RowMapPolicy<P, B> &&
    requires(P const& p, B& be, typename P::template State<B> const& state, RowMapRow<Real<B> const> const& grad,
             typename P::template State<B>& g) {
  p.backward(be, state, grad, g);
};

/// factors(be, state) returns views of A, B and the scale: of the state's tensors, or of numbers made of them.
template <class B>
struct LowRankViews {
  ParameterMatrix<B> a;  ///< [r, i]
  ParameterMatrix<B> b;  ///< [o, r]
  Real<B> scale = 0;
  std::shared_ptr<void const> memory = nullptr;  ///< keeps what a and b view, where that is not the state's own
};
template <class P, class B>
concept LowRankPolicy = Policy<P, B> && requires(P const& p, B& be, typename P::template State<B> const& state) {
  { p.factors(be, state) } -> std::same_as<LowRankViews<B>>;
};

/// backward(be, state, grad, g): grad.a and grad.b hold dL/dA and dL/dB, the scale already in them.
template <class P, class B>
concept TrainableLowRank = LowRankPolicy<P, B> &&
    requires(P const& p, B& be, typename P::template State<B> const& state, LowRankViews<B> const& grad,
             typename P::template State<B>& g) {
  p.backward(be, state, grad, g);
};

/// What a policy gives at one site, where a backend's kernels read it, or the gradients of that.
template <class T>
struct SiteNumbers {
  RowMapRow<T> map = {};
  T *a = nullptr, *b_transposed = nullptr;  ///< [r, i], [r, o]
};

/// A policy that a device trains without the host. elements(state) is plain data with functions for host and device:
///   size()                         independent pieces
///   publish(k, SiteNumbers out)    writes piece k of what coefficients and factors give
///   backward(k, grad, g)           adds piece k of what backward adds; g: elements(gradients)
template <class P, class B>
concept ElementwisePolicy = Policy<P, B> &&
    requires(P const& p, typename P::template State<B> const& state, SiteNumbers<Real<B>> const& out,
             SiteNumbers<Real<B> const> const& grad, index_t k) {
  { p.elements(state).size() } -> std::same_as<index_t>;
  p.elements(state).publish(k, out);
  p.elements(state).backward(k, grad, p.elements(state));
};

/// All pieces, on the host.
template <class T>
void publish_all(auto const& elements, SiteNumbers<T> const& out) {
  for (index_t k = 0; k < elements.size(); ++k) elements.publish(k, out);
}
template <class T>
void backward_all(auto const& elements, SiteNumbers<T> const& grad, auto const& gradients) {
  for (index_t k = 0; k < elements.size(); ++k) elements.backward(k, grad, gradients);
}

/// A policy whose row maps are made from the prompt: generate(be, state, normalized, raw, scratch, out) writes l - 1.
/// Where the host cannot read the prompt's rows, the backend makes them from what generator(state) describes.
template <class P, class B>
concept GeneratedPolicy = Policy<P, B> &&
    requires(P const& p, B& be, typename P::template State<B> const& state,
             MatrixView<typename B::Act const, typename B::Space> x, VectorView<Real<B>> out) {
  { p.scratch_size(state, x.rows) } -> std::same_as<index_t>;
  p.generate(be, state, x, x, out, out);
  { p.rotated_query() } -> std::same_as<bool>;
  { p.generator(state) } -> std::same_as<VectorGenerator<Real<B>>>;
};

/// backward(be, state, normalized, raw, scratch, dl, g, dnormalized, draw): dl holds dL/d(l - 1); beside g it adds to
/// the gradients of the prompt's rows where it reads them. scratch has backward_scratch_size(state, rows) elements.
template <class P, class B>
concept TrainableGenerated = GeneratedPolicy<P, B> &&
    requires(P const& p, B& be, typename P::template State<B> const& state,
             MatrixView<typename B::Act const, typename B::Space> x, VectorView<Real<B>> scratch,
             VectorView<Real<B> const> dl, typename P::template State<B>& g,
             MatrixView<typename B::Act, typename B::Space> dx) {
  { p.backward_scratch_size(state, x.rows) } -> std::same_as<index_t>;
  p.backward(be, state, x, x, scratch, dl, g, dx, dx);
};

/// The policies of a model in wrapping order: each wraps the layer that those before it made.
/// Adapters<RoAdRotation, LoRADelta> is R(Wx + b) + BAx, Adapters<LoRADelta, RoAdRotation> is R(Wx + b + BAx).
template <class... Ps>
struct Adapters {
  static constexpr std::size_t size = sizeof...(Ps);
};

namespace detail {

template <class P, class... Ps>
inline constexpr int occurrences = (0 + ... + (std::same_as<P, Ps> ? 1 : 0));

template <class B, class... Ps>
struct PolicyOrder {
  static constexpr bool low_rank[sizeof...(Ps) + 1] = {LowRankPolicy<Ps, B>..., false};
  static constexpr index_t count = sizeof...(Ps);

  static constexpr bool contiguous() {
    index_t changes = 0;
    for (index_t k = 0; k < count; ++k) changes += low_rank[k] && (k == 0 || !low_rank[k - 1]);
    return changes <= 1;
  }
};

template <class List, class B>
struct CheckedPolicies;
template <class... Ps, class B>
struct CheckedPolicies<Adapters<Ps...>, B> {
  static_assert((Policy<Ps, B> && ...),
                "graft: a type in Adapters<...> is not a Policy (see graft/adapter/policy.hpp for what one must have)");
  static_assert(((RowMapPolicy<Ps, B> || LowRankPolicy<Ps, B> || GeneratedPolicy<Ps, B>)&&...),
                "graft: a policy must offer coefficients, factors or generate, or it would do nothing");
  static_assert(((occurrences<Ps, Ps...> == 1) && ...), "graft: Adapters<...> lists a policy twice");
  static_assert(PolicyOrder<B, Ps...>::contiguous(),
                "graft: low-rank policies must stand next to each other in Adapters<...>, so that a site has one map "
                "before and one after the deltas");
  static_assert((0 + ... + (GeneratedPolicy<Ps, B> ? 1 : 0)) <= 1,
                "graft: Adapters<...> may list one policy that makes its maps from the prompt");
  using Order = PolicyOrder<B, Ps...>;
};

}  // namespace detail
}  // namespace graft
