// SPDX-License-Identifier: Apache-2.0
// The one main of all tests: Catch2's, plus an exit code of its own when something was skipped.
#define CATCH_CONFIG_RUNNER
#include <tests/catch.hpp>

#include <iostream>

namespace {
int skipped = 0;
constexpr int skipped_code = 77;  // what ctest is told to show as "Skipped"
}  // namespace

void graft_test::note_skip(std::string const& reason) {
  ++skipped;
  std::cout << "skipped: " << reason << std::endl;
}

int main(int argc, char** argv) {
  int const result = Catch::Session().run(argc, argv);
  return result == 0 && skipped > 0 ? skipped_code : result;
}
