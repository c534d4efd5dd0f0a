// SPDX-License-Identifier: Apache-2.0
// Finding the range an element belongs to, on the host and in kernels.
#pragma once

#include <graft/config.hpp>
#include <graft/core/types.hpp>

namespace graft {

/// Of `count` ranges in ascending order of their `first`: the last one that begins at k or in front of it, or null.
template <class Range>
GRAFT_HOST_DEVICE Range const* last_not_behind(Range const* ranges, index_t count, index_t k) {
  index_t low = 0, high = count;  // ranges before `low` begin at k or in front of it, those from `high` on behind it
  while (low < high) {
    index_t const middle = (low + high) / 2;
    if (ranges[middle].first <= k)
      low = middle + 1;
    else
      high = middle;
  }
  return low == 0 ? nullptr : ranges + low - 1;
}

}  // namespace graft
