// SPDX-License-Identifier: Apache-2.0
// dX += dY W on the device. Weights that are not activations are turned into such slice by slice, as in product.cuh.
#pragma once

#include <graft/backend/cuda/product.cuh>

namespace graft {

/// The gradient of x in y = x W^T + b: dx += dy W.  dy [n, o], w [o, i] in device memory, dx [n, i]. Formats as in
/// product; ContractError for others. Sums are in float, rounded to activations once for every slice of outputs.
template <class Act>
void product_transposed(CudaBackend<Act>& be, MatrixView<Act const, DeviceSpace> dy, Weight const& w,
                        MatrixView<Act, DeviceSpace> dx) {
  if (dy.rows == 0) return;
  auto const scope = be.scope();
  cuda::for_dense_slices(be, w, [&](MatrixView<Act const, DeviceSpace> dense, index_t first) {
    be.dense_products().multiply(be.stream(), be.arena(), dy.col_range(first, dense.rows), cuda::Transpose::no, dense,
                                 cuda::Transpose::no, static_cast<Act const*>(nullptr), dx, true);
  });
}

}  // namespace graft
