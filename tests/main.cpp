// SPDX-License-Identifier: Apache-2.0
// The one main of all tests: Catch2's, but running nothing is a failure and skipping something has its own exit code.
#define CATCH_CONFIG_RUNNER
#include <graft/backend/cpu/isa.hpp>
#include <tests/catch.hpp>

#if defined(GRAFT_TEST_ON_GPU)
#include <cuda_runtime_api.h>
#endif

#include <cstdlib>
#include <iostream>
#include <string_view>

namespace {
int skipped = 0;
constexpr int skipped_code = 77;  // what ctest is told to show as "Skipped"
}  // namespace

void graft_test::note_skip(std::string const& reason) {
  ++skipped;
  std::cout << "skipped: " << reason << std::endl;
}

int main(int argc, char** argv) {
  if (const char* const name = std::getenv("GRAFT_ISA"))
    for (int k = static_cast<int>(graft::detected_isa()) + 1; k < graft::isa_count; ++k)
      if (std::string_view(name) == graft::isa_name(static_cast<graft::Isa>(k))) {
        std::cout << "skipped: this processor has no " << name << std::endl;
        return skipped_code;
      }
#if defined(GRAFT_TEST_ON_GPU)
  int devices = 0;
  if (cudaError_t const error = cudaGetDeviceCount(&devices); error != cudaSuccess || devices == 0) {
    std::cout << "skipped: there is no NVIDIA GPU here: " << cudaGetErrorString(error) << std::endl;
    return skipped_code;
  }
#endif
  Catch::Session session;
  if (int const usage = session.applyCommandLine(argc, argv); usage != 0) return usage;
#if CATCH_VERSION_MAJOR == 2  // a selection that matches nothing has failed; in 3.x that is so by itself
  auto& warnings = session.configData().warnings;
  warnings = static_cast<Catch::WarnAbout::What>(warnings | Catch::WarnAbout::NoTests);
#endif
  int const result = session.run();
  return result == 0 && skipped > 0 ? skipped_code : result;
}
