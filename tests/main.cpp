// SPDX-License-Identifier: Apache-2.0
// The one main of all tests: Catch2's, but running nothing is a failure and skipping something has its own exit code.
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
  Catch::Session session;
  if (int const usage = session.applyCommandLine(argc, argv); usage != 0) return usage;
#if CATCH_VERSION_MAJOR == 2  // a selection that matches nothing has failed; in 3.x that is so by itself
  auto& warnings = session.configData().warnings;
  warnings = static_cast<Catch::WarnAbout::What>(warnings | Catch::WarnAbout::NoTests);
#endif
  int const result = session.run();
  return result == 0 && skipped > 0 ? skipped_code : result;
}
