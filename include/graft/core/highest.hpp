// SPDX-License-Identifier: Apache-2.0
// The largest of many values.
#pragma once

#include <graft/core/types.hpp>

#include <algorithm>
#include <limits>

namespace graft {

/// The largest of `count` values, -infinity of none; NaN is never it. Several running maxima, because one would wait
/// for itself at every element.
template <class R>
R highest_of(R const* x, index_t count) {
  constexpr index_t width = 16;
  R best[width];
  std::fill(best, best + width, -std::numeric_limits<R>::infinity());
  index_t k = 0;
  for (; k + width <= count; k += width)
    for (index_t j = 0; j < width; ++j) best[j] = x[k + j] > best[j] ? x[k + j] : best[j];
  for (; k < count; ++k) best[0] = std::max(best[0], x[k]);
  return *std::max_element(best, best + width);
}

}  // namespace graft
