// SPDX-License-Identifier: Apache-2.0
// Where the rows go that recorded operations compute: told anew each time they are done.
#pragma once

#include <graft/core/types.hpp>

namespace graft {

/// A matrix whose place and number of rows kernels read from memory.
template <class Act>
struct Delivery {
  Act* data = nullptr;
  index_t rows = 0, stride = 0;
};

}  // namespace graft
