// SPDX-License-Identifier: Apache-2.0
// Y = X W^T + b for a weight in any storage format: rows of W are decoded into registers or the first-level cache and
// meet all rows of X there. No copy of the weight is kept.
#pragma once

#include <graft/backend/cpu/cpu_backend.hpp>

namespace graft {
namespace cpu {

/// Whether rows of X can be read as they are: right type, width and alignment. (Register loads that straddle cache
/// lines would halve the speed of the product.)
template <class T, class R>
bool is_padded(MatrixView<T const> x) {
  return std::same_as<T, R> && x.cols == padded<R>(x.cols) && (x.rows == 1 || x.stride == padded<R>(x.stride)) &&
         reinterpret_cast<std::uintptr_t>(x.data) % 64 == 0;
}

template <class T, class R>
void pad_row(T const* from, index_t cols, R* to) {
  for (index_t k = 0; k < cols; ++k) to[k] = static_cast<R>(from[k]);
  std::fill(to + cols, to + padded<R>(cols), R{0});
}

/// X itself where its rows can be read as they are, else a padded copy in the arena.
template <class T, class R>
MatrixView<R const> pad_rows(Arena& arena, MatrixView<T const> x) {
  if constexpr (std::same_as<T, R>)
    if (is_padded<T, R>(x)) return x;
  auto const copy = arena.matrix<R>(x.rows, padded<R>(x.cols));
  for (index_t n = 0; n < x.rows; ++n) pad_row(x.row(n), x.cols, copy.row(n));
  return copy;
}

/// Runs f(first, last) over blocks of rows. 8 rows of a few hundred elements outweigh handing a chunk out; what other
/// grids wait for is done at once where slices of a foreign pool do not wait for each other.
template <class Act>
void prepare_rows(CpuBackend<Act>& be, index_t rows, FunctionRef<void(index_t)> f) {
  if (be.executor().waits())
    be.executor().run(ceil_div(rows, 8), [&](index_t k) {
      for (index_t n = 8 * k; n < std::min(rows, 8 * k + 8); ++n) f(n);
    });
  else
    for (index_t n = 0; n < rows; ++n) f(n);
}

/// X rounded to 8-bit integers, in the arena.
inline IntegerRows integer_rows(CpuBackend<float>& be, MatrixView<float const> x) {
  Arena& arena = be.arena();
  IntegerRows const to{x.rows,
                       x.cols / 32,
                       arena.allocate<std::int8_t>(x.rows * x.cols),
                       arena.allocate<float>(x.rows * x.cols / 32),
                       arena.allocate<std::int32_t>(x.rows * x.cols / 32),
                       arena.allocate<float>(x.rows * x.cols / 32)};
  prepare_rows(be, x.rows, [&](index_t n) { be.native_kernels().round_to_integers(x.row(n), n, to); });
  return to;
}

/// X rounded to bf16 and padded with zeros, in the arena.
inline MatrixView<bf16 const> bf16_rows(CpuBackend<float>& be, MatrixView<float const> x) {
  auto const to = be.arena().matrix<bf16>(x.rows, padded<bf16>(x.cols));
  prepare_rows(be, x.rows, [&](index_t n) {
    be.native_kernels().round_to_bf16(x.row(n), x.cols, to.row(n));
    std::fill(to.row(n) + x.cols, to.row(n) + to.cols, bf16{});
  });
  return to;
}

}  // namespace cpu

/// Called with (o0, o1) once columns [o0, o1) of y hold x W^T + b, still in cache.
struct NoEpilogue {
  void operator()(index_t, index_t) const {}
};

/// Y = X W^T + b.  x [n, i], w [o, i], bias [o] or empty, y [n, o]; then `epilogue(o0, o1)` on every chunk of
/// cpu::product_chunk_outputs columns. In native precision, X is rounded first where the processor multiplies the
/// weight's format directly: bf16 with bf16, and Q8_0, Q4_0 and Q4_1 with 8-bit integers.
template <class Act, class Epilogue = NoEpilogue>
void product(CpuBackend<Act>& be, MatrixView<Act const> x, Weight const& w, VectorView<Act const> bias,
             MatrixView<Act> y, Epilogue const& epilogue = {}) {
  ArenaScope scope(be.arena());
  auto const run = [&](auto kernel, auto const& prepared) {
    be.executor().run(ceil_div(w.rows, cpu::product_chunk_outputs), [&](index_t chunk) {
      index_t const o0 = chunk * cpu::product_chunk_outputs;
      index_t const o1 = std::min(w.rows, o0 + cpu::product_chunk_outputs);
      index_t const then = o0 + be.executor().concurrency() * cpu::product_chunk_outputs;
      kernel(prepared, w, bias, o0, o1, then, y);
      epilogue(o0, o1);
    });
  };
  if constexpr (std::same_as<Act, float>)
    if (be.precision() == Precision::native) {
      auto const& native = be.native_kernels();
      if (native.integer_chunk != nullptr && cpu::in_integers(w.format))
        return run(native.integer_chunk, cpu::integer_rows(be, x));
      if (native.bf16_chunk != nullptr && w.format == Format::bf16)
        return run(native.bf16_chunk, cpu::bf16_rows(be, x));
    }
  run(be.kernels().product_chunk, x);
}

}  // namespace graft
