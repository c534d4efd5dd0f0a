// SPDX-License-Identifier: Apache-2.0
// The arithmetic of Zhang et al. 2023, "Composing Parameter-Efficient Modules with Arithmetic Operations",
// arXiv:2306.14870: operators on parameters, for LoRA and (IA)3 as in the paper, for RoAd and PEDRO beyond it.
//
// What they do to the model is another thing than + and - on modules (arithmetic/expression.hpp). With LoRA a sum of
// parameters has cross terms: (w A + v A')(...) holds B A' and B' A. They are small only for modules that were trained
// from one start, which is how the paper trains them, and they need equal ranks and scalings.
//
// What each method's parameters are here, and what adding them keeps:
//   LoRA   A, B, bias          the delta gets cross terms B_i A_j
//   (IA)3  l, around 1         the function-space sum
//   RoAd   alpha (1), theta    rotations stay rotations; angles are added as they are, not modulo 2 pi
//   PEDRO  W_up and its bias   l - 1 scales with W_up. W_down, pooling and rational are averaged: where the modules
//                              differ there, the result's l is no sum of theirs
// With weights that sum to 1, the sum of equal modules is the module itself.
#pragma once

#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/pedro.hpp>
#include <graft/adapter/road.hpp>
#include <graft/arithmetic/operands.hpp>
#include <graft/core/scalar.hpp>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <initializer_list>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

namespace graft::arithmetic::paper {

/// Which of LoRA's factors carries the sign of a negated module. B A is the same either way, but sums are not: the
/// cross terms differ. The paper's analogy negates B, its detoxification A.
enum class Factor { a, b };

namespace detail {

/// What a parameter is to the module's change of the model.
struct Role {
  enum class Kind {
    delta,     ///< the change is linear in (parameter - start)
    factor_a,  ///< of a product
    factor_b,
    carried,  ///< shapes the change, but has no sign
  } kind = Kind::delta;
  double start = 0;
};

inline Role role_of(LoRADelta const&, std::string_view suffix) {
  if (suffix == "lora_B.bias") return {};
  bool const a = suffix == "lora_A.weight" || suffix == "lora_embedding_A";
  return {a ? Role::Kind::factor_a : Role::Kind::factor_b};
}
inline Role role_of(IA3Scaling const&, std::string_view) { return {Role::Kind::delta, 1}; }
inline Role role_of(RoAdRotation const&, std::string_view suffix) {
  return {Role::Kind::delta, suffix == "road_alpha" ? 1.0 : 0.0};
}
inline Role role_of(PedroGenerator const& policy, std::string_view suffix) {
  if (suffix == "pedro_up.weight") return {};
  if (suffix == "pedro_up.bias") return {Role::Kind::delta, policy.offset == PedroGenerator::Offset::bias ? 1.0 : 0.0};
  return {Role::Kind::carried};
}

inline bool same_settings(LoRADelta const& p, LoRADelta const& q) { return p.scale() == q.scale(); }
inline bool same_settings(IA3Scaling const&, IA3Scaling const&) { return true; }
inline bool same_settings(RoAdRotation const& p, RoAdRotation const& q) {
  return p.variant == q.variant && p.group_size == q.group_size && p.positions == q.positions;
}
inline bool same_settings(PedroGenerator const& p, PedroGenerator const& q) {
  return p.pooling == q.pooling && p.pooler_input == q.pooler_input && p.offset == q.offset &&
         p.q_scaling == q.q_scaling && p.activation == q.activation;
}

/// ContractError unless the modules have the same parameters, one for one.
template <class P, class B>
void check_alike(std::span<ModuleTerm<P, B> const> terms) {
  expects(!terms.empty(), "graft: there is no module to compute with");
  auto const& first = *terms.front().module;
  for (auto const& term : terms) {
    auto const& other = *term.module;
    expects(is_finite(term.weight), "graft: the weight of module ", other.name, " is ", term.weight);
    expects(other.entries.size() == first.entries.size(), "graft: arithmetic on parameters needs the same sites; ",
            first.name, " has ", first.entries.size(), ", ", other.name, " has ", other.entries.size());
    for (std::size_t k = 0; k < first.entries.size(); ++k) {
      auto const &one = first.entries[k], &two = other.entries[k];
      expects(one.site == two.site, "graft: arithmetic on parameters needs the same sites; ", first.name,
              " has number ", one.site, " where ", other.name, " has number ", two.site);
      expects((graft::detail::shapes_of<P, B>(one.state) == graft::detail::shapes_of<P, B>(two.state)) &&
                  same_settings(one.policy, two.policy),
              "graft: arithmetic on parameters needs equal ranks, scalings and options; ", first.name, " and ",
              other.name, " differ at site ", one.site);
    }
  }
}

/// A module whose every parameter is f(role, the modules' parameters there, its place in Module::parameters()).
template <class P, class B, class F>
Module<P, B> parameterwise(std::span<ModuleTerm<P, B> const> terms, Heads heads, F const& f) {
  check_alike(terms);
  auto result = graft::detail::begin_result(terms, heads);
  result.entries = terms.front().module->entries;
  result.allocate();
  std::vector<double> values(terms.size());
  index_t place = 0;
  for (auto& entry : result.entries)
    entry.state.for_each([&](char const* suffix, auto& tensor) {
      index_t count = 1;
      if constexpr (requires { tensor.rows; })
        count = tensor.rows * tensor.cols;
      else
        count = tensor.size;
      Role const role = role_of(entry.policy, suffix);
      for (index_t k = 0; k < count; ++k, ++place) {
        for (std::size_t t = 0; t < terms.size(); ++t)
          values[t] = static_cast<double>(terms[t].module->parameters()[place]);
        tensor.data[k] = static_cast<Real<B>>(f(role, std::span<double const>(values), place));
      }
    });
  return result;
}

/// Deltas: start + sum w (p - start). Factors: the signed one sum w p, the other sum |w| p. Carried: the mean by |w|.
template <class P, class B>
Module<P, B> signed_sum(std::span<ModuleTerm<P, B> const> terms, Factor signed_factor, Heads heads) {
  double size = 0;
  for (auto const& term : terms) size += std::abs(term.weight);
  expects(size > 0, "graft: all weights are zero");
  return parameterwise(terms, heads, [&](Role const& role, std::span<double const> p, index_t) {
    using Kind = Role::Kind;
    bool const with_sign =
        role.kind == Kind::delta || role.kind == (signed_factor == Factor::a ? Kind::factor_a : Kind::factor_b);
    double sum = 0;
    for (std::size_t k = 0; k < p.size(); ++k)
      sum += (with_sign ? terms[k].weight : std::abs(terms[k].weight)) * (p[k] - role.start);
    return role.kind == Kind::carried ? sum / size : role.start + sum;
  });
}

}  // namespace detail

/// Addition: theta = sum w_i theta_i over every parameter, A and B of LoRA each for itself; weights are divided by
/// their sum. Equal modules give the module; modules of equal start keep it. LoRA's delta gets cross terms.
template <class P, class B>
Module<P, B> add(std::span<ModuleTerm<P, B> const> terms, Heads heads = Heads::exact) {
  double sum = 0;
  for (auto const& term : terms) sum += term.weight;
  expects(is_finite(sum) && sum != 0, "graft: weights that sum to ", sum, " cannot be normalised");
  std::vector<ModuleTerm<P, B>> normalised(terms.begin(), terms.end());
  for (auto& term : normalised) term.weight /= sum;
  std::span<ModuleTerm<P, B> const> const shares(normalised);
  return detail::parameterwise(shares, heads, [&](detail::Role const&, std::span<double const> p, index_t) {
    double value = 0;
    for (std::size_t k = 0; k < p.size(); ++k) value += shares[k].weight * p[k];
    return value;
  });
}
template <class P, class B>
Module<P, B> add(std::initializer_list<ModuleTerm<P, B>> terms, Heads heads = Heads::exact) {
  return add(std::span<ModuleTerm<P, B> const>(terms.begin(), terms.size()), heads);
}

/// Scaled negation, for unlearning: LoRA's chosen factor times -s, so its delta times -s; (IA)3 (1 + s) - s l; RoAd
/// 1 - s (alpha - 1) and -s theta, exact for small changes only; PEDRO W_up times -s, so 1 - s (l - 1), exact.
template <class P, class B>
Module<P, B> scaled_negation(Module<P, B> const& module, double s, Factor factor = Factor::b) {
  ModuleTerm<P, B> const term{&module, 1};
  expects(is_finite(s), "graft: the scale of a negation is ", s);
  return detail::parameterwise(std::span<ModuleTerm<P, B> const>(&term, 1), Heads::exact,
                               [&](detail::Role const& role, std::span<double const> p, index_t) {
                                 using Kind = detail::Role::Kind;
                                 bool const negated =
                                     role.kind == Kind::delta ||
                                     role.kind == (factor == Factor::a ? Kind::factor_a : Kind::factor_b);
                                 return negated ? role.start - s * (p[0] - role.start) : p[0];
                               });
}

/// Negation: LoRA {A, -B} or {-A, B}; (IA)3 2 - l; RoAd 2 - alpha and -theta; PEDRO -W_up. Twice gives the module.
template <class P, class B>
Module<P, B> negate(Module<P, B> const& module, Factor factor = Factor::b) {
  return scaled_negation(module, 1, factor);
}

/// Domain transfer: lambda theta_0 + (1 - lambda) (theta_1 + neg theta_2), a classifier of the source domain and
/// language models of the target and the source domain. (IA)3: 1 + lambda (l_0 - 1) + (1 - lambda) (l_1 - l_2). The
/// classifier's head is kept.
template <class P, class B>
Module<P, B> analogy(Module<P, B> const& source_classifier, Module<P, B> const& target_model,
                     Module<P, B> const& source_model, double lambda, Factor factor = Factor::b) {
  std::vector<ModuleTerm<P, B>> const terms = {
      {&source_classifier, lambda}, {&target_model, 1 - lambda}, {&source_model, -(1 - lambda)}};
  auto result = detail::signed_sum(std::span<ModuleTerm<P, B> const>(terms), factor, Heads::first);
  result.saved = source_classifier.saved;
  result.modules_to_save = source_classifier.modules_to_save;
  result.task_type = source_classifier.task_type;
  return result;
}

/// theta + lambda (theta + neg theta_t), where theta_t was trained on from theta with what is to be unlearnt. LoRA:
/// A' = A + lambda (A - A_t), B' = B + lambda (B + B_t); with Factor::b the signs change places.
template <class P, class B>
Module<P, B> detoxify(Module<P, B> const& module, Module<P, B> const& toxic, double lambda, Factor factor = Factor::a) {
  std::vector<ModuleTerm<P, B>> const terms = {{&module, 1 + lambda}, {&toxic, -lambda}};
  return detail::signed_sum(std::span<ModuleTerm<P, B> const>(terms), factor, Heads::first);
}

/// Fisher-weighted addition: every parameter has weights w_i max(F_i, floor) / ||F_i||, divided by their sum. `fisher`
/// holds for each module the squared gradients of its loss, mean over examples, in the order of Module::parameters().
/// Matena and Raffel 2022, arXiv:2111.09832, as the paper's code uses it.
template <class P, class B>
Module<P, B> fisher_add(std::span<ModuleTerm<P, B> const> terms,
                        std::span<VectorView<std::type_identity_t<Real<B>> const> const> fisher,
                        Heads heads = Heads::exact, double floor = 1e-6) {
  expects(fisher.size() == terms.size(), "graft: ", terms.size(), " modules need as many Fisher vectors, not ",
          fisher.size());
  std::vector<double> norms;
  for (std::size_t k = 0; k < terms.size(); ++k) {
    index_t const count = terms[k].module->parameters().size;
    expects(fisher[k].size == count, "graft: module ", terms[k].module->name, " has ", count,
            " parameters, its Fisher vector ", fisher[k].size);
    expects(terms[k].weight > 0, "graft: Fisher-weighted addition needs positive weights; that of ",
            terms[k].module->name, " is ", terms[k].weight);
    double sum = 0;
    for (auto const f : fisher[k]) {
      expects(f >= 0, "graft: a squared gradient cannot be ", f);
      sum += static_cast<double>(f) * static_cast<double>(f);
    }
    norms.push_back(std::max(std::sqrt(sum), floor));
  }
  return detail::parameterwise(terms, heads, [&](detail::Role const&, std::span<double const> p, index_t place) {
    double value = 0, weights = 0;
    for (std::size_t k = 0; k < p.size(); ++k) {
      double const w = terms[k].weight * std::max(static_cast<double>(fisher[k][place]), floor) / norms[k];
      value += w * p[k];
      weights += w;
    }
    return value / weights;
  });
}

}  // namespace graft::arithmetic::paper
