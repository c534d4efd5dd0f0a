// SPDX-License-Identifier: Apache-2.0
// Row maps with memory of their own, filled at random.
#pragma once

#include <graft/backend/row_map.hpp>
#include <graft/testing/random.hpp>

#include <vector>

namespace graft::testing {

/// Owns the coefficients of one map.
template <class R>
struct OwnedMap {
  std::vector<R> c1, d, e;
  index_t size = 0, group = 0;
  RowMapRow<R const> const* next = nullptr;

  /// Absent vectors stay absent; group 0 means no d.
  static OwnedMap random(Random& random, index_t size, index_t group, bool with_c, bool with_e, double spread = 0.5) {
    OwnedMap map;
    map.size = size;
    map.group = group;
    auto const fill = [&](std::vector<R>& v) {
      v.resize(static_cast<std::size_t>(size));
      fill_normal(VectorView<R>{v.data(), size}, random, 0, spread);
    };
    if (with_c) fill(map.c1);
    if (group != 0) fill(map.d);
    if (with_e) fill(map.e);
    return map;
  }

  RowMapRow<R const> row() const {
    auto const data = [](std::vector<R> const& v) { return v.empty() ? nullptr : v.data(); };
    return {data(c1), data(d), data(e), size, d.empty() ? 0 : group, next};
  }
};

}  // namespace graft::testing
