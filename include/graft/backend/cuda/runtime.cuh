// SPDX-License-Identifier: Apache-2.0
// What every kernel and every operation of the CUDA backend is written with: checked calls, launches, reductions,
// 16-byte loads and stores, device memory for arenas.
#pragma once

#if !defined(__CUDACC__) && !defined(GRAFT_CUDA_EMULATION)
#error "graft: the headers of the CUDA backend (.cuh) need nvcc: compile this file as CUDA, with the target graft::cuda"
#endif

#include <graft/core/arena.hpp>
#include <graft/core/error.hpp>
#include <graft/core/scalar.hpp>
#include <graft/core/types.hpp>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <bit>
#include <cstddef>
#include <mutex>
#include <string>
#include <utility>

namespace graft {
namespace cuda {

/// CudaError "<call>: <name> (<text>)" unless the call succeeded.
inline void check(cudaError_t error, char const* call) {
  if (error == cudaSuccess) return;
  std::string const sentence = text(call, ": ", cudaGetErrorName(error), " (", cudaGetErrorString(error), ")");
  cudaGetLastError();  // not to be found by whoever asks next
  raise<CudaError>(sentence);
}

/// Held while a stream is recorded, and by what waits for the whole device or takes and gives back its memory: from any
/// thread, the driver refuses the one during the other.
inline std::recursive_mutex& whole_device() {
  static std::recursive_mutex mutex;
  return mutex;
}

// ---- launches

/// A grid of blocks. y and z are at most 65535.
inline dim3 grid_of(index_t x, index_t y = 1, index_t z = 1) {
  expects(x < (index_t{1} << 31) && y < 65536 && z < 65536, "graft: a CUDA grid of ", x, " x ", y, " x ", z, " blocks");
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z));
}

/// Starts kernel(arguments...) on the stream; nothing where the grid is empty. CudaError when the launch is refused.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t stream,
            Arguments&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  // More than 48 KiB must be asked for, a kernel's own __shared__ arrays counted: none here has more than 16 KiB of
  // those besides dynamic ones.
  if (shared_bytes > (std::size_t{32} << 10))
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
          "cudaFuncSetAttribute");
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), "cudaLaunchKernelEx");
}

/// The block's dynamic shared memory, aligned to 16 bytes; one piece, whatever T it is asked as.
template <class T>
__device__ inline T* dynamic_shared() {
#if defined(GRAFT_CUDA_EMULATION)
  return reinterpret_cast<T*>(emulation::Device::get().dynamic_shared());
#else
  extern __shared__ __align__(16) unsigned char graft_dynamic_shared[];
  return reinterpret_cast<T*>(graft_dynamic_shared);
#endif
}

// ---- reductions: fixed trees, so that the same numbers give the same bits; every thread gets the result

/// Over `lanes` neighbours, a power of two, of a full warp.
template <int lanes>
__device__ inline float lanes_sum(float x) {
#pragma unroll
  for (int distance = lanes / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}
/// Over the 32 lanes of a full warp.
__device__ inline float warp_sum(float x) { return lanes_sum<32>(x); }
__device__ inline float warp_max(float x) {
  for (int distance = 16; distance > 0; distance /= 2) {
    float const other = __shfl_xor_sync(0xffffffffu, x, distance);
    x = x > other ? x : other;
  }
  return x;
}

/// Over all threads of a one-dimensional block of whole warps.
__device__ inline float block_sum(float x) {
  __shared__ float partial[32];
  unsigned const lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  x = warp_sum(x);
  if (blockDim.x == 32) return x;
  __syncthreads();  // the reduction before this one has been read
  if (lane == 0) partial[warp] = x;
  __syncthreads();
  return warp_sum(lane < blockDim.x / 32 ? partial[lane] : 0.f);
}
__device__ inline float block_max(float x) {
  __shared__ float partial[32];
  unsigned const lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  x = warp_max(x);
  if (blockDim.x == 32) return x;
  __syncthreads();
  if (lane == 0) partial[warp] = x;
  __syncthreads();
  return warp_max(lane < blockDim.x / 32 ? partial[lane] : partial[0]);
}

/// Over all threads of a block of total_threads, in double.
inline constexpr int total_threads = 256;
__device__ inline double block_total(double x) {
  __shared__ double partial[total_threads];
  __syncthreads();  // the total before this one has been read
  partial[threadIdx.x] = x;
  for (unsigned half = total_threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
  }
  __syncthreads();
  return partial[0];
}

// ---- numbers

/// Activations as floats and back, rounded to nearest even.
__device__ inline float to_real(float x) { return x; }
__device__ inline float to_real(bf16 x) { return static_cast<float>(x); }  // a shift
__device__ inline float to_real(f16 x) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(x.bits));
#else
  return static_cast<float>(x);
#endif
}

template <class T>
__device__ inline T from_real(float x) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, bf16>) {
    bf16 result;
    result.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
    return result;
  } else if constexpr (std::is_same_v<T, f16>) {
    f16 result;
    result.bits = __half_as_ushort(__float2half_rn(x));
    return result;
  } else {
    return static_cast<T>(x);
  }
#else
  return static_cast<T>(x);
#endif
}

// ---- 16-byte accesses

/// N consecutive elements that are loaded and stored at once.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  static constexpr int size = N;
  T value[N];
};

/// As many elements as 16 bytes hold.
template <class T>
inline constexpr int pack_size = 16 / static_cast<int>(sizeof(T));

/// `at` as the address of a P, whose alignment it must have: a GPU faults where a CPU does not care.
template <class P, class T>
__device__ inline P* aligned_as(T* at) {
#if defined(GRAFT_CUDA_EMULATION)
  emulation::check_alignment(at, alignof(P));
#endif
  return reinterpret_cast<P*>(at);
}
/// `at` is a multiple of the pack's size in bytes.
template <int N, class T>
__device__ inline Pack<T, N> load_pack(T const* at) {
  return *aligned_as<Pack<T, N> const>(at);
}
/// The same to global memory. 8 and 16 bytes are named as the one store they are: of a pack's elements, nvcc leaves
/// some apart where it moves their arithmetic between them.
template <int N, class T>
__device__ inline void store_pack(T* at, Pack<T, N> const& pack) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(pack) == 16)
    __stwb(aligned_as<uint4>(at), std::bit_cast<uint4>(pack));
  else if constexpr (sizeof(pack) == 8)
    __stwb(aligned_as<uint2>(at), std::bit_cast<uint2>(pack));
  else
#endif
    *aligned_as<Pack<T, N>>(at) = pack;
}

}  // namespace cuda

template <>
struct Memory<DeviceSpace> {
  static constexpr std::size_t alignment = 256;                       // what cudaMalloc gives
  static constexpr std::size_t minimum_block = std::size_t{2} << 20;  // the driver's unit

  static void* allocate(std::size_t bytes) {
    std::lock_guard const lock(cuda::whole_device());
    void* data = nullptr;
    cudaError_t const error = cudaMalloc(&data, bytes);
    if (error != cudaSuccess) cuda::check(error, text("cudaMalloc of ", bytes, " bytes").c_str());
    return data;
  }
  static void* try_allocate(std::size_t bytes) noexcept {
    std::lock_guard const lock(cuda::whole_device());
    void* data = nullptr;
    if (cudaMalloc(&data, bytes) == cudaSuccess) return data;
    cudaGetLastError();
    return nullptr;
  }
  /// Waits for all work on the device. Errors are those of earlier work and will be met again there.
  static void free(void* data) noexcept {
    std::lock_guard const lock(cuda::whole_device());
    cudaFree(data);
  }

  // All wait for the device before and after, because work on streams of their own would not wait for them.
  static void copy_from_host(void* to, void const* from, std::size_t bytes) {
    copy(to, from, bytes, cudaMemcpyHostToDevice);
  }
  static void copy_within(void* to, void const* from, std::size_t bytes) {
    copy(to, from, bytes, cudaMemcpyDeviceToDevice);
  }
  static void clear(void* to, std::size_t bytes) {
    std::lock_guard const lock(cuda::whole_device());
    cuda::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    cuda::check(cudaMemset(to, 0, bytes), "cudaMemset");
    cuda::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }

 private:
  static void copy(void* to, void const* from, std::size_t bytes, cudaMemcpyKind kind) {
    std::lock_guard const lock(cuda::whole_device());
    cuda::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    cuda::check(cudaMemcpy(to, from, bytes, kind), "cudaMemcpy");
    cuda::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }
};

}  // namespace graft
