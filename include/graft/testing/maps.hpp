// SPDX-License-Identifier: Apache-2.0
// Row maps with memory of their own, filled at random.
#pragma once

#include <graft/backend/row_map.hpp>
#include <graft/testing/random.hpp>

#include <vector>

namespace graft::testing {

/// Owns the coefficients of one map; `row` shows them as they are, or in bf16 after `narrow`.
template <class R>
struct OwnedMap {
  std::vector<R> c1, d, e;
  std::vector<bf16> narrow_c1{}, narrow_d{}, narrow_e{};
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

  /// Rounds the coefficients to bf16 and keeps them so; c1, d and e hold the rounded numbers.
  OwnedMap& narrow() {
    auto const round = [](std::vector<R>& from, std::vector<bf16>& to) {
      for (R& value : from) value = static_cast<R>(static_cast<float>(to.emplace_back(static_cast<float>(value))));
    };
    round(c1, narrow_c1), round(d, narrow_d), round(e, narrow_e);
    return *this;
  }

  RowMapRow<R const> row() const {
    auto row = full_row();
    if (!narrow_c1.empty()) row.c1 = narrow_c1.data();
    if (!narrow_d.empty()) row.d = narrow_d.data();
    if (!narrow_e.empty()) row.e = narrow_e.data();
    return row;
  }
  /// The same numbers in R.
  RowMapRow<R const> full_row() const {
    auto const data = [](std::vector<R> const& v) { return v.empty() ? nullptr : v.data(); };
    return {data(c1), data(d), data(e), size, d.empty() ? 0 : group, next};
  }
};

}  // namespace graft::testing
