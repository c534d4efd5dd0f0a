// SPDX-License-Identifier: Apache-2.0
// Readback on the device: a copy into pinned memory, and an event behind it.
#pragma once

#include <graft/backend/cuda/cuda_backend.cuh>
#include <graft/backend/readback.hpp>

namespace graft {

template <class T, class Act>
class Readback<T, CudaBackend<Act>> {
 public:
  Readback() { cuda::check(cudaEventCreateWithFlags(&there_, cudaEventDisableTiming), "cudaEventCreateWithFlags"); }
  /// Waits for a copy that is on its way.
  ~Readback() {
    cudaEventSynchronize(there_);
    cudaEventDestroy(there_);
  }
  Readback(Readback const&) = delete;
  Readback& operator=(Readback const&) = delete;

  /// Memory is taken only where there are more than ever before. What was put before must have been got.
  void put(CudaBackend<Act>& be, T const* from, index_t count) {
    if (count > room_) {
      room_ = 0;
      values_ = cuda::pinned_array<T>(static_cast<std::size_t>(count));
      room_ = count;
    }
    cuda::check(cudaMemcpyAsync(values_.get(), from, static_cast<std::size_t>(count) * sizeof(T),
                                cudaMemcpyDeviceToHost, be.stream()),
                "cudaMemcpyAsync");
    cuda::check(cudaEventRecord(there_, be.stream()), "cudaEventRecord");
  }
  T const* get(CudaBackend<Act>&) {
    cuda::check(cudaEventSynchronize(there_), "cudaEventSynchronize");
    return values_.get();
  }

 private:
  cudaEvent_t there_ = nullptr;
  cuda::PinnedArray<T> values_;
  index_t room_ = 0;
};

}  // namespace graft
