// SPDX-License-Identifier: Apache-2.0
// Gradients of the modules in training.
#pragma once

#include <graft/adapter/adapter_set.hpp>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace graft {

/// What the way back through a batch adds to: one flat buffer per module in training, and one per tensor outside of
/// modules whose gradient is wanted. Modules that are not listed are frozen; gradients pass through them.
template <class B>
class Gradients {
 public:
  using R = Real<B>;

  /// Trains this version of a module, its own heads (modules_to_save) included; its gradients start at zero.
  /// ContractError when its policy has no `backward`.
  void want(std::shared_ptr<PublishedModule<B> const> module) {
    expects(module != nullptr && module->back.trainable(), "graft: adapter ", module == nullptr ? "" : module->name,
            " cannot be trained: its policy has no backward");
    auto& slot = modules_[module->name];
    for (auto const& [tensor, address] : slot.saved) tensors_.erase(address);
    slot.saved.clear();
    for (auto const& [tensor, saved] : *module->saved) {
      want_tensor(saved.values.data(), static_cast<index_t>(saved.values.size()));
      slot.saved[tensor] = saved.values.data();
    }
    slot.values.assign(static_cast<std::size_t>(module->back.count), R{0});
    slot.module = std::move(module);
  }
  /// Also for a tensor of the base model: `address` is where its values lie.
  void want_tensor(void const* address, index_t size) {
    tensors_[address].assign(static_cast<std::size_t>(size), R{0});
  }

  /// Of the module's parameters, in the order of Module::for_each. ContractError for a module that is not in training.
  VectorView<R> of(std::string const& name) { return view(slot(name).values); }
  /// Of a tensor the module brings along (modules_to_save).
  VectorView<R> of(std::string const& name, std::string const& tensor) {
    auto const& saved = slot(name).saved;
    auto const found = saved.find(tensor);
    expects(found != saved.end(), "graft: adapter ", name, " brings no tensor ", tensor);
    return of_tensor(found->second);
  }
  /// Empty where it is not wanted.
  VectorView<R> of_tensor(void const* address) {
    auto const found = tensors_.find(address);
    return found == tensors_.end() ? VectorView<R>{} : view(found->second);
  }
  /// The buffer of exactly this version, or null when it is frozen.
  R* find(PublishedModule<B> const& module) {
    auto const found = modules_.find(module.name);
    return found == modules_.end() || found->second.module.get() != &module ? nullptr : found->second.values.data();
  }

  /// The modules in training, by name.
  std::vector<std::shared_ptr<PublishedModule<B> const>> modules() const {
    std::vector<std::shared_ptr<PublishedModule<B> const>> result;
    for (auto const& [name, slot] : modules_) result.push_back(slot.module);
    return result;
  }
  bool tensors_wanted() const { return !tensors_.empty(); }

  void zero() {
    for (auto& [name, slot] : modules_) std::fill(slot.values.begin(), slot.values.end(), R{0});
    for (auto& [address, values] : tensors_) std::fill(values.begin(), values.end(), R{0});
  }

  /// dL/dl [size] of the vectors a request made at the layer the way back has reached; for apply_backward.hpp.
  VectorView<R> vectors(std::size_t request, index_t size) {
    if (vectors_.size() <= request) vectors_.resize(request + 1);
    auto& values = vectors_[request];
    if (static_cast<index_t>(values.size()) < size) values.resize(static_cast<std::size_t>(size), R{0});
    return {values.data(), size};
  }

 private:
  struct Slot {
    std::shared_ptr<PublishedModule<B> const> module;
    std::vector<R> values;
    std::map<std::string, void const*> saved;  ///< address by tensor
  };
  Slot& slot(std::string const& name) {
    auto const found = modules_.find(name);
    expects(found != modules_.end(), "graft: adapter ", name, " is not in training");
    return found->second;
  }
  static VectorView<R> view(std::vector<R>& values) { return {values.data(), static_cast<index_t>(values.size())}; }

  std::map<std::string, Slot> modules_;
  std::unordered_map<void const*, std::vector<R>> tensors_;
  std::vector<std::vector<R>> vectors_;  ///< [requests]
};

}  // namespace graft
