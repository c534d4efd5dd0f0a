// SPDX-License-Identifier: Apache-2.0
// Arrays of a batch where a backend's kernels read them.
#pragma once

#include <graft/core/memory.hpp>

#include <concepts>
#include <vector>

namespace graft {

/// On the host an array itself; elsewhere a copy that stays until the next one.
template <class T, MemorySpace S>
class ResidentCopy {
 public:
  /// Ordered on the backend's queue; memory is taken only where an array is longer than all before it.
  template <class B>
  T const* put(B& be, std::vector<T> const& host) {
    if constexpr (std::same_as<S, HostSpace>) {
      return host.data();
    } else {
      memory_.make_room(static_cast<index_t>(host.size()));
      copy_to_device(be, host.data(), memory_.data(), static_cast<index_t>(host.size()));
      return memory_.data();
    }
  }

 private:
  Storage<T, S> memory_;
};

}  // namespace graft
