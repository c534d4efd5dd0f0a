// SPDX-License-Identifier: Apache-2.0
// An expression of modules made into a module that can be saved, loaded and computed with.
#pragma once

#include <graft/arithmetic/lora_sum.hpp>
#include <graft/arithmetic/pedro_sum.hpp>
#include <graft/arithmetic/row_maps.hpp>

#include <span>
#include <string>
#include <utility>

namespace graft {

/// A method whose modules have a sum that is again one of its modules. A method of your own joins by an overload of
/// weighted_sum(std::span<ModuleTerm<P, B> const>, SiteTable const&, Heads) beside its policy.
template <class P, class B>
concept SummablePolicy = requires(std::span<ModuleTerm<P, B> const> terms, SiteTable const& sites) {
  { weighted_sum(terms, sites, Heads::exact) } -> std::same_as<Module<P, B>>;
};

/// The module that does what the expression says:
///     LoRA   sum w s BA           concatenated factors; any ranks, targets and scalings
///     RoAd   I + sum w (R - I)    road_1 when all are, else road_2; groups must be equal
///     (IA)3  1 + sum w (l - 1)
///     PEDRO  1 + sum w (l - 1)    where the modules pool and activate alike
/// A site that only some modules have counts as no change in the others. `sites` are those of the model the modules
/// are for. ContractError with site, block or tensor where there is no such module.
template <ModuleOperand T>
auto materialize(T&& expression, SiteTable const& sites, std::string name, Heads heads = Heads::exact) {
  using Operand = detail::OperandOf<T>;
  using P = typename Operand::P;
  using B = typename Operand::B;
  static_assert(SummablePolicy<P, B>,
                "graft: no sum of this policy's modules is known; overload weighted_sum for it, or give a request the "
                "weighted list (graft::uses)");
  auto const terms = Operand::terms(expression);
  auto const sums = detail::collected<P, B>(terms);
  auto result = weighted_sum(std::span<ModuleTerm<P, B> const>(sums), sites, heads);
  result.name = std::move(name);
  return result;
}

}  // namespace graft
