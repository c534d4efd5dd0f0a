// SPDX-License-Identifier: Apache-2.0
// The two mechanisms written down densely in double: row maps as matrices, deltas as products, and policies as layers
// that wrap layers.
#pragma once

#include <graft/backend/row_map.hpp>
#include <graft/backend/weight.hpp>
#include <graft/testing/matrix.hpp>

#include <functional>
#include <utility>
#include <vector>

namespace graft::testing {

/// y' = m y + e
struct AffineMap {
  Matrix m;
  Vector e;

  Vector operator()(Vector const& y) const {
    Vector result = m * y;
    add_scaled(result, 1, e);
    return result;
  }
};

inline AffineMap identity_map(index_t size) { return {identity(size), Vector(static_cast<std::size_t>(size), 0.0)}; }

/// second(first(y))
inline AffineMap then(AffineMap const& first, AffineMap const& second) { return {second.m * first.m, second(first.e)}; }

/// y + sum_k w_k (map_k(y) - y)
inline AffineMap weighted_sum(std::vector<AffineMap> const& maps, Vector const& weights, index_t size) {
  AffineMap result = identity_map(size);
  for (std::size_t k = 0; k < maps.size(); ++k) {
    result.m = result.m + weights[k] * (maps[k].m - identity(size));
    add_scaled(result.e, weights[k], maps[k].e);
  }
  return result;
}

/// The map that coefficients stand for, its successors included.
template <class R>
AffineMap dense(RowMapRow<R const> const& map) {
  index_t const size = map.size;
  AffineMap result = identity_map(size);
  for (index_t j = 0; j < size; ++j) {
    if (map.c1 != nullptr) result.m(j, j) += to_double(map.c1[j]);
    if (map.e != nullptr) result.e[static_cast<std::size_t>(j)] = to_double(map.e[j]);
  }
  if (map.d != nullptr)
    for (index_t start = 0; start < size; start += map.group)
      for (index_t k = start; k < start + map.group / 2; ++k) {
        index_t const other = k + map.group / 2;
        result.m(k, other) = to_double(map.d[k]);
        result.m(other, k) = to_double(map.d[other]);
      }
  return map.next != nullptr ? then(result, dense(*map.next)) : result;
}

/// W as decoded from its storage format.
inline Matrix dense(Weight const& weight) {
  Matrix result(weight.rows, weight.cols);
  for (index_t r = 0; r < weight.rows; ++r) weight.row(r, result.view().row(r));
  return result;
}

/// A linear layer on one row. Policies wrap layers, in the order of Adapters<...>:
///     Layer f = linear(w, b);  f = after(f, rotation);  f = plus(f, delta);      // R(Wx + b) + delta x
using Layer = std::function<Vector(Vector const&)>;

inline Layer linear(Matrix w, Vector b) {
  return [w = std::move(w), b = std::move(b)](Vector const& x) {
    Vector y = w * x;
    if (!b.empty()) add_scaled(y, 1, b);
    return y;
  };
}
/// map(layer(x))
inline Layer after(Layer layer, AffineMap map) {
  return [layer = std::move(layer), map = std::move(map)](Vector const& x) { return map(layer(x)); };
}
/// layer(map(x))
inline Layer before(Layer layer, AffineMap map) {
  return [layer = std::move(layer), map = std::move(map)](Vector const& x) { return layer(map(x)); };
}
/// layer(x) + delta x
inline Layer plus(Layer layer, Matrix delta) {
  return [layer = std::move(layer), delta = std::move(delta)](Vector const& x) {
    Vector y = layer(x);
    add_scaled(y, 1, delta * x);
    return y;
  };
}

}  // namespace graft::testing
