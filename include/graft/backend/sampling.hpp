// SPDX-License-Identifier: Apache-2.0
// How a row of logits becomes a token, as plain data that a device can read.
#pragma once

#include <graft/core/random.hpp>
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
  Random random;                       ///< moved on by every draw
  std::int32_t const* seen = nullptr;  ///< [seen_count] the sequence's tokens so far
  index_t seen_count = 0;
};

}  // namespace graft
