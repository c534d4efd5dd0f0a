// SPDX-License-Identifier: Apache-2.0
// Gradients of one low-rank delta on the CPU.
#pragma once

#include <graft/backend/cpu/cpu_backend.hpp>
#include <graft/backend/cpu/outer_products.hpp>
#include <graft/backend/cpu/weight_backward.hpp>
#include <graft/backend/low_rank.hpp>

#include <algorithm>
#include <cstdint>
#include <span>

namespace graft {
namespace cpu {

inline constexpr index_t gradient_rows = 32;  // rows of one task

inline bool follow_each_other(std::span<std::int32_t const> rows) {
  for (std::size_t k = 1; k < rows.size(); ++k)
    if (rows[k] != rows[k - 1] + 1) return false;
  return true;
}

/// The listed rows side by side in R: the matrix itself where they are so already, else a copy in the arena.
template <class R, class Act, class T>
MatrixView<R const> listed_rows(CpuBackend<Act>& be, std::span<std::int32_t const> rows, MatrixView<T const> from) {
  auto const count = static_cast<index_t>(rows.size());
  if (count == 0) return {nullptr, 0, from.cols, from.cols};
  if constexpr (std::same_as<T, R>)
    if (follow_each_other(rows)) return from.row_range(rows[0], count);
  auto const copy = be.arena().template matrix<R>(count, from.cols);
  be.executor().run(ceil_div(count, gradient_rows), [&](index_t chunk) {
    for (index_t k = chunk * gradient_rows; k < std::min(count, (chunk + 1) * gradient_rows); ++k) {
      T const* const row = from.row(rows[static_cast<std::size_t>(k)]);
      for (index_t c = 0; c < from.cols; ++c) copy(k, c) = static_cast<R>(row[c]);
    }
  });
  return copy;
}

}  // namespace cpu

/// The backward of y[n] += w s (x[n] A^T) B^T for the listed rows n, with g[n] = w s dy[n] B  [r]:
///     dx[n] += g[n] A          dA += sum_n g[n]^T x[n]          dB^T += sum_n (w s x[n] A^T)^T dy[n]
/// x [n, i], dy [n, o]; dx [n, i] or empty; da [r, i] and db_transposed [r, o] or null. Sums over rows run in the
/// listed order. Elements of x, dy and dx may be f64, f32, bf16 or f16. Not for a SliceExecutor: its grids wait for
/// each other.
template <class Act, class X, class G, class D>
void low_rank_backward(CpuBackend<Act>& be, LowRankFactors<typename CpuBackend<Act>::Real> const& f,
                       typename CpuBackend<Act>::Real weight, std::span<std::int32_t const> rows, MatrixView<X const> x,
                       MatrixView<G const> dy, MatrixView<D> dx, typename CpuBackend<Act>::Real* da,
                       typename CpuBackend<Act>::Real* db_transposed) noexcept {
  using R = typename CpuBackend<Act>::Real;
  if (f.rank == 0 || rows.empty()) return;
  ArenaScope scope(be.arena());
  auto const xs = cpu::listed_rows<R>(be, rows, x);
  auto const slopes = cpu::listed_rows<R>(be, rows, dy);
  index_t const count = xs.rows, r = f.rank, i = x.cols, o = dy.cols;
  auto const a = matrix_view(f.a.full(), r, i), b = matrix_view(f.b_transposed.full(), r, o);
  auto const g = be.arena().template matrix<R>(count, r), t = be.arena().template matrix<R>(count, r);
  R const scale = weight * f.scale;
  // of more ranks add_product visits its result several times, and the sum would depend on what it found there
  bool const in_place = std::same_as<D, R> && r <= cpu::outer_tile_depth && cpu::follow_each_other(rows);
  auto const added = be.arena().template matrix<R>(dx.empty() || in_place ? 0 : count, i);
  be.executor().run(ceil_div(count, cpu::gradient_rows), [&](index_t chunk) {
    index_t const first = chunk * cpu::gradient_rows, used = std::min(cpu::gradient_rows, count - first);
    auto const part = [&](auto matrix) { return matrix.row_range(first, used); };
    if (da != nullptr || !dx.empty()) be.backward_kernels().dots(part(slopes), b, scale, part(g));
    if (db_transposed != nullptr) be.backward_kernels().dots(part(xs), a, scale, part(t));
    if (dx.empty()) return;
    if constexpr (std::same_as<D, R>)
      if (in_place)
        return be.backward_kernels().add_product(cpu::as_is(part(g)), a, dx.row_range(rows[0] + first, used));
    for (index_t k = first; k < first + used; ++k) std::fill_n(added.row(k), i, R{0});
    be.backward_kernels().add_product(cpu::as_is(part(g)), a, part(added));
    for (index_t k = first; k < first + used; ++k) {
      D* const to = dx.row(rows[static_cast<std::size_t>(k)]);
      for (index_t c = 0; c < i; ++c) to[c] = static_cast<D>(static_cast<R>(to[c]) + added(k, c));
    }
  });
  auto const factor = [&](MatrixView<R const> left, MatrixView<R const> right, R* out) {
    if (out == nullptr) return;
    cpu::for_columns(be, right.cols, [&](index_t first, index_t last) {
      be.backward_kernels().add_product(cpu::transposed(left), right.col_range(first, last - first),
                                        matrix_view(out, r, right.cols).col_range(first, last - first));
    });
  };
  factor(g, xs, da);
  factor(t, slopes, db_transposed);
}

/// The same on an embedding, where x[n] is the one-hot tokens[n]: y[n] += w s B A[:, tokens[n]].  A [r, vocabulary]
template <class Act, class G>
void low_rank_embedding_backward(CpuBackend<Act>& be, LowRankFactors<typename CpuBackend<Act>::Real> const& f,
                                 typename CpuBackend<Act>::Real weight, std::span<std::int32_t const> rows,
                                 std::int32_t const* tokens, index_t vocabulary, MatrixView<G const> dy,
                                 typename CpuBackend<Act>::Real* da,
                                 typename CpuBackend<Act>::Real* db_transposed) noexcept {
  using R = typename CpuBackend<Act>::Real;
  if (f.rank == 0 || rows.empty()) return;
  ArenaScope scope(be.arena());
  auto const slopes = cpu::listed_rows<R>(be, rows, dy);
  index_t const count = slopes.rows, r = f.rank, o = dy.cols;
  auto const b = matrix_view(f.b_transposed.full(), r, o);
  auto const g = be.arena().template matrix<R>(count, r), t = be.arena().template matrix<R>(count, r);
  R const scale = weight * f.scale;
  auto const column = [&](index_t k) { return tokens[rows[static_cast<std::size_t>(k)]]; };
  be.executor().run(ceil_div(count, cpu::gradient_rows), [&](index_t chunk) {
    index_t const first = chunk * cpu::gradient_rows, used = std::min(cpu::gradient_rows, count - first);
    if (da != nullptr) be.backward_kernels().dots(slopes.row_range(first, used), b, scale, g.row_range(first, used));
    for (index_t k = first; k < first + used; ++k)
      for (index_t p = 0; p < r; ++p) t(k, p) = scale * f.a[p * vocabulary + column(k)];
  });
  if (da != nullptr)
    be.executor().run(r, [&](index_t p) {
      for (index_t k = 0; k < count; ++k) da[p * vocabulary + column(k)] += g(k, p);
    });
  if (db_transposed != nullptr)
    cpu::for_columns(be, o, [&](index_t first, index_t last) {
      be.backward_kernels().add_product(cpu::transposed(t), slopes.col_range(first, last - first),
                                        matrix_view(db_transposed, r, o).col_range(first, last - first));
    });
}

}  // namespace graft
