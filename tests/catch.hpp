// SPDX-License-Identifier: Apache-2.0
// Catch2 for every test: one spelling for 2.13 (one header) and 3.x, and a way to skip what this machine cannot run.
#pragma once

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
using Catch::Approx;
namespace Catch {
inline auto Contains(std::string const& part) { return Matchers::ContainsSubstring(part); }
inline auto StartsWith(std::string const& part) { return Matchers::StartsWith(part); }
}  // namespace Catch
#else
#include <catch2/catch.hpp>
#endif

#include <string>

namespace graft_test {
/// Notes why a test case could not run here; the program then ends with 77, which ctest reports as "Skipped".
void note_skip(std::string const& reason);
}  // namespace graft_test

/// Leaves the test case; failures elsewhere in the file still count.
#define GRAFT_SKIP(reason)         \
  do {                             \
    graft_test::note_skip(reason); \
    return;                        \
  } while (false)
