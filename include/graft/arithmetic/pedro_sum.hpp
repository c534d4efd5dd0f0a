// SPDX-License-Identifier: Apache-2.0
// Sums of PEDRO modules: one generator whose bottleneck is those of all modules side by side.
#pragma once

#include <graft/adapter/pedro.hpp>
#include <graft/arithmetic/operands.hpp>

#include <algorithm>
#include <span>
#include <string_view>

namespace graft {
namespace detail {

/// What keeps two generators from being one, or nothing.
template <class B>
std::string_view pedro_difference(PedroGenerator const& p, PedroGenerator::State<B> const& a, PedroGenerator const& q,
                                  PedroGenerator::State<B> const& b) {
  auto const same = [](auto const& x, auto const& y) {
    return x.size == y.size && std::equal(x.begin(), x.end(), y.begin());
  };
  if (p.pooling != q.pooling || p.pooler_input != q.pooler_input || !same(a.pool, b.pool)) return "pool the prompt";
  if (p.q_scaling != q.q_scaling) return "place the query's scaling";
  if (p.activation != q.activation || !same(a.numerator, b.numerator) || !same(a.denominator, b.denominator))
    return "activate the bottleneck";
  return {};
}

}  // namespace detail

/// 1 + sum_k w_k (l_k - 1) as W_down = [W_down_1; W_down_2; ...], W_up = [w_1 W_up_1, w_2 W_up_2, ...]. Exact where all
/// modules pool and activate alike, down to the rational's coefficients, layer by layer; else ContractError. A bank
/// sums the vectors of any modules: give it the weighted list (`uses`).
template <class B>
Module<PedroGenerator, B> weighted_sum(std::span<ModuleTerm<PedroGenerator, B> const> terms, SiteTable const& sites,
                                       Heads heads = Heads::exact) {
  using R = Real<B>;
  using Offset = PedroGenerator::Offset;
  auto const parts = detail::parts_by_site(terms, sites);
  auto sum = detail::begin_result(terms, heads);
  index_t rank = 0;  // of the layer where the modules have most
  bool all_biased = true, any_bias = false;
  for (auto const& [site, here] : parts) {
    index_t ranks = 0;
    for (auto const& part : here) {
      auto const& first = *here.front().entry;
      auto const differ = detail::pedro_difference<B>(first.policy, first.state, part.entry->policy, part.entry->state);
      expects(differ.empty(), "graft: modules ", *here.front().name, " and ", *part.name, " ", differ,
              " differently at ", sites[site].path,
              ", so no generator makes the sum of their vectors; give a request the weighted list of both");
      ranks += part.entry->policy.rank;
      all_biased = all_biased && part.entry->policy.offset == Offset::bias;
      any_bias = any_bias || !part.entry->state.up_bias.empty();
    }
    rank = std::max(rank, ranks);
  }
  for (auto const& [site, here] : parts) {
    auto policy = here.front().entry->policy;
    policy.rank = rank;
    policy.offset = all_biased ? Offset::bias : Offset::one;
    policy.up_bias = any_bias && !all_biased;
    sum.add(sites, site, policy);
  }
  sum.allocate();
  for (auto& entry : sum.entries) {
    auto& to = entry.state;
    if (all_biased) std::fill(to.up_bias.begin(), to.up_bias.end(), R{1});
    index_t first = 0;
    for (auto const& part : parts.at(entry.site)) {
      auto const& from = part.entry->state;
      double const one = part.entry->policy.offset == Offset::bias ? 1 : 0;
      index_t const r = part.entry->policy.rank;
      for (index_t k = 0; k < r; ++k) std::copy_n(from.down.row(k), from.down.cols, to.down.row(first + k));
      for (index_t j = 0; j < from.up.rows; ++j)
        for (index_t k = 0; k < r; ++k)
          to.up(j, first + k) = static_cast<R>(part.weight * static_cast<double>(from.up(j, k)));
      for (index_t j = 0; j < from.up_bias.size; ++j)
        to.up_bias[j] += static_cast<R>(part.weight * (static_cast<double>(from.up_bias[j]) - one));
      std::copy(from.numerator.begin(), from.numerator.end(), to.numerator.begin());
      std::copy(from.denominator.begin(), from.denominator.end(), to.denominator.begin());
      std::copy(from.pool.begin(), from.pool.end(), to.pool.begin());
      first += r;
    }
  }
  sum.policy = sum.entries.front().policy;
  return sum;
}

}  // namespace graft
