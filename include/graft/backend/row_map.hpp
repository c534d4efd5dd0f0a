// SPDX-License-Identifier: Apache-2.0
// The first mechanism: an affine row map, in which each element meets at most one partner.
//
//     y'[j] = c[j] y[j] + d[j] y[p(j)] + e[j]
//
// p pairs k with k + g/2 inside groups of g elements. The identity is c = 1, d = 0, e = 0; stored are c - 1, d and e,
// so that small departures from it keep their digits.
#pragma once

#include <graft/backend/numbers.hpp>
#include <graft/config.hpp>
#include <graft/core/types.hpp>

#include <type_traits>

namespace graft {

/// Where a map acts on a linear layer y = x W^T + b with low-rank deltas: see `Stage`.
enum class Side : std::uint8_t { input, output };

/// The order of everything at one site, outermost input map first:
///     x1 = input_outer(x);  x2 = input_inner(x1);  y = output_outer(output_inner(x2 W^T + b) + sum_k delta_k(x1))
/// "inner" maps come from policies listed before the low-rank ones, "outer" maps from those after them.
enum class Stage : std::uint8_t { input_outer, input_inner, output_inner, output_outer };
inline constexpr index_t stage_count = 4;

/// The coefficients of one row map at one site; absent vectors mean c = 1, d = 0, e = 0. Those of a row of constants
/// are stored alike, all in R or all in bf16.
template <class T>
struct RowMapRow {
  using Vector = std::conditional_t<std::is_const_v<T>, Numbers<std::remove_const_t<T>>, T*>;
  Vector c1 = nullptr;              ///< [size], c - 1
  Vector d = nullptr;               ///< [size]
  Vector e = nullptr;               ///< [size]
  index_t size = 0;                 ///< elements at the site
  index_t group = 0;                ///< g: even, divides size; 0 when d is absent
  RowMapRow const* next = nullptr;  ///< applied after this one, where two maps of unequal g could not be composed

  GRAFT_HOST_DEVICE bool identity() const { return c1 == nullptr && d == nullptr && e == nullptr; }
  /// Whether the vectors are in bf16.
  GRAFT_HOST_DEVICE bool narrow() const requires std::is_const_v<T> { return c1.narrow() || d.narrow() || e.narrow(); }
  template <class U>
  requires std::same_as<U, T const> GRAFT_HOST_DEVICE operator RowMapRow<U>() const {
    return {c1, d, e, size, group, nullptr};  // a mutable row is under construction and has no successor yet
  }
};

/// The partner of element j in groups of g.
GRAFT_HOST_DEVICE constexpr index_t partner(index_t j, index_t group) {
  index_t const k = j % group;
  return k < group / 2 ? j + group / 2 : j - group / 2;
}

/// What a map makes of an element y whose partner is `other`; coefficients as stored, 0 where absent.
template <class R>
GRAFT_HOST_DEVICE constexpr R map_element(R y, R other, R c1, R d, R e) {
  return y + (c1 * y + d * other) + e;
}

/// The maps of a batch at one site: batch row -> request -> that request's table -> its entry for the site.
template <class R>
struct RowMapBatch {
  RowMapRow<R const> const* const* tables = nullptr;  ///< [requests], each [sites] or null
  std::int32_t const* request = nullptr;              ///< [n], -1: row untouched
  index_t requests = 0;
  index_t site = 0;
  signed char present = -1;  ///< whether any row has a map here; -1: not known, `any` asks the tables

  /// The map of batch row n, or null when it is the identity.
  GRAFT_HOST_DEVICE RowMapRow<R const> const* row(index_t n) const {
    std::int32_t const q = request[n];
    if (q < 0 || tables[q] == nullptr) return nullptr;
    RowMapRow<R const> const* const map = tables[q] + site;
    return map->identity() ? nullptr : map;
  }
  /// Whether batch row n > 0 has what the row before it has, because both are of one request.
  bool follows(index_t n) const { return request[n] == request[n - 1]; }
  /// Whether any request has a map here. Where the tables are not in host memory, `present` must say so.
  bool any() const {
    if (present >= 0) return present != 0;
    for (index_t q = 0; q < requests; ++q)
      if (tables[q] != nullptr && !tables[q][site].identity()) return true;
    return false;
  }
  /// Whether every map here stays inside aligned chunks of `chunk` elements; of tables in host memory.
  bool fits(index_t chunk) const {
    for (index_t q = 0; q < requests; ++q)
      for (auto const* map = tables[q] != nullptr ? tables[q] + site : nullptr; map != nullptr; map = map->next)
        if (map->group != 0 && chunk % map->group != 0) return false;
    return true;
  }
};

/// f(map or null, n, count) for rows [n, n + count) that are of one request, from `first` on, all before `last`.
template <class R, class F>
void for_map_runs(RowMapBatch<R> const& maps, index_t first, index_t last, F const& f) {
  for (index_t n = first, end; n < last; n = end) {
    for (end = n + 1; end < last && maps.follows(end);) ++end;
    f(maps.row(n), n, end - n);
  }
}

}  // namespace graft
