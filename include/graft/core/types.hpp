// SPDX-License-Identifier: Apache-2.0
// Sizes and memory spaces.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>

namespace graft {

using index_t = std::int64_t;  ///< every size, index and stride; in elements unless a name says bytes

struct HostSpace {};    ///< memory the CPU can read
struct DeviceSpace {};  ///< memory of an NVIDIA GPU
template <class S>
concept MemorySpace = std::same_as<S, HostSpace> || std::same_as<S, DeviceSpace>;

constexpr index_t ceil_div(index_t a, index_t b) { return (a + b - 1) / b; }
constexpr index_t round_up(index_t a, index_t b) { return ceil_div(a, b) * b; }

}  // namespace graft
