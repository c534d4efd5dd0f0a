// SPDX-License-Identifier: Apache-2.0
// What training does to rows besides computing: they are cleared, converted, added up, and some elements dropped.
#pragma once

#include <graft/backend/cpu/cpu_backend.hpp>
#include <graft/backend/dropout.hpp>

#include <algorithm>
#include <cstdint>
#include <span>

namespace graft {

/// x = 0
template <class Act, class T>
void clear(CpuBackend<Act>&, MatrixView<T> x) {
  for (index_t n = 0; n < x.rows; ++n) std::fill_n(x.row(n), x.cols, T{0});
}
template <class Act, class T>
void clear(CpuBackend<Act>&, VectorView<T> x) {
  std::fill(x.begin(), x.end(), T{0});
}

/// to = from, in another type of numbers. [n, d]
template <class Act, class From, class To>
void convert(CpuBackend<Act>& be, MatrixView<From const> from, MatrixView<To> to) {
  be.executor().run(from.rows, [&](index_t n) {
    for (index_t j = 0; j < from.cols; ++j) to(n, j) = static_cast<To>(from(n, j));
  });
}
/// The listed rows alone.
template <class Act, class From, class To>
void convert(CpuBackend<Act>&, std::span<std::int32_t const> rows, MatrixView<From const> from, MatrixView<To> to) {
  for (auto const n : rows)
    for (index_t j = 0; j < from.cols; ++j) to(n, j) = static_cast<To>(from(n, j));
}

/// to += weight from. [n, d], of any types of numbers
template <class Act, class From, class To>
void accumulate(CpuBackend<Act>& be, typename CpuBackend<Act>::Real weight, MatrixView<From const> from,
                MatrixView<To> to) {
  using R = typename CpuBackend<Act>::Real;
  be.executor().run(to.rows, [&](index_t n) {
    for (index_t j = 0; j < to.cols; ++j)
      to(n, j) = static_cast<To>(static_cast<R>(to(n, j)) + weight * static_cast<R>(from(n, j)));
  });
}
template <class Act, class R>
void accumulate(CpuBackend<Act>&, typename CpuBackend<Act>::Real weight, VectorView<R const> from, VectorView<R> to) {
  for (index_t j = 0; j < to.size; ++j) to[j] += weight * from[j];
}

/// Elements of x [n, d] become 0 with their row's rate, else are divided by 1 - rate (see dropout.hpp). rates, keys [n]
template <class Act>
void drop(CpuBackend<Act>& be, double const* rates, std::uint64_t const* keys, index_t site, MatrixView<Act> x) {
  be.executor().run(x.rows, [&](index_t n) {
    double const rate = rates[n];
    if (rate <= 0) return;
    Act const scale = static_cast<Act>(1 / (1 - rate));
    std::uint64_t const row = dropout_row(keys[n], site);
    for (index_t j = 0; j < x.cols; ++j) x(n, j) = drops(row, j, rate) ? Act{0} : x(n, j) * scale;
  });
}

}  // namespace graft
