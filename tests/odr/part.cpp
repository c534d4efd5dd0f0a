// SPDX-License-Identifier: Apache-2.0
// A part of the program that knows graft only.
#include <graft/graft.hpp>

float part_sum(graft::MatrixView<float const> m) {
  float sum = 0;
  for (graft::index_t r = 0; r < m.rows; ++r)
    for (graft::index_t c = 0; c < m.cols; ++c) sum += m(r, c);
  return sum;
}

graft::ErrorHandler part_error_handler() { return graft::detail::error_handler(); }
