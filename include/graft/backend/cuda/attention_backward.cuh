// SPDX-License-Identifier: Apache-2.0
// Gradients of attention on the device.
#pragma once

#include <graft/backend/cuda/attention_backward_plain.cuh>
#include <graft/backend/cuda/attention_backward_tensor.cuh>

namespace graft {

/// The backward of attention over sequences that start in this batch: a span's keys are its own rows (first_token 0,
/// tokens == rows). q, out, dout, dq [n, heads * head_dim]; k, v, dk, dv [n, kv_heads * head_dim], rows of the batch;
/// out is attention's result. dq, dk, dv +=. A row that may look at nothing has gradient 0. spans in device memory. On
/// tensor cores, keys that a row does not see must hold numbers, as attention wants it.
template <class Act>
void attention_backward(CudaBackend<Act>& be, AttentionShape const& shape, AttentionSpans const& spans,
                        MatrixView<Act const, DeviceSpace> q, MatrixView<Act const, DeviceSpace> k,
                        MatrixView<Act const, DeviceSpace> v, MatrixView<Act const, DeviceSpace> out,
                        MatrixView<Act const, DeviceSpace> dout, MatrixView<Act, DeviceSpace> dq,
                        MatrixView<Act, DeviceSpace> dk, MatrixView<Act, DeviceSpace> dv) {
  auto const scope = be.scope();
  cuda::AttentionInputs<Act> const in{
      cuda::attention_sizes(shape), q, k, v, out, dout, be.arena().template matrix<cuda::RowSums>(shape.heads, q.rows)};
  auto const run = [&](auto dq_kernel, auto dkv_kernel, index_t rows, int threads, std::size_t dq_bytes,
                       std::size_t dkv_bytes) {
    auto const grid = [&](index_t heads) {
      return cuda::grid_of(ceil_div(spans.max_rows, rows), heads, static_cast<index_t>(spans.size()));
    };
    cuda::launch(dq_kernel, grid(shape.heads), static_cast<unsigned>(threads), dq_bytes, be.stream(), in, spans.data(),
                 dq);
    cuda::launch(dkv_kernel, grid(shape.kv_heads), static_cast<unsigned>(threads), dkv_bytes, be.stream(), in,
                 spans.data(), dk, dv);
  };
  if constexpr (cuda::tensor_core_capability<Act> < 1000) {
    bool const whole = cuda::aligned16(q) && cuda::aligned16(k) && cuda::aligned16(v) && cuda::aligned16(out) &&
                       cuda::aligned16(dout) && cuda::aligned16(dq) && cuda::aligned16(dk) && cuda::aligned16(dv);
    if (whole && be.capability() >= cuda::tensor_core_capability<Act>) {
      auto const tensor = [&]<int Dim>(std::integral_constant<int, Dim>) {
        run(cuda::attention_dq_tensor<Dim, Act>, cuda::attention_dkv_tensor<Dim, Act>, cuda::owned_rows,
            cuda::owner_threads, cuda::walked_bytes<Act, Dim>,
            cuda::walked_bytes<Act, Dim> + cuda::value_bytes<Act, Dim>);
      };
      switch (shape.head_dim) {
        case 64:
          return tensor(std::integral_constant<int, 64>());
        case 80:
          return tensor(std::integral_constant<int, 80>());
        case 96:
          return tensor(std::integral_constant<int, 96>());
        case 128:
          return tensor(std::integral_constant<int, 128>());
        default:
          break;
      }
    }
  }
  run(cuda::attention_dq<Act>, cuda::attention_dkv<Act>, cuda::backward_tile, cuda::backward_threads, 0, 0);
}

}  // namespace graft
