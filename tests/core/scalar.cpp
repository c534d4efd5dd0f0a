// SPDX-License-Identifier: Apache-2.0
// bf16 and f16 against a reference that knows IEEE 754 only through exact arithmetic in double.
#include <graft/core/scalar.hpp>
#include <tests/catch.hpp>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>

namespace {

using graft::bf16;
using graft::f16;

/// A 16-bit float: one sign bit, `exponent_bits`, `mantissa_bits`.
struct Layout {
  int exponent_bits, mantissa_bits;
  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  std::uint32_t infinity() const { return ((1u << exponent_bits) - 1) << mantissa_bits; }
  bool is_nan(std::uint32_t bits) const { return (bits & 0x7fffu) > infinity(); }
};
constexpr Layout half{5, 10}, brain{8, 7};

/// The number that bits mean (no NaN).
double decode(Layout layout, std::uint32_t bits) {
  double const sign = (bits & 0x8000u) != 0 ? -1 : 1;
  int const exponent = static_cast<int>((bits & 0x7fffu) >> layout.mantissa_bits);
  int const mantissa = static_cast<int>(bits & ((1u << layout.mantissa_bits) - 1));
  if ((bits & 0x7fffu) == layout.infinity()) return sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - layout.bias() - layout.mantissa_bits);
  return sign * std::ldexp((1 << layout.mantissa_bits) + mantissa, exponent - layout.bias() - layout.mantissa_bits);
}

/// The bits nearest to a number, ties to even, too large ones to infinity (no NaN). Every step is exact in double.
std::uint32_t encode(Layout layout, float value) {
  std::uint32_t const sign = std::signbit(value) ? 0x8000u : 0u;
  double const x = std::fabs(static_cast<double>(value));
  if (x == 0) return sign;
  if (std::isinf(x)) return sign | layout.infinity();
  int exponent = std::max(std::ilogb(x), 1 - layout.bias());
  double const steps = std::nearbyint(std::ldexp(x, layout.mantissa_bits - exponent));  // default mode: ties to even
  // consecutive bit patterns are consecutive numbers, also across powers of two and into infinity
  auto const first = static_cast<std::uint32_t>(exponent + layout.bias() - 1) << layout.mantissa_bits;
  return sign | std::min(first + static_cast<std::uint32_t>(steps), layout.infinity());
}

template <class T>
void check_all_decodings(Layout layout) {
  for (std::uint32_t bits = 0; bits < 0x10000u; ++bits) {
    T number;
    number.bits = static_cast<std::uint16_t>(bits);
    auto const value = static_cast<float>(number);
    if (layout.is_nan(bits)) {
      if (!std::isnan(value) || std::signbit(value) != ((bits & 0x8000u) != 0)) FAIL("NaN lost at " << bits);
    } else if (std::bit_cast<std::uint64_t>(static_cast<double>(value)) !=
               std::bit_cast<std::uint64_t>(decode(layout, bits))) {  // by bits: -0 is not 0
      FAIL("bits " << bits << " decode to " << value << " instead of " << decode(layout, bits));
    }
  }
  SUCCEED();
}

template <class T>
void check_encoding(Layout layout, float value) {
  auto const bits = T(value).bits;
  if (bits != encode(layout, value)) FAIL(value << " encodes to " << bits << " instead of " << encode(layout, value));
}

/// Rounding can only go wrong at a boundary: every representable number, every midpoint, and their f32 neighbours.
template <class T>
void check_all_boundaries(Layout layout) {
  float const inf = std::numeric_limits<float>::infinity();
  for (std::uint32_t bits = 0; bits < layout.infinity(); ++bits) {
    double const low = decode(layout, bits);
    double const high = bits + 1 == layout.infinity() ? std::ldexp(1.0, layout.bias() + 1) : decode(layout, bits + 1);
    for (double const place : {low, (low + high) / 2}) {
      auto const x = static_cast<float>(place);
      if (static_cast<double>(x) != place && !(bits == 0 || layout.exponent_bits == 8)) FAIL("midpoint not exact");
      for (float const value : {x, std::nextafter(x, inf), std::nextafter(x, -inf)}) {
        check_encoding<T>(layout, value);
        check_encoding<T>(layout, -value);
      }
    }
  }
  for (float const value : {inf, std::numeric_limits<float>::max(), 65504.f, 65519.99f, 65520.f, 65536.f, 0.f}) {
    check_encoding<T>(layout, value);
    check_encoding<T>(layout, -value);
  }
  SUCCEED();
}

template <class T>
void check_random_encodings(Layout layout) {
  std::mt19937 random(7);
  for (int k = 0; k < 3'000'000; ++k) {
    auto const value = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    if (!std::isnan(value)) check_encoding<T>(layout, value);
  }
  SUCCEED();
}

/// Number -> f32 -> number changes nothing, except that a signalling NaN becomes quiet.
template <class T>
void check_round_trip(Layout layout) {
  std::uint32_t const quiet = 1u << (layout.mantissa_bits - 1);
  for (std::uint32_t bits = 0; bits < 0x10000u; ++bits) {
    T number;
    number.bits = static_cast<std::uint16_t>(bits);
    std::uint32_t const back = T(static_cast<float>(number)).bits;
    if (back != (layout.is_nan(bits) ? bits | quiet : bits)) FAIL(bits << " came back as " << back);
  }
  SUCCEED();
}

template <class T>
void check_nan(Layout layout) {
  // payloads that live in the low bits only would become infinity if they were cut off
  for (std::uint32_t const payload : {1u, 0xfffu, 0x1fffu, 0xffffu, 0x10000u, 0x3fffffu, 0x400000u, 0x7fffffu})
    for (std::uint32_t const sign : {0u, 0x80000000u}) {
      std::uint32_t const bits = T(std::bit_cast<float>(sign | 0x7f800000u | payload)).bits;
      CHECK(layout.is_nan(bits));
      CHECK((bits & (1u << (layout.mantissa_bits - 1))) != 0);  // quiet
      CHECK((bits >> 15) == (sign >> 31));
    }
}

TEST_CASE("all 65536 values of f16 mean the number they should") { check_all_decodings<f16>(half); }
TEST_CASE("all 65536 values of bf16 mean the number they should") { check_all_decodings<bf16>(brain); }
TEST_CASE("f16 rounds to nearest even at every boundary") { check_all_boundaries<f16>(half); }
TEST_CASE("bf16 rounds to nearest even at every boundary") { check_all_boundaries<bf16>(brain); }
TEST_CASE("random f32 bit patterns convert to f16 as the reference says") { check_random_encodings<f16>(half); }
TEST_CASE("random f32 bit patterns convert to bf16 as the reference says") { check_random_encodings<bf16>(brain); }
TEST_CASE("f16 survives the way through f32") { check_round_trip<f16>(half); }
TEST_CASE("bf16 survives the way through f32") { check_round_trip<bf16>(brain); }
TEST_CASE("a NaN stays a NaN in f16 and becomes quiet") { check_nan<f16>(half); }
TEST_CASE("a NaN stays a NaN in bf16 and becomes quiet") { check_nan<bf16>(brain); }

TEST_CASE("well-known values") {
  CHECK(f16(1.f).bits == 0x3c00);
  CHECK(f16(65504.f).bits == 0x7bff);
  CHECK(f16(-2.f).bits == 0xc000);
  CHECK(f16(5.9604645e-8f).bits == 0x0001);
  CHECK(bf16(1.f).bits == 0x3f80);
  CHECK(bf16(1.0035f).bits == 0x3f80);  // why adapter coefficients are kept as c - 1
  CHECK(bf16(3.14159265f).bits == 0x4049);
}

TEST_CASE("arithmetic on a type happens in f32, on double in double") {
  STATIC_REQUIRE(std::is_same_v<graft::real_of<f16>, float>);
  STATIC_REQUIRE(std::is_same_v<graft::real_of<bf16>, float>);
  STATIC_REQUIRE(std::is_same_v<graft::real_of<float>, float>);
  STATIC_REQUIRE(std::is_same_v<graft::real_of<double>, double>);
  STATIC_REQUIRE(sizeof(f16) == 2);
  STATIC_REQUIRE(sizeof(bf16) == 2);
  STATIC_REQUIRE_FALSE(graft::Scalar<int>);
}

}  // namespace
