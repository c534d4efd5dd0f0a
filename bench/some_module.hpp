// SPDX-License-Identifier: Apache-2.0
// Modules with made-up parameters.
#pragma once

#include <graft/adapter/module.hpp>
#include <graft/backend/cpu/cpu.hpp>

#include <string>
#include <utility>
#include <vector>

namespace bench {

/// A module at every site of the layers that the policy accepts. Modules differ where their names are not equally long,
/// and none is the identity.
template <class P>
graft::Module<P, graft::CpuBackend<>> some_module(std::string name, P const& policy, graft::SiteTable const& sites) {
  std::vector<graft::index_t> all;
  for (graft::index_t k = 0; k < sites.size(); ++k)
    if (sites[k].layer >= 0 && policy.accepts(sites[k])) all.push_back(k);
  auto module = graft::make_module<P, graft::CpuBackend<>>(std::move(name), policy, sites, all);
  auto k = static_cast<graft::index_t>(module.name.size());
  for (auto& value : module.parameters()) value += static_cast<float>(k++ % 17 - 8) * 0.002f;
  return module;
}

}  // namespace bench
