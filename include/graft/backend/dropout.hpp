// SPDX-License-Identifier: Apache-2.0
// Which elements dropout hits, shared by all backends: a hash of (row's key, site, column), so that a mask depends
// neither on the batch nor on who computes it, and the way back makes it again.
#pragma once

#include <graft/config.hpp>
#include <graft/core/types.hpp>

#include <cstdint>

namespace graft {

/// What SplitMix64 gives for a state (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
GRAFT_HOST_DEVICE constexpr std::uint64_t split_mix(std::uint64_t state) {
  std::uint64_t z = state + 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}
/// Uniform in [0, 1), of 64 random bits.
GRAFT_HOST_DEVICE constexpr double unit_interval(std::uint64_t bits) {
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

/// The hash of a row at a site, and whether `rate` of its columns, this one among them, are dropped.
GRAFT_HOST_DEVICE constexpr std::uint64_t dropout_row(std::uint64_t key, index_t site) {
  return split_mix(key + static_cast<std::uint64_t>(site));
}
GRAFT_HOST_DEVICE constexpr bool drops(std::uint64_t row, index_t column, double rate) {
  return unit_interval(split_mix(row + static_cast<std::uint64_t>(column))) < rate;
}

}  // namespace graft
