// SPDX-License-Identifier: Apache-2.0
// What is not finite is told as such by units that are compiled with -ffast-math; this one is (tests/CMakeLists.txt).
#include <graft/core/scalar.hpp>
#include <tests/catch.hpp>

#include <bit>
#include <cstdint>

#if !defined(__FAST_MATH__)
#error "this test is of -ffast-math"
#endif

namespace {

using graft::is_finite;
using graft::is_nan;

TEST_CASE("numbers, infinities and NaN are told apart by their bits") {
  struct Case {
    std::uint32_t bits;
    bool finite, nan;
  };
  for (auto const& [bits, finite, nan] :
       {Case{0x00000000, true, false}, Case{0x80000000, true, false}, Case{0x00000001, true, false},
        Case{0xff7fffff, true, false}, Case{0x7f800000, false, false}, Case{0xff800000, false, false},
        Case{0x7fc00000, false, true}, Case{0xff800001, false, true}}) {
    std::uint32_t const volatile stored = bits;  // so that nothing is known at compile time
    auto const x = std::bit_cast<float>(static_cast<std::uint32_t>(stored));
    auto const y = static_cast<double>(x);
    INFO(bits);
    CHECK(is_finite(x) == finite);
    CHECK(is_finite(y) == finite);
    CHECK(is_nan(x) == nan);
    CHECK(is_nan(y) == nan);
  }
}

}  // namespace
