// SPDX-License-Identifier: Apache-2.0
// RoAd modules as lists of 2x2 blocks, and back.
#pragma once

#include <graft/adapter/road.hpp>
#include <graft/arithmetic/map_block.hpp>
#include <graft/arithmetic/operands.hpp>
#include <graft/core/scalar.hpp>

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

namespace graft::detail {

/// The block of outputs k (in the first half of its group) and k + g/2.
template <class B>
MapBlock read_block(RoAdRotation const& policy, RoAdRotation::State<B> const& state, index_t k) {
  auto const polar = [&](index_t at, auto part) {
    return static_cast<double>(state.alpha[at]) * part(static_cast<double>(state.theta[at]));
  };
  auto const cosine = [](double x) { return std::cos(x); };
  auto const sine = [](double x) { return std::sin(x); };
  auto const first = policy.entries(k), second = policy.entries(k + policy.group_size / 2);
  return {polar(first.cosine, cosine), -polar(first.sine, sine), polar(second.sine, sine),
          polar(second.cosine, cosine)};
}

/// Writes the block as road_2, each row a vector in polar form, or as road_1 when the policy is that and the block a
/// scaled rotation. A row that is zero has no angle and is refused.
template <class B>
void write_block(RoAdRotation const& policy, RoAdRotation::State<B>& state, index_t k, MapBlock const& m,
                 BlockPlace const& place) {
  using R = Real<B>;
  auto const put = [&](index_t at, double cosine, double sine) {
    auto const alpha = static_cast<R>(std::hypot(cosine, sine));
    if (!(alpha > 0) || !is_finite(alpha))
      place.refuse("would have alpha = ", alpha, ", which RoAd has no encoding for");
    state.alpha[at] = alpha;
    state.theta[at] = static_cast<R>(std::atan2(sine, cosine));
  };
  if (policy.variant == RoAdRotation::Variant::road_1)
    return put(policy.entries(k).cosine, (m.a + m.d) / 2, (m.c - m.b) / 2);
  put(policy.entries(k).cosine, m.a, -m.b);
  put(policy.entries(k + policy.group_size / 2).cosine, m.d, m.c);
}

/// A module whose every block is f(blocks of the modules, place); a module without the site has the identity there. It
/// is road_1 when all modules are, which f must then keep (scaled rotations), else road_2. ContractError for modules
/// with groups of different size at a site.
template <class B, class F>
Module<RoAdRotation, B> map_blocks(std::span<ModuleTerm<RoAdRotation, B> const> terms, SiteTable const& sites,
                                   Heads heads, F const& f) {
  using Variant = RoAdRotation::Variant;
  auto const parts = parts_by_site(terms, sites);
  auto result = begin_result(terms, heads);
  bool plain = true;
  for (auto const& term : terms)
    for (auto const& entry : term.module->entries) plain = plain && entry.policy.variant == Variant::road_1;
  result.policy.variant = plain ? Variant::road_1 : Variant::road_2;
  for (auto const& [site, here] : parts) {
    auto policy = here.front().entry->policy;
    for (auto const& part : here) {
      auto const& other = part.entry->policy;
      expects(other.group_size == policy.group_size, "graft: at ", sites[site].path, " module ", *here.front().name,
              " has groups of ", policy.group_size, " and ", *part.name, " groups of ", other.group_size,
              "; their blocks pair different outputs and cannot be computed with");
      expects(other.positions == policy.positions || sites[site].kind != SiteKind::hidden, "graft: at ",
              sites[site].path, " modules ", *here.front().name, " and ", *part.name, " act on different positions");
    }
    policy.variant = result.policy.variant;
    result.add(sites, site, policy);
  }
  result.allocate();
  std::vector<MapBlock> blocks(terms.size());
  for (auto& entry : result.entries) {
    auto const& here = parts.at(entry.site);
    index_t const g = entry.policy.group_size, outputs = sites[entry.site].out;
    for (index_t start = 0; start < outputs; start += g)
      for (index_t k = start; k < start + g / 2; ++k) {
        std::fill(blocks.begin(), blocks.end(), MapBlock{});
        std::size_t next = 0;
        for (std::size_t t = 0; t < terms.size() && next < here.size(); ++t)
          if (here[next].name == &terms[t].module->name)
            blocks[t] = read_block<B>(here[next].entry->policy, here[next].entry->state, k), ++next;
        BlockPlace const place{sites[entry.site].path, k, k + g / 2};
        write_block<B>(entry.policy, entry.state, k, f(std::span<MapBlock const>(blocks), place), place);
      }
  }
  if (!result.entries.empty()) result.policy = result.entries.front().policy;
  return result;
}

}  // namespace graft::detail
