// SPDX-License-Identifier: Apache-2.0
// Memory of the device for tests: filled from the host, NaN at first, read back. The same on a GPU and in the
// emulation, which besides finds what is written around an allocation.
#pragma once

#include <graft/backend/cuda/runtime.cuh>
#include <graft/core/view.hpp>
#include <graft/testing/buffer.hpp>

#include <cmath>
#include <span>
#include <utility>
#include <vector>

namespace graft_test {

using graft::index_t;

/// Plain data on the device: an array, or a matrix whose rows lie apart as those of the Buffer it came from.
template <class T>
class DeviceArray {
 public:
  /// Every byte 0xff: NaN in f64, f32, bf16 and f16, -1 in integers.
  explicit DeviceArray(index_t size) : size_(size) {
    if (size == 0) return;
    void* memory = nullptr;
    graft::cuda::check(cudaMalloc(&memory, bytes()), "cudaMalloc");
    data_ = static_cast<T*>(memory);
    graft::cuda::check(cudaMemset(data_, 0xff, bytes()), "cudaMemset");
    graft::cuda::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }
  explicit DeviceArray(std::span<T const> host) : DeviceArray(static_cast<index_t>(host.size())) {
    if (size_ == 0) return;
    graft::cuda::check(cudaMemcpy(data_, host.data(), bytes(), cudaMemcpyHostToDevice), "cudaMemcpy");
    // from pageable memory it may return with the copy still on its way, and other streams do not wait for it
    graft::cuda::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }
  explicit DeviceArray(std::vector<T> const& host) : DeviceArray(std::span<T const>(host)) {}
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(DeviceArray&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    std::swap(data_, other.data_), std::swap(size_, other.size_);
    return *this;
  }

  T* data() const { return data_; }
  index_t size() const { return size_; }
  graft::VectorView<T const, graft::DeviceSpace> view() const { return {data_, size_}; }
  graft::VectorView<T, graft::DeviceSpace> mutable_view() const { return {data_, size_}; }

  /// What is there when all work on the device is done.
  std::vector<T> host() const {
    std::vector<T> values(static_cast<std::size_t>(size_));
    read(values.data());
    return values;
  }
  void read(T* to) const {
    graft::cuda::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    if (size_ != 0) graft::cuda::check(cudaMemcpy(to, data_, bytes(), cudaMemcpyDeviceToHost), "cudaMemcpy");
  }

 private:
  std::size_t bytes() const { return static_cast<std::size_t>(size_) * sizeof(T); }
  T* data_ = nullptr;
  index_t size_ = 0;
};

/// A Buffer on the device, the gaps between its rows included.
template <class T>
class DeviceBuffer {
  using Buffer = graft::testing::Buffer<T>;

 public:
  explicit DeviceBuffer(Buffer const& host) : shape_(host), memory_(all_of(host)) {}
  /// NaN, between gaps that nobody may touch.
  DeviceBuffer(index_t rows, index_t cols, index_t gap = 0) : DeviceBuffer(poisoned(rows, cols, gap)) {}

  graft::MatrixView<T, graft::DeviceSpace> view() const {
    auto const host = shape_.view();
    return {memory_.data(), host.rows, host.cols, host.stride};
  }
  graft::MatrixView<T const, graft::DeviceSpace> const_view() const { return view(); }

  /// What is there when all work on the device is done.
  Buffer host() const {
    Buffer result = shape_;
    memory_.read(result.row(0));
    return result;
  }

 private:
  static std::span<T const> all_of(Buffer const& host) {
    return {host.row(0), static_cast<std::size_t>(host.view().rows * host.view().stride)};
  }
  static Buffer poisoned(index_t rows, index_t cols, index_t gap) {
    Buffer result(rows, cols, gap);
    for (index_t r = 0; r < rows; ++r)
      for (index_t c = 0; c < cols; ++c) result.row(r)[c] = static_cast<T>(std::nanf(""));
    return result;
  }

  Buffer shape_;
  DeviceArray<T> memory_;
};

/// Waits for the device; "" or what the emulation found wrong besides results.
inline std::string finish() {
#if defined(GRAFT_CUDA_EMULATION)
  return emulation::finish();
#else
  cudaError_t const error = cudaDeviceSynchronize();
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
#endif
}

}  // namespace graft_test
