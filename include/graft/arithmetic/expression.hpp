// SPDX-License-Identifier: Apache-2.0
// Arithmetic on modules, in function space:  auto m = chat + 0.4f * (chat - toxic);
//
// + and - add what modules do to the model, and a number scales it. Such an expression does no work. It becomes the
// weighted list of a request (`uses`), which the bank evaluates row by row, or a module of its own (`materialize`).
// What the paper calls addition works on parameters and is something else: arithmetic/paper.hpp.
#pragma once

#include <graft/adapter/adapter_set.hpp>
#include <graft/adapter/module.hpp>
#include <graft/core/scalar.hpp>

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

namespace graft {

/// w times a module. The module belongs to the caller.
template <class P, class B>
struct ModuleTerm {
  Module<P, B> const* module = nullptr;
  double weight = 1;
};
template <class P, class B>
ModuleTerm(Module<P, B> const*, double) -> ModuleTerm<P, B>;

/// A weighted sum of N modules of one method: what `chat + 0.4f * (chat - toxic)` is. It refers to its modules, which
/// must outlive it.
template <class P, class B, std::size_t N>
struct ModuleArithmetic {
  std::array<ModuleTerm<P, B>, N> terms;
};

namespace detail {

template <class T>
struct ArithmeticOperand {};
template <class P_, class B_>
struct ArithmeticOperand<Module<P_, B_>> {
  using P = P_;
  using B = B_;
  static constexpr bool owns = true;
  static constexpr std::array<ModuleTerm<P, B>, 1> terms(Module<P, B> const& module) { return {{{&module, 1}}}; }
};
template <class P_, class B_, std::size_t N>
struct ArithmeticOperand<ModuleArithmetic<P_, B_, N>> {
  using P = P_;
  using B = B_;
  static constexpr bool owns = false;
  static constexpr std::array<ModuleTerm<P, B>, N> terms(ModuleArithmetic<P, B, N> const& sum) { return sum.terms; }
};
template <class T>
using OperandOf = ArithmeticOperand<std::remove_cvref_t<T>>;

}  // namespace detail

/// A module or an expression of modules.
template <class T>
concept ModuleOperand = requires {
  typename detail::OperandOf<T>::P;
};

namespace detail {

/// The operand's terms, each times `scale`.
template <class T>
constexpr auto scaled_terms(T&& operand, double scale) {
  using Operand = OperandOf<T>;
  static_assert(!Operand::owns || std::is_lvalue_reference_v<T>,
                "graft: an expression refers to its modules; give the module a name first");
  auto terms = Operand::terms(operand);
  for (auto& term : terms) term.weight *= scale;
  return ModuleArithmetic<typename Operand::P, typename Operand::B, std::tuple_size_v<decltype(terms)>>{terms};
}

template <class L, class R>
constexpr auto weighted_pair(L&& left, R&& right, double scale) {
  using P = typename OperandOf<L>::P;
  using B = typename OperandOf<L>::B;
  static_assert(std::same_as<P, typename OperandOf<R>::P>,
                "graft: modules of different methods cannot be added; a request that lists both applies one around the "
                "other");
  static_assert(std::same_as<B, typename OperandOf<R>::B>, "graft: modules of different backends cannot be added");
  if constexpr (std::same_as<P, typename OperandOf<R>::P> && std::same_as<B, typename OperandOf<R>::B>) {
    auto const l = scaled_terms(std::forward<L>(left), 1);
    auto const r = scaled_terms(std::forward<R>(right), scale);
    constexpr std::size_t n = std::tuple_size_v<decltype(l.terms)>, m = std::tuple_size_v<decltype(r.terms)>;
    ModuleArithmetic<P, B, n + m> sum{};
    std::copy(l.terms.begin(), l.terms.end(), sum.terms.begin());
    std::copy(r.terms.begin(), r.terms.end(), sum.terms.begin() + n);
    return sum;
  }
}

}  // namespace detail

template <ModuleOperand L, ModuleOperand R>
constexpr auto operator+(L&& left, R&& right) {
  return detail::weighted_pair(std::forward<L>(left), std::forward<R>(right), 1);
}
template <ModuleOperand L, ModuleOperand R>
constexpr auto operator-(L&& left, R&& right) {
  return detail::weighted_pair(std::forward<L>(left), std::forward<R>(right), -1);
}
template <ModuleOperand T>
constexpr auto operator-(T&& operand) {
  return detail::scaled_terms(std::forward<T>(operand), -1);
}
template <class W, ModuleOperand T>
requires std::is_arithmetic_v<W>
constexpr auto operator*(W weight, T&& operand) {
  return detail::scaled_terms(std::forward<T>(operand), static_cast<double>(weight));
}
template <ModuleOperand T, class W>
requires std::is_arithmetic_v<W>
constexpr auto operator*(T&& operand, W weight) {
  return detail::scaled_terms(std::forward<T>(operand), static_cast<double>(weight));
}
template <ModuleOperand T, class W>
requires std::is_arithmetic_v<W>
constexpr auto operator/(T&& operand, W divisor) {
  return detail::scaled_terms(std::forward<T>(operand), 1 / static_cast<double>(divisor));
}

namespace detail {

/// Each module once, with the sum of its weights, in the order of the expression. Modules that cancel are left out; the
/// first one stays, with weight 0, when all do. ContractError for a weight that is not finite.
template <class P, class B>
std::vector<ModuleTerm<P, B>> collected(std::span<ModuleTerm<P, B> const> terms) {
  expects(!terms.empty(), "graft: there is no module to compute with");
  std::vector<ModuleTerm<P, B>> sums;
  for (auto const& term : terms) {
    expects(is_finite(term.weight), "graft: the weight of module ", term.module->name, " is ", term.weight);
    auto const same = std::find_if(sums.begin(), sums.end(), [&](auto const& s) { return s.module == term.module; });
    if (same == sums.end())
      sums.push_back(term);
    else
      same->weight += term.weight;
  }
  auto const first = sums.front();
  std::erase_if(sums, [](auto const& term) { return term.weight == 0; });
  if (sums.empty()) sums.push_back(first);
  return sums;
}

}  // namespace detail

/// The expression as the weighted list of a request: a bank that has loaded the modules under their names evaluates it,
/// for every row of a batch, without making a module. The list may outlive the modules. ContractError when two modules
/// have one name.
template <ModuleOperand T>
std::vector<AdapterUse> uses(T&& expression) {
  using Operand = detail::OperandOf<T>;
  auto const terms = Operand::terms(expression);
  std::vector<AdapterUse> list;
  for (auto const& term : detail::collected<typename Operand::P, typename Operand::B>(terms)) {
    bool const fresh =
        std::none_of(list.begin(), list.end(), [&](auto const& use) { return use.name == term.module->name; });
    expects(fresh && !term.module->name.empty(), "graft: the modules of a list need names of their own; ",
            fresh ? "one has none" : text("two are called ", term.module->name));
    list.push_back({term.module->name, term.weight});
  }
  return list;
}

}  // namespace graft
