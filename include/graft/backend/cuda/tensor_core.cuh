// SPDX-License-Identifier: Apache-2.0
// What kernels use of tensor cores: products of small tiles by a warp, the loads that spread such tiles over its lanes,
// and copies into shared memory that nobody waits for. Layouts are those of PTX ISA 9.0, "mma.m16n8k16" and "ldmatrix".
#pragma once

#include <graft/backend/cuda/runtime.cuh>
#include <graft/core/scalar.hpp>

#include <bit>
#include <cstdint>

#if defined(GRAFT_CUDA_EMULATION)
#include <emulated_tiles.h>
#endif

namespace graft::cuda {

/// Compute capability, major * 10 + minor, from which on tiles of T are multiplied here.
template <class T>
inline constexpr int tensor_core_capability = 1000;  // none
template <>
inline constexpr int tensor_core_capability<f16> = 75;
template <>
inline constexpr int tensor_core_capability<bf16> = 80;

/// Two neighbours in one register, the first in the low half.
template <class T>
__device__ inline std::uint32_t pack2(float first, float second) {
  return from_real<T>(first).bits | static_cast<std::uint32_t>(from_real<T>(second).bits) << 16;
}

/// Products of the neighbours in two registers, summed.
template <class T>
__device__ inline float dot2(std::uint32_t a, std::uint32_t b) {
  auto const real = [](std::uint32_t bits) {
    T value;
    value.bits = static_cast<std::uint16_t>(bits);
    return to_real(value);
  };
  return real(a) * real(b) + real(a >> 16) * real(b >> 16);
}

/// d += a b^T for a [16, 16], b [8, 16] of T, d [16, 8] f32. With g = lane / 4 and t = lane % 4, the lane holds
///     d: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
///     a: pairs of columns from (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8)
///     b: pairs of columns from (g, 2t), (g, 2t + 8)
template <class T>
__device__ inline void multiply_add(float (&d)[4], std::uint32_t const (&a)[4], std::uint32_t const (&b)[2]) {
#if defined(GRAFT_CUDA_EMULATION)
  emulation::multiply_add<T>(d, a, b);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (std::same_as<T, bf16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif defined(__CUDA_ARCH__)
  if constexpr (std::same_as<T, f16>) {  // sm_75 has tiles of 8 columns
#pragma unroll
    for (int k = 0; k < 2; ++k)
      asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                   : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                   : "r"(a[2 * k]), "r"(a[2 * k + 1]), "r"(b[k]));
  }
#endif
}

/// Four 8 x 8 matrices of 16-bit elements from shared memory. Lanes 8k to 8k + 7 name the 16-byte rows of matrix k;
/// lane (g, t) gets elements (g, 2t) and (g, 2t + 1) of each, or of its transpose.
template <bool transposed, class T>
__device__ inline void load_matrices(std::uint32_t (&to)[4], T const* row) {
#if defined(GRAFT_CUDA_EMULATION)
  emulation::load_matrices<transposed>(to, row);
#elif defined(__CUDA_ARCH__)
  auto const address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
#endif
}

/// Starts the copy of 16 bytes from global to shared memory; copies are there after `wait_for_copies` and a barrier.
/// Before sm_80 the thread itself copies.
__device__ inline void copy16(void const* from, void* to) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
               :
               : "r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(to))), "l"(from)
               : "memory");
#else
  *aligned_as<uint4>(to) = *aligned_as<uint4 const>(from);
#endif
}
__device__ inline void wait_for_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" : : : "memory");
#endif
}

}  // namespace graft::cuda
