// SPDX-License-Identifier: Apache-2.0
// A host program that has Eigen types of its own and hands their memory over.
#include <Eigen/Dense>

#include <graft/graft.hpp>

#include <cstdio>

float part_sum(graft::MatrixView<float const> m);
graft::ErrorHandler part_error_handler();

int main() {
  Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> m(3, 5);
  for (int r = 0; r < 3; ++r)
    for (int c = 0; c < 5; ++c) m(r, c) = static_cast<float>(5 * r + c);
  float const sum = part_sum(graft::matrix_view(m.data(), m.rows(), m.cols()));
  bool const same_sum = sum == m.sum() && sum == 105.f;
  // one inline variable, not one per translation unit
  graft::set_error_handler([](char const*) {});
  bool const same_handler = part_error_handler() == graft::detail::error_handler();
  if (!same_sum || !same_handler) std::printf("sum %g, handler %s\n", sum, same_handler ? "shared" : "not shared");
  return same_sum && same_handler ? 0 : 1;
}
