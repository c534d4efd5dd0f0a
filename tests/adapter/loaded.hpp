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
  Loaded(Shape shape, std::uint64_t seed, AdapterStorage storage = AdapterStorage::full)
      : Engine<List, Act>(shape, seed, storage) {
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

/// Relative error allowed against the definition: the longest chain is 108 products, a rotation, up to 80 ranks and
/// scalings, each sum cancelling little; 200 roundings cover it.
template <class Act>
constexpr double bound = 200 * graft::testing::unit_roundoff<Act>();

/// Runs the requests in one batch and returns the largest relative error at any site of any request.
template <class E, class T>
double worst(E& engine, std::vector<Request<T>> const& requests) {
  std::vector<Request<T> const*> pointers;
  for (auto const& request : requests) pointers.push_back(&request);
  auto const results = engine.run({&engine.backend}, pointers);
  double largest = 0;
  for (std::size_t q = 0; q < requests.size(); ++q)
    for (index_t s = 0; s < engine.bank.sites().size(); ++s) {
      auto const& result = results[q][static_cast<std::size_t>(s)];
      largest = testing::worse(largest, testing::worst_row(result.view(), engine.expected(requests[q], s)));
    }
  return largest;
}

/// The largest error in random batches with random weighted lists over everything loaded.
template <class List, class Act>
double worst_of_random(Shape shape, std::uint64_t seed) {
  Loaded<List, Act> engine(shape, seed);
  double largest = 0;
  for (int trial = 0; trial < 6; ++trial) {
    std::vector<Request<Act>> requests;
    for (int q = 0; q < 5; ++q) requests.push_back(engine.random_request(0.35, testing::pick(engine.random, 1, 4)));
    largest = testing::worse(largest, worst(engine, requests));
  }
  return largest;
}

}  // namespace graft_test
