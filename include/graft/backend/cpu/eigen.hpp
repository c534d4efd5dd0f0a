// SPDX-License-Identifier: Apache-2.0
// Views of Eigen's matrices. The only header that includes Eigen; include it where your program uses Eigen itself.
#pragma once

// These change the code Eigen generates or the layout of its types, so every translation unit must agree on them.
#if !defined(EIGEN_NO_CUDA)
#error "graft: define EIGEN_NO_CUDA everywhere (link graft::graft); without it Eigen is not vectorised in .cu files"
#endif
#if !defined(EIGEN_DONT_PARALLELIZE)
#error "graft: define EIGEN_DONT_PARALLELIZE everywhere (link graft::graft); graft's executor owns the threads"
#endif
#if !defined(EIGEN_MAX_ALIGN_BYTES)
#error "graft: define EIGEN_MAX_ALIGN_BYTES everywhere (link graft::graft), so that all units lay out types alike"
#endif

#include <graft/core/error.hpp>
#include <graft/core/view.hpp>

#include <Eigen/Core>

#include <type_traits>

namespace graft {

/// A view of a row-major Eigen matrix, Map or Ref, which must outlive it. Rows may lie apart (OuterStride).
template <class Derived>
auto view(Eigen::MatrixBase<Derived>& matrix) {
  static_assert(Derived::IsRowMajor || Derived::IsVectorAtCompileTime,
                "graft: views are row-major; use Eigen::RowMajor, or pass the transpose of a column-major matrix");
  auto& self = matrix.derived();
  expects(self.innerStride() == 1 || self.cols() <= 1, "graft: a view's columns lie side by side; inner stride is ",
          self.innerStride());
  return MatrixView<std::remove_reference_t<decltype(*self.data())>>{self.data(), self.rows(), self.cols(),
                                                                     self.outerStride()};
}
template <class Derived>
auto view(Eigen::MatrixBase<Derived> const& matrix) {
  auto const writable = view(const_cast<Eigen::MatrixBase<Derived>&>(matrix));
  return MatrixView<typename Derived::Scalar const>{writable.data, writable.rows, writable.cols, writable.stride};
}

/// The other way: an Eigen Map of a view.
template <class T>
auto eigen_map(MatrixView<T> matrix) {
  using Plain = Eigen::Matrix<std::remove_const_t<T>, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using Element = std::conditional_t<std::is_const_v<T>, Plain const, Plain>;
  return Eigen::Map<Element, 0, Eigen::OuterStride<>>(matrix.data, matrix.rows, matrix.cols,
                                                      Eigen::OuterStride<>(matrix.stride));
}

}  // namespace graft
