// SPDX-License-Identifier: Apache-2.0
// What training does to rows besides computing, on the device: they are cleared, converted, added up, and some elements
// dropped.
#pragma once

#include <graft/backend/cuda/elementwise.cuh>
#include <graft/backend/dropout.hpp>

#include <cstdint>
#include <span>

namespace graft {
namespace cuda {

template <class T>
struct Clear {
  static constexpr int columns = 8;
  MatrixView<T, DeviceSpace> x;
  bool whole;

  __device__ void operator()(index_t row, index_t first) const {
    float const zeros[columns] = {};
    store_columns(zeros, first, x.cols, whole, x.row(row));
  }
};

/// The same of the listed rows, each of which stands once.
template <class From, class To>
struct ConvertListed {
  static constexpr int columns = 8;
  std::int32_t const* rows;
  MatrixView<From const, DeviceSpace> from;
  MatrixView<To, DeviceSpace> to;
  bool whole;

  __device__ void operator()(index_t k, index_t first) const {
    float v[columns];
    load_columns(from.row(rows[k]), first, to.cols, whole, v);
    store_columns(v, first, to.cols, whole, to.row(rows[k]));
  }
};

/// to += weight from
template <class From, class To>
struct Accumulate {
  static constexpr int columns = 8;
  float weight;
  MatrixView<From const, DeviceSpace> from;
  MatrixView<To, DeviceSpace> to;
  bool whole;

  __device__ void operator()(index_t row, index_t first) const {
    float v[columns];
    load_columns(from.row(row), first, to.cols, whole, v);
    for (float& each : v) each *= weight;
    add_columns(v, first, to.cols, whole, to.row(row));
  }
};

template <class Act>
struct Drop {
  static constexpr int columns = 8;
  double const* rates;
  std::uint64_t const* keys;
  index_t site;
  MatrixView<Act, DeviceSpace> x;
  bool whole;

  __device__ void operator()(index_t n, index_t first) const {
    double const rate = rates[n];
    if (rate <= 0) return;
    auto const scale = static_cast<float>(1 / (1 - rate));
    std::uint64_t const row = dropout_row(keys[n], site);
    float v[columns];
    load_columns(x.row(n), first, x.cols, whole, v);
    for (int k = 0; k < columns; ++k) v[k] = drops(row, first + k, rate) ? 0.f : v[k] * scale;
    store_columns(v, first, x.cols, whole, x.row(n));
  }
};

}  // namespace cuda

/// x = 0. Elements may be f32, bf16 or f16.
template <class Act, class T>
void clear(CudaBackend<Act>& be, MatrixView<T, DeviceSpace> x) {
  if (!x.empty()) cuda::for_chunks(be, cuda::Clear<T>{x, cuda::aligned16(x)}, x.rows, x.cols);
}
template <class Act, class T>
void clear(CudaBackend<Act>& be, VectorView<T, DeviceSpace> x) {
  clear(be, matrix_view<DeviceSpace>(x.data, 1, x.size));
}

/// to = from, in another type of numbers: the listed rows alone; `rows` names device memory.
template <class Act, class From, class To>
void convert(CudaBackend<Act>& be, std::span<std::int32_t const> rows, MatrixView<From const, DeviceSpace> from,
             MatrixView<To, DeviceSpace> to) {
  bool const whole = cuda::aligned16(from) && cuda::aligned16(to);
  cuda::for_chunks(be, cuda::ConvertListed<From, To>{rows.data(), from, to, whole}, static_cast<index_t>(rows.size()),
                   to.cols);
}

/// to += weight from. [n, d]; elements may be f32, bf16 or f16.
template <class Act, class From, class To>
void accumulate(CudaBackend<Act>& be, float weight, MatrixView<From const, DeviceSpace> from,
                MatrixView<To, DeviceSpace> to) {
  bool const whole = cuda::aligned16(from) && cuda::aligned16(to);
  cuda::for_chunks(be, cuda::Accumulate<From, To>{weight, from, to, whole}, to.rows, to.cols);
}
template <class Act, class T>
void accumulate(CudaBackend<Act>& be, float weight, VectorView<T const, DeviceSpace> from,
                VectorView<T, DeviceSpace> to) {
  accumulate(be, weight, matrix_view<DeviceSpace>(from.data, 1, to.size),
             matrix_view<DeviceSpace>(to.data, 1, to.size));
}

/// Elements of x [n, d] become 0 with their row's rate, else are divided by 1 - rate (see dropout.hpp). rates, keys [n]
/// in device memory.
template <class Act>
void drop(CudaBackend<Act>& be, double const* rates, std::uint64_t const* keys, index_t site,
          MatrixView<Act, DeviceSpace> x) {
  cuda::for_chunks(be, cuda::Drop<Act>{rates, keys, site, x, cuda::aligned16(x)}, x.rows, x.cols);
}

}  // namespace graft
