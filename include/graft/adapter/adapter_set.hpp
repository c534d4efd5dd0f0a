// SPDX-License-Identifier: Apache-2.0
// What a bank publishes: immutable modules, and the composed adapters of a request.
#pragma once

#include <graft/adapter/backpropagation.hpp>
#include <graft/adapter/module.hpp>
#include <graft/adapter/positions.hpp>

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace graft {

/// One generator of a published module: PEDRO's, at one layer.
template <class B>
struct Generator {
  using Act = typename B::Act;
  void const* policy = nullptr;
  void const* state = nullptr;
  index_t (*scratch_size)(void const* policy, void const* state, index_t prompt_rows) = nullptr;
  void (*generate)(B&, void const* policy, void const* state, MatrixView<Act const, typename B::Space> normalized,
                   MatrixView<Act const, typename B::Space> raw, VectorView<Real<B>> scratch,
                   VectorView<Real<B>> out) = nullptr;
  index_t site = -1;               ///< where its parameters live
  index_t vectors = 0, query = 0;  ///< q + v + u, and q
  bool rotated_query = false;      ///< l_q acts behind RoPE
};

/// A module as the bank holds it: coefficients and factors by site, ready to be used. Never changed once published.
template <class B>
struct PublishedModule {
  std::string name;
  std::uint64_t version = 0;
  index_t policy = 0;                             ///< place in Adapters<...>
  std::vector<RowMapRow<Real<B> const>> maps[2];  ///< by Side, [sites] or empty
  std::vector<LowRankFactors<Real<B>>> factors;   ///< [sites] or empty
  std::vector<Generator<B>> generators;           ///< [layers] or empty
  Positions positions;                            ///< of maps on SiteKind::hidden
  Stage stages[2] = {};                           ///< where its maps act, by Side
  Backpropagation<B> back;                        ///< to the module's parameters
  std::shared_ptr<void const> module;             ///< the Module<P, B> and buffers everything points into
  std::vector<std::unique_ptr<Real<B>[]>> storage;
  std::map<std::string, SavedTensor> const* saved = nullptr;
};

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
  };
  std::vector<PolicyMaps> policy_maps;  ///< of a stage: in the order they are applied
  std::vector<LowRankTerm<R>> low_rank;
  index_t max_rank = 0;  ///< largest sum of ranks at a site

  /// Members whose maps are made from the prompt, and the static maps inside and outside of theirs: [sites] or empty.
  std::vector<Member> generating;
  std::vector<RowMapRow<R const>> before_generated, after_generated;
  Stage generated_stage = Stage::output_inner;
  Positions positions;  ///< of maps on SiteKind::hidden

  std::uint64_t fingerprint = 0;  ///< of names, versions and weights; what a KV or prefix cache must be keyed by
  std::vector<std::unique_ptr<R[]>> storage;
  std::vector<std::unique_ptr<RowMapRow<R const>[]>> chains;

  bool generates() const { return !generating.empty(); }
  /// The replacement a member brings for one of the model's own tensors (modules_to_save), or null.
  SavedTensor const* saved(std::string const& tensor) const {
    for (auto const& member : members)
      if (auto const found = member.module->saved->find(tensor); found != member.module->saved->end())
        return &found->second;
    return nullptr;
  }
  RowMapRow<R const> const* table(Stage stage) const {
    auto const& rows = maps[static_cast<std::size_t>(stage)];
    return rows.empty() ? nullptr : rows.data();
  }
};

}  // namespace graft
