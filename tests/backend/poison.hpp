// SPDX-License-Identifier: Apache-2.0
// Scratch that holds what somebody else left there.
#pragma once

#include <graft/core/arena.hpp>

#include <algorithm>
#include <limits>

namespace graft_test {

/// Fills a megabyte of the backend's arena, where its next scratch comes from, with NaN.
template <class B>
void poison(B& be) {
  using R = typename B::Act;
  graft::ArenaScope scope(be.arena());
  graft::index_t const count = (1 << 20) / static_cast<graft::index_t>(sizeof(R));
  std::fill_n(be.arena().template allocate<R>(count), count, std::numeric_limits<R>::quiet_NaN());
}

}  // namespace graft_test
