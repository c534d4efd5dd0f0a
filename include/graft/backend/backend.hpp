// SPDX-License-Identifier: Apache-2.0
// What a backend is: a type with a memory space, number types, an executor and an arena, and operations that are free
// functions overloaded on it. docs/backends.md says what each computes.
#pragma once

#include <graft/backend/activation.hpp>
#include <graft/backend/attention.hpp>
#include <graft/backend/loss.hpp>
#include <graft/backend/low_rank.hpp>
#include <graft/backend/row_map.hpp>
#include <graft/backend/weight.hpp>
#include <graft/core/scalar.hpp>
#include <graft/core/view.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

namespace graft {

/// What a backend must offer to adapters and the host-engine calls. Include its operations before asking: the answer
/// is remembered by the compiler.
template <class B>
concept AdapterBackend = MemorySpace<typename B::Space> && Scalar<typename B::Act> &&
    std::floating_point<typename B::Real> &&
    requires(B& be, B const& same, index_t n, void (*task)(index_t), RowMapBatch<typename B::Real> const& maps,
             LowRankBatch<typename B::Real> const& deltas, MatrixView<typename B::Act const, typename B::Space> x,
             MatrixView<typename B::Act, typename B::Space> y, MatrixView<bf16 const, typename B::Space> x16,
             MatrixView<bf16, typename B::Space> y16) {
  requires !std::same_as<typename B::Space, HostSpace> || requires { be.executor().run(n, task); };
  { be.arena().template matrix<typename B::Act>(n, n) } -> std::same_as<MatrixView<typename B::Act, typename B::Space>>;
  requires noexcept(apply_row_map(be, maps, y));
  requires noexcept(apply_row_map(be, maps, y16));
  requires noexcept(apply_maps_and_deltas(be, maps, deltas, maps, x, y));
  requires noexcept(apply_maps_and_deltas(be, maps, deltas, maps, x16, y16));
  { maps_and_deltas_workspace(same, n, n, n) } -> std::same_as<std::size_t>;
};

/// What it must offer to layers and models besides.
template <class B>
concept Backend = AdapterBackend<B> &&
    requires(B& be, index_t n, double number, Weight const& weight, std::int32_t const* index, Activation f,
             RowMapBatch<typename B::Real> const* maps, LowRankBatch<typename B::Real> const* deltas,
             VectorView<typename B::Real const, typename B::Space> vector,
             MatrixView<typename B::Act const, typename B::Space> x, MatrixView<typename B::Act, typename B::Space> y,
             KvView<typename B::Act> const& kv, AttentionShape const& shape, AttentionSpans const& spans) {
  product(be, x, weight, vector, y);
  fused_product(be, weight, vector, x, x, maps, deltas, maps, y);
  apply_low_rank(be, *deltas, x, y);
  apply_low_rank_embedding(be, *deltas, index, n, y);
  rms_norm(be, x, vector, number, y);
  rms_norm_heads(be, y, vector, number);
  layer_norm(be, x, vector, vector, number, y);
  activate(be, f, y);
  activate_gated(be, f, y, x);
  add(be, x, y);
  copy(be, x, y);
  gather_rows(be, weight, index, y);
  gather_rows(be, weight, index, y, true);
  rotate(be, x, x, n, y);
  store_kv(be, kv, spans, x, x);
  attention(be, kv, shape, spans, x, y);
};

/// What it must offer to training besides: the gradients of these operations, losses, and what is done to rows between
/// them. Gradients of weights, biases and norms are sums over many rows: they are in Real, whatever the activations.
template <class B>
concept TrainingBackend = Backend<B> &&
    requires(B& be, index_t n, double number, Weight const& weight, std::int32_t const* index, Activation f,
             typename B::Real real, typename B::Real* numbers, RowMapRow<typename B::Real const> const& map,
             RowMapRow<typename B::Real> const& map_gradient, LowRankFactors<typename B::Real> const& factors,
             std::span<std::int32_t const> rows, VectorView<typename B::Real const, typename B::Space> vector,
             VectorView<typename B::Real, typename B::Space> sum, MatrixView<typename B::Real, typename B::Space> sums,
             MatrixView<typename B::Act const, typename B::Space> x, MatrixView<typename B::Act, typename B::Space> y,
             AttentionShape const& shape, AttentionSpans const& spans, double const* rates, std::uint64_t const* keys,
             VectorView<std::int32_t const, typename B::Space> labels, CrossEntropyOptions const& options,
             VectorView<RowLoss, typename B::Space> losses, VectorView<RowLoss const, typename B::Space> lost,
             LossSums* lost_together) {
  product_transposed(be, x, weight, y);
  weight_gradient(be, x, x, sums);
  bias_gradient(be, x, sum);
  gather_rows_backward(be, index, x, sums);
  gather_rows_backward(be, index, x, y);
  rms_norm_backward(be, x, vector, number, x, y, sum);
  rms_norm_heads_backward(be, x, vector, number, y, sum);
  layer_norm_backward(be, x, vector, number, x, y, sum, sum);
  activate_backward(be, f, x, y);
  activate_gated_backward(be, f, x, x, y, y);
  rotate_backward(be, x, x, n, y);
  attention_backward(be, shape, spans, x, x, x, x, x, y, y, y);
  apply_row_map(be, map, rows, sums);
  requires noexcept(row_map_backward(be, map, rows, x, y, map_gradient));
  requires noexcept(low_rank_backward(be, factors, real, rows, x, x, y, numbers, numbers));
  requires noexcept(low_rank_embedding_backward(be, factors, real, rows, index, n, x, numbers, numbers));
  cross_entropy(be, y, labels, vector, options, losses);
  squared_error(be, y, x, vector, losses);
  add_losses(be, lost, lost_together);
  clear(be, y);
  clear(be, sum);
  convert(be, x, sums);
  convert(be, rows, x, sums);
  accumulate(be, real, x, y);
  accumulate(be, real, vector, sum);
  drop(be, rates, keys, n, y);
};

}  // namespace graft
