// SPDX-License-Identifier: Apache-2.0
// One vector register of the instruction set the user compiles for, as a GCC/Clang vector type.
#pragma once

#include <graft/core/types.hpp>

#include <cstring>

namespace graft::cpu {

#if defined(__AVX512F__)
inline constexpr int register_bytes = 64;
inline constexpr int register_count = 32;
#elif defined(__AVX__)
inline constexpr int register_bytes = 32;
inline constexpr int register_count = 16;
#else
inline constexpr int register_bytes = 16;
inline constexpr int register_count = 16;
#endif

template <class R>
struct LanesOf;
template <>
struct LanesOf<float> {
  typedef float type __attribute__((vector_size(register_bytes)));
};
template <>
struct LanesOf<double> {
  typedef double type __attribute__((vector_size(register_bytes)));
};
template <class R>
using Lanes = typename LanesOf<R>::type;
template <class R>
inline constexpr index_t lane_count = register_bytes / static_cast<index_t>(sizeof(R));

template <class R>
[[gnu::always_inline]] inline Lanes<R> load(R const* from) {
  Lanes<R> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

/// The sum of all lanes, halves first: one order, everywhere.
template <class R>
[[gnu::always_inline]] inline R sum(Lanes<R> v) {
  R part[lane_count<R>];
  std::memcpy(part, &v, sizeof v);
  for (index_t half = lane_count<R> / 2; half > 0; half /= 2)
    for (index_t k = 0; k < half; ++k) part[k] += part[k + half];
  return part[0];
}

/// out[m * N + n] = sum_k x[m][k] w[n][k], k a multiple of the lane count.
/// Every one of the M x N sums uses its own accumulator in the same order, so a row's result does not depend on
/// which rows stand beside it.
template <int M, int N, class R>
[[gnu::always_inline]] inline void dot_tile(R const* const* x, R const* const* w, index_t count, R* out) {
  Lanes<R> acc[M][N] = {};
  for (index_t k = 0; k < count; k += lane_count<R>) {
    Lanes<R> wv[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) wv[n] = load(w[n] + k);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      Lanes<R> const xv = load(x[m] + k);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) acc[m][n] += xv * wv[n];
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) out[m * N + n] = sum<R>(acc[m][n]);
}

}  // namespace graft::cpu
