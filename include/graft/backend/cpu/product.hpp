// SPDX-License-Identifier: Apache-2.0
// Y = X W^T + b for a weight in any storage format: rows of W are decoded into registers or the first-level cache and
// meet all rows of X there. No copy of the weight is kept.
#pragma once

#include <graft/backend/cpu/cpu_backend.hpp>
#include <graft/backend/row_map.hpp>

#include <algorithm>
#include <cstdint>
#include <span>

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

/// Rows of X as a product reads them: as they are, or behind each row's map.
template <class Act>
struct InputRows {
  MatrixView<Act const> x;
  RowMapBatch<Act> maps;
  bool mapped;

  explicit InputRows(MatrixView<Act const> rows, RowMapBatch<Act> const& of_rows = {})
      : x(rows), maps(of_rows), mapped(of_rows.any()) {}

  /// Writes rows [first, first + to.rows) behind their maps.
  void map(CpuBackend<Act> const& be, index_t first, MatrixView<Act> to) const {
    for (index_t m = 0; m < to.rows; ++m) std::copy_n(x.row(first + m), x.cols, to.row(m));
    for_map_runs(maps, first, first + to.rows, [&](auto const* map, index_t n, index_t count) {
      if (map != nullptr) be.adapter_kernels().map_rows(*map, to.row(n - first), count, to.stride, 0, to.cols);
    });
  }
};

/// Runs f(first) for the first of every `together` rows, 8 times in a task: as many rows of a few hundred elements
/// outweigh handing a task out. What other grids wait for is done at once where slices of a foreign pool do not wait
/// for each other.
template <class Act>
void prepare_rows(CpuBackend<Act>& be, index_t rows, index_t together, FunctionRef<void(index_t)> f) {
  index_t const tasks = ceil_div(rows, 8 * together);
  auto const task = [&](index_t k) {
    for (index_t n = 8 * k * together; n < std::min(rows, 8 * (k + 1) * together); n += together) f(n);
  };
  if (be.executor().waits())
    be.executor().run(tasks, task);
  else
    for (index_t k = 0; k < tasks; ++k) task(k);
}

/// The same with f(first, X behind its maps there), which lies in memory of the task's own.
template <class Act>
void prepare_rows(CpuBackend<Act>& be, InputRows<Act> const& x, index_t together,
                  FunctionRef<void(index_t, MatrixView<Act const>)> f) {
  ArenaScope scope(be.arena());
  index_t const rows = x.x.rows, of_task = 8 * together;
  auto const own = be.arena().template matrix<Act>(x.mapped ? ceil_div(rows, of_task) * together : 0, x.x.cols);
  prepare_rows(be, rows, together, [&](index_t first) {
    index_t const count = std::min(together, rows - first);
    if (!x.mapped) return f(first, x.x.row_range(first, count));
    auto const mapped = own.row_range(first / of_task * together, count);
    x.map(be, first, mapped);
    f(first, mapped);
  });
}

/// X rounded to 8-bit integers, in the arena.
inline IntegerRows integer_rows(CpuBackend<float>& be, InputRows<float> const& x) {
  Arena& arena = be.arena();
  index_t const n = x.x.rows, cols = x.x.cols;
  IntegerRows const to{n,
                       cols / 32,
                       arena.allocate<std::int8_t>(n * cols),
                       arena.allocate<float>(n * cols / 32),
                       arena.allocate<std::int32_t>(n * cols / 32),
                       arena.allocate<std::int32_t>(n * cols / 16),
                       arena.allocate<float>(n * cols / 32)};
  prepare_rows<float>(be, x, 1, [&](index_t first, MatrixView<float const> row) {
    be.native_kernels().round_to_integers(row.data, first, to);
  });
  return to;
}

/// X rounded to bf16 and padded with zeros, in the arena.
inline MatrixView<bf16 const> bf16_rows(CpuBackend<float>& be, InputRows<float> const& x) {
  index_t const together = be.native_kernels().bf16_rows, n = x.x.rows;
  auto const to = be.arena().matrix<bf16>(round_up(n, together), padded<bf16>(x.x.cols));
  prepare_rows<float>(be, x, together, [&](index_t first, MatrixView<float const> rows) {
    be.native_kernels().round_to_bf16(rows, to.row(first));
  });
  return to.row_range(0, n);
}

/// X itself, or a copy behind its maps in the arena.
template <class Act>
MatrixView<Act const> mapped_rows(CpuBackend<Act>& be, InputRows<Act> const& x) {
  if (!x.mapped) return x.x;
  auto const to = be.arena().template matrix<Act>(x.x.rows, x.x.cols);
  prepare_rows(be, x.x.rows, 1, [&](index_t n) { x.map(be, n, to.row_range(n, 1)); });
  return to;
}

/// How a product rounds X first: in native precision, where the processor multiplies the weight's format directly, bf16
/// with bf16, and blocks of integers with 8-bit integers.
enum class Rounding : std::uint8_t { none, integers, bf16 };
template <class Act>
Rounding rounding_of(CpuBackend<Act> const& be, Format format) {
  if constexpr (std::same_as<Act, float>)
    if (be.precision() == Precision::native) {
      if (be.native_kernels().integer_chunk != nullptr && in_integers(format)) return Rounding::integers;
      if (be.native_kernels().bf16_chunk != nullptr && format == Format::bf16) return Rounding::bf16;
    }
  return Rounding::none;
}

/// X as chunks of a product read it.
template <class Act>
struct ProductRows {
  Rounding rounding = Rounding::none;
  MatrixView<Act const> x;
  IntegerRows integers;
  MatrixView<bf16 const> halves;

  ProductRows(CpuBackend<Act>& be, InputRows<Act> const& rows, Rounding how) : rounding(how) {
    if constexpr (std::same_as<Act, float>) {
      if (how == Rounding::integers) integers = integer_rows(be, rows);
      if (how == Rounding::bf16) halves = bf16_rows(be, rows);
    }
    if (how == Rounding::none) x = mapped_rows(be, rows);
  }
  /// Y[:, o0:o1] = X W[o0:o1]^T + b; the rows `then` are likely to be next.
  void multiply(CpuBackend<Act> const& be, Weight const& w, VectorView<Act const> bias, index_t o0, index_t o1,
                RowsAhead const& then, MatrixView<Act> y) const {
    if (y.rows == 0) return;  // kernels divide work among rows
    if constexpr (std::same_as<Act, float>) {
      if (rounding == Rounding::integers) return be.native_kernels().integer_chunk(integers, w, bias, o0, o1, then, y);
      auto const& native = be.native_kernels();
      bool const packed = w.packed.form == PackedForm::exponents && native.packed_chunk != nullptr;
      if (rounding == Rounding::bf16)
        return (packed ? native.packed_chunk : native.bf16_chunk)(halves, w, bias, o0, o1, then, y);
    }
    be.layer_kernels().product_chunk(x, w, bias, o0, o1, then, y);
  }
};

/// The outputs of a weight by chunks: product_chunk_outputs each, and the rest by `last`, so that threads finish
/// together.
struct OutputChunks {
  index_t outputs, last;
  index_t whole = (outputs - 1) / product_chunk_outputs;  ///< chunks before the rest, which is not empty

  index_t count() const { return whole + ceil_div(outputs - whole * product_chunk_outputs, last); }
  /// The first output of chunk k <= count().
  index_t begin(index_t k) const {
    return std::min(outputs, product_chunk_outputs * std::min(k, whole) + last * std::max<index_t>(k - whole, 0));
  }
};

/// A product about to run.
template <class Act>
struct ChunkedProduct {
  Weight const* weight;
  VectorView<Act const> bias;
  ProductRows<Act> x;
  MatrixView<Act> y;
  OutputChunks chunks;
};

/// Runs products that read nothing of each other as one grid of chunks, in order. Of each chunk, columns [o0, o1) of
/// product p: before(p, o0, o1), and then(p, o0, o1) once the product's y has x W^T + b there, still in cache.
template <class Act, class Before, class Then>
void run_products(CpuBackend<Act>& be, std::span<ChunkedProduct<Act> const> products, Before const& before,
                  Then const& then) {
  index_t count = 0;
  for (auto const& each : products) count += each.chunks.count();
  // the product of a chunk, which is counted from there on
  auto const product_of = [&](index_t& chunk) {
    std::size_t p = 0;
    for (; chunk >= products[p].chunks.count(); ++p) chunk -= products[p].chunks.count();
    return p;
  };
  be.executor().run(count, [&](index_t chunk) {
    RowsAhead ahead;
    if (index_t next = chunk + be.executor().concurrency(); next < count) {
      auto const& of = products[product_of(next)];
      ahead = {of.weight, of.chunks.begin(next), of.chunks.begin(next + 1)};
    }
    auto const p = product_of(chunk);
    auto const& of = products[p];
    index_t const o0 = of.chunks.begin(chunk), o1 = of.chunks.begin(chunk + 1);
    before(p, o0, o1);
    of.x.multiply(be, *of.weight, of.bias, o0, o1, ahead, of.y);
    then(p, o0, o1);
  });
}

}  // namespace cpu

/// Called with (o0, o1) once columns [o0, o1) of y hold x W^T + b, still in cache.
struct NoEpilogue {
  void operator()(index_t, index_t) const {}
};

/// Y = X W^T + b.  x [n, i], w [o, i], bias [o] or empty, y [n, o]; then `epilogue(o0, o1)` on every chunk of at most
/// cpu::product_chunk_outputs columns. In native precision, X is rounded first (cpu::Rounding).
template <class Act, class Epilogue = NoEpilogue>
void product(CpuBackend<Act>& be, MatrixView<Act const> x, Weight const& w, VectorView<Act const> bias,
             MatrixView<Act> y, Epilogue const& epilogue = {}) {
  ArenaScope scope(be.arena());
  cpu::ChunkedProduct<Act> const one{
      &w, bias, {be, cpu::InputRows<Act>(x), cpu::rounding_of(be, w.format)}, y, {w.rows, cpu::last_chunk_outputs}};
  cpu::run_products<Act>(
      be, {&one, 1}, [](std::size_t, index_t, index_t) {},
      [&](std::size_t, index_t o0, index_t o1) { epilogue(o0, o1); });
}

}  // namespace graft
