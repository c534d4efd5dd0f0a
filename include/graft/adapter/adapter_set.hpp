// SPDX-License-Identifier: Apache-2.0
// What a bank publishes: immutable modules, and the composed adapters of a request.
#pragma once

#include <graft/adapter/backpropagation.hpp>
#include <graft/adapter/module.hpp>
#include <graft/adapter/number_storage.hpp>
#include <graft/adapter/positions.hpp>
#include <graft/adapter/resident_maps.hpp>
#include <graft/backend/resident_weight.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace graft {

/// One generator of a published module: PEDRO's, at one layer.
template <class B>
struct Generator {
  using Act = typename B::Act;
  void const* policy = nullptr;
  void const* state = nullptr;
  // on the host only
  index_t (*scratch_size)(void const* policy, void const* state, index_t prompt_rows) = nullptr;
  void (*generate)(B&, void const* policy, void const* state, MatrixView<Act const, typename B::Space> normalized,
                   MatrixView<Act const, typename B::Space> raw, VectorView<Real<B>> scratch,
                   VectorView<Real<B>> out) = nullptr;
  VectorGenerator<Real<B>> resident;  ///< the same in B::Space, where that is not the host's
  index_t site = -1;                  ///< where its parameters live
  index_t vectors = 0, query = 0;     ///< q + v + u, and q
  bool rotated_query = false;         ///< l_q acts behind RoPE

  bool present() const { return site >= 0; }
};

/// A tensor of the model that a module replaces, where the backend reads it.
template <class B>
struct Replacement {
  Weight weight;                                        ///< as a matrix
  VectorView<Real<B> const, typename B::Space> vector;  ///< as a bias
};

/// A module as the bank holds it: coefficients and factors by site, ready to be used. Never changed once published.
template <class B>
struct PublishedModule {
  std::string name;
  std::uint64_t version = 0;
  index_t policy = 0;                                      ///< place in Adapters<...>
  std::vector<RowMapRow<Real<B> const>> maps[2];           ///< by Side, [sites] or empty
  std::vector<LowRankFactors<Real<B>>> factors;            ///< [sites] or empty
  std::vector<Generator<B>> generators;                    ///< [layers] or empty
  ResidentMaps<Real<B>, typename B::Space> resident_maps;  ///< `maps`, by Side; where B::Space is not the host's
  ResidentFactors<Real<B>, typename B::Space> resident_factors;
  Storage<Real<B>, typename B::Space> resident_parameters;  ///< of generators, where B::Space is not the host's
  Positions positions;                                      ///< of maps on SiteKind::hidden
  Stage stages[2] = {};                                     ///< where its maps act, by Side
  Backpropagation<B> back;                                  ///< to the module's parameters
  std::shared_ptr<SiteTable const> sites;
  std::shared_ptr<void const> module;  ///< the Module<P, B> and buffers everything points into
  NumberStorage<Real<B>> storage;
  std::map<std::string, SavedTensor> const* saved = nullptr;
  std::map<std::string, Replacement<B>> replacements;  ///< the same tensors, where the backend reads them
  std::vector<std::shared_ptr<void const>> keep;       ///< what the replacements and factors point into
  /// Whether some set holds maps made of this module's and others' or a weight: these do not follow when a training
  /// writes the module's numbers anew where kernels read them.
  mutable std::atomic<bool> composed = false;
  /// Whether a training has written these numbers anew and `module` still has the parameters from before.
  mutable std::atomic<bool> ahead = false;
};

/// What adapters do at a site: a bit for the row maps of each stage, and one for low-rank deltas.
using Mechanisms = std::uint8_t;
constexpr Mechanisms row_maps_of(Stage stage) { return static_cast<Mechanisms>(1u << static_cast<unsigned>(stage)); }
inline constexpr Mechanisms low_rank_deltas = 1u << stage_count;
/// to |= from, site by site.
inline void merge_mechanisms(std::span<Mechanisms const> from, std::vector<Mechanisms>& to) {
  if (to.size() < from.size()) to.resize(from.size());
  for (std::size_t site = 0; site < from.size(); ++site) to[site] |= from[site];
}

/// A name and a weight: one line of a request's list.
struct AdapterUse {
  std::string name;
  double weight = 1;
};

/// The adapters of a request, composed once and shared by every request with the same list: row maps by stage and
/// site, the weighted low-rank list, and what has to be made from the prompt. Immutable.
template <class B>
struct AdapterSet {
  using R = Real<B>;
  struct Member {
    std::shared_ptr<PublishedModule<B> const> module;
    R weight;
  };
  std::vector<Member> members;                                    ///< by policy, then name
  std::array<std::vector<RowMapRow<R const>>, stage_count> maps;  ///< [sites] or empty
  /// One policy's maps on one side: what `maps` are composed of, and what a way back walks.
  struct PolicyMaps {
    Stage stage;
    std::size_t first, count;              ///< the policy's members
    std::vector<RowMapRow<R const>> sums;  ///< [sites], I + sum w (M - I); empty: made from the prompt
    std::size_t resident = 0;              ///< their table in resident_maps
  };
  std::vector<PolicyMaps> policy_maps;   ///< of a stage: in the order they are applied
  std::vector<LowRankTerm<R>> low_rank;  ///< tables in host memory
  index_t max_rank = 0;                  ///< largest sum of ranks at a site

  /// Members whose maps are made from the prompt, and the static maps inside and outside of theirs: [sites] or empty.
  std::vector<Member> generating;
  std::vector<RowMapRow<R const>> before_generated, after_generated;
  Stage generated_stage = Stage::output_inner;
  Positions positions;  ///< of maps on SiteKind::hidden

  std::vector<Mechanisms> mechanisms;  ///< [sites] without those that are made from the prompt; not on the host

  /// Every module's version and weight, in full: sets of one bank have equal fingerprints where their requests compute
  /// the same. What a KV or prefix cache must be keyed by; other banks and processes count versions of their own.
  std::string fingerprint;
  NumberStorage<R> storage;
  std::vector<std::unique_ptr<RowMapRow<R const>[]>> chains;
  /// By stage, then before and after what is generated, then the sums of policies that share a stage.
  ResidentMaps<R, typename B::Space> resident_maps;
  Storage<LowRankTerm<R>, typename B::Space> resident_low_rank;

  bool generates() const { return !generating.empty(); }
  /// The replacement a member brings for one of the model's own tensors (modules_to_save), or null.
  Replacement<B> const* replacement(std::string const& tensor) const {
    for (auto const& member : members)
      if (auto const found = member.module->replacements.find(tensor); found != member.module->replacements.end())
        return &found->second;
    return nullptr;
  }
  /// Maps of a stage at all sites where kernels read them, or null.
  RowMapRow<R const> const* resident_table(Stage stage) const {
    return resident_maps.table(static_cast<std::size_t>(stage));
  }
  /// The weighted list where kernels read it.
  LowRankTerm<R> const* resident_terms() const {
    if constexpr (std::same_as<typename B::Space, HostSpace>)
      return low_rank.data();
    else
      return resident_low_rank.data();
  }
  /// Copies everything to where kernels read it; the last step of composing a set.
  void make_resident() {
    std::vector<std::vector<RowMapRow<R const>> const*> tables;
    for (auto const& table : maps) tables.push_back(&table);
    tables.push_back(&before_generated), tables.push_back(&after_generated);
    for (auto& policy : policy_maps) {  // a policy that has a stage to itself is all there is in the stage's table
      auto const stage = policy.stage;
      bool const alone =
          std::count_if(policy_maps.begin(), policy_maps.end(), [&](auto const& p) { return p.stage == stage; }) == 1;
      policy.resident = alone ? static_cast<std::size_t>(stage) : tables.size();
      if (!alone) tables.push_back(&policy.sums);
    }
    if constexpr (std::same_as<typename B::Space, HostSpace>) {
      resident_maps = ResidentMaps<R, HostSpace>(std::span(std::as_const(tables)));
    } else {
      resident_maps = ResidentMaps<R, typename B::Space>(std::span(std::as_const(tables)), members_vectors());
      if (resident_maps.copied())
        for (auto const& member : members) member.module->composed = true;
      std::vector<LowRankTerm<R>> terms;
      for (auto const& member : members)
        if (!member.module->factors.empty()) terms.push_back({member.module->resident_factors.table(), member.weight});
      resident_low_rank = Storage<LowRankTerm<R>, typename B::Space>(std::span<LowRankTerm<R> const>(terms));
      find_mechanisms();
    }
  }
  RowMapRow<R const> const* table(Stage stage) const {
    auto const& rows = maps[static_cast<std::size_t>(stage)];
    return rows.empty() ? nullptr : rows.data();
  }

 private:
  // What the members hold where kernels read it.
  std::unordered_map<void const*, void const*> members_vectors() const {
    std::unordered_map<void const*, void const*> known;
    for (auto const& member : members)
      for (std::size_t side = 0; side < 2; ++side)
        for (std::size_t site = 0; site < member.module->maps[side].size(); ++site) {
          auto const &host = member.module->maps[side][site], &resident = member.module->resident_maps.rows(side)[site];
          known[host.c1.data()] = resident.c1.data();
          known[host.d.data()] = resident.d.data();
          known[host.e.data()] = resident.e.data();
        }
    known.erase(nullptr);
    return known;
  }

  void find_mechanisms() {
    auto const note = [&](std::size_t site, Mechanisms does) {
      if (mechanisms.size() <= site) mechanisms.resize(site + 1);
      mechanisms[site] |= does;
    };
    for (std::size_t s = 0; s < stage_count; ++s)
      for (std::size_t site = 0; site < maps[s].size(); ++site)
        if (!maps[s][site].identity()) note(site, row_maps_of(static_cast<Stage>(s)));
    for (auto const& member : members)
      for (std::size_t site = 0; site < member.module->factors.size(); ++site)
        if (member.module->factors[site].rank != 0) note(site, low_rank_deltas);
  }
};

}  // namespace graft
