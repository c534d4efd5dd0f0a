// SPDX-License-Identifier: Apache-2.0
// Modules of one method as modules of another that do the same: RoAd variants upwards, (IA)3 as RoAd, row maps as LoRA.
#pragma once

#include <graft/adapter/compose.hpp>
#include <graft/arithmetic/recompress.hpp>
#include <graft/arithmetic/row_maps.hpp>
#include <graft/backend/weight.hpp>

#include <functional>
#include <vector>

namespace graft {

/// The same map with more parameters: road_1 as road_2, either as road_4. Every coefficient keeps its bits.
/// ContractError the other way.
template <class B>
Module<RoAdRotation, B> to_variant(Module<RoAdRotation, B> const& module, RoAdRotation::Variant variant,
                                   SiteTable const& sites) {
  ModuleTerm<RoAdRotation, B> const term{&module, 1};
  auto result = detail::begin_result(std::span<ModuleTerm<RoAdRotation, B> const>(&term, 1));
  result.policy.variant = variant;
  for (auto const& entry : module.entries) {
    auto const name = [](auto v) { return RoAdRotation::names(v)[static_cast<std::size_t>(v)]; };
    expects(entry.policy.variant <= variant, "graft: ", name(entry.policy.variant), " of module ", module.name, " at ",
            sites[entry.site].path, " has more parameters than ", name(variant), "; it cannot be made one");
    auto policy = entry.policy;
    policy.variant = variant;
    result.add(sites, entry.site, policy);
  }
  result.allocate();
  for (std::size_t k = 0; k < module.entries.size(); ++k) {
    auto const& from = module.entries[k];
    auto& to = result.entries[k];
    for (index_t j = 0; j < sites[from.site].out; ++j) {
      auto const source = from.policy.entries(j), target = to.policy.entries(j);
      to.state.alpha[target.cosine] = from.state.alpha[source.cosine];
      to.state.theta[target.cosine] = from.state.theta[source.cosine];
      to.state.alpha[target.sine] = from.state.alpha[source.sine];
      to.state.theta[target.sine] = from.state.theta[source.sine];
    }
  }
  return result;
}

/// An (IA)3 module of output-side scalings as road_2 with alpha = |l| and theta = 0 or pi. ContractError naming the
/// site whose input is scaled (RoAd has no such side), or the element that is 0.
template <class B>
Module<RoAdRotation, B> to_road(Module<IA3Scaling, B> const& module, index_t group_size, SiteTable const& sites) {
  Module<RoAdRotation, B> result;
  result.name = module.name;
  result.policy = {RoAdRotation::Variant::road_2, group_size};
  result.saved = module.saved;
  result.modules_to_save = module.modules_to_save;
  result.base_model = module.base_model;
  result.task_type = module.task_type;
  for (auto const& entry : module.entries) {
    expects(entry.state.l.cols == 1, "graft: module ", module.name, " scales the input of ", sites[entry.site].path,
            "; RoAd acts on outputs only");
    result.add(sites, entry.site, result.policy);
  }
  result.allocate();
  for (std::size_t k = 0; k < module.entries.size(); ++k)
    for (index_t j = 0; j < result.entries[k].state.alpha.size; ++j) {
      auto const l = module.entries[k].state.l.data[j];
      ScalePlace const place{sites[module.entries[k].site].path, j};
      if (l == 0) place.refuse("is 0, which RoAd has no encoding for");
      result.entries[k].state.alpha[j] = l < 0 ? -l : l;
      result.entries[k].state.theta[j] = l < 0 ? Real<B>(3.14159265358979323846) : Real<B>{0};
    }
  return result;
}

/// What a conversion into weights' terms asks of the base: W [o, i] of a site, and its bias [o] or nothing.
struct BaseWeights {
  std::function<Weight(index_t site)> weight;
  std::function<std::vector<float>(index_t site)> bias;
};

/// A RoAd or (IA)3 module as LoRA on one base: the truncated singular values of (R - I) W, or of W diag(l - 1), and
/// (R - I) b as lora_bias. Such a delta has full rank in general, so some error stays; it is reported. The LoRA module
/// is right for this base only.
template <class P, class B>
Compressed<B> to_lora(Module<P, B> const& module, BaseWeights const& base, Truncation const& truncation,
                      SiteTable const& sites) {
  static_assert(std::same_as<P, RoAdRotation> || std::same_as<P, IA3Scaling>,
                "graft: RoAd and (IA)3 modules can be made LoRA; PEDRO's vectors depend on the prompt");
  detail::check_truncation(truncation);
  detail::check_fits(module, sites);
  B be;
  Compressed<B> result;
  auto& lora = result.module;
  lora.name = module.name;
  lora.saved = module.saved;
  lora.modules_to_save = module.modules_to_save;
  lora.base_model = module.base_model;
  lora.task_type = module.task_type;
  std::vector<Svd> decomposed;
  std::vector<std::vector<double>> biases;
  bool any_bias = false;
  for (auto const& entry : module.entries) {
    auto const& info = sites[entry.site];
    expects(info.kind == SiteKind::linear, "graft: ", info.path, " has no weight; a change of it cannot be made LoRA");
    Weight const w = base.weight(entry.site);
    expects(w.rows == info.out && w.cols == info.in, "graft: the weight of ", info.path, " is ", w.rows, " x ", w.cols,
            ", expected ", info.out, " x ", info.in);
    auto const form = entry.policy.template form<B>(info, entry.state);
    index_t const size = form.side == Side::input ? info.in : info.out;
    NumberStorage<Real<B>> storage;
    auto const map = storage.keep_map(size, true, form.d, form.e, form.group, [&](RowMapRow<Real<B>> const& out) {
      entry.policy.coefficients(be, entry.state, out);
    });
    DenseMatrix values(w.rows, w.cols), delta(w.rows, w.cols);
    for (index_t o = 0; o < w.rows; ++o) w.row(o, values.row(o));
    auto const bias = base.bias ? base.bias(entry.site) : std::vector<float>{};
    auto& bias_delta = biases.emplace_back(static_cast<std::size_t>(info.out));
    for (index_t o = 0; o < info.out; ++o) {
      auto const at = static_cast<std::size_t>(o);
      if (form.side == Side::input) {
        for (index_t c = 0; c < info.in; ++c) delta(o, c) = static_cast<double>(map.c1[c]) * values(o, c);
        continue;
      }
      double const c1 = static_cast<double>(map.c1[o]), d = map.d != nullptr ? static_cast<double>(map.d[o]) : 0;
      index_t const p = map.d != nullptr ? partner(o, map.group) : o;
      for (index_t c = 0; c < info.in; ++c) delta(o, c) = c1 * values(o, c) + d * values(p, c);
      if (!bias.empty())
        bias_delta[at] =
            c1 * static_cast<double>(bias[at]) + d * static_cast<double>(bias[static_cast<std::size_t>(p)]);
      any_bias = any_bias || bias_delta[at] != 0;
    }
    decomposed.push_back(svd(delta.view()));
    auto chosen = detail::choose_rank(decomposed.back().s, truncation);
    chosen.site = entry.site;
    result.errors.push_back(chosen);
  }
  for (auto const& site : result.errors) lora.add(sites, site.site, detail::unit_lora({}, site.rank, any_bias));
  lora.allocate();
  for (std::size_t k = 0; k < lora.entries.size(); ++k) {
    auto& to = lora.entries[k].state;
    detail::write_factors<B>(decomposed[k], to);
    for (index_t o = 0; o < to.b_bias.size; ++o)
      to.b_bias[o] = static_cast<Real<B>>(biases[k][static_cast<std::size_t>(o)]);
  }
  detail::state_common_rank(lora);
  return result;
}

}  // namespace graft
