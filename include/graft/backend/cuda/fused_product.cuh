// SPDX-License-Identifier: Apache-2.0
// A product with both mechanisms applied to its outputs.
#pragma once

#include <graft/backend/cuda/maps_and_deltas.cuh>
#include <graft/backend/cuda/product.cuh>

namespace graft {

/// y = outer(inner(x W^T + b) + deltas(x_delta)); null means absent. x, x_delta [n, i], y [n, o]. The product, beside
/// it the shrinking of deltas, then one kernel for everything behind it.
template <class Act>
void fused_product(CudaBackend<Act>& be, Weight const& weight, VectorView<float const, DeviceSpace> bias,
                   MatrixView<Act const, DeviceSpace> x, MatrixView<Act const, DeviceSpace> x_delta,
                   RowMapBatch<float> const* inner, LowRankBatch<float> const* deltas, RowMapBatch<float> const* outer,
                   MatrixView<Act, DeviceSpace> y) {
  auto const maps = [](RowMapBatch<float> const* some) { return some != nullptr ? *some : RowMapBatch<float>{}; };
  if (deltas != nullptr && deltas->any()) {
    auto const scope = be.scope();
    auto const t = cuda::shrunk_rows(be, *deltas, x_delta.rows);
    be.beside([&](cudaStream_t stream) { cuda::shrink_rows(stream, *deltas, x_delta, t); },
              [&] { product(be, x, weight, bias, y); });
    cuda::launch_maps_and_deltas(be, cuda::present_maps(maps(inner)), *deltas, cuda::present_maps(maps(outer)), t, y);
  } else {
    product(be, x, weight, bias, y);
    if (inner != nullptr) apply_row_map(be, *inner, y);
    if (outer != nullptr) apply_row_map(be, *outer, y);
  }
}

}  // namespace graft
