// SPDX-License-Identifier: Apache-2.0
// Singular values in double, of a matrix or of a product of thin factors that is never formed. Templates all, so that
// only programs which ask compile Eigen's decompositions: they take ten times what all the rest does.
#pragma once

#include <graft/backend/cpu/eigen.hpp>
#include <graft/core/error.hpp>
#include <graft/core/types.hpp>
#include <graft/core/view.hpp>

#include <Eigen/QR>
#include <Eigen/SVD>

#include <algorithm>
#include <cstddef>
#include <vector>

namespace graft {

/// rows x cols doubles, row-major, zero at first.
struct DenseMatrix {
  index_t rows = 0, cols = 0;
  std::vector<double> values;

  DenseMatrix() = default;
  DenseMatrix(index_t row_count, index_t col_count)
      : rows(row_count), cols(col_count), values(static_cast<std::size_t>(row_count * col_count)) {}
  double* row(index_t r) { return values.data() + r * cols; }
  double const* row(index_t r) const { return values.data() + r * cols; }
  double& operator()(index_t r, index_t c) { return row(r)[c]; }
  double operator()(index_t r, index_t c) const { return row(r)[c]; }
  MatrixView<double> view() { return {values.data(), rows, cols, cols}; }
  MatrixView<double const> view() const { return {values.data(), rows, cols, cols}; }
};

/// m [o, i] = u diag(s) vt with k = min(o, i) or fewer singular values, the largest first.
struct Svd {
  DenseMatrix u;  ///< [o, k], orthonormal columns
  std::vector<double> s;
  DenseMatrix vt;  ///< [k, i], orthonormal rows
};

namespace detail {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

template <class = void>
DenseMatrix as_dense(Eigen::MatrixXd const& m) {
  DenseMatrix result(m.rows(), m.cols());
  eigen_map(result.view()) = m;
  return result;
}

template <class = void>
Eigen::BDCSVD<Eigen::MatrixXd> eigen_svd(Eigen::MatrixXd const& m) {
  return Eigen::BDCSVD<Eigen::MatrixXd>(m, Eigen::ComputeThinU | Eigen::ComputeThinV);
}

}  // namespace detail

template <class = void>
Svd svd(MatrixView<double const> m) {
  auto const found = detail::eigen_svd(eigen_map(m));
  auto const& s = found.singularValues();
  return {detail::as_dense(found.matrixU()),
          {s.data(), s.data() + s.size()},
          detail::as_dense(found.matrixV().transpose())};
}

/// The singular values of b a, b [o, r] and a [r, i], in O((o + i) r^2): QR of b and of a^T, then the SVD of the small
/// core R_b R_a^T. At most r of them.
template <class = void>
Svd svd_of_product(MatrixView<double const> b, MatrixView<double const> a) {
  expects(b.cols == a.rows, "graft: a product of ", b.rows, " x ", b.cols, " and ", a.rows, " x ", a.cols);
  index_t const r = b.cols, rb = std::min(b.rows, r), ra = std::min(a.cols, r);
  Eigen::HouseholderQR<Eigen::MatrixXd> const left{Eigen::MatrixXd(eigen_map(b))};
  Eigen::HouseholderQR<Eigen::MatrixXd> const right{Eigen::MatrixXd(eigen_map(a).transpose())};
  Eigen::MatrixXd const upper_left = left.matrixQR().topRows(rb).triangularView<Eigen::Upper>();
  Eigen::MatrixXd const upper_right = right.matrixQR().topRows(ra).triangularView<Eigen::Upper>();
  auto const core = detail::eigen_svd(upper_left * upper_right.transpose());
  index_t const k = core.singularValues().size();
  Eigen::MatrixXd u = Eigen::MatrixXd::Zero(b.rows, k), v = Eigen::MatrixXd::Zero(a.cols, k);
  u.topRows(rb) = core.matrixU();
  v.topRows(ra) = core.matrixV();
  u.applyOnTheLeft(left.householderQ());
  v.applyOnTheLeft(right.householderQ());
  auto const& s = core.singularValues();
  return {detail::as_dense(u), {s.data(), s.data() + s.size()}, detail::as_dense(v.transpose())};
}

/// a [m, k] times b [k, n].
template <class = void>
DenseMatrix product(MatrixView<double const> a, MatrixView<double const> b) {
  expects(a.cols == b.rows, "graft: a product of ", a.rows, " x ", a.cols, " and ", b.rows, " x ", b.cols);
  DenseMatrix result(a.rows, b.cols);
  eigen_map(result.view()).noalias() = eigen_map(a) * eigen_map(b);
  return result;
}

}  // namespace graft
