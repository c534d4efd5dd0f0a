// SPDX-License-Identifier: Apache-2.0
// A module: one trained set of parameters of one policy over all its sites; what an adapter folder holds.
#pragma once

#include <graft/adapter/policy.hpp>
#include <graft/core/random.hpp>

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace graft {

/// The policy that holds at one site: P::at applies patterns where the policy has them.
template <class P>
P policy_at(P const& policy, auto&& matches) {
  if constexpr (requires { policy.at(matches); })
    return policy.at(matches);
  else
    return policy;
}

/// A full replacement of one of the model's own tensors that the module brings along (PEFT's modules_to_save).
struct SavedTensor {
  std::vector<index_t> shape;
  std::vector<float> values;
  bool of_base = false;  ///< the model's own numbers, which PEFT saves beside an adapted embedding or head
};

template <class P, class B>
requires Policy<P, B>
struct Module {
  struct Entry {
    index_t site;  ///< in the site table
    P policy;      ///< with this site's rank, alpha, ...
    typename P::template State<B> state;
  };

  std::string name;
  P policy;
  std::vector<Entry> entries;                ///< ascending by site
  std::map<std::string, SavedTensor> saved;  ///< by tensor path, "score.weight"
  // what its configuration states beside the policy; for writing it again
  std::vector<std::string> target_modules, modules_to_save;
  std::string base_model;  ///< base_model_name_or_path
  std::string task_type;   ///< "CAUSAL_LM", "SEQ_CLS", ..., or empty

  /// The tensors that the policy has at a site: shapes without memory. ContractError where it cannot sit there.
  static typename P::template State<B> shaped(SiteTable const& sites, index_t site, P const& here) {
    expects(site >= 0 && site < sites.size(), "graft: there is no site ", site, ", the model has ", sites.size());
    auto const& info = sites[site];
    expects(here.accepts(info), "graft: a ", P::peft_type, " module cannot sit on ", info.path);
    LayerSites const* layer = info.layer >= 0 && info.layer < static_cast<index_t>(sites.layers().size())
                                  ? &sites.layers()[static_cast<std::size_t>(info.layer)]
                                  : nullptr;
    typename P::template State<B> state{};
    here.template shape<B>(info, layer, state);
    return state;
  }

  /// Adds the policy at a site, in any order; its tensors have shapes but no memory until `allocate`.
  Entry& add(SiteTable const& sites, index_t site, P const& here) {
    Entry entry{site, here, shaped(sites, site, here)};
    expects(parameters_ == nullptr, "graft: a module that has its memory takes no further site, ", sites[site].path);
    auto const place =
        std::lower_bound(entries.begin(), entries.end(), site, [](Entry const& e, index_t s) { return e.site < s; });
    expects(place == entries.end() || place->site != site, "graft: the module already has ", sites[site].path);
    return *entries.insert(place, std::move(entry));
  }

  /// Gives every tensor its place in one zeroed buffer; `add` may not be called afterwards.
  void allocate() {
    index_t total = 0;
    for_each([&](index_t, auto, auto& tensor) { total += elements(tensor); });
    parameters_ = std::make_unique<Real<B>[]>(static_cast<std::size_t>(total));
    count_ = total;
    Real<B>* next = parameters_.get();
    for_each([&](index_t, auto, auto& tensor) {
      tensor.data = next;
      next += elements(tensor);
    });
  }

  /// A module of the same name with the same values in memory of its own.
  Module clone() const {
    Module copy;
    copy.name = name;
    copy.policy = policy;
    copy.entries = entries;
    copy.saved = saved;
    copy.target_modules = target_modules, copy.modules_to_save = modules_to_save;
    copy.base_model = base_model, copy.task_type = task_type;
    copy.allocate();
    std::copy_n(parameters_.get(), count_, copy.parameters_.get());
    return copy;
  }

  /// Fills the tensors with the method's start, the identity.
  void init(std::uint64_t seed) {
    std::fill_n(parameters_.get(), count_, Real<B>{0});  // policies set what does not start at zero
    std::uint64_t const start = Random(seed).next();     // so that neighbouring seeds share no numbers
    for (auto& entry : entries) {
      Random random(start + static_cast<std::uint64_t>(entry.site));
      entry.policy.template init<B>(entry.state, random);
    }
  }

  /// f(site, suffix, view) for every tensor present.
  void for_each(auto&& f) {
    for (auto& entry : entries)
      entry.state.for_each([&](char const* suffix, auto& tensor) {
        if (elements(tensor) != 0) f(entry.site, suffix, tensor);
      });
  }

  /// All trainable numbers, in the order of `for_each`.
  VectorView<Real<B>> parameters() const { return {parameters_.get(), count_}; }

  /// Gives their memory back; the tensors keep their shapes and have no elements to read any more.
  void discard_parameters() {
    for_each([](index_t, auto, auto& tensor) { tensor.data = nullptr; });
    parameters_.reset();
    count_ = 0;
  }

  /// How many of them training from the start values can change; a policy with others says so (dead_parameters).
  index_t live_parameters() const {
    index_t live = count_;
    if constexpr (requires(Entry const& e) { e.policy.dead_parameters(e.state); })
      for (auto const& entry : entries) live -= entry.policy.dead_parameters(entry.state);
    return live;
  }

 private:
  static index_t elements(auto const& tensor) {
    if constexpr (requires { tensor.rows; })
      return tensor.rows * tensor.cols;
    else
      return tensor.size;
  }
  std::unique_ptr<Real<B>[]> parameters_;
  index_t count_ = 0;
};

namespace detail {

/// The shapes of a state's tensors by suffix, absent ones too.
template <class P, class B>
std::vector<std::pair<std::string, std::vector<index_t>>> shapes_of(typename P::template State<B> state) {
  std::vector<std::pair<std::string, std::vector<index_t>>> shapes;
  state.for_each([&](char const* suffix, auto& tensor) {
    if constexpr (requires { tensor.rows; })
      shapes.emplace_back(suffix, std::vector{tensor.rows, tensor.cols});
    else
      shapes.emplace_back(suffix, std::vector{tensor.size});
  });
  return shapes;
}

/// ContractError unless the module's tensors have the shapes that the model with these sites gives them.
template <class P, class B>
void check_fits(Module<P, B> const& module, SiteTable const& sites) {
  for (auto const& entry : module.entries) {
    expects(entry.site >= 0 && entry.site < sites.size(), "graft: module ", module.name, " has a site ", entry.site,
            ", this model has ", sites.size());
    auto const expected = shapes_of<P, B>(Module<P, B>::shaped(sites, entry.site, entry.policy));
    auto const found = shapes_of<P, B>(entry.state);
    for (std::size_t k = 0; k < found.size(); ++k) {
      if (found[k] == expected[k]) continue;
      std::string shape[2];
      for (index_t const n : found[k].second) shape[0] += text(shape[0].empty() ? "" : ", ", n);
      for (index_t const n : expected[k].second) shape[1] += text(shape[1].empty() ? "" : ", ", n);
      raise<ContractError>("graft: module ", module.name, " has a ", found[k].first, " of [", shape[0], "] at ",
                           sites[entry.site].path, ", in this model it would be [", shape[1], "]");
    }
  }
}

}  // namespace detail

/// A module of policy P with its start values at the given sites. The policy's patterns hold where
/// matches(pattern, path) is true, as PeftPatterns says of regular expressions.
template <class P, class B>
Module<P, B> make_module(std::string name, P const& policy, SiteTable const& sites, std::vector<index_t> const& at,
                         std::uint64_t seed, auto&& matches) {
  Module<P, B> made;
  made.name = std::move(name);
  made.policy = policy;
  for (index_t site : at) {
    std::string const path = site >= 0 && site < sites.size() ? sites[site].path : "";
    made.add(sites, site, policy_at(policy, [&](std::string const& pattern) { return matches(pattern, path); }));
  }
  made.allocate();
  made.init(seed);
  return made;
}

/// The same where patterns are paths of modules or their last components; ContractError for other regular expressions.
template <class P, class B>
Module<P, B> make_module(std::string name, P const& policy, SiteTable const& sites, std::vector<index_t> const& at,
                         std::uint64_t seed = 0) {
  auto const matches = [](std::string const& pattern, std::string const& path) {
    expects(pattern.find_first_of("*+?|()[]{}^$\\") == std::string::npos, "graft: make_module reads the pattern ",
            pattern, " with a function that matches regular expressions");
    return is_module(path, pattern);
  };
  return make_module<P, B>(std::move(name), policy, sites, at, seed, matches);
}

}  // namespace graft
