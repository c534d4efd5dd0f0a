// SPDX-License-Identifier: Apache-2.0
// Merging modules into one by the methods users know from HF PEFT and mergekit: TIES, DARE, DELLA, ...
//
// A method is three choices: what is dropped from each module's change (Prune), how the rest is fused (Fuse), and in
// which numbers this happens (Space). PEFT's names are such choices; names that end in _svd work on the deltas, the
// others on LoRA's factors, where products have cross terms.
#pragma once

#include <graft/arithmetic/materialize.hpp>
#include <graft/arithmetic/recompress.hpp>
#include <graft/arithmetic/sparsify.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace graft {

/// The numbers a merge works on. RoAd and (IA)3 have one space: R - I and l - 1.
enum class Space : std::uint8_t {
  factors,  ///< A and B of LoRA, each for itself, with weights sqrt|w s|: cheap and rough
  deltas,   ///< s B A, dense while a site is merged, then brought to a rank
  shared,   ///< V_k of [D_1, D_2, ...] = U S [V_1, V_2, ...]. KnOTS: Stoica et al. 2024, arXiv:2410.19735
};

struct MergeRecipe {
  Space space = Space::deltas;
  Fuse fuse = Fuse::sum;
  PruneOptions pruning;
  MajoritySign majority = MajoritySign::total;
  Truncation truncation;   ///< of Space::deltas; rank 0: the largest of the modules' ranks
  std::uint64_t seed = 0;  ///< of what is dropped at random
  /// PEFT's numbers: TIES elects signs before weights are applied, (IA)3's `linear` is sum w l.
  bool as_peft = false;
};

struct MergeMethod {
  std::string_view name;
  Space space;
  Fuse fuse;
  Prune prune;
};

/// What each name means. `cat` is materialize: the exact sum of LoRA modules.
inline constexpr std::array merge_methods{
    MergeMethod{"linear", Space::factors, Fuse::sum, Prune::none},
    MergeMethod{"svd", Space::deltas, Fuse::sum, Prune::none},
    MergeMethod{"ties", Space::factors, Fuse::ties, Prune::magnitude},
    MergeMethod{"ties_svd", Space::deltas, Fuse::ties, Prune::magnitude},
    MergeMethod{"dare_linear", Space::factors, Fuse::sum, Prune::random},
    MergeMethod{"dare_linear_svd", Space::deltas, Fuse::sum, Prune::random},
    MergeMethod{"dare_ties", Space::factors, Fuse::ties, Prune::random},
    MergeMethod{"dare_ties_svd", Space::deltas, Fuse::ties, Prune::random},
    MergeMethod{"magnitude_prune", Space::factors, Fuse::sum, Prune::magnitude},
    MergeMethod{"magnitude_prune_svd", Space::deltas, Fuse::sum, Prune::magnitude},
    MergeMethod{"della", Space::factors, Fuse::ties, Prune::della},
    MergeMethod{"della_svd", Space::deltas, Fuse::ties, Prune::della},
    MergeMethod{"breadcrumbs", Space::factors, Fuse::sum, Prune::breadcrumbs},
    MergeMethod{"breadcrumbs_svd", Space::deltas, Fuse::sum, Prune::breadcrumbs},
    MergeMethod{"knots", Space::shared, Fuse::ties, Prune::magnitude},
};

/// The recipe of a name; ContractError lists the known ones.
inline MergeRecipe merge_recipe(std::string_view name) {
  std::string all;
  for (auto const& method : merge_methods) {
    if (method.name == name) {
      MergeRecipe recipe;
      recipe.space = method.space;
      recipe.fuse = method.fuse;
      recipe.pruning.prune = method.prune;
      return recipe;
    }
    all += text(all.empty() ? "" : ", ", method.name);
  }
  raise<ContractError>("graft: no merging method is called ", name, "; there are ", all);
}

namespace detail {

/// Prunes and fuses one tensor of all modules at one site; rows of `cols` entries.
inline std::vector<double> merge_vectors(std::vector<std::vector<double>> tensors, std::span<double const> weights,
                                         index_t cols, MergeRecipe const& recipe, Random& random) {
  for (auto& t : tensors) prune(t, cols, recipe.pruning, random);
  return fuse(tensors, weights, recipe.fuse, recipe.majority, recipe.as_peft);
}

/// A and B of one site merged, each for itself. A carries the sign of a negative weight.
template <class B>
void merge_factors(std::vector<Part<LoRADelta, B>> const& parts, MergeRecipe const& recipe, Random& random,
                   LoRADelta::State<B>& to) {
  std::vector<double> of_a, of_b;
  for (auto const& part : parts) {
    double const w = part.weight * part.entry->policy.scale(), root = std::sqrt(std::abs(w));
    of_a.push_back(w < 0 ? -root : root);
    of_b.push_back(root);
  }
  auto const merge = [&](auto const& tensor_of, std::span<double const> weights, auto& out) {
    std::vector<std::vector<double>> tensors;
    for (auto const& part : parts) tensors.push_back(in_double(tensor_of(part.entry->state)).values);
    auto const merged = merge_vectors(std::move(tensors), weights, out.cols, recipe, random);
    for (index_t k = 0; k < out.size(); ++k) out.data[k] = static_cast<Real<B>>(merged[static_cast<std::size_t>(k)]);
  };
  merge([](auto const& state) { return state.a; }, of_a, to.a);
  merge([](auto const& state) { return state.b; }, of_b, to.b);
}

/// The merged delta of one site, decomposed.
template <class B>
Svd merged_delta(std::vector<Part<LoRADelta, B>> const& parts, MergeRecipe const& recipe, Random& random) {
  std::vector<double> weights;
  std::vector<std::vector<double>> deltas;
  auto const& shape = parts.front().entry->state;
  for (auto const& part : parts) {
    auto const& from = part.entry->state;
    weights.push_back(part.weight);
    deltas.push_back(product(in_double(from.b, part.entry->policy.scale()).view(), in_double(from.a).view()).values);
  }
  DenseMatrix merged(shape.b.rows, shape.a.cols);
  merged.values = merge_vectors(std::move(deltas), weights, merged.cols, recipe, random);
  return svd(merged.view());
}

/// KnOTS: [D_1, D_2, ...] = U S [V_1, V_2, ...] from the factors alone; the V_k [r, i] are merged, then multiplied.
template <class B>
Svd merged_in_shared_basis(std::vector<Part<LoRADelta, B>> const& parts, MergeRecipe const& recipe, Random& random) {
  index_t ranks = 0;
  index_t const o = parts.front().entry->state.b.rows, i = parts.front().entry->state.a.cols;
  for (auto const& part : parts) ranks += part.entry->policy.rank;
  auto const count = static_cast<index_t>(parts.size());
  DenseMatrix b(o, ranks), a(ranks, count * i);  // a is block-diagonal
  std::vector<double> weights;
  index_t first = 0;
  for (index_t k = 0; k < count; ++k) {
    auto const& part = parts[static_cast<std::size_t>(k)];
    auto const from_b = in_double(part.entry->state.b, part.entry->policy.scale());
    auto const from_a = in_double(part.entry->state.a);
    for (index_t r = 0; r < from_a.rows; ++r) {
      std::copy_n(from_a.row(r), i, a.row(first + r) + k * i);
      for (index_t row = 0; row < o; ++row) b(row, first + r) = from_b(row, r);
    }
    first += from_a.rows;
    weights.push_back(part.weight);
  }
  auto const basis = svd_of_product(b.view(), a.view());
  auto const rank = static_cast<index_t>(basis.s.size());
  std::vector<std::vector<double>> v;
  for (index_t k = 0; k < count; ++k) {
    auto& own = v.emplace_back();
    for (index_t r = 0; r < rank; ++r) own.insert(own.end(), basis.vt.row(r) + k * i, basis.vt.row(r) + (k + 1) * i);
  }
  DenseMatrix merged(rank, i), u = basis.u;
  merged.values = merge_vectors(std::move(v), weights, i, recipe, random);
  for (index_t row = 0; row < o; ++row)
    for (index_t r = 0; r < rank; ++r) u(row, r) *= basis.s[static_cast<std::size_t>(r)];
  return svd_of_product(u.view(), merged.view());
}

}  // namespace detail

/// LoRA modules merged into one. `truncation` bounds the rank (0: the largest of the modules' ranks); what it leaves
/// out is in `errors`. lora_bias: sum w s b. Space::factors needs equal ranks.
template <class B>
Compressed<B> merge_modules(std::span<ModuleTerm<LoRADelta, B> const> terms, MergeRecipe const& recipe,
                            SiteTable const& sites, Heads heads = Heads::exact) {
  detail::check_prune(recipe.pruning);
  detail::check_truncation(recipe.truncation);
  expects(!terms.empty(), "graft: there is no module to merge");
  auto const parts = detail::parts_by_site(terms, sites);
  Compressed<B> result;
  auto& merged = result.module = detail::begin_result(terms, heads);
  bool bias = false;
  for (auto const& [site, here] : parts)
    for (auto const& part : here) bias = bias || !part.entry->state.b_bias.empty();
  Random random(recipe.seed);
  std::vector<Svd> decomposed;
  for (auto const& [site, here] : parts) {
    auto const& first = *here.front().entry;
    index_t rank = 0;
    for (auto const& part : here) {
      rank = std::max(rank, part.entry->policy.rank);
      expects(recipe.space != Space::factors || part.entry->policy.rank == first.policy.rank, "graft: at ",
              sites[site].path, " module ", *here.front().name, " has rank ", first.policy.rank, " and ", *part.name,
              " rank ", part.entry->policy.rank,
              "; factors of different ranks cannot be merged, but deltas can (_svd)");
    }
    bool const has_bias = bias && sites[site].kind != SiteKind::embedding;
    if (recipe.space == Space::factors) {
      merged.add(sites, site, detail::unit_lora(first.policy, rank, has_bias));
      continue;
    }
    auto truncation = recipe.truncation;
    if (truncation.rank == 0 && truncation.error == 0 && truncation.energy == 0) truncation.rank = rank;
    bool const plain = recipe.fuse == Fuse::sum && recipe.pruning.prune == Prune::none;
    if (plain) {  // the sum's factors are known
      auto const stacked = detail::stacked_factors<B>(here);
      decomposed.push_back(svd_of_product(stacked.b.view(), stacked.a.view()));
    } else {
      decomposed.push_back(recipe.space == Space::shared ? detail::merged_in_shared_basis<B>(here, recipe, random)
                                                         : detail::merged_delta<B>(here, recipe, random));
    }
    auto chosen = detail::choose_rank(decomposed.back().s, truncation);
    chosen.site = site;
    result.errors.push_back(chosen);
    merged.add(sites, site, detail::unit_lora(first.policy, chosen.rank, has_bias));
  }
  merged.allocate();
  for (std::size_t k = 0; k < merged.entries.size(); ++k) {
    auto& entry = merged.entries[k];
    auto const& here = parts.at(entry.site);
    if (recipe.space == Space::factors)
      detail::merge_factors<B>(here, recipe, random, entry.state);
    else
      detail::write_factors<B>(decomposed[k], entry.state);
    for (auto const& part : here)
      for (index_t o = 0; o < part.entry->state.b_bias.size; ++o)
        entry.state.b_bias[o] += static_cast<Real<B>>(part.weight * part.entry->policy.scale() *
                                                      static_cast<double>(part.entry->state.b_bias[o]));
  }
  detail::state_common_rank(merged);
  return result;
}

namespace detail {

/// Merges vectors of the same meaning at every site; `read` gives a part's, `write` puts the merged one.
template <class P, class B, class Read, class Write>
void merge_maps(std::span<ModuleTerm<P, B> const> terms, MergeRecipe const& recipe, SiteTable const& sites,
                Module<P, B>& result, Read const& read, Write const& write) {
  check_prune(recipe.pruning);
  expects(recipe.space != Space::shared, "graft: knots shares the singular vectors of LoRA's deltas; ", P::peft_type,
          " modules have none");
  auto const parts = parts_by_site(terms, sites);
  Random random(recipe.seed);
  for (auto& entry : result.entries) {
    std::vector<std::vector<double>> tensors;
    std::vector<double> weights;
    for (auto const& part : parts.at(entry.site)) {
      tensors.push_back(read(*part.entry, sites[entry.site]));
      weights.push_back(part.weight);
    }
    auto const cols = static_cast<index_t>(tensors.front().size());
    write(entry, merge_vectors(std::move(tensors), weights, cols, recipe, random));
  }
}

}  // namespace detail

/// RoAd modules: each block's R - I, two numbers in road_1 and four in road_2, merged entry by entry.
template <class B>
Module<RoAdRotation, B> merge_modules(std::span<ModuleTerm<RoAdRotation, B> const> terms, MergeRecipe const& recipe,
                                      SiteTable const& sites, Heads heads = Heads::exact) {
  using Entry = typename Module<RoAdRotation, B>::Entry;
  auto result = weighted_sum(terms, sites, heads);  // its sites and encoding; the numbers follow
  bool const plain = result.policy.variant == RoAdRotation::Variant::road_1;
  auto const each_block = [](Entry const& entry, index_t outputs, auto&& f) {
    index_t const g = entry.policy.group_size;
    for (index_t start = 0; start < outputs; start += g)
      for (index_t k = start; k < start + g / 2; ++k) f(k);
  };
  detail::merge_maps(
      terms, recipe, sites, result,
      [&](Entry const& entry, SiteInfo const& site) {
        std::vector<double> values;
        each_block(entry, site.out, [&](index_t k) {
          MapBlock const m = detail::read_block<B>(entry.policy, entry.state, k);
          if (plain)
            values.insert(values.end(), {m.a - 1, m.c});
          else
            values.insert(values.end(), {m.a - 1, m.b, m.c, m.d - 1});
        });
        return values;
      },
      [&](Entry& entry, std::vector<double> const& merged) {
        auto const& site = sites[entry.site];
        auto next = merged.begin();
        each_block(entry, site.out, [&](index_t k) {
          MapBlock m{1 + next[0], plain ? -next[1] : next[1], plain ? next[1] : next[2],
                     1 + (plain ? next[0] : next[3])};
          next += plain ? 2 : 4;
          detail::write_block<B>(entry.policy, entry.state, k, m,
                                 BlockPlace{site.path, k, k + entry.policy.group_size / 2});
        });
      });
  return result;
}

/// (IA)3 modules: l - 1 merged entry by entry; with `as_peft`, l itself.
template <class B>
Module<IA3Scaling, B> merge_modules(std::span<ModuleTerm<IA3Scaling, B> const> terms, MergeRecipe const& recipe,
                                    SiteTable const& sites, Heads heads = Heads::exact) {
  using Entry = typename Module<IA3Scaling, B>::Entry;
  auto result = weighted_sum(terms, sites, heads);
  double const start = recipe.as_peft ? 0 : 1;
  detail::merge_maps(
      terms, recipe, sites, result,
      [&](Entry const& entry, SiteInfo const&) {
        auto values = detail::in_double(entry.state.l).values;
        for (double& value : values) value -= start;
        return values;
      },
      [&](Entry& entry, std::vector<double> const& merged) {
        for (std::size_t k = 0; k < merged.size(); ++k) entry.state.l.data[k] = static_cast<Real<B>>(start + merged[k]);
      });
  return result;
}

}  // namespace graft
