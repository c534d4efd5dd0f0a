// SPDX-License-Identifier: Apache-2.0
// Ways to sample that host and device are tested with.
#pragma once

#include <graft/model/sampling.hpp>

#include <vector>

namespace graft_test {

inline std::vector<graft::SamplingOptions> every_kind() {
  return {{},
          {.repeat_penalty = 1.3},
          {.temperature = 1, .seed = 1},
          {.temperature = 0.7, .top_k = 5, .seed = 2},
          {.temperature = 1.5, .top_p = 0.9, .seed = 3},
          {.temperature = 1, .min_p = 0.1, .seed = 4},
          {.temperature = 0.9, .top_k = 40, .top_p = 0.8, .min_p = 0.05, .repeat_penalty = 1.2, .seed = 5},
          {.temperature = 2, .top_k = 1, .seed = 6},
          {.temperature = 3, .top_k = 100000, .top_p = 0.999, .seed = 7},
          {.temperature = 50, .top_p = 0.99, .seed = 8},  // nearly all tokens have to be sorted
          {.temperature = 50, .min_p = 0.5, .seed = 9},
          {.temperature = 1, .repeat_penalty = 0.5, .seed = 10}};
}

}  // namespace graft_test
