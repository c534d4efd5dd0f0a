// SPDX-License-Identifier: Apache-2.0
// Gradients of the modules in training.
#pragma once

#include <graft/adapter/published_gradients.hpp>

#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace graft {

/// What the way back through a batch adds to: one flat buffer per module in training, and one per tensor outside of
/// modules whose gradient is wanted. Modules that are not listed are frozen; gradients pass through them.
///
/// Where the host cannot read the backend's memory, a way back adds to buffers there; the first question after it that
/// is answered in host memory waits for the backend, which must still be there, and copies them. Nothing else waits.
template <class B>
class Gradients {
 public:
  using R = Real<B>;
  using Space = typename B::Space;

  /// Trains this version of a module, its own heads (modules_to_save) included; its gradients start at zero.
  /// ContractError when its policy has no `backward`.
  void want(std::shared_ptr<PublishedModule<B> const> module) {
    expects(module != nullptr && module->back.trainable(), "graft: adapter ", module == nullptr ? "" : module->name,
            " cannot be trained: its policy has no backward");
    auto& slot = modules_[module->name];
    if (slot.module == module) return start(slot);
    for (auto const& [tensor, address] : slot.saved)
      if (auto const found = tensors_.find(address); found != tensors_.end()) {
        spare_.push_back(std::move(found->second));  // the next version's
        tensors_.erase(found);
      }
    slot.saved.clear();
    for (auto const& [tensor, saved] : *module->saved) {
      void const* const address = module->replacements.at(tensor).weight.data;
      want_tensor(address, static_cast<index_t>(saved.values.size()));
      slot.saved[tensor] = address;
    }
    slot.module = std::move(module);
    start(slot);
  }
  /// Also for a tensor of the base model: `address` is where its values lie, as the backend reads them.
  void want_tensor(void const* address, index_t size) {
    auto& tensor = tensors_[address];
    if (tensor.size() == 0 && !spare_.empty()) tensor = std::move(spare_.back()), spare_.pop_back();
    tensor.start(size);
  }

  /// Of the module's parameters, in the order of Module::for_each. ContractError for a module that is not in training.
  VectorView<R> of(std::string const& name) {
    fetch();
    auto& own = slot(name);
    if constexpr (!on_host) bring(own);
    return view(own.values);
  }
  /// Of a tensor the module brings along (modules_to_save).
  VectorView<R> of(std::string const& name, std::string const& tensor) {
    auto const& saved = slot(name).saved;
    auto const found = saved.find(tensor);
    expects(found != saved.end(), "graft: adapter ", name, " brings no tensor ", tensor);
    fetch();
    return tensors_.at(found->second).host();
  }
  /// Of a tensor of the base model, in host memory.
  VectorView<R> of_tensor(void const* address) {
    fetch();
    auto const found = tensors_.find(address);
    expects(found != tensors_.end(), "graft: a tensor's gradient was asked for that is not in training");
    return found->second.host();
  }
  /// Of any tensor, in the memory of the backend, which is about to add or to read; empty where it is not wanted.
  VectorView<R, Space> of_tensor(B& be, void const* address) {
    auto const found = tensors_.find(address);
    return found == tensors_.end() ? VectorView<R, Space>{} : found->second.gathered(be);
  }

  /// Whether exactly this version is in training.
  bool trains(PublishedModule<B> const& module) const {
    auto const found = modules_.find(module.name);
    return found != modules_.end() && found->second.module.get() == &module;
  }
  /// The buffer of exactly this version, or null when it is frozen.
  R* find(PublishedModule<B> const& module) {
    return trains(module) ? modules_.find(module.name)->second.values.data() : nullptr;
  }
  /// The same by what was published, in the backend's memory, where that is not the host's, for `be` to add to; null
  /// when it is frozen.
  PublishedGradients<B>* find_published(B& be, PublishedModule<B> const& module) {
    if (!trains(module)) return nullptr;
    added_by(be);
    auto& published = modules_.find(module.name)->second.published;
    published.prepare(be);
    return &published;
  }

  /// The modules in training, by name.
  std::vector<std::shared_ptr<PublishedModule<B> const>> modules() const {
    std::vector<std::shared_ptr<PublishedModule<B> const>> result;
    for (auto const& [name, slot] : modules_) result.push_back(slot.module);
    return result;
  }
  bool tensors_wanted() const { return !tensors_.empty(); }

  /// Whether the host has asked for gradients since they were zero: then `of` has all of a module's, and
  /// `find_published` what was added since.
  bool fetched(std::string const& name) { return slot(name).fetched; }

  void zero() {
    for (auto& [name, slot] : modules_) start(slot);
    for (auto& [address, values] : tensors_) values.start(values.size());
    unread_ = nullptr;
  }

  /// dL/dl [size] of the vectors a request made at the layer the way back has reached; for apply_backward.hpp.
  VectorView<R, Space> vectors(B& be, std::size_t request, index_t size) {
    if (vectors_.size() <= request) vectors_.resize(request + 1);
    auto& values = vectors_[request];
    if (values.size() < size) values.start(size);
    return values.view(be);
  }
  /// Says that `be` adds to what `of_tensor` names.
  void added_by(B& be) {
    if constexpr (!on_host) unread_ = &be;
  }

 private:
  static constexpr bool on_host = std::same_as<Space, HostSpace>;
  struct Slot {
    std::shared_ptr<PublishedModule<B> const> module;
    std::vector<R> values;
    PublishedGradients<B> published;           ///< where B::Space is not the host's: not yet in `values`
    std::map<std::string, void const*> saved;  ///< address by tensor
    bool fetched = false;                      ///< whether `values` counts, off the host
  };
  // From zero.
  void start(Slot& slot) {
    if constexpr (on_host) {
      slot.values.assign(static_cast<std::size_t>(slot.module->back.count), R{0});
    } else {
      slot.published.start(*slot.module);
      slot.fetched = false;
    }
    for (auto const& [tensor, address] : slot.saved) tensors_.at(address).start(tensors_.at(address).size());
  }
  Slot& slot(std::string const& name) {
    auto const found = modules_.find(name);
    expects(found != modules_.end(), "graft: adapter ", name, " is not in training");
    return found->second;
  }
  static VectorView<R> view(std::vector<R>& values) { return {values.data(), static_cast<index_t>(values.size())}; }

  // Values in host memory, zero before the first are fetched.
  void bring(Slot& slot) {
    if (!std::exchange(slot.fetched, true)) slot.values.assign(static_cast<std::size_t>(slot.module->back.count), R{0});
  }

  // What was added in the backend's memory, to the host.
  void fetch() {
    if constexpr (!on_host) {
      if (unread_ == nullptr) return;
      for (auto& [name, slot] : modules_) {
        expects(!slot.module->ahead, "graft: the parameters of ", name,
                " are on the device; call its optimiser's store() before gradients are asked for in host memory");
        bring(slot);
        slot.published.add_to(*unread_, *slot.module, slot.values.data());
      }
      for (auto& [address, values] : tensors_) values.fetch(*unread_);
      unread_ = nullptr;
    }
  }

  std::map<std::string, Slot> modules_;
  std::unordered_map<void const*, GradientBuffer<B>> tensors_;
  std::vector<GradientBuffer<B>> spare_;
  std::vector<GradientBuffer<B>> vectors_;  ///< [requests]
  B* unread_ = nullptr;                     ///< who has added what was not fetched yet
};

}  // namespace graft
