// SPDX-License-Identifier: Apache-2.0
// Sums of LoRA modules by concatenation: exact for any ranks, targets and scalings.
#pragma once

#include <graft/adapter/lora.hpp>
#include <graft/arithmetic/operands.hpp>

#include <algorithm>
#include <map>
#include <span>

namespace graft {
namespace detail {

/// The module's configuration: the rank that most sites have; files state the others as patterns.
template <class B>
void state_common_rank(Module<LoRADelta, B>& merged) {
  std::map<index_t, index_t> sites_of_rank;
  for (auto const& entry : merged.entries) ++sites_of_rank[entry.policy.rank];
  auto const most = std::max_element(sites_of_rank.begin(), sites_of_rank.end(),
                                     [](auto const& a, auto const& b) { return a.second < b.second; });
  auto const like = std::find_if(merged.entries.begin(), merged.entries.end(),
                                 [&](auto const& entry) { return entry.policy.rank == most->first; });
  merged.policy = like->policy;
}

/// The policy of factors [r, i] and [o, r] whose product is the delta itself: s = 1.
inline LoRADelta unit_lora(LoRADelta const& like, index_t rank, bool bias) {
  LoRADelta here = like;
  here.rank = rank;
  here.alpha = static_cast<double>(rank);
  here.rank_stabilized = false;
  here.bias = bias;
  here.rank_pattern.clear();
  here.alpha_pattern.clear();
  return here;
}

}  // namespace detail

/// sum_k w_k s_k B_k A_k as A = [A_1; A_2; ...], B = [w_1 s_1 B_1, w_2 s_2 B_2, ...] with s = 1 and the sum of the
/// ranks; lora_bias: sum_k w_k s_k b_k. Exact but for one rounding of w s B.
template <class B>
Module<LoRADelta, B> weighted_sum(std::span<ModuleTerm<LoRADelta, B> const> terms, SiteTable const& sites,
                                  Heads heads = Heads::exact) {
  auto const parts = detail::parts_by_site(terms, sites);
  auto sum = detail::begin_result(terms, heads);
  bool bias = false;
  for (auto const& [site, here] : parts)
    for (auto const& part : here) bias = bias || !part.entry->state.b_bias.empty();
  for (auto const& [site, here] : parts) {
    index_t rank = 0;
    for (auto const& part : here) rank += part.entry->policy.rank;
    bool const embedding = sites[site].kind == SiteKind::embedding;
    sum.add(sites, site, detail::unit_lora(here.front().entry->policy, rank, bias && !embedding));
  }
  sum.allocate();
  for (auto& entry : sum.entries) {
    index_t first = 0;
    for (auto const& part : parts.at(entry.site)) {
      auto const& from = part.entry->state;
      double const scale = part.weight * part.entry->policy.scale();
      index_t const rank = part.entry->policy.rank;
      for (index_t r = 0; r < rank; ++r) std::copy_n(from.a.row(r), from.a.cols, entry.state.a.row(first + r));
      for (index_t o = 0; o < from.b.rows; ++o)
        for (index_t r = 0; r < rank; ++r)
          entry.state.b(o, first + r) = static_cast<Real<B>>(scale * static_cast<double>(from.b(o, r)));
      for (index_t o = 0; o < from.b_bias.size; ++o)
        entry.state.b_bias[o] += static_cast<Real<B>>(scale * static_cast<double>(from.b_bias[o]));
      first += rank;
    }
  }
  detail::state_common_rank(sum);
  return sum;
}

}  // namespace graft
