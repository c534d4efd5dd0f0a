// SPDX-License-Identifier: Apache-2.0
// Neighbouring elements of a row in a thread's registers, as float.
#pragma once

#include <graft/backend/cuda/runtime.cuh>
#include <graft/backend/numbers.hpp>

#include <cstdint>

namespace graft::cuda {

/// Whether 16-byte loads and stores may start at these addresses; null is fine.
template <class... T>
__host__ __device__ inline bool aligned16(T const*... pointers) {
  return ((reinterpret_cast<std::uintptr_t>(pointers) | ...) & 15) == 0;
}
template <class... R>
__device__ inline bool aligned16(Numbers<R> const&... numbers) {
  return aligned16(numbers.data()...);
}
/// The same of every row of a view.
template <class T, MemorySpace S>
__host__ __device__ bool aligned16(MatrixView<T, S> view) {
  return aligned16(view.data) && view.stride * static_cast<index_t>(sizeof(T)) % 16 == 0;
}

/// The most of N elements that one instruction loads.
template <class T, int N>
inline constexpr int piece_size = N* static_cast<int>(sizeof(T)) <= 16 ? N : pack_size<T>;

/// N neighbours, aligned to their size or to 16 bytes, in loads of up to 16 bytes.
template <int N, class T>
__device__ inline void load(T const* from, float (&to)[N]) {
  constexpr int piece = piece_size<T, N>;
#pragma unroll
  for (int k = 0; k < N; k += piece) {
    auto const some = load_pack<piece>(from + k);
#pragma unroll
    for (int i = 0; i < piece; ++i) to[k + i] = to_real(some.value[i]);
  }
}
/// N neighbours as they are stored: loads that are widened later are under way together. Null: zeros.
template <int N, class T>
struct Stored {
  static constexpr int piece = piece_size<T, N>;
  Pack<T, piece> pieces[N / piece];

  __device__ explicit Stored(T const* from) : pieces{} {
    if (from == nullptr) return;
#pragma unroll
    for (int k = 0; k < N / piece; ++k) pieces[k] = load_pack<piece>(from + k * piece);
  }
  __device__ float operator[](int k) const { return to_real(pieces[k / piece].value[k % piece]); }
};
/// N neighbours to global memory, in stores of up to 16 bytes.
template <int N, class T>
__device__ inline void store(float const (&from)[N], T* to) {
  constexpr int piece = piece_size<T, N>;
#pragma unroll
  for (int k = 0; k < N; k += piece) {
    Pack<T, piece> some;
#pragma unroll
    for (int i = 0; i < piece; ++i) some.value[i] = from_real<T>(from[k + i]);
    store_pack(to + k, some);
  }
}

/// Columns [first, first + N) of a row of `cols`: in whole loads where `whole`, else one by one; 0 past the end.
template <int N, class T>
__device__ inline void load_columns(T const* row, index_t first, index_t cols, bool whole, float (&to)[N]) {
  if (whole && first + N <= cols) return load(row + first, to);
#pragma unroll
  for (int k = 0; k < N; ++k) to[k] = first + k < cols ? to_real(row[first + k]) : 0.f;
}
/// The same where it is known beforehand that all loads are whole, or that none is: no branch keeps loads from being
/// under way together.
template <bool whole, int N, class T>
__device__ inline void load_columns(T const* row, index_t first, index_t cols, float (&to)[N]) {
  if constexpr (whole)
    load(row + first, to);
  else
    load_columns(row, first, cols, false, to);
}
/// Those past the end are not written.
template <int N, class T>
__device__ inline void store_columns(float const (&from)[N], index_t first, index_t cols, bool whole, T* row) {
  if (whole && first + N <= cols) return store(from, row + first);
#pragma unroll
  for (int k = 0; k < N; ++k)
    if (first + k < cols) row[first + k] = from_real<T>(from[k]);
}
/// The same, added to what is there.
template <int N, class T>
__device__ inline void add_columns(float (&sum)[N], index_t first, index_t cols, bool whole, T* row) {
  float before[N];
  load_columns(row, first, cols, whole, before);
#pragma unroll
  for (int k = 0; k < N; ++k) sum[k] += before[k];
  store_columns(sum, first, cols, whole, row);
}
/// Of an adapter's numbers, which are stored alike for all threads of a warp.
template <int N>
__device__ inline void load_columns(Numbers<float> const& row, index_t first, index_t cols, bool whole,
                                    float (&to)[N]) {
  if (row.narrow())
    load_columns(row.as<bf16>(), first, cols, whole, to);
  else
    load_columns(row.as<float>(), first, cols, whole, to);
}
/// load_columns of a vector that may be absent: then 0.
template <int N>
__device__ inline void load_present(Numbers<float> const& row, index_t first, index_t cols, bool whole,
                                    float (&to)[N]) {
  if (row != nullptr) return load_columns(row, first, cols, whole, to);
#pragma unroll
  for (int k = 0; k < N; ++k) to[k] = 0;
}

}  // namespace graft::cuda
