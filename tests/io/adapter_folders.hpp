// SPDX-License-Identifier: Apache-2.0
// What the tests of adapter folders share.
#pragma once

#include <tests/catch.hpp>
#include <tests/io/files.hpp>
#include <tests/io/llama_sites.hpp>

#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/pedro.hpp>
#include <graft/adapter/road.hpp>
#include <graft/backend/cpu/cpu_backend.hpp>
#include <graft/io/peft.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace graft_test {

using B = graft::CpuBackend<>;
using Policies = graft::Adapters<graft::IA3Scaling, graft::RoAdRotation, graft::LoRADelta, graft::PedroGenerator>;
using Json = nlohmann::ordered_json;

inline graft::AnyModule<Policies, B> read_any(std::filesystem::path const& folder, graft::SiteTable const& sites) {
  return graft::read_any_peft<Policies, B>(folder, sites, "test");
}

/// A module with values that all differ.
template <class P, class Backend = B>
graft::Module<P, Backend> sample(P const& policy, graft::SiteTable const& sites,
                                 std::vector<std::string> const& paths) {
  graft::Module<P, Backend> module;
  module.name = "sample";
  module.policy = policy;
  std::vector<graft::index_t> at;
  for (auto const& path : paths) at.push_back(sites.find(path));
  std::sort(at.begin(), at.end());
  graft::PeftPatterns const patterns("sample");
  for (graft::index_t const site : at) {
    REQUIRE(site >= 0);
    module.add(sites, site, graft::policy_at(policy, [&](auto const& p) { return patterns(p, sites[site].path); }));
  }
  module.allocate();
  for (graft::index_t k = 0; k < module.parameters().size; ++k)
    module.parameters()[k] = static_cast<graft::Real<Backend>>(0.25 + 0.001 * static_cast<double>(k));
  return module;
}

template <class P, class Backend>
std::vector<double> numbers(graft::Module<P, Backend> const& module) {
  return {module.parameters().begin(), module.parameters().end()};
}

/// Reads what was written, checks that nothing was lost and that a second writing gives the same bytes.
template <class P, class Backend>
graft::Module<P, Backend> round_trip(graft::Module<P, Backend> const& module, graft::SiteTable const& sites) {
  TemporaryFolder folder;
  graft::write_peft(folder / "first", module, sites);
  auto [again, warnings] = graft::read_peft<P, Backend>(folder / "first", sites, module.name);
  for (auto const& warning : warnings) CHECK_THAT(warning, Catch::Contains("that is no site"));
  CHECK(numbers(again) == numbers(module));
  graft::write_peft(folder / "second", again, sites);
  for (auto const* file : {"adapter_config.json", "adapter_model.safetensors"})
    CHECK(read_bytes(folder / "first" / file) == read_bytes(folder / "second" / file));
  return std::move(again);
}

inline Json config_of(std::filesystem::path const& folder) {
  return graft::read_json<Json>(folder / "adapter_config.json");
}

}  // namespace graft_test
