// SPDX-License-Identifier: Apache-2.0
// How close is close: distances between results, and bounds that follow from the arithmetic.
#pragma once

#include <graft/core/scalar.hpp>
#include <graft/testing/matrix.hpp>

#include <cmath>
#include <cstring>
#include <type_traits>

namespace graft::testing {

/// Largest relative error of one rounding to T (round to nearest): 2^-p with p significant bits.
template <Scalar T>
constexpr double unit_roundoff() {
  if constexpr (std::same_as<T, double>) return 0x1p-53;
  if constexpr (std::same_as<T, float>) return 0x1p-24;
  if constexpr (std::same_as<T, f16>) return 0x1p-11;
  return 0x1p-8;  // bf16
}

/// What graft promises between a row in a batch and the same row alone in f32: relative L2 distance. Another shape may
/// mean another order of summation; sums of n terms then differ by about sqrt(n) 2^-24 of their size, n < 20,000.
inline constexpr double alone_bound = 1e-5;

/// |a - b| / |b| in the L2 norm, computed in double; |a| where b is zero. NaN when either holds a NaN, so that
/// `relative_l2(a, b) <= bound` then fails. Both have rows, cols and (r, c): MatrixView and Matrix do.
template <class A, class B>
double relative_l2(A const& a, B const& b) {
  expects(a.rows == b.rows && a.cols == b.cols, "graft: distance of ", a.rows, " x ", a.cols, " and ", b.rows, " x ",
          b.cols);
  double difference = 0, size = 0;
  for (index_t r = 0; r < a.rows; ++r)
    for (index_t c = 0; c < a.cols; ++c) {
      double const x = to_double(a(r, c)), y = to_double(b(r, c));
      difference += (x - y) * (x - y);
      size += y * y;
    }
  return size == 0 ? std::sqrt(difference) : std::sqrt(difference / size);
}

/// The larger of two errors; a NaN stays, where std::max would forget it.
inline double worse(double a, double b) { return std::isnan(a) || a > b ? a : b; }

/// The largest relative L2 distance of a row of a from the same row of b.
template <class A, class B>
double worst_row(A const& a, B const& b) {
  double worst = 0;
  for (index_t r = 0; r < a.rows; ++r) {
    Matrix x(1, a.cols), y(1, a.cols);
    for (index_t c = 0; c < a.cols; ++c) x(0, c) = to_double(a(r, c)), y(0, c) = to_double(b(r, c));
    worst = worse(worst, relative_l2(x, y));
  }
  return worst;
}

/// Whether two rows of n elements have the same bits: NaN equals the same NaN, +0 is not -0.
template <class T>
bool same_bits(T const* a, T const* b, index_t n) {
  static_assert(std::is_trivially_copyable_v<T>);
  return std::memcmp(a, b, static_cast<std::size_t>(n) * sizeof(T)) == 0;
}
template <class A, class B>
bool same_bits(MatrixView<A> a, MatrixView<B> b) {
  static_assert(std::is_same_v<std::remove_const_t<A>, std::remove_const_t<B>>);
  if (a.rows != b.rows || a.cols != b.cols) return false;
  for (index_t r = 0; r < a.rows; ++r)
    if (!same_bits<std::remove_const_t<A>>(a.row(r), b.row(r), a.cols)) return false;
  return true;
}

}  // namespace graft::testing
