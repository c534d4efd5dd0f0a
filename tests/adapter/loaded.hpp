// SPDX-License-Identifier: Apache-2.0
// An engine with modules of every policy loaded, and random requests for them.
#pragma once

#include <tests/adapter/engine.hpp>

#include <string>
#include <utility>
#include <vector>

namespace graft_test {

/// Modules of every policy in the list, several of each, under one-letter names.
template <class List, class Act>
struct Loaded : Engine<List, Act> {
  Loaded(Shape shape, std::uint64_t seed) : Engine<List, Act>(shape, seed) {
    auto const linear = sites_of_kind(this->bank.sites(), SiteKind::linear);
    auto const hidden = sites_of_kind(this->bank.sites(), SiteKind::hidden);
    add<RoAdRotation>({{"r1", {RoAdRotation::Variant::road_1, 6}},
                       {"r2", {RoAdRotation::Variant::road_2, 6}},
                       {"r4", {RoAdRotation::Variant::road_4, 6}}},
                      linear);
    add<LoRADelta>({{"l3", {.rank = 3, .alpha = 6}},
                    {"l40", {.rank = 40, .alpha = 10, .rank_stabilized = true}},
                    {"lb", {.rank = 5, .alpha = 5, .bias = true}}},
                   linear);
    add<IA3Scaling>({{"i", {}}, {"j", {.feedforward_modules = {"down_proj", "q_proj", "c_attn"}}}}, linear);
    add<PedroGenerator>({{"p", {.rank = 4}},
                         {"q",
                          {.rank = 7,
                           .pooling = PedroGenerator::Pooling::mean,
                           .pooler_input = PedroGenerator::PoolerInput::raw,
                           .q_scaling = PedroGenerator::QueryScaling::after_rope}}},
                        hidden);
  }
  /// Each module with probability `share`, some with weight 1, and the whole request as prompt.
  template <class T = Act>
  Request<T> random_request(double share, index_t rows) {
    std::vector<AdapterUse> uses;
    for (auto const& name : names)
      if (this->random.uniform() < share)
        uses.push_back({name, this->random.uniform() < 0.3 ? 1.0 : this->random.uniform(-1, 1.5)});
    return this->template request<T>(std::move(uses), rows, rows);
  }

  std::vector<std::string> names;

 private:
  template <class P>
  void add(std::vector<std::pair<std::string, P>> const& modules, std::vector<index_t> const& at) {
    if constexpr (contains<P>(List{}))
      for (auto const& [name, policy] : modules) {
        this->load(name, policy, at);
        names.push_back(name);
      }
  }
  template <class P, class... Ps>
  static constexpr bool contains(Adapters<Ps...>) {
    return (std::same_as<P, Ps> || ...);
  }
};

}  // namespace graft_test
