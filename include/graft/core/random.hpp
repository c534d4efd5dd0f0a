// SPDX-License-Identifier: Apache-2.0
// Random numbers that are the same on every machine, host or device.
#pragma once

#include <graft/config.hpp>

#include <cmath>
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

/// A stream of them. Its state is its seed, moved on by every draw.
class Random {
 public:
  GRAFT_HOST_DEVICE explicit Random(std::uint64_t seed = 0) : state_(seed) {}
  GRAFT_HOST_DEVICE std::uint64_t next() {
    std::uint64_t const made = split_mix(state_);
    state_ += 0x9e3779b97f4a7c15u;
    return made;
  }
  /// Uniform in [low, high).
  GRAFT_HOST_DEVICE double uniform(double low = 0, double high = 1) {
    return low + (high - low) * unit_interval(next());
  }
  /// Standard normal (Box-Muller).
  double normal() {
    double const u = 1 - uniform(), v = uniform();
    return std::sqrt(-2 * std::log(u)) * std::cos(6.28318530717958647692 * v);
  }

 private:
  std::uint64_t state_;
};

}  // namespace graft
