// SPDX-License-Identifier: Apache-2.0
// What a device needs to make a request's vectors itself: its generators and targets by layer, and its table of maps.
#pragma once

#include <graft/adapter/adapter_set.hpp>
#include <graft/backend/generator.hpp>
#include <graft/core/memory.hpp>

#include <algorithm>
#include <span>
#include <vector>

namespace graft {

/// Of one request; empty on the host, where the request's state does it all.
template <class B>
class ResidentVectors {
 public:
  using R = Real<B>;
  using Space = typename B::Space;
  using Target = GeneratedTarget<R>;

  /// Per layer its targets, whose maps lie in Space; room for `vectors` numbers; the request's table of maps with
  /// pointers into Space.
  void build(AdapterSet<B> const& set, std::vector<std::vector<Target>> const& targets, index_t vectors,
             std::vector<RowMapRow<R const>> const& table) {
    std::vector<GeneratorTerm<R>> terms;
    std::vector<Target> all;
    std::vector<std::size_t> first_term, first_target;
    index_t ranks = 0, pooled = 0;  // of a layer's terms together, the most
    scored_terms_ = 0;
    for (std::size_t l = 0; l < targets.size(); ++l) {
      first_term.push_back(terms.size()), first_target.push_back(all.size());
      for (auto const& member : set.generating)
        if (auto const& g = member.module->generators[l]; g.present())
          terms.push_back({g.resident, member.weight, g.query, g.rotated_query});
      index_t of_ranks = 0, of_widths = 0;
      bool scored = false;
      for (std::size_t k = first_term.back(); k < terms.size(); ++k) {
        auto const& g = terms[k].generator;
        of_ranks += g.rank, of_widths += g.width;
        scored = scored || g.pooling == VectorGenerator<R>::Pooling::attention;
      }
      ranks = std::max(ranks, of_ranks), pooled = std::max(pooled, of_widths);
      if (scored) scored_terms_ = std::max(scored_terms_, static_cast<index_t>(terms.size() - first_term.back()));
      all.insert(all.end(), targets[l].begin(), targets[l].end());
    }
    first_term.push_back(terms.size()), first_target.push_back(all.size());
    scratch_ = Storage<R, Space>(vectors + ranks + pooled);
    terms_ = Storage<GeneratorTerm<R>, Space>(std::span<GeneratorTerm<R> const>(terms));
    targets_ = Storage<Target, Space>(std::span<Target const>(all));
    std::vector<GeneratedMaps<R>> layers;
    for (std::size_t l = 0; l < targets.size(); ++l)
      layers.push_back({terms_.data() + first_term[l], static_cast<index_t>(first_term[l + 1] - first_term[l]),
                        targets_.data() + first_target[l], static_cast<index_t>(first_target[l + 1] - first_target[l]),
                        scratch_.data(), scratch_.data() + vectors, scratch_.data() + vectors + ranks, vectors});
    layers_ = Storage<GeneratedMaps<R>, Space>(std::span<GeneratedMaps<R> const>(layers));
    table_ = Storage<RowMapRow<R const>, Space>(std::span<RowMapRow<R const> const>(table));
  }

  GeneratedMaps<R> const* layers() const { return layers_.data(); }
  RowMapRow<R const> const* table() const { return table_.data(); }
  /// The most terms of a layer one of which pools by attention; 0: none does.
  index_t scored_terms() const { return scored_terms_; }

 private:
  Storage<R, Space> scratch_;
  Storage<GeneratorTerm<R>, Space> terms_;
  Storage<Target, Space> targets_;
  Storage<GeneratedMaps<R>, Space> layers_;
  Storage<RowMapRow<R const>, Space> table_;
  index_t scored_terms_ = 0;
};

}  // namespace graft
