// SPDX-License-Identifier: Apache-2.0
// What all operators on modules share: the sites of several modules together, and what their results inherit.
#pragma once

#include <graft/arithmetic/expression.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <map>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace graft {

/// What becomes of the heads and other tensors that modules bring whole (PEFT's modules_to_save).
enum class Heads {
  exact,  ///< their weighted sum, which is exact when the weights of those that bring one sum to 1; else ContractError
  first,  ///< that of the first module which brings one, as it is
};

namespace detail {

/// One module's parameters at a site and its weight.
template <class P, class B>
struct Part {
  typename Module<P, B>::Entry const* entry = nullptr;
  double weight = 1;
  std::string const* name = nullptr;  ///< the module's
};

/// What the terms have, by site, ascending; a site that a module does not have is missing in the list, which is a
/// change of zero. ContractError unless all modules are of this model.
template <class P, class B>
std::map<index_t, std::vector<Part<P, B>>> parts_by_site(std::span<ModuleTerm<P, B> const> terms,
                                                         SiteTable const& sites) {
  std::map<index_t, std::vector<Part<P, B>>> result;
  for (auto const& term : terms) {
    check_fits(*term.module, sites);
    for (auto const& entry : term.module->entries)
      result[entry.site].push_back({&entry, term.weight, &term.module->name});
  }
  return result;
}

/// Tensors that replace the model's own: base + sum w (saved - base). That is the base's where all bring a copy of it;
/// otherwise the base drops out where the w sum to 1.
template <class P, class B>
std::map<std::string, SavedTensor> combined_saved(std::span<ModuleTerm<P, B> const> terms, Heads heads) {
  std::map<std::string, SavedTensor> result;
  std::set<std::string> changed;
  for (auto const& term : terms)
    for (auto const& [path, saved] : term.module->saved) {
      auto const& first = result.try_emplace(path, saved).first->second;
      if (!saved.of_base || saved.values != first.values) changed.insert(path);
    }
  if (heads == Heads::first) return result;
  for (auto const& path : changed) {
    SavedTensor& sum = result.at(path);
    sum.of_base = false;
    std::fill(sum.values.begin(), sum.values.end(), 0.f);
    double weight = 0;
    for (auto const& term : terms) {
      auto const found = term.module->saved.find(path);
      if (found == term.module->saved.end()) continue;
      auto const& saved = found->second;
      expects(saved.shape == sum.shape, "graft: modules bring tensors ", path, " of different shapes");
      weight += term.weight;
      for (std::size_t k = 0; k < sum.values.size(); ++k)
        sum.values[k] =
            static_cast<float>(static_cast<double>(sum.values[k]) + term.weight * static_cast<double>(saved.values[k]));
    }
    expects(std::abs(weight - 1) <= 1e-6, "graft: the weights of the modules that bring their own ", path, " sum to ",
            weight, "; without the base's tensor they can only be added with a sum of 1, or take the first one's");
  }
  return result;
}

/// A module without entries that says of itself what the terms' modules say.
template <class P, class B>
Module<P, B> begin_result(std::span<ModuleTerm<P, B> const> terms, Heads heads = Heads::exact) {
  Module<P, B> const& first = *terms.front().module;
  Module<P, B> result;
  result.name = first.name;
  result.policy = first.policy;
  result.saved = combined_saved(terms, heads);
  std::set<std::string> targets, saved;
  for (auto const& term : terms) {
    auto const& m = *term.module;
    targets.insert(m.target_modules.begin(), m.target_modules.end());
    saved.insert(m.modules_to_save.begin(), m.modules_to_save.end());
    if (result.base_model.empty()) result.base_model = m.base_model;
    if (result.task_type.empty()) result.task_type = m.task_type;
  }
  result.target_modules.assign(targets.begin(), targets.end());
  result.modules_to_save.assign(saved.begin(), saved.end());
  return result;
}

/// The terms of an operator that takes modules without weights.
template <class P, class B>
std::vector<ModuleTerm<P, B>> unweighted(std::initializer_list<Module<P, B> const*> modules) {
  std::vector<ModuleTerm<P, B>> terms;
  for (auto const* module : modules) terms.push_back({module, 1});
  return terms;
}

}  // namespace detail
}  // namespace graft
