// SPDX-License-Identifier: Apache-2.0
// One RoAd module whose blocks belong to several tasks: what an example uses of it, and what learns from it.
#pragma once

#include <graft/adapter/bank.hpp>
#include <graft/adapter/gradients.hpp>
#include <graft/arithmetic/subspace.hpp>

#include <concepts>
#include <cstddef>
#include <string>
#include <vector>

namespace graft {

/// Parts of a module's blocks as adapters of their own, beside the module itself: an example of task k passes through
/// part k alone, and only its blocks learn from it. All tasks train in one batch, as in Liao and Monz 2024,
/// section 4.3. Without parts there is the module alone, of any policy.
template <class P, class B>
class TaskParts {
 public:
  /// `module` must outlive this. ContractError when its blocks cannot be shared out.
  TaskParts(Module<P, B> const& module, SiteTable const& sites, index_t parts) : module_(module), sites_(sites) {
    expects(parts >= 0, "graft: a module cannot have ", parts, " parts");
    if (parts == 0) return;
    if constexpr (std::same_as<P, RoAdRotation>) {
      expects(module.saved.empty(), "graft: module ", module.name, " brings tensors that all of its parts would train");
      for (index_t part = 0; part < parts; ++part)
        belongs_.push_back(parameters_of_blocks(module, sites, range(part, parts)));
    } else {
      raise<ContractError>("graft: only RoAd has blocks that can be shared out among tasks, not ", P::peft_type);
    }
  }

  index_t count() const { return static_cast<index_t>(belongs_.size()); }
  /// The adapter of an example; -1: the whole module.
  std::string name(index_t part) const { return part < 0 ? module_.name : text(module_.name, " part ", part); }

  /// Loads the parts as they are now into the bank.
  template <class List>
  void publish(B& be, Bank<List, B>& bank) const {
    if constexpr (std::same_as<P, RoAdRotation>)
      for (index_t part = 0; part < count(); ++part) {
        auto own = subspace(module_, sites_, range(part, count()));
        own.name = name(part);
        bank.load(be, std::move(own));
      }
  }
  /// And asks for their gradients, which start at zero.
  template <class List>
  void publish(B& be, Bank<List, B>& bank, Gradients<B>& gradients) const {
    publish(be, bank);
    for (index_t part = 0; part < count(); ++part) gradients.want(bank.find(name(part)));
  }
  /// Adds what each part's own blocks have learned to the module's gradient.
  void gather(Gradients<B>& gradients) const {
    for (index_t part = 0; part < count(); ++part) {
      auto const from = gradients.of(name(part)), to = gradients.of(module_.name);
      auto const& belongs = belongs_[static_cast<std::size_t>(part)];
      for (index_t k = 0; k < to.size; ++k)
        if (belongs[static_cast<std::size_t>(k)]) to[k] += from[k];
    }
  }

 private:
  static auto range(index_t part, index_t parts) {
    return [part, parts](index_t outputs) { return part_of_blocks(outputs, part, parts); };
  }

  Module<P, B> const& module_;
  SiteTable const& sites_;
  std::vector<std::vector<bool>> belongs_;  // [parts][parameters]
};

}  // namespace graft
