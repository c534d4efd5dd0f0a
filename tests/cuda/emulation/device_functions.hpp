// SPDX-License-Identifier: Apache-2.0
// What kernels call: barriers, exchanges within a warp, atomics and intrinsics.
#pragma once

#include <tests/cuda/emulation/block.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

using std::max;
using std::min;
inline long long min(long long a, int b) { return std::min<long long>(a, b); }
inline long long max(long long a, int b) { return std::max<long long>(a, b); }

namespace emulation {
inline void check_alignment(void const volatile* at, std::size_t alignment) {
  if (reinterpret_cast<std::uintptr_t>(at) % alignment != 0)
    Block::get().fail("an access of ", alignment, " bytes to an address that is not a multiple of them");
}
}  // namespace emulation

// ---- barriers

inline void __syncthreads(std::source_location where = std::source_location::current()) {
  emulation::Block::get().barrier(false, where);
}
inline int __syncthreads_count(int predicate, std::source_location where = std::source_location::current()) {
  return emulation::Block::get().barrier(predicate != 0, where);
}
inline int __syncthreads_or(int predicate, std::source_location where = std::source_location::current()) {
  return emulation::Block::get().barrier(predicate != 0, where) != 0;
}
inline int __syncthreads_and(int predicate, std::source_location where = std::source_location::current()) {
  return emulation::Block::get().barrier(predicate == 0, where) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, std::source_location where = std::source_location::current()) {
  emulation::Block::get().exchange(
      mask, nullptr, [](void* const*, unsigned) {}, where);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- exchanges within a warp

namespace emulation {

template <class T>
struct Shuffle {
  T value, result;
  int source;  // lane; outside the mask: an error
};

template <class T>
T shuffle(unsigned mask, T value, int source, std::source_location const& where) {
  Shuffle<T> own{value, value, source};
  if ((mask >> source & 1) == 0)
    Block::get().fail("a shuffle reads lane ", source, ", which is not in its mask, at ", where);
  Block::get().exchange(
      mask, &own,
      [](void* const* operands, unsigned lanes) {
        for (int k = 0; k < 32; ++k)
          if (lanes >> k & 1) {
            auto* const shuffle = static_cast<Shuffle<T>*>(operands[k]);
            shuffle->result = static_cast<Shuffle<T>*>(operands[shuffle->source])->value;
          }
      },
      where);
  return own.result;
}

inline int lane() {
  return static_cast<int>((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32);
}

struct Vote {
  bool predicate;
  unsigned result;
};
inline unsigned vote(unsigned mask, bool predicate, std::source_location const& where) {
  Vote own{predicate, 0};
  Block::get().exchange(
      mask, &own,
      [](void* const* operands, unsigned lanes) {
        unsigned result = 0;
        for (int k = 0; k < 32; ++k)
          if (lanes >> k & 1) result |= unsigned{static_cast<Vote*>(operands[k])->predicate} << k;
        for (int k = 0; k < 32; ++k)
          if (lanes >> k & 1) static_cast<Vote*>(operands[k])->result = result;
      },
      where);
  return own.result;
}

template <class T, class F>
T reduce(unsigned mask, T value, F /*f*/, std::source_location const& where) {
  Shuffle<T> own{value, value, 0};
  Block::get().exchange(
      mask, &own,
      [](void* const* operands, unsigned lanes) {
        T result{};
        bool first = true;
        for (int k = 0; k < 32; ++k)
          if (lanes >> k & 1) {
            T const next = static_cast<Shuffle<T>*>(operands[k])->value;
            result = first ? next : F{}(result, next);
            first = false;
          }
        for (int k = 0; k < 32; ++k)
          if (lanes >> k & 1) static_cast<Shuffle<T>*>(operands[k])->result = result;
      },
      where);
  return own.result;
}

}  // namespace emulation

#define GRAFT_HERE std::source_location where = std::source_location::current()
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, GRAFT_HERE) {
  int const lane = emulation::lane();
  return emulation::shuffle(mask, value, (lane & ~(width - 1)) | (source & (width - 1)), where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, GRAFT_HERE) {
  int const lane = emulation::lane(), source = lane ^ bits;
  return emulation::shuffle(mask, value, source / width > lane / width ? lane : source, where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, GRAFT_HERE) {
  int const lane = emulation::lane(), source = lane + static_cast<int>(delta);
  return emulation::shuffle(mask, value, source / width != lane / width ? lane : source, where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, GRAFT_HERE) {
  int const lane = emulation::lane(), source = lane - static_cast<int>(delta);
  return emulation::shuffle(mask, value, source < (lane & ~(width - 1)) ? lane : source, where);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, GRAFT_HERE) {
  return emulation::vote(mask, predicate != 0, where);
}
inline int __any_sync(unsigned mask, int predicate, GRAFT_HERE) {
  return emulation::vote(mask, predicate != 0, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, GRAFT_HERE) {
  return emulation::vote(mask, predicate == 0, where) == 0;
}
namespace emulation {
struct Add {
  template <class T>
  T operator()(T a, T b) const {
    return a + b;
  }
};
struct Min {
  template <class T>
  T operator()(T a, T b) const {
    return a < b ? a : b;
  }
};
struct Max {
  template <class T>
  T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};
}  // namespace emulation
template <class T>
requires std::is_integral_v<T> T __reduce_add_sync(unsigned mask, T value, GRAFT_HERE) {
  return emulation::reduce(mask, value, emulation::Add{}, where);
}
template <class T>
requires std::is_integral_v<T> T __reduce_min_sync(unsigned mask, T value, GRAFT_HERE) {
  return emulation::reduce(mask, value, emulation::Min{}, where);
}
template <class T>
requires std::is_integral_v<T> T __reduce_max_sync(unsigned mask, T value, GRAFT_HERE) {
  return emulation::reduce(mask, value, emulation::Max{}, where);
}
#undef GRAFT_HERE

// ---- atomics: one OS thread, so plain

template <class T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
  return std::exchange(*at, static_cast<T>(*at + value));
}
template <class T>
T atomicSub(T* at, std::type_identity_t<T> value) {
  return std::exchange(*at, static_cast<T>(*at - value));
}
template <class T>
T atomicMax(T* at, std::type_identity_t<T> value) {
  return std::exchange(*at, std::max(*at, value));
}
template <class T>
T atomicMin(T* at, std::type_identity_t<T> value) {
  return std::exchange(*at, std::min(*at, value));
}
template <class T>
T atomicExch(T* at, std::type_identity_t<T> value) {
  return std::exchange(*at, value);
}
template <class T>
T atomicOr(T* at, std::type_identity_t<T> value) {
  return std::exchange(*at, *at | value);
}
template <class T>
T atomicAnd(T* at, std::type_identity_t<T> value) {
  return std::exchange(*at, *at & value);
}
template <class T>
T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  T const old = *at;
  if (old == expected) *at = value;
  return old;
}
/// Counts up to `limit`, then starts again at 0.
inline unsigned atomicInc(unsigned* at, unsigned limit) { return std::exchange(*at, *at >= limit ? 0 : *at + 1); }

// ---- intrinsics

template <class T>
T __ldg(T const* at) {
  return *at;
}
template <class T>
T __ldcs(T const* at) {
  return *at;
}
template <class T>
T __ldcg(T const* at) {
  return *at;
}
template <class T>
void __stcs(T* at, std::type_identity_t<T> value) {
  *at = value;
}
template <class T>
void __stcg(T* at, std::type_identity_t<T> value) {
  *at = value;
}
#if !defined(__GLIBC_PREREQ) || !__GLIBC_PREREQ(2, 42)  // from there on the C library has it
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
#endif
inline float __frsqrt_rn(float x) { return 1 / std::sqrt(x); }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
inline unsigned __brev(unsigned x) {
  unsigned result = 0;
  for (int k = 0; k < 32; ++k) result |= (x >> k & 1) << (31 - k);
  return result;
}
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline int __mul24(int x, int y) { return x * y; }
inline unsigned __umulhi(unsigned x, unsigned y) {
  return static_cast<unsigned>(static_cast<unsigned long long>(x) * y >> 32);
}
/// Four bytes of the eight in (y, x), byte k chosen by nibble k of `selector`.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  unsigned long long const bytes = static_cast<unsigned long long>(y) << 32 | x;
  unsigned result = 0;
  for (int k = 0; k < 4; ++k) {
    unsigned const choice = selector >> (4 * k) & 15;
    unsigned byte = static_cast<unsigned>(bytes >> (8 * (choice & 7))) & 255;
    if (choice & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << (8 * k);
  }
  return result;
}
inline int __dp4a(int a, int b, int c) {
  for (int k = 0; k < 4; ++k) c += static_cast<std::int8_t>(a >> (8 * k)) * static_cast<std::int8_t>(b >> (8 * k));
  return c;
}
