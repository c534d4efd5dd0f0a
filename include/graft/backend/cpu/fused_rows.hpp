// SPDX-License-Identifier: Apache-2.0
// What layers do between products, several steps while a row is in cache.
#pragma once

#include <graft/backend/cpu/attention.hpp>
#include <graft/backend/cpu/elementwise.hpp>
#include <graft/backend/cpu/row_map.hpp>
#include <graft/backend/fused_rows.hpp>

namespace graft {

/// As backend/fused_rows.hpp says; rows are added and normalised one by one.
template <class Act>
void add_mapped_norm(CpuBackend<Act>& be, Unmapped<CpuBackend<Act>> const& x, MatrixView<Act> h,
                     VectorView<Act const> weight, double eps, MatrixView<Act> y) {
  auto const added = mapped(be, x);
  cpu::for_row_blocks(be, h.rows, [&](index_t first, index_t last) {
    for (index_t n = first; n < last; ++n) {
      be.layer_kernels().add_row(added.row(n), h.cols, h.row(n));
      be.layer_kernels().rms_norm_row(h.row(n), weight.data, static_cast<Act>(eps), h.cols, y.row(n));
    }
  });
}

/// As backend/fused_rows.hpp says; q and k are normalised and rotated row by row.
template <class Act>
MatrixView<Act> norm_rotate_store(CpuBackend<Act>& be, VectorView<Act const> q_norm, VectorView<Act const> k_norm,
                                  double eps, MatrixView<Act const> cosine, MatrixView<Act const> sine,
                                  index_t head_dim, KvView<Act> const& kv, AttentionSpans const& spans,
                                  Unmapped<CpuBackend<Act>> const& q, Unmapped<CpuBackend<Act>> const& k,
                                  Unmapped<CpuBackend<Act>> const& v) {
  auto const queries = mapped(be, q), keys = mapped(be, k), values = mapped(be, v);
  auto const norm_rotate = [&](VectorView<Act const> norm, MatrixView<Act> x, index_t n) {
    for (index_t h = 0; !norm.empty() && h < x.cols; h += norm.size)
      be.layer_kernels().rms_norm_row(x.row(n) + h, norm.data, static_cast<Act>(eps), norm.size, x.row(n) + h);
    be.layer_kernels().rotate_row(cosine.row(n), sine.row(n), cosine.cols, head_dim, x.cols, x.row(n));
  };
  cpu::for_row_blocks(be, queries.rows, [&](index_t first, index_t last) {
    for (index_t n = first; n < last; ++n) norm_rotate(q_norm, queries, n), norm_rotate(k_norm, keys, n);
  });
  store_kv(be, kv, spans, MatrixView<Act const>(keys), MatrixView<Act const>(values));
  return queries;
}

}  // namespace graft
