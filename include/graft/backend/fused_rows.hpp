// SPDX-License-Identifier: Apache-2.0
// What layers do between products, several steps in one operation: here composed of the single steps, for any backend;
// one that has kernels for them overloads these names.
#pragma once

#include <graft/backend/activation.hpp>
#include <graft/backend/attention.hpp>
#include <graft/backend/row_map.hpp>
#include <graft/core/view.hpp>

namespace graft {

/// h += map(x); y = rms_norm(h).  x, h, y [n, d], weight [d]. x is scratch afterwards.
template <class B>
void add_mapped_norm(B& be, RowMapBatch<typename B::Real> const& maps, MatrixView<typename B::Act, typename B::Space> x,
                     MatrixView<typename B::Act, typename B::Space> h,
                     VectorView<typename B::Real const, typename B::Space> weight, double eps,
                     MatrixView<typename B::Act, typename B::Space> y) {
  using ConstView = MatrixView<typename B::Act const, typename B::Space>;
  if (maps.any()) apply_row_map(be, maps, x);
  add(be, ConstView(x), h);
  rms_norm(be, ConstView(h), weight, eps, y);
}

/// out = f(gate_map(gate)) * up_map(up).  gate, up, out [n, f], all apart; gate and up are scratch afterwards.
template <class B>
void activate_gated_mapped(B& be, Activation f, RowMapBatch<typename B::Real> const& gate_maps,
                           MatrixView<typename B::Act, typename B::Space> gate,
                           RowMapBatch<typename B::Real> const& up_maps,
                           MatrixView<typename B::Act, typename B::Space> up,
                           MatrixView<typename B::Act, typename B::Space> out) {
  using ConstView = MatrixView<typename B::Act const, typename B::Space>;
  if (gate_maps.any()) apply_row_map(be, gate_maps, gate);
  if (up_maps.any()) apply_row_map(be, up_maps, up);
  copy(be, ConstView(gate), out);
  activate_gated(be, f, out, ConstView(up));
}

/// Norms of q's and k's heads where there are weights [head_dim], rotation of both, keys and values into their pages.
/// q [n, heads * head_dim] in place; k, v [n, kv_heads * head_dim]; k is scratch afterwards. Every row is in a span.
template <class B>
void norm_rotate_store(B& be, VectorView<typename B::Real const, typename B::Space> q_norm,
                       VectorView<typename B::Real const, typename B::Space> k_norm, double eps,
                       MatrixView<typename B::Act const, typename B::Space> cosine,
                       MatrixView<typename B::Act const, typename B::Space> sine, index_t head_dim,
                       KvView<typename B::Act> const& kv, AttentionSpans const& spans,
                       MatrixView<typename B::Act, typename B::Space> q,
                       MatrixView<typename B::Act, typename B::Space> k,
                       MatrixView<typename B::Act const, typename B::Space> v) {
  using ConstView = MatrixView<typename B::Act const, typename B::Space>;
  if (!q_norm.empty()) rms_norm_heads(be, q, q_norm, eps);
  if (!k_norm.empty()) rms_norm_heads(be, k, k_norm, eps);
  rotate(be, cosine, sine, head_dim, q);
  rotate(be, cosine, sine, head_dim, k);
  store_kv(be, kv, spans, ConstView(k), v);
}

}  // namespace graft
