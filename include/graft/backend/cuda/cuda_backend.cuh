// SPDX-License-Identifier: Apache-2.0
// The CUDA backend: a stream, an arena of device memory, a ring of pinned memory that uploads go through, and the dense
// products' cache. Its operations are in this folder. And copies between host and device.
#pragma once

#include <graft/backend/cuda/runtime.cuh>

#include <graft/backend/cuda/dense_products.cuh>
#include <graft/backend/cuda/graph.cuh>
#include <graft/core/arena.hpp>
#include <graft/core/executor.hpp>
#include <graft/core/view.hpp>

#include <cstring>
#include <memory>
#include <span>

namespace graft {
namespace cuda {

/// Host memory that copies to and from a device need not wait for. To take it and to give it back concerns the whole
/// device, and so keeps out of recordings.
struct GiveBackPinned {
  void operator()(void* memory) const {
    std::lock_guard const lock(whole_device());
    cudaFreeHost(memory);
  }
};
template <class T>
using PinnedArray = std::unique_ptr<T[], GiveBackPinned>;
template <class T>
PinnedArray<T> pinned_array(std::size_t count) {
  void* memory = nullptr;
  std::lock_guard const lock(whole_device());
  check(cudaHostAlloc(&memory, count * sizeof(T), cudaHostAllocDefault), "cudaHostAlloc");
  return PinnedArray<T>(static_cast<T*>(memory));
}

/// Pinned memory in four pieces that are used in turn. A piece is written again only when the copies out of it are
/// done, so that whoever fills it waits only when it is three pieces ahead of the device.
class UploadRing {
 public:
  explicit UploadRing(cudaStream_t stream) : stream_(stream) {
    for (auto& event : done_)
      check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  }
  ~UploadRing() {
    data_.reset();
    for (auto const event : done_) cudaEventDestroy(event);
  }
  UploadRing(UploadRing const&) = delete;
  UploadRing& operator=(UploadRing const&) = delete;

  /// Memory to fill now and to copy from, on the stream, before the next call.
  std::byte* take(std::size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    if (bytes > piece_bytes_) grow(bytes);
    if (used_ + bytes > piece_bytes_) {
      check(cudaEventRecord(done_[piece_], stream_), "cudaEventRecord");
      piece_ = (piece_ + 1) % pieces;
      check(cudaEventSynchronize(done_[piece_]), "cudaEventSynchronize");
      used_ = 0;
    }
    std::byte* const result = data_.get() + piece_ * piece_bytes_ + used_;
    used_ += bytes;
    return result;
  }

 private:
  static constexpr std::size_t pieces = 4, minimum_piece = std::size_t{256} << 10;

  void grow(std::size_t bytes) {
    check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    data_.reset();
    piece_bytes_ = 0;
    std::size_t const wanted = bytes > minimum_piece ? bytes : minimum_piece;
    data_ = pinned_array<std::byte>(pieces * wanted);
    piece_bytes_ = wanted;
    piece_ = used_ = 0;
  }

  cudaStream_t stream_;
  cudaEvent_t done_[pieces] = {};
  PinnedArray<std::byte> data_;
  std::size_t piece_bytes_ = 0, piece_ = 0, used_ = 0;
};

/// CudaError unless there is a GPU: any other call would say so too, in words that few understand.
inline void require_gpu() {
  int count = 0;
  cudaError_t const error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return;
  cudaGetLastError();  // not to be found by whoever asks next
  raise<CudaError>("there is no GPU to compute on: CUDA ", CUDART_VERSION / 1000, ".", CUDART_VERSION % 1000 / 10,
                   " needs an NVIDIA GPU and a driver that is not older (cudaGetDeviceCount: ", cudaGetErrorName(error),
                   ")");
}

/// A stream of one's own, or somebody else's.
class StreamOwner {
 public:
  explicit StreamOwner(cudaStream_t foreign) : stream_(foreign), own_(foreign == nullptr) {
    require_gpu();
    if (own_) check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  }
  ~StreamOwner() {
    if (own_) cudaStreamDestroy(stream_);
  }
  StreamOwner(StreamOwner const&) = delete;
  StreamOwner& operator=(StreamOwner const&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_;
  bool own_;
};

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

template <class>
__global__ void no_work() {}

/// What __CUDA_ARCH__ / 10 was when the kernels that run on the current GPU were compiled: less than the GPU's own
/// compute capability where the program has no code for just this one. CudaError where it has none that runs there.
inline int code_capability() {
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, no_work<void>), "cudaFuncGetAttributes");
  return attributes.ptxVersion;
}

}  // namespace cuda

/// Computes on the current NVIDIA GPU; one object per calling thread and stream. `Act` is the type of activations:
/// float, bf16 or f16. Parameters and sums are float. Every operation is put on the stream and returns at once; what
/// waits says so.
template <class Act_ = bf16>
class CudaBackend {
  static_assert(std::same_as<Act_, float> || std::same_as<Act_, bf16> || std::same_as<Act_, f16>,
                "graft: CudaBackend's activations are float, bf16 or f16");

 public:
  using Space = DeviceSpace;
  using Act = Act_;
  using Real = float;

  /// Works on `stream`, which must outlive the backend; on a stream of its own where none is given.
  explicit CudaBackend(cudaStream_t stream = nullptr)
      : stream_(stream),
        ring_(stream_.get()),
        sm_count_(cuda::device_attribute(cudaDevAttrMultiProcessorCount)),
        capability_(cuda::code_capability()) {}
  CudaBackend(CudaBackend const&) = delete;
  CudaBackend& operator=(CudaBackend const&) = delete;
  /// Waits: memory that goes with the backend may still be in use.
  ~CudaBackend() { cudaStreamSynchronize(stream_.get()); }

  cudaStream_t stream() const { return stream_.get(); }
  /// Waits until all that was put on the stream is done. CudaError if any of it failed.
  void synchronize() { cuda::check(cudaStreamSynchronize(stream()), "cudaStreamSynchronize"); }

  /// Operations recorded once and done many times.
  using Graph = cuda::Graph;
  /// Records what put() asks of this backend, which is not done. put() must find the arena grown and every shape of a
  /// product met before: what was done once with the same scope and sizes can be recorded.
  template <class F>
  Graph record(F&& put) {
    if (branch_ == nullptr) branch_ = std::make_unique<cuda::Branch>();
    recording_ = true;
    struct Done {
      bool& recording;
      ~Done() { recording = false; }
    } const done{recording_};
    return Graph(stream(), std::forward<F>(put));
  }
  /// Puts all of it on the stream, with one call.
  void launch(Graph const& graph) { graph.launch(stream()); }
  /// main(), and side(stream), which does not need what main() writes, nor main() what it writes: at the same time
  /// where they are recorded. Otherwise one after the other, because telling streams to wait costs as much as small
  /// kernels.
  template <class Side, class Main>
  void beside(Side&& side, Main&& main) {
    if (recording_) branch_->fork(stream());
    side(recording_ ? branch_->stream() : stream());
    main();
    if (recording_) branch_->join(stream());
  }

  BasicArena<DeviceSpace>& arena() { return arena_; }
  /// What is taken from the arena from now on is given back when the scope ends. Later work on the stream may reuse it.
  ArenaScope<DeviceSpace> scope() { return ArenaScope(arena_); }
  /// Runs the few things that are done on the host: on the calling thread.
  Executor& executor() { return executor_; }

  /// Multiprocessors of the GPU.
  int sm_count() const { return sm_count_; }
  /// The compute capability that kernels here were compiled for, 90 for sm_90: what they can do, whatever more the GPU
  /// could.
  int capability() const { return capability_; }
  cuda::UploadRing& upload_ring() { return ring_; }
  cuda::DenseProducts& dense_products() { return dense_products_; }

 private:
  cuda::StreamOwner stream_;
  BasicArena<DeviceSpace> arena_;
  cuda::UploadRing ring_;
  cuda::DenseProducts dense_products_;
  SerialExecutor executor_;
  std::unique_ptr<cuda::Branch> branch_;
  bool recording_ = false;
  int sm_count_, capability_;
};

template <class T>
inline constexpr bool is_cuda_backend = false;
template <class Act>
inline constexpr bool is_cuda_backend<CudaBackend<Act>> = true;

/// host[0, n) to the device. The host's memory may be reused at once; the copy is done in the stream's order.
template <class Act, class T>
void copy_to_device(CudaBackend<Act>& be, T const* host, T* device, index_t n) {
  static_assert(std::is_trivially_copyable_v<T>, "graft: only plain data is copied to a device");
  if (n == 0) return;
  std::size_t const bytes = static_cast<std::size_t>(n) * sizeof(T);
  // large copies gain nothing from the ring, which would grow to hold them
  if (bytes > (std::size_t{16} << 20)) {
    cuda::check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, be.stream()), "cudaMemcpyAsync");
    return be.synchronize();
  }
  std::byte* const pinned = be.upload_ring().take(bytes);
  std::memcpy(pinned, host, bytes);
  cuda::check(cudaMemcpyAsync(device, pinned, bytes, cudaMemcpyHostToDevice, be.stream()), "cudaMemcpyAsync");
}

/// device[0, n) to the host. Waits until it is there.
template <class Act, class T>
void copy_to_host(CudaBackend<Act>& be, T const* device, T* host, index_t n) {
  static_assert(std::is_trivially_copyable_v<T>, "graft: only plain data is copied from a device");
  if (n == 0) return;
  cuda::check(
      cudaMemcpyAsync(host, device, static_cast<std::size_t>(n) * sizeof(T), cudaMemcpyDeviceToHost, be.stream()),
      "cudaMemcpyAsync");
  be.synchronize();
}

/// A copy of `host` in the arena, for as long as the enclosing scope; null where it is empty. The host's memory may be
/// reused at once.
template <class Act, class T>
T const* upload(CudaBackend<Act>& be, std::span<T const> host) {
  if (host.empty()) return nullptr;
  T* const device = be.arena().template allocate<T>(static_cast<index_t>(host.size()));
  copy_to_device(be, host.data(), device, static_cast<index_t>(host.size()));
  return device;
}

}  // namespace graft
