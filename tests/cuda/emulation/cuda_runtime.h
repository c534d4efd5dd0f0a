// SPDX-License-Identifier: Apache-2.0
// CUDA's programming model on the CPU, for tests on machines without a GPU: found before the Toolkit's header of this
// name, it compiles .cuh files with g++ -DGRAFT_CUDA_EMULATION and runs their kernels.
//
// It shows whether a kernel computes the right thing, needs a barrier it does not have, reaches a barrier with some of
// its threads only, writes around its memory, reads memory nobody wrote, loads more than an address is aligned to, or
// is handed a pointer to host memory. It says nothing about speed. What it cannot show: races between blocks, too many
// registers or too much static shared memory, and sums that nvcc contracts.
#pragma once

#if !defined(GRAFT_CUDA_EMULATION)
#error "graft: tests/cuda/emulation/cuda_runtime.h is for tests compiled with GRAFT_CUDA_EMULATION"
#endif

#include <math.h>
#include <tests/cuda/emulation/library_types.h>
#include <tests/cuda/emulation/device.hpp>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <tuple>
#include <type_traits>

#define CUDART_VERSION 13000
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static thread_local  // so that all of them lie where poison_shared_variables finds them
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

// ---- errors

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidMemcpyDirection = 21,
  cudaErrorNoDevice = 100,
  cudaErrorNotReady = 600,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchFailure = 719,
  cudaErrorNotSupported = 801,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureInvalidated = 901,
  cudaErrorStreamCaptureUnjoined = 904,
  cudaErrorStreamCaptureIsolation = 905,
};

inline char const* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidMemcpyDirection:
      return "cudaErrorInvalidMemcpyDirection";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorNotSupported:
      return "cudaErrorNotSupported";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated:
      return "cudaErrorStreamCaptureInvalidated";
    case cudaErrorStreamCaptureUnjoined:
      return "cudaErrorStreamCaptureUnjoined";
    case cudaErrorStreamCaptureIsolation:
      return "cudaErrorStreamCaptureIsolation";
  }
  return "unknown";
}
/// For a failed kernel: what the emulation found, in a sentence.
inline char const* cudaGetErrorString(cudaError_t error) {
  static std::string sentence;
  sentence = error == cudaErrorLaunchFailure ? emulation::Device::get().told() : cudaGetErrorName(error);
  return sentence.c_str();
}
inline cudaError_t cudaPeekAtLastError() {
  return emulation::Device::get().error().empty() ? cudaSuccess : cudaErrorLaunchFailure;
}
inline cudaError_t cudaGetLastError() {
  cudaError_t const error = cudaPeekAtLastError();
  emulation::Device::get().forget_error();
  return error;
}

// ---- devices

enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrWarpSize = 10,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = emulation::Device::get().properties.devices;
  return *count > 0 ? cudaSuccess : cudaErrorNoDevice;
}
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidValue; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int /*device*/) {
  auto const& properties = emulation::Device::get().properties;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      return *value = 1024, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return *value = properties.shared_bytes, cudaSuccess;
    case cudaDevAttrWarpSize:
      return *value = 32, cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      return *value = properties.multiprocessors, cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      return *value = properties.compute_major, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = properties.compute_minor, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = properties.shared_bytes_optin, cudaSuccess;
  }
  return cudaErrorInvalidValue;
}
inline cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  return *free = *total = std::size_t{1} << 33, cudaSuccess;
}

// ---- streams, events, graphs

using cudaStream_t = emulation::Stream*;
using cudaEvent_t = emulation::Event*;
using cudaGraph_t = emulation::Graph*;
using cudaGraphExec_t = emulation::Graph*;
inline constexpr unsigned cudaStreamDefault = 0, cudaStreamNonBlocking = 1;
inline constexpr unsigned cudaEventDefault = 0, cudaEventBlockingSync = 1, cudaEventDisableTiming = 2;
enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal = 0,
  cudaStreamCaptureModeThreadLocal = 1,
  cudaStreamCaptureModeRelaxed = 2
};

namespace emulation {
/// Before the host waits or allocates: not allowed while a stream is captured, which is then lost.
inline cudaError_t not_in_capture() {
  if (!Device::get().capturing()) return cudaSuccess;
  Device::get().break_captures();
  return cudaErrorStreamCaptureUnsupported;
}
}  // namespace emulation

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  *stream = emulation::Device::get().create((flags & cudaStreamNonBlocking) == 0);
  return cudaSuccess;
}
inline cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, 0); }
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  emulation::Device::get().destroy(stream);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (auto const error = emulation::not_in_capture()) return error;
  auto& device = emulation::Device::get();
  ++device.synchronizations;
  device.drain(device.stream(stream));
  return cudaGetLastError();
}
inline cudaError_t cudaStreamQuery(cudaStream_t stream) {
  if (auto const error = emulation::not_in_capture()) return error;
  return emulation::Device::get().stream(stream).queue.empty() ? cudaSuccess : cudaErrorNotReady;
}
inline cudaError_t cudaDeviceSynchronize() {
  if (auto const error = emulation::not_in_capture()) return error;
  ++emulation::Device::get().synchronizations;
  emulation::Device::get().drain_all();
  return cudaGetLastError();
}

inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned /*flags*/) {
  return *event = new emulation::Event, cudaSuccess;
}
inline cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr) {
  auto& on = emulation::Device::get().stream(stream);
  event->capture = on.capture;
  event->last = on.last;
  if (on.capture != nullptr) return cudaSuccess;
  auto ticket = std::make_shared<emulation::Ticket>();
  ticket->stream = &emulation::Device::get().stream(stream);
  event->ticket = ticket;
  emulation::Device::get().enqueue(stream, [ticket] {
    ticket->done = true;
    ticket->time = std::chrono::steady_clock::now();
    return std::string();
  });
  return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (auto const error = emulation::not_in_capture()) return error;
  ++emulation::Device::get().synchronizations;
  ++emulation::Device::get().event_synchronizations;
  if (event->ticket != nullptr) emulation::Device::get().wait(*event->ticket);
  return cudaGetLastError();
}
inline cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (auto const error = emulation::not_in_capture()) return error;
  return event->ticket == nullptr || event->ticket->done ? cudaSuccess : cudaErrorNotReady;
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned /*flags*/ = 0) {
  auto& on = emulation::Device::get().stream(stream);
  if (event->capture != nullptr) {  // a fork, or a join
    if (on.capture == nullptr) {
      on.capture = event->capture;
      on.capture->forked.push_back(&on);
    }
    if (on.capture != event->capture) return cudaErrorStreamCaptureIsolation;
    for (std::size_t const node : event->last)
      if (std::find(on.last.begin(), on.last.end(), node) == on.last.end()) on.last.push_back(node);
    return cudaSuccess;
  }
  if (on.capture != nullptr) return cudaErrorStreamCaptureIsolation;
  if (event->ticket != nullptr)
    emulation::Device::get().enqueue(stream, [ticket = event->ticket] {
      emulation::Device::get().wait(*ticket);
      return std::string();
    });
  return cudaSuccess;
}
/// Of the emulation's own time; no measure of anything.
inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  if (!start->ticket || !end->ticket || !start->ticket->done || !end->ticket->done) return cudaErrorNotReady;
  *milliseconds = std::chrono::duration<float, std::milli>(end->ticket->time - start->ticket->time).count();
  return cudaSuccess;
}

inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode /*mode*/) {
  if (stream == nullptr || stream->capture != nullptr) return cudaErrorInvalidValue;
  emulation::Device::get().drain(*stream);
  stream->capture = new emulation::Graph;
  stream->last.clear();
  return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (stream == nullptr || stream->capture == nullptr) return cudaErrorInvalidValue;
  *graph = std::exchange(stream->capture, nullptr);
  for (auto* const forked : (*graph)->forked) {
    forked->capture = nullptr;
    forked->last.clear();
  }
  bool const broken = (*graph)->broken;
  if ((*graph)->joined(std::exchange(stream->last, {})) && !broken) return cudaSuccess;
  delete std::exchange(*graph, nullptr);
  return broken ? cudaErrorStreamCaptureInvalidated : cudaErrorStreamCaptureUnjoined;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                        unsigned long long /*flags*/ = 0) {
  ++emulation::Device::get().calls.recorded;
  return *executable = new emulation::Graph(*graph), cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  ++emulation::Device::get().calls.graphs;
  emulation::Device::get().enqueue(stream, [nodes = executable->nodes] {  // it may be destroyed before it has run
    return emulation::Device::get().run_nodes(nodes);
  });
  return cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}

// ---- memory

enum cudaMemcpyKind {
  cudaMemcpyHostToHost = 0,
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDeviceToDevice = 3,
  cudaMemcpyDefault = 4
};

inline cudaError_t cudaMalloc(void** data, std::size_t bytes) {
  if (auto const error = emulation::not_in_capture()) return error;
  *data = bytes == 0 ? nullptr : emulation::Memory::get().allocate(bytes);
  return bytes != 0 && *data == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
template <class T>
cudaError_t cudaMalloc(T** data, std::size_t bytes) {
  return cudaMalloc(reinterpret_cast<void**>(data), bytes);
}
inline cudaError_t cudaFree(void* data) {
  if (data == nullptr) return cudaSuccess;
  if (auto const error = emulation::not_in_capture()) return error;
  emulation::Device::get().drain_all();
  emulation::Device::get().fail(emulation::Memory::get().free(data));
  return cudaGetLastError();
}
inline constexpr unsigned cudaHostAllocDefault = 0;
inline cudaError_t cudaHostAlloc(void** data, std::size_t bytes, unsigned /*flags*/) {
  if (auto const error = emulation::not_in_capture()) return error;
  if (posix_memalign(data, 4096, std::max<std::size_t>(bytes, 1)) != 0) return cudaErrorMemoryAllocation;
  std::memset(*data, emulation::poison_byte, bytes);
  emulation::Device::get().pinned[static_cast<std::byte const*>(*data)] = bytes;
  ++emulation::Device::get().pinned_allocations;
  return cudaSuccess;
}
inline cudaError_t cudaMallocHost(void** data, std::size_t bytes) { return cudaHostAlloc(data, bytes, 0); }
inline cudaError_t cudaFreeHost(void* data) {
  if (data == nullptr) return cudaSuccess;
  if (auto const error = emulation::not_in_capture()) return error;
  emulation::Device::get().drain_all();
  if (emulation::Device::get().pinned.erase(static_cast<std::byte const*>(data)) == 0) return cudaErrorInvalidValue;
  free(data);
  return cudaGetLastError();
}

namespace emulation {
/// "" or why these bytes cannot be copied this way.
inline std::string copy_error(void const* to, void const* from, std::size_t bytes, cudaMemcpyKind kind) {
  auto const& memory = Memory::get();
  bool const to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  bool const from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  for (auto const& [data, expected] : {std::pair{to, to_device}, {from, from_device}}) {
    if (kind != cudaMemcpyDefault && memory.is_device(data) != expected)
      return std::string("a copy's kind says ") + (expected ? "device" : "host") + " where the memory is " +
             (expected ? "the host's" : "the device's");
    if (memory.is_device(data) && !memory.holds(data, bytes))
      return "a copy of " + std::to_string(bytes) + " bytes reaches outside its allocation";
  }
  return {};
}
}  // namespace emulation

/// Pageable memory of the host is read at once, as the real call does; pinned memory whenever the stream comes to it.
inline cudaError_t cudaMemcpyAsync(void* to, void const* from, std::size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t stream = nullptr) {
  if (bytes == 0) return cudaSuccess;
  auto& device = emulation::Device::get();
  if (auto error = emulation::copy_error(to, from, bytes, kind); !error.empty()) {
    device.fail(error);
    return cudaErrorLaunchFailure;
  }
  auto const pageable = [&](void const* data) {
    return !emulation::Memory::get().is_device(data) && !device.is_pinned(data);
  };
  bool const captured = device.stream(stream).capture != nullptr;
  device.calls.copies += !captured;
  if (captured && (pageable(from) || pageable(to))) {
    device.fail("a copy from or to pageable memory is captured, which would be read or written when the graph runs");
    device.break_captures();
    return cudaErrorStreamCaptureUnsupported;
  }
  if (pageable(from)) {
    std::vector<std::byte> staged(static_cast<std::byte const*>(from), static_cast<std::byte const*>(from) + bytes);
    device.enqueue(stream, [to, bytes, staged = std::move(staged)] {
      std::memcpy(to, staged.data(), bytes);
      return std::string();
    });
  } else {
    device.enqueue(stream, [to, from, bytes] {
      std::memcpy(to, from, bytes);
      return std::string();
    });
    if (pageable(to)) device.drain(device.stream(stream));
  }
  return cudaPeekAtLastError();
}
inline cudaError_t cudaMemcpy(void* to, void const* from, std::size_t bytes, cudaMemcpyKind kind) {
  if (auto const error = emulation::not_in_capture()) return error;
  cudaError_t const error = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
  if (error != cudaSuccess) return cudaGetLastError(), error;
  return cudaStreamSynchronize(nullptr);
}
inline cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream = nullptr) {
  if (bytes == 0) return cudaSuccess;
  if (!emulation::Memory::get().holds(to, bytes)) {
    emulation::Device::get().fail("cudaMemset outside the device's allocations");
    return cudaErrorLaunchFailure;
  }
  emulation::Device::get().enqueue(stream, [to, value, bytes] {
    std::memset(to, value, bytes);
    return std::string();
  });
  return cudaSuccess;
}
inline cudaError_t cudaMemset(void* to, int value, std::size_t bytes) {
  if (auto const error = emulation::not_in_capture()) return error;
  return cudaMemsetAsync(to, value, bytes);
}

// ---- kernels

enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9
};
template <class F>
cudaError_t cudaFuncSetAttribute(F* kernel, cudaFuncAttribute attribute, int value) {
  auto& device = emulation::Device::get();
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value > device.properties.shared_bytes_optin) return cudaErrorInvalidValue;
    device.shared_limit[reinterpret_cast<void const*>(kernel)] = value;
  }
  return cudaSuccess;
}
struct cudaFuncAttributes {
  std::size_t sharedSizeBytes;
  int maxThreadsPerBlock, numRegs, ptxVersion, binaryVersion;
};
template <class F>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, F* /*kernel*/) {
  auto const& properties = emulation::Device::get().properties;
  int const version = 10 * properties.compute_major + properties.compute_minor;
  return *attributes = {0, 1024, 32, version, version}, cudaSuccess;
}
template <class F>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, F* /*kernel*/, int /*threads*/,
                                                          std::size_t /*shared_bytes*/) {
  return *blocks = 2, cudaSuccess;
}

struct cudaLaunchAttribute {
  int id;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(cudaLaunchConfig_t const* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  auto& device = emulation::Device::get();
  dim3 const grid = config->gridDim, block = config->blockDim;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 ||
      block.x * block.y * block.z == 0 || block.x * block.y * block.z > 1024 || block.z > 64)
    return cudaErrorInvalidConfiguration;
  auto const allowed = device.shared_limit.find(reinterpret_cast<void const*>(kernel));
  int const limit =
      std::max(device.properties.shared_bytes, allowed != device.shared_limit.end() ? allowed->second : 0);
  if (config->dynamicSmemBytes > static_cast<std::size_t>(limit)) return cudaErrorInvalidValue;
  if (config->numAttrs != 0) return cudaErrorNotSupported;
  std::tuple<std::decay_t<Parameters>...> const values(std::forward<Arguments>(arguments)...);
  auto const on_host = []([[maybe_unused]] auto value) {
#if __has_builtin(__builtin_clear_padding)  // what lies between members is whatever the stack held
    __builtin_clear_padding(&value);
    return emulation::Memory::get().host_address_in(&value, sizeof value) != nullptr;
#else
    return false;
#endif
  };
  if (std::apply([&](auto const&... each) { return (on_host(each) || ...); }, values)) {
    device.fail("a kernel is given a pointer to host memory");
    return cudaErrorLaunchFailure;
  }
  device.calls.kernels += device.stream(config->stream).capture == nullptr;
  device.enqueue(config->stream, [grid, block, bytes = config->dynamicSmemBytes, kernel, values] {
    return emulation::Device::get().run_grid(grid, block, bytes, [&] { std::apply(kernel, values); });
  });
  return cudaPeekAtLastError();
}

#include <tests/cuda/emulation/device_functions.hpp>
