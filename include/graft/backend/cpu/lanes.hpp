// SPDX-License-Identifier: Apache-2.0
// One vector register of the instruction set the user compiles for, as a GCC/Clang vector type.
#pragma once

#include <graft/config.hpp>
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

/// Keeps a loaded value in its register; GCC otherwise folds the load into each product and reads memory M times.
template <class V>
[[gnu::always_inline]] inline void keep(V& v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
}

/// The sum of all lanes, halves first: one order, everywhere. Shuffles, because a trip through memory would cost more
/// than the products of a short row.
template <class V>
[[gnu::always_inline]] inline auto sum(V v) {
  constexpr int lanes = sizeof(v) / sizeof(v[0]);
  if constexpr (lanes == 16) {
    return sum(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
               __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
  } else if constexpr (lanes == 8) {
    return sum(__builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7));
  } else if constexpr (lanes == 4) {
    return sum(__builtin_shufflevector(v, v, 0, 1) + __builtin_shufflevector(v, v, 2, 3));
  } else {
    return v[0] + v[1];
  }
}

/// out[m * N + n] = sum_k x[m][k] w[n][k], k a multiple of the lane count.
/// Every one of the M x N sums uses its own accumulator in the same order, so a row's result does not depend on
/// which rows stand beside it.
template <int M, int N, class R>
[[gnu::always_inline]] inline void dot_tile(R const* const* x, R const* const* w, index_t count, R* out) {
  Lanes<R> acc[M][N] = {};
  for (index_t k = 0; k < count; k += lane_count<R>) {
    Lanes<R> wv[N];
    GRAFT_UNROLL
    for (int n = 0; n < N; ++n) wv[n] = load(w[n] + k);
    GRAFT_UNROLL
    for (int m = 0; m < M; ++m) {
      Lanes<R> xv = load(x[m] + k);
      keep(xv);
      GRAFT_UNROLL
      for (int n = 0; n < N; ++n) acc[m][n] += xv * wv[n];
    }
  }
  GRAFT_UNROLL
  for (int m = 0; m < M; ++m) {
    GRAFT_UNROLL
    for (int n = 0; n < N; ++n) out[m * N + n] = sum(acc[m][n]);
  }
}

}  // namespace graft::cpu
