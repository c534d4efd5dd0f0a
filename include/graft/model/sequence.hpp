// SPDX-License-Identifier: Apache-2.0
// A request in flight.
#pragma once

#include <graft/adapter/sequence_state.hpp>
#include <graft/model/kv_cache.hpp>

#include <utility>

namespace graft {

/// Tokens seen so far with their keys and values, the request's adapters, and PEDRO's vectors. Movable; gives its
/// pages back when destroyed; must not outlive the context that started it.
template <class B>
class Sequence {
 public:
  Sequence(KvCache<B>& cache, std::shared_ptr<AdapterSet<B> const> adapters, SiteTable const& sites)
      : cache_(&cache), sites_(&sites), state_(std::make_unique<SequenceState<B>>(std::move(adapters), sites)) {}
  ~Sequence() {
    if (cache_ != nullptr) cache_->truncate(kv_, 0);
  }
  Sequence(Sequence&& other) noexcept
      : cache_(std::exchange(other.cache_, nullptr)),
        sites_(other.sites_),
        kv_(std::exchange(other.kv_, {})),
        state_(std::move(other.state_)) {}
  Sequence& operator=(Sequence&& other) noexcept {
    std::swap(cache_, other.cache_);
    std::swap(sites_, other.sites_);
    std::swap(kv_, other.kv_);
    std::swap(state_, other.state_);
    return *this;
  }

  index_t length() const { return kv_.length; }
  /// Forgets all tokens from `length` on. PEDRO's vectors stay, unless nothing is left.
  void truncate(index_t length) {
    cache_->truncate(kv_, length);
    if (length == 0) state_->set_ready(false);
  }
  /// A second sequence with the same past; keys and values are shared until one of them writes.
  Sequence fork() const {
    Sequence copy(*cache_, state_->adapters(), *sites_);
    copy.state_->copy_vectors(*state_);
    copy.kv_ = cache_->fork(kv_);
    return copy;
  }

  bool is_of(KvCache<B> const& cache) const { return cache_ == &cache; }
  SequenceState<B>& state() { return *state_; }
  KvSequence& kv() { return kv_; }
  KvSequence const& kv() const { return kv_; }

 private:
  KvCache<B>* cache_;
  SiteTable const* sites_;
  KvSequence kv_;
  std::unique_ptr<SequenceState<B>> state_;
};

}  // namespace graft
