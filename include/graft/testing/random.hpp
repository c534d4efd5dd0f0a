// SPDX-License-Identifier: Apache-2.0
// Random numbers for tests: the same on every machine for the same seed.
#pragma once

#include <graft/core/random.hpp>
#include <graft/testing/matrix.hpp>

#include <initializer_list>
#include <numeric>
#include <vector>

namespace graft::testing {

/// An integer in [low, high].
inline index_t pick(Random& random, index_t low, index_t high) {
  return low + static_cast<index_t>(random.next() % static_cast<std::uint64_t>(high - low + 1));
}

/// One of the given values.
template <class T>
T pick(Random& random, std::initializer_list<T> values) {
  return values.begin()[pick(random, 0, static_cast<index_t>(values.size()) - 1)];
}

/// Normal with the given mean and deviation, into a view of any scalar type.
template <class T>
void fill_normal(VectorView<T> out, Random& random, double mean = 0, double deviation = 1) {
  for (T& value : out) {
    double const x = mean + deviation * random.normal();
    if constexpr (std::same_as<T, double>)
      value = x;
    else
      value = static_cast<T>(static_cast<float>(x));
  }
}
template <class T>
void fill_normal(MatrixView<T> out, Random& random, double mean = 0, double deviation = 1) {
  for (index_t r = 0; r < out.rows; ++r) fill_normal(VectorView<T>{out.row(r), out.cols}, random, mean, deviation);
}

inline Matrix random_matrix(index_t rows, index_t cols, Random& random, double deviation = 1) {
  Matrix result(rows, cols);
  fill_normal(result.view(), random, 0, deviation);
  return result;
}
inline Vector random_vector(index_t size, Random& random, double mean = 0, double deviation = 1) {
  Vector result(static_cast<std::size_t>(size));
  fill_normal(VectorView<double>{result.data(), size}, random, mean, deviation);
  return result;
}

/// 0 ... count - 1 in random order.
inline std::vector<index_t> permutation(index_t count, Random& random) {
  std::vector<index_t> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), index_t{0});
  for (index_t k = count - 1; k > 0; --k)
    std::swap(order[static_cast<std::size_t>(k)], order[static_cast<std::size_t>(pick(random, 0, k))]);
  return order;
}

}  // namespace graft::testing
