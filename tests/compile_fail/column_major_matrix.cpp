// SPDX-License-Identifier: Apache-2.0
// expected-error: graft: views are row-major; use Eigen::RowMajor, or pass the transpose of a column-major matrix
#include <graft/backend/cpu/eigen.hpp>

int main() {
#ifdef GRAFT_EXPECT_FAIL
  Eigen::MatrixXf matrix(2, 3);
#else
  Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> matrix(2, 3);
#endif
  return static_cast<int>(graft::view(matrix).rows);
}
