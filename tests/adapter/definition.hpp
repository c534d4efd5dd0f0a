// SPDX-License-Identifier: Apache-2.0
// What adapted layers are by definition, in double: every policy of a list wraps the layer that those before it made.
#pragma once

#include <graft/adapter/bank.hpp>
#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/pedro.hpp>
#include <graft/adapter/road.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/policies.hpp>
#include <graft/testing/random.hpp>
#include <graft/testing/reference.hpp>

#include <map>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

namespace graft_test {

using namespace graft;
using graft::testing::AffineMap;
using graft::testing::Matrix;
using graft::testing::Vector;

/// What one module does at one site; absent: nothing.
struct Effect {
  std::optional<AffineMap> output, input;
  std::optional<Matrix> delta;
};

inline Vector as_vector(auto const& view) {
  Vector result;
  for (auto const& value : view) result.push_back(testing::to_double(value));
  return result;
}

template <class B>
Effect effect_of(RoAdRotation const& policy, RoAdRotation::State<B> const& state, SiteInfo const& site) {
  int const variant = policy.variant == RoAdRotation::Variant::road_1   ? 1
                      : policy.variant == RoAdRotation::Variant::road_2 ? 2
                                                                        : 4;
  AffineMap map = testing::identity_map(site.out);
  map.m = testing::road_matrix(variant, policy.group_size, as_vector(state.theta), as_vector(state.alpha), site.out);
  return {.output = map, .input = {}, .delta = {}};
}

template <class B>
Effect effect_of(IA3Scaling const&, IA3Scaling::State<B> const& state, SiteInfo const&) {
  Vector const l = as_vector(VectorView<Real<B>>{state.l.data, state.l.size()});
  AffineMap const map{testing::diagonal(l), Vector(l.size(), 0.0)};
  if (state.l.cols == 1) return {.output = map, .input = {}, .delta = {}};
  return {.output = {}, .input = map, .delta = {}};
}

template <class B>
Effect effect_of(LoRADelta const& policy, LoRADelta::State<B> const& state, SiteInfo const& site) {
  double const rank = static_cast<double>(policy.rank);
  double const scale = policy.alpha / (policy.rank_stabilized ? std::sqrt(rank) : rank);
  Effect effect;
  effect.delta = scale * (Matrix(state.b) * Matrix(state.a));
  if (!state.b_bias.empty()) {
    effect.output = testing::identity_map(site.out);
    testing::add_scaled(effect.output->e, scale, as_vector(state.b_bias));
  }
  return effect;
}

template <class B>
testing::PedroReference reference_of(PedroGenerator const& policy, PedroGenerator::State<B> const& state) {
  return {.down = Matrix(state.down),
          .up = Matrix(state.up),
          .up_bias = as_vector(state.up_bias),
          .numerator = as_vector(state.numerator),
          .denominator = as_vector(state.denominator),
          .pool = as_vector(state.pool),
          .pooling = PedroGenerator::names(policy.pooling)[static_cast<std::size_t>(policy.pooling)],
          .activation = PedroGenerator::names(policy.activation)[static_cast<std::size_t>(policy.activation)],
          .offset = policy.offset == PedroGenerator::Offset::one ? 1.0 : 0.0};
}

/// The rows of a request's prompt at one layer.
struct Prompt {
  Matrix normalized, raw;
};

/// What every module of a bank does, written down when it is loaded.
template <class List, class B>
class Definition;

template <class... Ps, class B>
class Definition<Adapters<Ps...>, B> {
 public:
  explicit Definition(SiteTable const& sites) : sites_(sites) {}

  template <class P>
  void add(Module<P, B> const& module) {
    Known known;
    known.place = place_of<P>();
    for (auto const& entry : module.entries) {
      SiteInfo const& site = sites_[entry.site];
      if constexpr (std::same_as<P, PedroGenerator>) {
        auto const reference = reference_of<B>(entry.policy, entry.state);
        bool const raw = entry.policy.pooler_input == PedroGenerator::PoolerInput::raw;
        auto const& layer = sites_.layers()[static_cast<std::size_t>(site.layer)];
        bool const rotated =
            entry.policy.q_scaling == PedroGenerator::QueryScaling::after_rope && layer.rotated_query.site >= 0;
        known.vectors[site.layer] = [=](Prompt const& p) { return reference.vectors(raw ? p.raw : p.normalized); };
        known.rotated = rotated;
      } else {
        known.effects[entry.site] = effect_of<B>(entry.policy, entry.state, site);
      }
    }
    known_[module.name] = std::move(known);
  }

  /// The layer `base` at a site with a request's adapters around it. prompts: [layers], empty: none was seen.
  testing::Layer operator()(testing::Layer base, index_t site, std::vector<AdapterUse> const& uses,
                            std::span<Prompt const> prompts) const {
    for (index_t place = 0; place < static_cast<index_t>(sizeof...(Ps)); ++place) {
      std::vector<AffineMap> outputs, inputs;
      Vector output_weights, input_weights;
      for (auto const& use : uses) {
        Known const& known = known_.at(use.name);
        if (known.place != place) continue;
        if (auto const found = known.effects.find(site); found != known.effects.end()) {
          Effect const& effect = found->second;
          if (effect.delta) base = testing::plus(base, use.weight * *effect.delta);
          if (effect.output) outputs.push_back(*effect.output), output_weights.push_back(use.weight);
          if (effect.input) inputs.push_back(*effect.input), input_weights.push_back(use.weight);
        }
        if (auto const scale = generated(known, site, prompts)) {
          outputs.push_back(*scale);
          output_weights.push_back(use.weight);
        }
      }
      SiteInfo const& info = sites_[site];
      if (!inputs.empty()) base = testing::before(base, testing::weighted_sum(inputs, input_weights, info.in));
      if (!outputs.empty()) base = testing::after(base, testing::weighted_sum(outputs, output_weights, info.out));
    }
    return base;
  }

 private:
  struct Known {
    index_t place = 0;
    std::map<index_t, Effect> effects;
    std::map<index_t, std::function<Vector(Prompt const&)>> vectors;  // by layer
    bool rotated = false;
  };

  template <class P>
  static index_t place_of() {
    index_t place = 0;
    bool found = false;
    ((found = found || std::same_as<P, Ps>, place += found ? 0 : 1), ...);
    return place;
  }

  // PEDRO's scaling of the parts of a site's outputs that are a layer's query, value or up
  std::optional<AffineMap> generated(Known const& known, index_t site, std::span<Prompt const> prompts) const {
    auto const layer = sites_[site].layer;
    auto const found = known.vectors.find(layer);
    if (prompts.empty() || found == known.vectors.end()) return {};
    Vector const l = found->second(prompts[static_cast<std::size_t>(layer)]);
    auto const& at = sites_.layers()[static_cast<std::size_t>(layer)];
    Vector scale(static_cast<std::size_t>(sites_[site].out), 1.0);
    bool any = false;
    auto const put = [&](SiteSlice const& slice, index_t from) {
      if (slice.site != site) return;
      any = true;
      for (index_t k = 0; k < slice.size; ++k)
        scale[static_cast<std::size_t>(slice.offset + k)] = l[static_cast<std::size_t>(from + k)];
    };
    put(known.rotated ? at.rotated_query : at.query, 0);
    put(at.value, at.query.size);
    put(at.up, at.query.size + at.value.size);
    if (!any) return {};
    return AffineMap{testing::diagonal(scale), Vector(scale.size(), 0.0)};
  }

  SiteTable const& sites_;
  std::map<std::string, Known> known_;
};

}  // namespace graft_test
