// SPDX-License-Identifier: Apache-2.0
// How the values of each weight format lie in memory: one struct per format with its decoder and its quantiser.
//
// A stored row is a sequence of blocks, each `block` values in `bytes` bytes. The layouts are those of ggml (GGUF).
// Every decoder's products are exact in float (a half has 11 significant bits, scales and quants at most 13 more), so
// each value is rounded once at most and comes out the same with and without fused multiply-add, on every machine.
#pragma once

#include <graft/config.hpp>
#include <graft/core/scalar.hpp>
#include <graft/core/types.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace graft {

namespace detail {

/// Reads a T from memory of any alignment: tensors of a mapped file lie where the file puts them.
template <class T>
GRAFT_HOST_DEVICE inline T load(const std::byte* from) {
  T value;
  memcpy(&value, from, sizeof(T));
  return value;
}
template <class T>
GRAFT_HOST_DEVICE inline void store(std::byte* to, T value) {
  memcpy(to, &value, sizeof(T));
}
GRAFT_HOST_DEVICE inline float load_half(const std::byte* from) { return static_cast<float>(load<f16>(from)); }
GRAFT_HOST_DEVICE inline const std::uint8_t* bytes_at(const std::byte* from) {
  return reinterpret_cast<const std::uint8_t*>(from);
}

/// Plain numbers: a block of one.
template <class Stored>
struct PlainBlock {
  static constexpr index_t block = 1, bytes = sizeof(Stored);

  template <class T>
  GRAFT_HOST_DEVICE static void decode(const std::byte* from, T* to) {
    if constexpr (sizeof(Stored) == 2) {
      *to = static_cast<T>(static_cast<float>(load<Stored>(from)));
    } else {
      *to = static_cast<T>(load<Stored>(from));
    }
  }
  static void encode(const float* from, std::byte* to) { store(to, static_cast<Stored>(*from)); }
};

/// Scale and minimum number k of 8, six bits each, from the 12 bytes that open a Q4_K or Q5_K block after d and dmin.
struct ScaleMin {
  std::uint8_t scale, min;
};
GRAFT_HOST_DEVICE inline ScaleMin scale_min(const std::uint8_t* packed, int k) {
  if (k < 4) return {static_cast<std::uint8_t>(packed[k] & 63), static_cast<std::uint8_t>(packed[k + 4] & 63)};
  return {static_cast<std::uint8_t>((packed[k + 4] & 15) | ((packed[k - 4] >> 6) << 4)),
          static_cast<std::uint8_t>((packed[k + 4] >> 4) | ((packed[k] >> 6) << 4))};
}

}  // namespace detail

struct F32 : detail::PlainBlock<float> {};
struct F64 : detail::PlainBlock<double> {};
struct F16 : detail::PlainBlock<f16> {};
struct BF16 : detail::PlainBlock<bf16> {};

/// half d; int8 q[32]: y = d q.
struct Q8_0 {
  static constexpr index_t block = 32, bytes = 34;

  template <class T>
  GRAFT_HOST_DEVICE static void decode(const std::byte* from, T* __restrict to) {
    float const d = detail::load_half(from);
    auto const* const q = detail::bytes_at(from + 2);
    for (int k = 0; k < 32; ++k) to[k] = static_cast<T>(d * static_cast<float>(static_cast<std::int8_t>(q[k])));
  }
  static void encode(const float* from, std::byte* to);
};

/// half d; u8 q[16]: y = d (q - 8); the low nibbles are values 0..15, the high ones 16..31, as in all 32-value formats.
struct Q4_0 {
  static constexpr index_t block = 32, bytes = 18;

  template <class T>
  GRAFT_HOST_DEVICE static void decode(const std::byte* from, T* __restrict to) {
    float const d = detail::load_half(from);
    auto const* const q = detail::bytes_at(from + 2);
    for (int k = 0; k < 16; ++k) {
      to[k] = static_cast<T>(d * static_cast<float>((q[k] & 15) - 8));
      to[k + 16] = static_cast<T>(d * static_cast<float>((q[k] >> 4) - 8));
    }
  }
  static void encode(const float* from, std::byte* to);
};

/// half d, m; u8 q[16]: y = d q + m.
struct Q4_1 {
  static constexpr index_t block = 32, bytes = 20;

  template <class T>
  GRAFT_HOST_DEVICE static void decode(const std::byte* from, T* __restrict to) {
    float const d = detail::load_half(from), m = detail::load_half(from + 2);
    auto const* const q = detail::bytes_at(from + 4);
    for (int k = 0; k < 16; ++k) {
      to[k] = static_cast<T>(d * static_cast<float>(q[k] & 15) + m);
      to[k + 16] = static_cast<T>(d * static_cast<float>(q[k] >> 4) + m);
    }
  }
  static void encode(const float* from, std::byte* to);
};

/// half d; u32 fifth bits, value k in bit k; u8 q[16]: y = d (q - 16).
struct Q5_0 {
  static constexpr index_t block = 32, bytes = 22;

  template <class T>
  GRAFT_HOST_DEVICE static void decode(const std::byte* from, T* __restrict to) {
    float const d = detail::load_half(from);
    auto const high = detail::load<std::uint32_t>(from + 2);
    auto const* const q = detail::bytes_at(from + 6);
    for (int k = 0; k < 16; ++k) {
      int const low = static_cast<int>((q[k] & 15u) | (((high >> k) & 1u) << 4));
      int const up = static_cast<int>((q[k] >> 4) | (((high >> (k + 16)) & 1u) << 4));
      to[k] = static_cast<T>(d * static_cast<float>(low - 16));
      to[k + 16] = static_cast<T>(d * static_cast<float>(up - 16));
    }
  }
  static void encode(const float* from, std::byte* to);
};

/// half d, m; u32 fifth bits; u8 q[16]: y = d q + m.
struct Q5_1 {
  static constexpr index_t block = 32, bytes = 24;

  template <class T>
  GRAFT_HOST_DEVICE static void decode(const std::byte* from, T* __restrict to) {
    float const d = detail::load_half(from), m = detail::load_half(from + 2);
    auto const high = detail::load<std::uint32_t>(from + 4);
    auto const* const q = detail::bytes_at(from + 8);
    for (int k = 0; k < 16; ++k) {
      int const low = static_cast<int>((q[k] & 15u) | (((high >> k) & 1u) << 4));
      int const up = static_cast<int>((q[k] >> 4) | (((high >> (k + 16)) & 1u) << 4));
      to[k] = static_cast<T>(d * static_cast<float>(low) + m);
      to[k + 16] = static_cast<T>(d * static_cast<float>(up) + m);
    }
  }
  static void encode(const float* from, std::byte* to);
};

/// half d, dmin; 8 six-bit scales s and minima m in 12 bytes; u8 q[128]: y = (d s) q - dmin m, per sub-block of 32.
/// Each 32 bytes of q hold two sub-blocks, the first in the low nibbles.
struct Q4_K {
  static constexpr index_t block = 256, bytes = 144;

  template <class T>
  GRAFT_HOST_DEVICE static void decode(const std::byte* from, T* __restrict to) {
    float const d = detail::load_half(from), d_min = detail::load_half(from + 2);
    auto const* const scales = detail::bytes_at(from + 4);
    for (int pair = 0; pair < 4; ++pair) {
      auto const* const q = detail::bytes_at(from + 16 + 32 * pair);
      auto const first = detail::scale_min(scales, 2 * pair), second = detail::scale_min(scales, 2 * pair + 1);
      float const d1 = d * static_cast<float>(first.scale), m1 = d_min * static_cast<float>(first.min);
      float const d2 = d * static_cast<float>(second.scale), m2 = d_min * static_cast<float>(second.min);
      T* __restrict const y = to + 64 * pair;
      for (int k = 0; k < 32; ++k) y[k] = static_cast<T>(d1 * static_cast<float>(q[k] & 15) - m1);
      for (int k = 0; k < 32; ++k) y[k + 32] = static_cast<T>(d2 * static_cast<float>(q[k] >> 4) - m2);
    }
  }
  static void encode(const float* from, std::byte* to);
};

/// As Q4_K with u8 fifth[32] before q: bit s of fifth[k] belongs to value k of sub-block s.
struct Q5_K {
  static constexpr index_t block = 256, bytes = 176;

  template <class T>
  GRAFT_HOST_DEVICE static void decode(const std::byte* from, T* __restrict to) {
    float const d = detail::load_half(from), d_min = detail::load_half(from + 2);
    auto const* const scales = detail::bytes_at(from + 4);
    auto const* const fifth = detail::bytes_at(from + 16);
    for (int pair = 0; pair < 4; ++pair) {
      auto const* const q = detail::bytes_at(from + 48 + 32 * pair);
      auto const first = detail::scale_min(scales, 2 * pair), second = detail::scale_min(scales, 2 * pair + 1);
      float const d1 = d * static_cast<float>(first.scale), m1 = d_min * static_cast<float>(first.min);
      float const d2 = d * static_cast<float>(second.scale), m2 = d_min * static_cast<float>(second.min);
      T* __restrict const y = to + 64 * pair;
      for (int k = 0; k < 32; ++k) {
        int const value = (q[k] & 15) | (((fifth[k] >> (2 * pair)) & 1) << 4);
        y[k] = static_cast<T>(d1 * static_cast<float>(value) - m1);
      }
      for (int k = 0; k < 32; ++k) {
        int const value = (q[k] >> 4) | (((fifth[k] >> (2 * pair + 1)) & 1) << 4);
        y[k + 32] = static_cast<T>(d2 * static_cast<float>(value) - m2);
      }
    }
  }
  static void encode(const float* from, std::byte* to);
};

/// u8 low[128], high[64]; int8 s[16]; half d: y = (d s) (q - 32), per sub-block of 16. Each half of 128 values takes 64
/// bytes of low (nibbles) and 32 of high (bit pairs): value k + 32 g has its pair at bits 2g of high[k].
struct Q6_K {
  static constexpr index_t block = 256, bytes = 210;

  /// Values [32 part, 32 part + 32).
  template <class T>
  GRAFT_HOST_DEVICE static void decode_part(const std::byte* from, int part, T* __restrict to) {
    float const d = detail::load_half(from + 208);
    int const half = part / 4, group = part % 4;
    auto const* const low = detail::bytes_at(from + 64 * half + 32 * (group & 1));
    auto const* const high = detail::bytes_at(from + 128 + 32 * half);
    auto const* const scales = detail::bytes_at(from + 192 + 8 * half + 2 * group);
    int const nibble = group < 2 ? 0 : 4, pair = 2 * group;
    for (int sub = 0; sub < 2; ++sub) {
      float const scale = d * static_cast<float>(static_cast<std::int8_t>(scales[sub]));
      T* __restrict const y = to + 16 * sub;
      for (int k = 0; k < 16; ++k) {
        int const at = 16 * sub + k;
        int const value = ((low[at] >> nibble) & 15) | (((high[at] >> pair) & 3) << 4);
        y[k] = static_cast<T>(scale * static_cast<float>(value - 32));
      }
    }
  }
  template <class T>
  GRAFT_HOST_DEVICE static void decode(const std::byte* from, T* __restrict to) {
    for (int part = 0; part < 8; ++part) decode_part(from, part, to + 32 * part);
  }
  static void encode(const float* from, std::byte* to);
};

}  // namespace graft
