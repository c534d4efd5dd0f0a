// SPDX-License-Identifier: Apache-2.0
// Y = X W^T + b on the GPU. Weights of the activations' type go to cuBLASLt as they are. Quantised ones are decoded in
// registers where few rows meet them, and otherwise, like dense ones of another type, turned into activations slice by
// slice.
#pragma once

#include <graft/backend/cuda/elementwise.cuh>
#include <graft/backend/cuda/quantized.cuh>

#include <algorithm>

namespace graft {
namespace cuda {

/// Outputs whose weights are turned into activations at a time: about 16 MiB, which a second-level cache still holds
/// when the product reads them (the smallest of sm_80 and later has 24 MiB).
template <class Act>
index_t slice_outputs(index_t inputs) {
  return std::max<index_t>(64, (index_t{16} << 20) / (inputs * static_cast<index_t>(sizeof(Act))) / 64 * 64);
}

/// The bias in the type that cuBLASLt's epilogue wants, that of the result; null where there is none. Its rounding
/// weighs as much as rounding the product before adding a float bias would, which takes a pass over y instead of one
/// over the bias. Biases of a model in the activations' type lose nothing. It is aligned to 16 bytes, as DenseProducts
/// wants it.
template <class Act>
Act const* epilogue_bias(CudaBackend<Act>& be, VectorView<float const, DeviceSpace> bias) {
  if (bias.empty()) return nullptr;
  if constexpr (std::same_as<Act, float>)
    if (aligned16(bias.data)) return bias.data;
  auto const copy = be.arena().template matrix<Act>(1, bias.size);
  convert(be, MatrixView<float const, DeviceSpace>{bias.data, 1, bias.size, bias.size}, copy);
  return copy.data;
}

/// f(dense, first) for the weight as activations, in slices of outputs from `first` on: as a whole where it is stored
/// so.
template <class Act, class F>
void for_dense_slices(CudaBackend<Act>& be, Weight const& w, F&& f) {
  using Dense = MatrixView<Act const, DeviceSpace>;
  auto const slices = [&](auto const& decode) {
    index_t const step = std::min(w.rows, slice_outputs<Act>(w.cols));
    auto const slice = be.arena().template matrix<Act>(step, w.cols);
    for (index_t first = 0; first < w.rows; first += step) {
      auto const part = slice.row_range(0, std::min(step, w.rows - first));
      decode(w.row_range(first, part.rows), part);
      f(Dense(part), first);
    }
  };
  if (is_quantized(w.format))
    return slices([&](Weight const& some, MatrixView<Act, DeviceSpace> to) { dequantize(be, some, to); });
  with_dense_format(w.format, [&](auto number) {
    using T = decltype(number);
    if constexpr (std::same_as<T, Act>)
      f(dense_view<Act>(w), 0);
    else
      slices([&](Weight const& some, MatrixView<Act, DeviceSpace> to) { convert(be, dense_view<T>(some), to); });
  });
}

}  // namespace cuda

/// Y = X W^T + b.  x [n, i], w [o, i] in device memory, bias [o] or empty, y [n, o]. F32, F16, BF16, Q8_0, Q4_0, Q4_1
/// and Q6_K weights; ContractError for others. Sums are in float.
template <class Act>
void product(CudaBackend<Act>& be, MatrixView<Act const, DeviceSpace> x, Weight const& w,
             VectorView<float const, DeviceSpace> bias, MatrixView<Act, DeviceSpace> y) {
  if (x.rows == 0) return;
  if (cuda::is_quantized(w.format) && x.rows <= cuda::quantized_rows) return cuda::multiply_few_rows(be, x, w, bias, y);

  ArenaScope scope(be.arena());
  Act const* const offset = cuda::epilogue_bias(be, bias);
  cuda::for_dense_slices(be, w, [&](MatrixView<Act const, DeviceSpace> dense, index_t first) {
    be.dense_products().multiply(be.stream(), be.arena(), x, cuda::Transpose::no, dense, cuda::Transpose::yes,
                                 offset != nullptr ? offset + first : nullptr, y.col_range(first, dense.rows));
  });
}

}  // namespace graft
