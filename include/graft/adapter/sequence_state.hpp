// SPDX-License-Identifier: Apache-2.0
// What a request keeps besides its KV cache: its adapters and the vectors PEDRO made from its prompt.
#pragma once

#include <graft/adapter/adapter_set.hpp>
#include <graft/adapter/compose.hpp>
#include <graft/adapter/resident_vectors.hpp>

#include <algorithm>
#include <span>
#include <utility>

namespace graft {

/// Binds a request to its adapters. Where maps are made from the prompt, the request has a table of its own with
/// those maps composed into the shared ones; all other tables are the shared ones.
template <class B>
class SequenceState {
 public:
  using R = Real<B>;
  using Act = typename B::Act;

  SequenceState() = default;
  SequenceState(std::shared_ptr<AdapterSet<B> const> set, SiteTable const& sites);

  /// Room for any layer's vectors, laid out as [q before RoPE | v | u | q behind RoPE].
  index_t vectors() const { return vectors_; }
  /// The layer whose vectors act at a site, or -1.
  index_t layer_of(index_t site) const {
    for (std::size_t l = 0; l < targets_.size(); ++l)
      if (find_target(static_cast<index_t>(l), site) != nullptr) return static_cast<index_t>(l);
    return -1;
  }
  /// What the vectors alone do at a site, w-weighted l - 1 [out], or null, where kernels read it; the site's map
  /// composes it with others.
  R const* diagonal(index_t layer, index_t site) const {
    auto const* target = find_target(layer, site);
    return target == nullptr ? nullptr : target->diagonal;
  }
  /// f(offset, size, from): outputs [offset, offset + size) of the site are scaled by the layer's vectors from `from`.
  void for_each_part(index_t layer, index_t site, auto&& f) const {
    if (auto const* target = find_target(layer, site))
      for (auto const& part : target->parts) f(part.offset, part.size, part.from);
  }

  std::shared_ptr<AdapterSet<B> const> const& adapters() const { return set_; }
  bool generates() const { return set_ != nullptr && set_->generates(); }

  /// Whether the prompt has been seen, layer by layer, since the last reset.
  bool ready() const { return ready_; }
  void set_ready(bool ready) { ready_ = ready; }

  /// Takes over the vectors of another request with the same adapters (a fork).
  void copy_vectors(SequenceState const& other) {
    expects(set_ == other.set_, "graft: only requests with the same adapters can share vectors");
    ready_ = other.ready_;
    if (taken_ == 0) return;
    Memory<typename B::Space>::copy_within(memory_.data(), other.memory_.data(),
                                           static_cast<std::size_t>(taken_) * sizeof(R));
    for (std::size_t l = 0; ready_ && l < targets_.size(); ++l) set_made(static_cast<index_t>(l));
  }

  /// The request's maps of a stage, [sites], or null when it has none: a table in host memory.
  RowMapRow<R const> const* table(Stage stage) const {
    if (set_ == nullptr) return nullptr;
    return generates() && stage == set_->generated_stage ? table_.data() : set_->table(stage);
  }
  /// The same where kernels read it.
  RowMapRow<R const> const* resident_table(Stage stage) const {
    if constexpr (on_host) {
      return table(stage);
    } else {
      if (set_ == nullptr) return nullptr;
      return generates() && stage == set_->generated_stage ? resident_.table() : set_->resident_table(stage);
    }
  }
  /// What the request's adapters do, [sites] or fewer; not on the host.
  std::span<Mechanisms const> mechanisms() const {
    if (generates()) return mechanisms_;
    return set_ == nullptr ? std::span<Mechanisms const>() : set_->mechanisms;
  }
  /// What kernels need to make the vectors, [layers]; not on the host.
  GeneratedMaps<R> const* resident_layers() const { return resident_.layers(); }
  /// The most terms of a layer one of which pools by attention; 0: none does.
  index_t scored_terms() const { return resident_.scored_terms(); }
  /// Kernels have been told to make a layer's vectors: its maps count from now on.
  void set_made(index_t layer) {
    for (auto const& target : targets_[static_cast<std::size_t>(layer)])
      table_[static_cast<std::size_t>(target.site)] = target.map;
  }

  /// Elements of scratch `observe` needs at a layer for a prompt of p rows.
  index_t scratch_size(index_t layer, index_t p) const {
    index_t size = 0;
    for (auto const& member : set_->generating) {
      auto const& g = member.module->generators[static_cast<std::size_t>(layer)];
      if (g.present()) size = std::max(size, g.scratch_size(g.policy, g.state, p));
    }
    return size;
  }

  /// Makes the layer's vectors from the prompt's rows and composes them with the request's other maps.
  /// normalized: what q_proj sees, raw: the residual stream, both [p, d].
  void observe(B& be, index_t layer, MatrixView<Act const, typename B::Space> normalized,
               MatrixView<Act const, typename B::Space> raw, VectorView<R> scratch);

 private:
  static constexpr bool on_host = std::same_as<typename B::Space, HostSpace>;
  using Part = typename GeneratedTarget<R>::Part;
  struct Target {
    index_t site;
    RowMapRow<R> map;  ///< own memory, where kernels read it
    R* diagonal;       ///< the map's c - 1, or memory of its own where other maps are composed into that
    std::vector<Part> parts;
  };

  Target const* find_target(index_t layer, index_t site) const {
    if (targets_.empty()) return nullptr;
    for (auto const& target : targets_[static_cast<std::size_t>(layer)])
      if (target.site == site) return &target;
    return nullptr;
  }

  static RowMapRow<R const> static_entry(std::vector<RowMapRow<R const>> const& table, Target const& target) {
    return table.empty() ? RowMapRow<R const>{} : table[static_cast<std::size_t>(target.site)];
  }

  /// Where the request's vectors act, layer by layer. Run twice: their memory is one piece, taken in between.
  /// Returns the room any layer's vectors need, and the widest target.
  std::pair<index_t, index_t> find_targets(SiteTable const& sites) {
    targets_.assign(sites.layers().size(), {});
    taken_ = 0;
    index_t vectors = 0, widest = 0;
    for (std::size_t l = 0; l < targets_.size(); ++l) {
      auto const& layer = sites.layers()[l];
      index_t const q = layer.query.size, v = layer.value.size, u = layer.up.size;
      bool before_rope = false, after_rope = false;
      for (auto const& member : set_->generating) {
        auto const& g = member.module->generators[l];
        if (g.present()) (g.rotated_query && layer.rotated_query.site >= 0 ? after_rope : before_rope) = true;
      }
      if (!before_rope && !after_rope) continue;
      if (before_rope) add_target(sites, l, layer.query, 0);
      add_target(sites, l, layer.value, q);
      add_target(sites, l, layer.up, q + v);
      if (after_rope) add_target(sites, l, layer.rotated_query, q + v + u);
      vectors = std::max(vectors, 2 * q + v + u);
      for (auto const& target : targets_[l]) widest = std::max(widest, target.map.size);
    }
    return {vectors, widest};
  }

  /// The next vector of the request's own memory, zero; null while it is only counted.
  R* take(index_t size) {
    index_t const at = std::exchange(taken_, taken_ + round_up(size, static_cast<index_t>(64 / sizeof(R))));
    return memory_.data() == nullptr ? nullptr : memory_.data() + at;
  }

  // On a device the maps are part of the table from the start, as the identity until they are made.
  void describe(index_t vectors) {
    std::vector<std::vector<GeneratedTarget<R>>> described(targets_.size());
    auto table = table_;
    mechanisms_ = set_->mechanisms;
    mechanisms_.resize(table.size());
    for (std::size_t l = 0; l < targets_.size(); ++l)
      for (auto const& target : targets_[l]) {
        GeneratedTarget<R> made{static_entry(set_->resident_maps.rows(stage_count), target),
                                static_entry(set_->resident_maps.rows(stage_count + 1), target), target.map,
                                target.diagonal != target.map.c1 ? target.diagonal : nullptr};
        expects(target.parts.size() <= std::size(made.parts), "graft: at site ", target.site, " more than ",
                std::size(made.parts), " slices are scaled");
        for (auto const& part : target.parts) made.parts[made.part_count++] = part;
        described[l].push_back(made);
        table[static_cast<std::size_t>(target.site)] = target.map;
        mechanisms_[static_cast<std::size_t>(target.site)] |= row_maps_of(set_->generated_stage);
      }
    resident_.build(*set_, described, vectors, table);
  }

  void add_target(SiteTable const& sites, std::size_t l, SiteSlice const& slice, index_t from) {
    for (auto& target : targets_[l])
      if (target.site == slice.site) {  // slices of one fused projection
        target.parts.push_back({slice.offset, slice.size, from});
        return;
      }
    bool d = false, e = false, composed = false;
    index_t group = 0;
    for (auto const* table : {&set_->before_generated, &set_->after_generated}) {
      if (table->empty()) continue;
      auto const& map = (*table)[static_cast<std::size_t>(slice.site)];
      expects(map.next == nullptr && (map.group == 0 || group == 0 || map.group == group), "graft: at ",
              sites[slice.site].path, " a prompt-made map meets row maps of different groups; use one group size");
      d = d || map.d != nullptr, e = e || map.e != nullptr, composed = composed || !map.identity();
      group = std::max(group, map.group);
    }
    index_t const size = sites[slice.site].out;
    RowMapRow<R> const map{take(size), d ? take(size) : nullptr, e ? take(size) : nullptr, size, d ? group : 0,
                           nullptr};
    R* const diagonal = composed ? take(size) : map.c1;
    targets_[l].push_back({slice.site, map, diagonal, {{slice.offset, slice.size, from}}});
  }

  // sum_ = sum_k w_k (l_k - 1), laid out as [q before RoPE | v | u | q behind RoPE]
  void sum_vectors(B& be, std::size_t l, MatrixView<Act const, typename B::Space> normalized,
                   MatrixView<Act const, typename B::Space> raw, VectorView<R> scratch) {
    std::fill(sum_.begin(), sum_.end(), R{0});
    for (auto const& member : set_->generating) {
      auto const& g = member.module->generators[l];
      if (!g.present()) continue;
      g.generate(be, g.policy, g.state, normalized, raw, scratch, {made_.data(), g.vectors});
      index_t const q = g.query;
      for (index_t j = 0; j < g.vectors; ++j) {
        index_t const to = j < q && g.rotated_query ? g.vectors + j : j;
        sum_[static_cast<std::size_t>(to)] += member.weight * made_[static_cast<std::size_t>(j)];
      }
    }
  }

  std::shared_ptr<AdapterSet<B> const> set_;
  std::vector<RowMapRow<R const>> table_;     ///< [sites] of the generated stage
  std::vector<std::vector<Target>> targets_;  ///< [layers]
  Storage<R, typename B::Space> memory_;      ///< of all targets
  index_t taken_ = 0;                         ///< of it, in elements
  index_t vectors_ = 0;
  ResidentVectors<B> resident_;
  std::vector<Mechanisms> mechanisms_;  ///< of a request that generates
  std::vector<R> sum_, made_, work_;
  bool ready_ = false;
};

template <class B>
SequenceState<B>::SequenceState(std::shared_ptr<AdapterSet<B> const> set, SiteTable const& sites)
    : set_(std::move(set)) {
  if (!generates()) return;
  table_ = set_->resident_maps.rows(static_cast<std::size_t>(set_->generated_stage));
  table_.resize(static_cast<std::size_t>(sites.size()));
  find_targets(sites);  // counts the memory they need
  memory_ = Storage<R, typename B::Space>(std::span<R const>(std::vector<R>(static_cast<std::size_t>(taken_), R{0})));
  auto const [vectors, widest] = find_targets(sites);
  vectors_ = vectors;
  if constexpr (on_host) {
    sum_.resize(static_cast<std::size_t>(vectors));
    made_.resize(static_cast<std::size_t>(vectors));
    work_.resize(static_cast<std::size_t>(4 * widest));
  } else {
    describe(vectors);
  }
}

template <class B>
void SequenceState<B>::observe(B& be, index_t layer, MatrixView<Act const, typename B::Space> normalized,
                               MatrixView<Act const, typename B::Space> raw, VectorView<R> scratch) {
  auto const& targets = targets_[static_cast<std::size_t>(layer)];
  if (targets.empty()) return;
  sum_vectors(be, static_cast<std::size_t>(layer), normalized, raw, scratch);
  for (auto const& target : targets) {
    index_t const size = target.map.size;
    R* const work = work_.data();
    R* const diagonal = target.diagonal != target.map.c1 ? target.diagonal : work;
    std::fill(diagonal, diagonal + size, R{0});
    for (auto const& part : target.parts)
      for (index_t j = 0; j < part.size; ++j) diagonal[part.offset + j] = sum_[static_cast<std::size_t>(part.from + j)];
    // after . diagonal . before
    RowMapRow<R> inner{work + size, work + 2 * size, work + 3 * size, size, target.map.group, nullptr};
    compose_maps<R>(static_entry(set_->before_generated, target), {diagonal, nullptr, nullptr, size, 0, nullptr},
                    inner);
    compose_maps<R>(inner, static_entry(set_->after_generated, target), target.map);
    table_[static_cast<std::size_t>(target.site)] = target.map;
  }
}

}  // namespace graft
