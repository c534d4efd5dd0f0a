// SPDX-License-Identifier: Apache-2.0
// Views of Eigen's matrices and back.
#include <tests/catch.hpp>

#include <graft/backend/cpu/eigen.hpp>

using namespace graft;
using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

TEST_CASE("a row-major matrix, a block of it and a strided map are seen as they are") {
  RowMajor matrix(3, 5);
  for (int r = 0; r < 3; ++r)
    for (int c = 0; c < 5; ++c) matrix(r, c) = static_cast<float>(10 * r + c);
  auto const whole = view(matrix);
  CHECK(whole.rows == 3);
  CHECK(whole.cols == 5);
  CHECK(whole(2, 4) == 24);
  whole(1, 2) = -1;
  CHECK(matrix(1, 2) == -1);

  Eigen::Ref<RowMajor, 0, Eigen::OuterStride<>> block = matrix.block(1, 1, 2, 3);
  auto const part = view(block);
  CHECK(part.rows == 2);
  CHECK(part.stride == 5);
  CHECK(part(1, 2) == 23);

  RowMajor const& constant = matrix;
  CHECK(std::is_same_v<decltype(view(constant)), MatrixView<float const>>);
  CHECK(eigen_map(part).sum() == block.sum());
}

TEST_CASE("elements that do not lie side by side are refused") {
  float values[8] = {};
  Eigen::Map<RowMajor, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>> every_second(
      values, 2, 2, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>(4, 2));
  CHECK_THROWS_AS(view(every_second), ContractError);
}
