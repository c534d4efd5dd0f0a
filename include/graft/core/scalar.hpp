// SPDX-License-Identifier: Apache-2.0
// The number types tensors are made of: f64, f32 and the two 16-bit formats as plain storage structs.
#pragma once

#include <graft/config.hpp>

#include <bit>
#include <concepts>
#include <cstdint>

namespace graft {

/// Whether x is a number, and whether it is NaN, told by its bits: with -ffast-math the compiler answers std::isfinite
/// and std::isnan without a look. By reference, because it may also take arguments to be finite.
inline bool is_finite(double const& x) {
  return (std::bit_cast<std::uint64_t>(x) & 0x7fffffffffffffffu) < 0x7ff0000000000000u;
}
inline bool is_nan(double const& x) {
  return (std::bit_cast<std::uint64_t>(x) & 0x7fffffffffffffffu) > 0x7ff0000000000000u;
}

/// bfloat16: the upper half of an f32. Conversion rounds to nearest even and keeps NaN quiet.
struct bf16 {
  std::uint16_t bits = 0;

  bf16() = default;
  GRAFT_HOST_DEVICE explicit bf16(float value) {
    auto const u = std::bit_cast<std::uint32_t>(value);
    bits = (u & 0x7fffffffu) > 0x7f800000u ? static_cast<std::uint16_t>((u >> 16) | 0x40u)
                                           : static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
  GRAFT_HOST_DEVICE explicit operator float() const {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
  }
};

/// IEEE 754 half precision, subnormals included; conversion rounds to nearest even.
struct f16 {
  std::uint16_t bits = 0;

  f16() = default;
  GRAFT_HOST_DEVICE explicit f16(float value) {
    auto const u = std::bit_cast<std::uint32_t>(value);
    std::uint32_t const sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {  // NaN
      bits = static_cast<std::uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x1ffu));
    } else if (magnitude >= 0x47800000u) {  // 65536 and above; 65520 and above round up to it below
      bits = static_cast<std::uint16_t>(sign | 0x7c00u);
    } else if (magnitude < 0x38800000u) {  // subnormal half: adding 0.5 puts the result's bits at the bottom
      float const shifted = std::bit_cast<float>(magnitude) + 0.5f;
      bits = static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3f000000u));
    } else {
      bits = static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13));
    }
  }
  GRAFT_HOST_DEVICE explicit operator float() const {
    std::uint32_t const sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
    std::uint32_t const rest = static_cast<std::uint32_t>(bits & 0x7fffu) << 13;
    // 2^112 moves the exponent's bias from 15 to 127, subnormals included; no branch, so that loops vectorise
    auto const scaled = std::bit_cast<std::uint32_t>(std::bit_cast<float>(rest) * std::bit_cast<float>(0x77800000u));
    std::uint32_t const special = (bits & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
    return std::bit_cast<float>(sign | scaled | special);
  }
};

template <class T>
concept Scalar = std::same_as<T, float> || std::same_as<T, double> || std::same_as<T, bf16> || std::same_as<T, f16>;

/// The type arithmetic on T happens in: double for double, float for everything else.
template <Scalar T>
struct RealOf {
  using type = float;
};
template <>
struct RealOf<double> {
  using type = double;
};
template <Scalar T>
using real_of = typename RealOf<T>::type;

}  // namespace graft
