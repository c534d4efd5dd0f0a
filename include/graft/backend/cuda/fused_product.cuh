// SPDX-License-Identifier: Apache-2.0
// A product with both mechanisms applied to its outputs.
#pragma once

#include <graft/backend/cuda/maps_and_deltas.cuh>
#include <graft/backend/cuda/product.cuh>
#include <graft/backend/fused_rows.hpp>

#include <array>
#include <cstddef>

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

/// Several products of one x (see JoinedProduct) as one, beside it the shrinking of all their deltas, then one kernel
/// for all that have any.
template <class Act, std::size_t N>
void joined_products(CudaBackend<Act>& be, Weight const& weight, MatrixView<Act const, DeviceSpace> x,
                     std::array<JoinedProduct<CudaBackend<Act>>, N> const& parts, MatrixView<Act, DeviceSpace> y) {
  auto const scope = be.scope();
  cuda::ShrunkSites<static_cast<int>(N)> shrunk;
  cuda::UnfinishedProducts<static_cast<int>(N), Act> unfinished;
  index_t count = 0;
  for (auto const& part : parts) {
    if (!part.deltas.any()) continue;
    auto const t = cuda::shrunk_rows(be, part.deltas, x.rows);
    shrunk.site[count] = {part.deltas, t};
    unfinished.product[count++] = {cuda::present_maps(part.inner), part.deltas, {}, t, part.y};
  }
  auto const multiply = [&] { product(be, x, weight, {}, y); };
  if (count > 0) {
    be.beside([&](cudaStream_t stream) { cuda::shrink_rows(stream, shrunk, count, x); }, multiply);
    cuda::launch_maps_and_deltas(be, unfinished, count);
  } else {
    multiply();
  }
  for (auto const& part : parts)
    if (!part.deltas.any()) apply_row_map(be, part.inner, part.y);
}

}  // namespace graft
