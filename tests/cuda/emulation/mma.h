// SPDX-License-Identifier: Apache-2.0
// nvcuda::wmma for tiles of 16x16x16, 32x8x16 and 8x32x16: every lane keeps an equal share of a matrix, in an order of
// our own (the real one is not specified either), and the last lane to arrive does a warp's work for all.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

namespace detail {
template <class Use, int m, int n, int k>
inline constexpr int rows_of = std::is_same_v<Use, matrix_b> ? k : m;
template <class Use, int m, int n, int k>
inline constexpr int cols_of = std::is_same_v<Use, matrix_a> ? k : n;
}  // namespace detail

/// Element number lane * num_elements + e of the row-major matrix is x[e] of that lane.
template <class Use, int m, int n, int k, class T, class Layout = void>
struct fragment {
  static constexpr int rows = detail::rows_of<Use, m, n, k>, cols = detail::cols_of<Use, m, n, k>;
  static constexpr int num_elements = rows * cols / 32;
  T x[num_elements];
};

template <class Use, int m, int n, int k, class T, class Layout, class V>
void fill_fragment(fragment<Use, m, n, k, T, Layout>& f, V const& value) {
  for (auto& x : f.x) x = static_cast<T>(value);
}

namespace detail {

inline void check_access(void const* data, unsigned stride, std::size_t element, char const* what) {
  // the programming guide: 256-bit aligned, the stride a multiple of 16 bytes (a stride of 8 halves or 4 floats)
  if (reinterpret_cast<std::uintptr_t>(data) % 32 != 0 || stride * element % 16 != 0)
    emulation::Block::get().fail("wmma::", what,
                                 ": the address is not a multiple of 32 bytes or the stride not one of 16");
}

template <class F>
int element_index(int e) {
  return emulation::lane() * F::num_elements + e;
}

template <class Use, int m, int n, int k, class T, class Layout>
void load(fragment<Use, m, n, k, T, Layout>& f, T const* from, unsigned stride, bool by_rows,
          std::source_location const& where) {
  using F = fragment<Use, m, n, k, T, Layout>;
  check_access(from, stride, sizeof(T), "load_matrix_sync");
  emulation::Block::get().exchange(
      0xffffffffu, nullptr, [](void* const*, unsigned) {}, where);
  for (int e = 0; e < F::num_elements; ++e) {
    int const index = element_index<F>(e), r = index / F::cols, c = index % F::cols;
    f.x[e] = by_rows ? from[r * static_cast<long>(stride) + c] : from[c * static_cast<long>(stride) + r];
  }
}

}  // namespace detail

template <class Use, int m, int n, int k, class T, class Layout>
requires(!std::is_void_v<Layout>) void load_matrix_sync(fragment<Use, m, n, k, T, Layout>& f, T const* from,
                                                        unsigned stride,
                                                        std::source_location where = std::source_location::current()) {
  detail::load(f, from, stride, std::is_same_v<Layout, row_major>, where);
}
template <int m, int n, int k, class T>
void load_matrix_sync(fragment<accumulator, m, n, k, T>& f, T const* from, unsigned stride, layout_t layout,
                      std::source_location where = std::source_location::current()) {
  detail::load(f, from, stride, layout == mem_row_major, where);
}
template <int m, int n, int k, class T>
void store_matrix_sync(T* to, fragment<accumulator, m, n, k, T> const& f, unsigned stride, layout_t layout,
                       std::source_location where = std::source_location::current()) {
  using F = fragment<accumulator, m, n, k, T>;
  detail::check_access(to, stride, sizeof(T), "store_matrix_sync");
  emulation::Block::get().exchange(
      0xffffffffu, nullptr, [](void* const*, unsigned) {}, where);
  for (int e = 0; e < F::num_elements; ++e) {
    int const index = detail::element_index<F>(e), r = index / F::cols, c = index % F::cols;
    (layout == mem_row_major ? to[r * static_cast<long>(stride) + c] : to[c * static_cast<long>(stride) + r]) = f.x[e];
  }
}

/// d = a b + c; 16-bit factors are multiplied exactly and summed in float.
template <int m, int n, int k, class T, class LayoutA, class LayoutB>
void mma_sync(fragment<accumulator, m, n, k, float>& d, fragment<matrix_a, m, n, k, T, LayoutA> const& a,
              fragment<matrix_b, m, n, k, T, LayoutB> const& b, fragment<accumulator, m, n, k, float> const& c,
              std::source_location where = std::source_location::current()) {
  using A = fragment<matrix_a, m, n, k, T, LayoutA>;
  using B = fragment<matrix_b, m, n, k, T, LayoutB>;
  using C = fragment<accumulator, m, n, k, float>;
  struct Operands {
    C* d;
    A const* a;
    B const* b;
    C const* c;
  } own{&d, &a, &b, &c};
  emulation::Block::get().exchange(
      0xffffffffu, &own,
      [](void* const* operands, unsigned) {
        float left[m * k], right[k * n], sum[m * n];
        for (int lane = 0; lane < 32; ++lane) {
          auto const& o = *static_cast<Operands*>(operands[lane]);
          for (int e = 0; e < A::num_elements; ++e) left[lane * A::num_elements + e] = static_cast<float>(o.a->x[e]);
          for (int e = 0; e < B::num_elements; ++e) right[lane * B::num_elements + e] = static_cast<float>(o.b->x[e]);
          for (int e = 0; e < C::num_elements; ++e) sum[lane * C::num_elements + e] = o.c->x[e];
        }
        for (int r = 0; r < m; ++r)
          for (int q = 0; q < k; ++q)
            for (int col = 0; col < n; ++col) sum[r * n + col] += left[r * k + q] * right[q * n + col];
        for (int lane = 0; lane < 32; ++lane)
          for (int e = 0; e < C::num_elements; ++e)
            static_cast<Operands*>(operands[lane])->d->x[e] = sum[lane * C::num_elements + e];
      },
      where);
}

}  // namespace nvcuda::wmma
