// SPDX-License-Identifier: Apache-2.0
// Products with both mechanisms applied to their outputs while they are in cache.
#pragma once

#include <graft/backend/cpu/low_rank.hpp>
#include <graft/backend/cpu/product.hpp>
#include <graft/backend/cpu/row_map.hpp>
#include <graft/backend/fused_rows.hpp>

#include <algorithm>
#include <cstddef>
#include <new>
#include <span>

namespace graft {
namespace cpu {

/// Rows whose maps are asked for before the product they act on, into the second-level cache: pieces of a few lines
/// each, which no prefetcher of the processor sees coming. Others follow as many rows ahead.
inline constexpr index_t maps_ahead = 64;
/// As many rows ahead, they are asked for again, into the first-level cache, because the product's weights may have
/// pushed them out of the second.
inline constexpr index_t maps_next = 4;

/// Inlined always: GCC takes a function that only asks for memory for one that does nothing, and drops its calls.
template <int cache_level, class Act>
[[gnu::always_inline]] inline void ask_for_map(RowMapBatch<Act> const& maps, index_t n, index_t first, index_t last) {
  constexpr index_t line = 64;
  if (n > 0 && maps.follows(n)) return;  // has been asked for
  auto const* const map = maps.row(n);
  if (map == nullptr) return;
  for (auto const* values : {&map->c1, &map->d, &map->e})
    for (index_t k = values->bytes(first); *values != nullptr && k < values->bytes(last); k += line)
      __builtin_prefetch(static_cast<std::byte const*>(values->data()) + k, 0, 4 - cache_level);
}

/// Tiles whose columns [first, last) of B^T are asked for before the product, and then again one tile ahead: short
/// pieces, far from each other.
inline constexpr index_t tiles_ahead = 16;
template <int cache_level, class R>
[[gnu::always_inline]] inline void ask_for_factors(LowRankBatch<R> const& deltas, index_t tile, index_t outputs,
                                                   index_t first, index_t last) {
  if (tile >= deltas.tile_count) return;
  if (tile > 0 && deltas.tiles[tile].terms == deltas.tiles[tile - 1].terms) return;  // have been asked for
  for (index_t k = 0; k < deltas.tiles[tile].term_count; ++k) {
    auto const& f = deltas.tiles[tile].terms[k].table[deltas.site];
    auto const* row = static_cast<std::byte const*>((f.b_transposed + first).data());
    index_t const stride = f.b_transposed.bytes(outputs), size = f.b_transposed.bytes(last - first);
    for (index_t r = 0; r < f.rank; ++r, row += stride)
      for (index_t at = 0; at < size; at += 64) __builtin_prefetch(row + at, 0, 4 - cache_level);
  }
}

/// What is applied to the outputs of a product.
template <class Act>
class Adaptation {
 public:
  explicit Adaptation(AdaptedProduct<CpuBackend<Act>> const& of)
      : of_(&of), inner_(of.inner.any()), deltas_(of.deltas.any()), outer_(of.outer.any()) {
    auto const fit = [&](index_t outputs) {
      return (!inner_ || of.inner.fits(outputs)) && (!outer_ || of.outer.fits(outputs));
    };
    if (fit(last_chunk_outputs))
      last_ = last_chunk_outputs;
    else
      in_chunks_ = fit(product_chunk_outputs);
  }

  /// Outputs of the smallest chunk it can be applied to.
  index_t last_chunk() const { return last_; }

  /// Tasks of shrinking x to ranks; few tiles are split by ranks. The number of parts depends on the batch alone.
  index_t shrink_tasks() const { return in_chunks_ && deltas_ ? of_->deltas.tile_count * shares() : 0; }
  void prepare(CpuBackend<Act>& be) {
    if (shrink_tasks() == 0) return;
    x_ = pad_rows<Act, Act>(be.arena(), of_->x_delta);
    t_ = be.arena().template matrix<Act>(of_->x.rows, of_->deltas.max_rank);
  }
  /// What a task reads first.
  std::span<std::byte const> shrinks_first(index_t task) const {
    if (task >= shrink_tasks() || of_->deltas.tiles[task / shares()].term_count == 0) return {};
    return ranks_together(of_->deltas.tiles[task / shares()].terms[0].table[of_->deltas.site], of_->x_delta.cols,
                          task % shares() * tile_outputs);
  }
  /// The bytes `then` are likely to be read next.
  void shrink(CpuBackend<Act> const& be, index_t task, std::span<std::byte const> then) const {
    if (task >= shrink_tasks()) return;
    be.adapter_kernels().shrink(of_->deltas.tiles[task / shares()], of_->deltas.site, of_->x_delta.cols, x_,
                                task % shares(), shares(), then, t_);
  }

  /// Asks for what the chunk will need first.
  void before(index_t first, index_t last) const {
    if (!in_chunks_) return;
    for (auto const* maps : {inner_ ? &of_->inner : nullptr, outer_ ? &of_->outer : nullptr})
      for (index_t n = 0; maps != nullptr && n < std::min(of_->y.rows, maps_ahead); ++n)
        ask_for_map<2>(*maps, n, first, last);
    for (index_t k = 0; deltas_ && k < tiles_ahead; ++k) ask_for_factors<2>(of_->deltas, k, of_->y.cols, first, last);
  }
  /// To columns [first, last) of y, which hold the product.
  void apply(CpuBackend<Act> const& be, index_t first, index_t last) const {
    if (!in_chunks_) return;
    if (inner_) map_columns(be, of_->inner, first, last);
    auto const& deltas = of_->deltas;
    for (index_t k = 0; deltas_ && k < deltas.tile_count; ++k) {
      ask_for_factors<2>(deltas, k + tiles_ahead, of_->y.cols, first, last);
      ask_for_factors<1>(deltas, k + 1, of_->y.cols, first, last);
      be.adapter_kernels().expand(deltas.tiles[k], deltas.site, of_->y.cols, t_, first, last, of_->y);
    }
    if (outer_) map_columns(be, of_->outer, first, last);
  }
  /// Where a group reaches over chunks: one pass each after the product.
  void apply_after(CpuBackend<Act>& be) const {
    if (in_chunks_) return;
    if (inner_) apply_row_map(be, of_->inner, of_->y);
    if (deltas_) apply_low_rank(be, of_->deltas, of_->x_delta, of_->y);
    if (outer_) apply_row_map(be, of_->outer, of_->y);
  }

 private:
  index_t shares() const { return of_->deltas.tile_count < 8 ? 4 : 1; }
  void map_columns(CpuBackend<Act> const& be, RowMapBatch<Act> const& maps, index_t first, index_t last) const {
    index_t const rows = of_->y.rows;
    for (index_t n = 0, end; n < rows; n = end) {  // as for_map_runs, asking for what is ahead of every row
      end = n;
      do {
        if (end + maps_ahead < rows) ask_for_map<2>(maps, end + maps_ahead, first, last);
        if (end + maps_next < rows) ask_for_map<1>(maps, end + maps_next, first, last);
      } while (++end < rows && maps.follows(end));
      if (auto const* map = maps.row(n))
        be.adapter_kernels().map_rows(*map, of_->y.row(n), end - n, of_->y.stride, first, last);
    }
  }

  AdaptedProduct<CpuBackend<Act>> const* of_;
  bool inner_, deltas_, outer_, in_chunks_ = true;
  index_t last_ = product_chunk_outputs;
  MatrixView<Act const> x_{};
  MatrixView<Act> t_{};
};

}  // namespace cpu

/// Products that read nothing of each other, side by side. Equal, bit for bit, to apply_row_map of the input, product,
/// apply_row_map, apply_low_rank, apply_row_map one after the other. It runs several grids that wait for each other:
/// for executors that return when all is done, not for a SliceExecutor.
template <class Act>
void fused_products(CpuBackend<Act>& be, std::span<AdaptedProduct<CpuBackend<Act>> const> parts) {
  ArenaScope scope(be.arena());
  auto const count = static_cast<index_t>(parts.size());
  auto* const products = be.arena().template allocate<cpu::ChunkedProduct<Act>>(count);
  auto* const adaptations = be.arena().template allocate<cpu::Adaptation<Act>>(count);
  index_t shrink_tasks = 0;
  for (index_t k = 0; k < count; ++k) {
    auto const& part = parts[static_cast<std::size_t>(k)];
    auto& adaptation = *new (adaptations + k) cpu::Adaptation<Act>(part);
    adaptation.prepare(be);
    shrink_tasks = std::max(shrink_tasks, adaptation.shrink_tasks());
    auto const rounding = cpu::rounding_of(be, part.weight->format);
    cpu::InputRows<Act> const input{part.x, part.input};
    // what products read together is rounded once
    auto const* const same = std::find_if(products, products + k, [&](auto const& before) {
      auto const& other = parts[static_cast<std::size_t>(&before - products)];
      return !input.mapped && !other.input.any() && other.x.data == part.x.data && before.x.rounding == rounding;
    });
    new (products + k)
        cpu::ChunkedProduct<Act>{part.weight,
                                 part.bias,
                                 same != products + k ? same->x : cpu::ProductRows<Act>(be, input, rounding),
                                 part.y,
                                 {part.weight->rows, adaptation.last_chunk()}};
  }
  // one task for a tile of all products: what they read together is read while it is in cache
  be.executor().run(shrink_tasks, [&](index_t task) {
    for (index_t k = 0; k < count; ++k)
      adaptations[k].shrink(be, task,
                            k + 1 < count ? adaptations[k + 1].shrinks_first(task)
                                          : adaptations[0].shrinks_first(task + be.executor().concurrency()));
  });
  cpu::run_products<Act>(
      be, {products, parts.size()},
      [&](std::size_t p, index_t first, index_t last) { adaptations[p].before(first, last); },
      [&](std::size_t p, index_t first, index_t last) { adaptations[p].apply(be, first, last); });
  for (index_t k = 0; k < count; ++k) adaptations[k].apply_after(be);
}

/// y = outer(inner(x W^T + b) + deltas(x_delta)); null means absent. x, x_delta [n, i], y [n, o].
template <class Act>
void fused_product(CpuBackend<Act>& be, Weight const& weight, VectorView<Act const> bias, MatrixView<Act const> x,
                   MatrixView<Act const> x_delta, RowMapBatch<Act> const* inner, LowRankBatch<Act> const* deltas,
                   RowMapBatch<Act> const* outer, MatrixView<Act> y) {
  auto const maps = [](RowMapBatch<Act> const* some) { return some != nullptr ? *some : RowMapBatch<Act>{}; };
  AdaptedProduct<CpuBackend<Act>> const one{
      &weight, bias, x, x_delta, maps(inner), deltas != nullptr ? *deltas : LowRankBatch<Act>{}, maps(outer), y};
  fused_products<Act>(be, {&one, 1});
}

/// to = from. Both [n, d].
template <class Act>
void copy(CpuBackend<Act>& be, MatrixView<Act const> from, MatrixView<Act> to) {
  be.executor().run(ceil_div(from.rows, 8), [&](index_t k) {
    for (index_t n = 8 * k; n < std::min(from.rows, 8 * k + 8); ++n)
      std::copy(from.row(n), from.row(n) + from.cols, to.row(n));
  });
}

}  // namespace graft
