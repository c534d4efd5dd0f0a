// SPDX-License-Identifier: Apache-2.0
// A backend and what a test puts into device memory for it.
#pragma once

#include <graft/backend/cuda/cuda_backend.cuh>
#include <graft/backend/low_rank.hpp>
#include <graft/backend/row_map.hpp>
#include <graft/testing/buffer.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/maps.hpp>
#include <graft/testing/random.hpp>
#include <graft/testing/reference.hpp>

#include <cstddef>
#include <vector>

namespace graft_test {

using namespace graft;
using namespace graft::testing;

/// Memory lives as long as the object.
template <class Act>
class Device {
 public:
  CudaBackend<Act> be;

  Device() = default;
  ~Device() {
    for (void* data : memory_) Memory<DeviceSpace>::free(data);
  }
  Device(Device const&) = delete;
  Device& operator=(Device const&) = delete;

  template <class T>
  T* allocate(index_t n) {
    memory_.push_back(Memory<DeviceSpace>::allocate(static_cast<std::size_t>(n > 0 ? n : 1) * sizeof(T)));
    return static_cast<T*>(memory_.back());
  }
  template <class T>
  T* put(T const* host, index_t n) {
    T* const data = allocate<T>(n);
    copy_to_device(be, host, data, n);
    return data;
  }
  /// Null where the vector is empty.
  template <class T>
  T* put(std::vector<T> const& host) {
    return host.empty() ? nullptr : put(host.data(), static_cast<index_t>(host.size()));
  }
  /// With the gaps between its rows.
  template <class T>
  MatrixView<T, DeviceSpace> put(Buffer<T> const& host) {
    auto const view = host.view();
    return {put(view.data, view.rows * view.stride), view.rows, view.cols, view.stride};
  }
  template <class T>
  Buffer<T> get(MatrixView<T, DeviceSpace> from) {
    Buffer<T> host(from.rows, from.cols, from.stride - from.cols);
    copy_to_host(be, static_cast<T const*>(from.data), host.view().data, from.rows * from.stride);
    return host;
  }
  template <class T>
  std::vector<T> get(T const* from, index_t n) {
    std::vector<T> host(static_cast<std::size_t>(n));
    copy_to_host(be, from, host.data(), n);
    return host;
  }

  /// A map and its successors in device memory.
  RowMapRow<float const> put(RowMapRow<float const> map) {
    auto const vector = [&](Numbers<float> const& v) -> Numbers<float> {
      if (v == nullptr) return nullptr;
      return v.moved_to(put(static_cast<std::byte const*>(v.data()), v.bytes(map.size)));
    };
    map.c1 = vector(map.c1), map.d = vector(map.d), map.e = vector(map.e);
    if (map.next != nullptr) {
      auto const next = put(*map.next);
      map.next = put(&next, 1);
    }
    return map;
  }
  /// Row n has map maps[n], at site 1 of its request's table; null: no map, and every second of those no table either.
  RowMapBatch<float> put_maps(std::vector<RowMapRow<float const> const*> const& maps) {
    std::vector<RowMapRow<float const> const*> tables;
    std::vector<std::int32_t> request;
    signed char present = 0;
    for (std::size_t n = 0; n < maps.size(); ++n) {
      bool const table = maps[n] != nullptr || n % 2 == 0;
      RowMapRow<float const> rows[2] = {};
      if (maps[n] != nullptr) rows[1] = put(*maps[n]), present = 1;
      tables.push_back(table ? put(rows, 2) : nullptr);
      request.push_back(n % 5 == 4 && maps[n] == nullptr ? -1 : static_cast<std::int32_t>(n));
    }
    return {put(tables), put(request), static_cast<index_t>(tables.size()), 1, present};
  }

 private:
  std::vector<void*> memory_;
};

/// Relative bound of a sum of n products in f32, whose terms are as large as the sum times `cancellation`: rounding
/// errors of a tree or of lanes add up like a random walk.
inline double sum_bound(index_t n, double cancellation = 4) {
  return cancellation * std::sqrt(static_cast<double>(n)) * unit_roundoff<float>();
}

}  // namespace graft_test
