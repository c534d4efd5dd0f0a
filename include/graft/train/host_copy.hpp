// SPDX-License-Identifier: Apache-2.0
// Numbers between the host and the memory a backend computes in, which may be the host's own.
#pragma once

#include <graft/core/memory.hpp>
#include <graft/core/view.hpp>

#include <algorithm>
#include <concepts>
#include <span>
#include <type_traits>
#include <vector>

namespace graft {

/// What the view holds; waits for a device.
template <class B, class T>
std::vector<T> host_copy([[maybe_unused]] B& be, VectorView<T, typename B::Space> from) {
  std::vector<T> values(static_cast<std::size_t>(from.size));
  if constexpr (std::same_as<typename B::Space, HostSpace>)
    std::copy_n(from.data, from.size, values.begin());
  else
    copy_to_host(be, static_cast<T const*>(from.data), values.data(), from.size);
  return values;
}

/// to = values, as many; waits for nothing.
template <class B, class T>
void copy_from_host([[maybe_unused]] B& be, std::type_identity_t<std::span<T const>> values,
                    VectorView<T, typename B::Space> to) {
  if constexpr (std::same_as<typename B::Space, HostSpace>)
    std::copy(values.begin(), values.end(), to.data);
  else
    copy_to_device(be, values.data(), to.data, to.size);
}

}  // namespace graft
