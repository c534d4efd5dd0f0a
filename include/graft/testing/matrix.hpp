// SPDX-License-Identifier: Apache-2.0
// A small dense matrix in double with plain loops: what optimised results are compared with.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/scalar.hpp>
#include <graft/core/types.hpp>
#include <graft/core/view.hpp>

#include <type_traits>
#include <vector>

namespace graft::testing {

/// A value of any scalar type as double.
template <class T>
double to_double(T value) {
  if constexpr (std::is_same_v<T, double>)
    return value;
  else
    return static_cast<double>(static_cast<float>(value));
}

using Vector = std::vector<double>;

/// rows x cols doubles, row-major, zero at first. It owns its memory and copies like a value.
struct Matrix {
  index_t rows = 0, cols = 0;
  Vector values;

  Matrix() = default;
  Matrix(index_t row_count, index_t col_count)
      : rows(row_count), cols(col_count), values(static_cast<std::size_t>(row_count * col_count), 0.0) {}
  /// A copy of a view over any scalar type.
  template <class T>
  explicit Matrix(MatrixView<T> view) : Matrix(view.rows, view.cols) {
    for (index_t r = 0; r < rows; ++r)
      for (index_t c = 0; c < cols; ++c) (*this)(r, c) = to_double(view(r, c));
  }

  double& operator()(index_t r, index_t c) { return values[static_cast<std::size_t>(r * cols + c)]; }
  double operator()(index_t r, index_t c) const { return values[static_cast<std::size_t>(r * cols + c)]; }

  MatrixView<double> view() { return {values.data(), rows, cols, cols}; }
  MatrixView<double const> view() const { return {values.data(), rows, cols, cols}; }
  Vector row(index_t r) const { return Vector(values.begin() + r * cols, values.begin() + (r + 1) * cols); }
};

inline Matrix identity(index_t size) {
  Matrix result(size, size);
  for (index_t k = 0; k < size; ++k) result(k, k) = 1;
  return result;
}

inline Matrix transposed(Matrix const& a) {
  Matrix result(a.cols, a.rows);
  for (index_t r = 0; r < a.rows; ++r)
    for (index_t c = 0; c < a.cols; ++c) result(c, r) = a(r, c);
  return result;
}

inline Matrix operator*(Matrix const& a, Matrix const& b) {
  expects(a.cols == b.rows, "graft: product of ", a.rows, " x ", a.cols, " and ", b.rows, " x ", b.cols);
  Matrix result(a.rows, b.cols);
  for (index_t r = 0; r < a.rows; ++r)
    for (index_t k = 0; k < a.cols; ++k)
      for (index_t c = 0; c < b.cols; ++c) result(r, c) += a(r, k) * b(k, c);
  return result;
}

inline Matrix operator+(Matrix const& a, Matrix const& b) {
  expects(a.rows == b.rows && a.cols == b.cols, "graft: sum of ", a.rows, " x ", a.cols, " and ", b.rows, " x ",
          b.cols);
  Matrix result = a;
  for (std::size_t k = 0; k < result.values.size(); ++k) result.values[k] += b.values[k];
  return result;
}

inline Matrix operator*(double scale, Matrix const& a) {
  Matrix result = a;
  for (double& value : result.values) value *= scale;
  return result;
}

inline Matrix operator-(Matrix const& a, Matrix const& b) { return a + (-1.0) * b; }

inline Vector operator*(Matrix const& a, Vector const& x) {
  expects(a.cols == static_cast<index_t>(x.size()), "graft: product of ", a.rows, " x ", a.cols, " and a vector of ",
          x.size());
  Vector result(static_cast<std::size_t>(a.rows), 0.0);
  for (index_t r = 0; r < a.rows; ++r)
    for (index_t c = 0; c < a.cols; ++c)
      result[static_cast<std::size_t>(r)] += a(r, c) * x[static_cast<std::size_t>(c)];
  return result;
}

/// a += scale * b
inline void add_scaled(Vector& a, double scale, Vector const& b) {
  expects(a.size() == b.size(), "graft: sum of vectors of ", a.size(), " and ", b.size());
  for (std::size_t k = 0; k < a.size(); ++k) a[k] += scale * b[k];
}

}  // namespace graft::testing
