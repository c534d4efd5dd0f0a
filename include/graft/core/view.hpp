// SPDX-License-Identifier: Apache-2.0
// Non-owning views over memory that belongs to somebody else; the memory space is part of the type.
#pragma once

#include <graft/config.hpp>
#include <graft/core/types.hpp>

#include <type_traits>

namespace graft {

template <class T, MemorySpace S = HostSpace>
struct VectorView {
  using Element = T;
  using Space = S;
  T* data = nullptr;
  index_t size = 0;

  GRAFT_HOST_DEVICE constexpr T& operator[](index_t k) const { return data[k]; }
  GRAFT_HOST_DEVICE constexpr bool empty() const { return size == 0; }
  GRAFT_HOST_DEVICE constexpr T* begin() const { return data; }
  GRAFT_HOST_DEVICE constexpr T* end() const { return data + size; }
  GRAFT_HOST_DEVICE constexpr VectorView part(index_t first, index_t count) const { return {data + first, count}; }
  template <class U>
  requires(!std::is_const_v<T> && std::same_as<U, T const>)  // mutable to read-only, never back
      GRAFT_HOST_DEVICE constexpr
      operator VectorView<U, S>() const {
    return {data, size};
  }
};

/// Row-major matrix: element (r, c) lives at data[r * stride + c].
template <class T, MemorySpace S = HostSpace>
struct MatrixView {
  using Element = T;
  using Space = S;
  T* data = nullptr;
  index_t rows = 0, cols = 0, stride = 0;

  GRAFT_HOST_DEVICE constexpr T& operator()(index_t r, index_t c) const { return data[r * stride + c]; }
  GRAFT_HOST_DEVICE constexpr T* row(index_t r) const { return data + r * stride; }
  GRAFT_HOST_DEVICE constexpr bool empty() const { return rows == 0 || cols == 0; }
  GRAFT_HOST_DEVICE constexpr index_t size() const { return rows * cols; }
  GRAFT_HOST_DEVICE constexpr MatrixView row_range(index_t first, index_t count) const {
    return {data + first * stride, count, cols, stride};
  }
  GRAFT_HOST_DEVICE constexpr MatrixView col_range(index_t first, index_t count) const {
    return {data + first, rows, count, stride};
  }
  template <class U>
  requires(!std::is_const_v<T> && std::same_as<U, T const>) GRAFT_HOST_DEVICE constexpr operator MatrixView<U, S>()
      const {
    return {data, rows, cols, stride};
  }
};

/// View of `rows` x `cols` elements whose rows lie `stride` elements apart (contiguous when left out).
template <MemorySpace S = HostSpace, class T>
constexpr MatrixView<T, S> matrix_view(T* data, index_t rows, index_t cols, index_t stride = 0) {
  return {data, rows, cols, stride == 0 ? cols : stride};
}
template <MemorySpace S = HostSpace, class T>
constexpr VectorView<T, S> vector_view(T* data, index_t size) {
  return {data, size};
}

}  // namespace graft
