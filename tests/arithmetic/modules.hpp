// SPDX-License-Identifier: Apache-2.0
// Random modules for tests of arithmetic, and what they do as dense matrices in double.
#pragma once

#include <graft/backend/cpu/cpu_backend.hpp>
#include <tests/adapter/engine.hpp>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

namespace graft_test {

/// Fills a module with random parameters, none of them special.
template <class P, class B>
void fill_random(Module<P, B>& module, Random& random) {
  for (auto& entry : module.entries) {
    if constexpr (std::same_as<P, RoAdRotation>) {
      testing::fill_normal(entry.state.theta, random, 0, 0.7);
      testing::fill_normal(entry.state.alpha, random, 1, 0.3);
    } else if constexpr (std::same_as<P, IA3Scaling>) {
      testing::fill_normal(entry.state.l, random, 1, 0.4);
    } else {
      entry.state.for_each([&](char const* name, auto& tensor) {
        std::string_view const suffix = name;
        if (!suffix.starts_with("pedro_num") && !suffix.starts_with("pedro_den"))  // rationals keep their start
          testing::fill_normal(tensor, random, 0, 0.3);
      });
    }
  }
}

template <class P, class B>
Module<P, B> random_module(std::string name, P const& policy, SiteTable const& sites, std::vector<index_t> const& at,
                           Random& random) {
  auto module = make_module<P, B>(std::move(name), policy, sites, at);
  fill_random(module, random);
  return module;
}

/// The entry of a module at a site, or null.
template <class P, class B>
typename Module<P, B>::Entry const* entry_at(Module<P, B> const& module, index_t site) {
  for (auto const& entry : module.entries)
    if (entry.site == site) return &entry;
  return nullptr;
}

/// The matrix of a RoAd or (IA)3 module at a site, the identity where it has none.
template <class P, class B>
Matrix map_matrix(Module<P, B> const& module, index_t site, SiteTable const& sites) {
  auto const* entry = entry_at(module, site);
  if (entry == nullptr) return testing::identity(sites[site].out);
  auto const effect = effect_of<B>(entry->policy, entry->state, sites[site]);
  return effect.output ? effect.output->m : effect.input->m;
}

/// The delta of a LoRA module at a site, zero where it has none.
template <class B>
Matrix delta_matrix(Module<LoRADelta, B> const& module, index_t site, SiteTable const& sites) {
  auto const* entry = entry_at(module, site);
  if (entry == nullptr) return {sites[site].out, sites[site].in};
  return *effect_of<B>(entry->policy, entry->state, sites[site]).delta;
}

inline double frobenius(Matrix const& a) {
  double sum = 0;
  for (double const value : a.values) sum += value * value;
  return std::sqrt(sum);
}

}  // namespace graft_test
