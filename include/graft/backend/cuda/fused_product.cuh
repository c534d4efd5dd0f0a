// SPDX-License-Identifier: Apache-2.0
// A product with both mechanisms applied to its outputs.
#pragma once

#include <graft/backend/cuda/maps_and_deltas.cuh>
#include <graft/backend/cuda/product.cuh>

namespace graft {

/// y = outer(inner(x W^T + b) + deltas(x_delta)); null means absent. x, x_delta [n, i], y [n, o]. The product, then one
/// kernel for everything behind it.
template <class Act>
void fused_product(CudaBackend<Act>& be, Weight const& weight, VectorView<float const, DeviceSpace> bias,
                   MatrixView<Act const, DeviceSpace> x, MatrixView<Act const, DeviceSpace> x_delta,
                   RowMapBatch<float> const* inner, LowRankBatch<float> const* deltas, RowMapBatch<float> const* outer,
                   MatrixView<Act, DeviceSpace> y) {
  product(be, x, weight, bias, y);
  if (deltas != nullptr) {
    apply_maps_and_deltas(be, inner != nullptr ? *inner : RowMapBatch<float>{}, *deltas,
                          outer != nullptr ? *outer : RowMapBatch<float>{}, x_delta, y);
  } else {
    if (inner != nullptr) apply_row_map(be, *inner, y);
    if (outer != nullptr) apply_row_map(be, *outer, y);
  }
}

}  // namespace graft
