// SPDX-License-Identifier: Apache-2.0
// How a row of logits becomes a token, as plain data that a device can read.
#pragma once

#include <graft/config.hpp>
#include <graft/core/types.hpp>

#include <cstdint>

namespace graft {

/// One row's options and its random stream. The filters and their order are those of SamplingOptions
/// (model/sampling.hpp), whose constructor's conditions hold: temperature >= 0, top_k >= 0, top_p in (0, 1], min_p in
/// [0, 1], penalty > 0.
struct SamplingRow {
  double temperature = 0;  ///< 0: the most likely token
  double top_p = 1, min_p = 0, repeat_penalty = 1;
  index_t top_k = 0;                   ///< 0: all
  std::uint64_t random = 0;            ///< state of the stream: the seed at first, moved on by every draw
  std::int32_t const* seen = nullptr;  ///< [seen_count] the sequence's tokens so far
  index_t seen_count = 0;
};

/// The next number of a stream, uniform in [0, 1): splitmix64 (Steele, Lea and Flood 2014), as class Random has it.
GRAFT_HOST_DEVICE inline double next_uniform(std::uint64_t& state) {
  std::uint64_t z = (state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  return static_cast<double>(z >> 11) * 0x1p-53;
}

}  // namespace graft
