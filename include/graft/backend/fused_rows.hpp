// SPDX-License-Identifier: Apache-2.0
// What layers do between products, several steps in one operation: here composed of the single steps, for any backend;
// one that has kernels for them overloads these names.
#pragma once

#include <graft/backend/activation.hpp>
#include <graft/backend/attention.hpp>
#include <graft/backend/low_rank.hpp>
#include <graft/backend/row_map.hpp>
#include <graft/backend/weight.hpp>
#include <graft/core/view.hpp>

#include <array>
#include <span>

namespace graft {

/// y = outer(inner(input(x) W^T + b) + deltas(x_delta)), one of several products that read nothing of each other: what
/// a backend that runs them together takes as fused_products(be, span). x, x_delta [n, i], y [n, o].
template <class B>
struct AdaptedProduct {
  Weight const* weight;
  VectorView<typename B::Real const, typename B::Space> bias;       ///< [o] or empty
  MatrixView<typename B::Act const, typename B::Space> x, x_delta;  ///< for the weight, for the deltas
  RowMapBatch<typename B::Real> inner;                              ///< these three and `input` may be of no row
  LowRankBatch<typename B::Real> deltas;
  RowMapBatch<typename B::Real> outer;
  MatrixView<typename B::Act, typename B::Space> y;
  RowMapBatch<typename B::Real> input = {};
};

/// Whether a backend runs several of them together.
template <class B>
concept FusesProducts = requires(B& be, std::span<AdaptedProduct<B> const> products) {
  fused_products(be, products);
};

/// One of several products of one x whose weights lie one behind the other, as a single weight [sum of o, i], and have
/// no biases: y = inner(x W^T) + deltas(x), y being its columns of the single product's result.
template <class B>
struct JoinedProduct {
  RowMapBatch<typename B::Real> inner;  ///< these two may be of no row
  LowRankBatch<typename B::Real> deltas;
  MatrixView<typename B::Act, typename B::Space> y;  ///< [n, o]
};

/// Whether a backend does such products as one: joined_products(be, weight, x, parts, y), y [n, sum of o].
template <class B>
concept JoinsProducts = requires(B& be, Weight const& weight, MatrixView<typename B::Act const, typename B::Space> x,
                                 std::array<JoinedProduct<B>, 2> const& parts,
                                 MatrixView<typename B::Act, typename B::Space> y) {
  joined_products(be, weight, x, parts, y);
};

/// What a product made, and row maps that are still to be applied: the operation that reads it next does so.
template <class B>
struct Unmapped {
  MatrixView<typename B::Act, typename B::Space> x;  ///< [n, o]; scratch once it has been read
  RowMapBatch<typename B::Real> maps = {};           ///< of no row: x is finished
};

/// Whether the operations below apply row maps in passes they make anyway. Where not, maps are applied by the product.
template <class B>
inline constexpr bool maps_can_wait = false;

/// x with its maps applied, in place.
template <class B>
MatrixView<typename B::Act, typename B::Space> mapped(B& be, Unmapped<B> const& x) {
  if (x.maps.any()) apply_row_map(be, x.maps, x.x);
  return x.x;
}

/// h += map(x).  x, h [n, d]
template <class B>
void add_mapped(B& be, Unmapped<B> const& x, MatrixView<typename B::Act, typename B::Space> h) {
  add(be, MatrixView<typename B::Act const, typename B::Space>(mapped(be, x)), h);
}

/// h += map(x); y = rms_norm(h).  x, h, y [n, d], weight [d]
template <class B>
void add_mapped_norm(B& be, Unmapped<B> const& x, MatrixView<typename B::Act, typename B::Space> h,
                     VectorView<typename B::Real const, typename B::Space> weight, double eps,
                     MatrixView<typename B::Act, typename B::Space> y) {
  add_mapped(be, x, h);
  rms_norm(be, MatrixView<typename B::Act const, typename B::Space>(h), weight, eps, y);
}

/// h += map(x); y = layer_norm(h), which may be h.  x, h, y [n, d], weight and bias [d]
template <class B>
void add_mapped_layer_norm(B& be, Unmapped<B> const& x, MatrixView<typename B::Act, typename B::Space> h,
                           VectorView<typename B::Real const, typename B::Space> weight,
                           VectorView<typename B::Real const, typename B::Space> bias, double eps,
                           MatrixView<typename B::Act, typename B::Space> y) {
  add_mapped(be, x, h);
  layer_norm(be, MatrixView<typename B::Act const, typename B::Space>(h), weight, bias, eps, y);
}

/// f(map(x)), in place or in the caller's scope of the arena.  x [n, f]
template <class B>
MatrixView<typename B::Act, typename B::Space> activate_mapped(B& be, Activation f, Unmapped<B> const& x) {
  auto const y = mapped(be, x);
  activate(be, f, y);
  return y;
}

/// f(map(gate)) * map(up), in place of gate or in the caller's scope of the arena.  gate, up [n, f]
template <class B>
MatrixView<typename B::Act, typename B::Space> activate_gated_mapped(B& be, Activation f, Unmapped<B> const& gate,
                                                                     Unmapped<B> const& up) {
  auto const x = mapped(be, gate);
  activate_gated(be, f, x, MatrixView<typename B::Act const, typename B::Space>(mapped(be, up)));
  return x;
}

/// Maps of q, k and v, norms of q's and k's heads where there are weights [head_dim], rotation of both, keys and values
/// into their pages. Returns q, in its place or in the caller's scope of the arena. q [n, heads * head_dim];
/// k, v [n, kv_heads * head_dim]. Rows outside all spans are left undefined.
template <class B>
MatrixView<typename B::Act, typename B::Space> norm_rotate_store(
    B& be, VectorView<typename B::Real const, typename B::Space> q_norm,
    VectorView<typename B::Real const, typename B::Space> k_norm, double eps,
    MatrixView<typename B::Act const, typename B::Space> cosine,
    MatrixView<typename B::Act const, typename B::Space> sine, index_t head_dim, KvView<typename B::Act> const& kv,
    AttentionSpans const& spans, Unmapped<B> const& q, Unmapped<B> const& k, Unmapped<B> const& v) {
  using ConstView = MatrixView<typename B::Act const, typename B::Space>;
  auto const queries = mapped(be, q), keys = mapped(be, k), values = mapped(be, v);
  if (!q_norm.empty()) rms_norm_heads(be, queries, q_norm, eps);
  if (!k_norm.empty()) rms_norm_heads(be, keys, k_norm, eps);
  rotate(be, cosine, sine, head_dim, queries);
  rotate(be, cosine, sine, head_dim, keys);
  store_kv(be, kv, spans, ConstView(keys), ConstView(values));
  return queries;
}

}  // namespace graft
