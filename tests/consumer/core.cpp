// SPDX-License-Identifier: Apache-2.0
// What a user of graft::graft writes first; it must also run with Eigen alone.
#include <graft/graft.hpp>

#include <cstdio>

int main() {
  float numbers[6] = {0, 1, 2, 3, 4, 5};
  auto const m = graft::matrix_view(numbers, 2, 3);
  std::printf("graft %d.%d, %lld rows\n", GRAFT_VERSION_MAJOR, GRAFT_VERSION_MINOR, static_cast<long long>(m.rows));
  return m(1, 2) == 5.f ? 0 : 1;
}
