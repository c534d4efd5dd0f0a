// SPDX-License-Identifier: Apache-2.0
// Losses of rows of outputs on the device, each row replaced by its gradient: a block per row.
#pragma once

#include <graft/backend/cuda/elementwise.cuh>
#include <graft/backend/loss.hpp>

#include <cmath>
#include <cstdint>

namespace graft {
namespace cuda {

inline constexpr int loss_threads = 256;

/// Sums of exponentials are in float; what is made of them once per row is in double.
template <class Act>
__global__ void __launch_bounds__(loss_threads)
    cross_entropy_rows(MatrixView<Act, DeviceSpace> logits, std::int32_t const* labels, float const* weights,
                       CrossEntropyOptions options, RowLoss* out) {
  index_t const n = blockIdx.x, count = logits.cols, label = labels[n];
  Act* const x = logits.row(n);
  float const at_label = to_real(x[label]);
  float highest = -INFINITY, sum = 0;
  for (index_t k = threadIdx.x; k < count; k += blockDim.x) {
    float const v = to_real(x[k]);
    highest = v > highest ? v : highest;
    sum += v;
  }
  highest = block_max(highest);
  if (options.label_smoothing != 0) sum = block_sum(sum);
  float total = 0, before = 0;  // before: equals of the highest in front of the label
  for (index_t k = threadIdx.x; k < count; k += blockDim.x) {
    float const v = to_real(x[k]);
    total += expf(v - highest);
    if (k < label && v == highest) before = 1;
  }
  total = block_sum(total);
  before = block_sum(before);  // also: everybody has read the label's logit
  double const smoothing = options.label_smoothing, share = smoothing / static_cast<double>(count);
  double const lse = static_cast<double>(highest) + log(static_cast<double>(total)), weight = weights[n];
  if (threadIdx.x == 0) {
    double const mean = smoothing != 0 ? static_cast<double>(sum) / static_cast<double>(count) : 0;
    double const nll = lse - static_cast<double>(at_label);
    out[n].loss = (1 - smoothing) * nll + smoothing * (lse - mean) + options.z_loss * lse * lse;
    out[n].nll = nll;
    out[n].correct = at_label == highest && before == 0;
  }
  auto const scale = static_cast<float>(weight * (1 + 2 * options.z_loss * lse) / static_cast<double>(total));
  auto const uniform = static_cast<float>(weight * share), hit = static_cast<float>(weight * (1 - smoothing));
  for (index_t k = threadIdx.x; k < count; k += blockDim.x)
    x[k] = from_real<Act>(expf(to_real(x[k]) - highest) * scale - uniform - (k == label ? hit : 0.f));
}

template <class Act>
__global__ void squared_error_rows(MatrixView<Act, DeviceSpace> outputs, MatrixView<Act const, DeviceSpace> targets,
                                   float const* weights, RowLoss* out) {
  index_t const n = blockIdx.x;
  auto const cols = static_cast<float>(outputs.cols);
  float sum = 0;
  for (index_t k = threadIdx.x; k < outputs.cols; k += blockDim.x) {
    float const difference = to_real(outputs(n, k)) - to_real(targets(n, k));
    sum += difference * difference;
    outputs(n, k) = from_real<Act>(2 * weights[n] * difference / cols);
  }
  sum = block_sum(sum);
  if (threadIdx.x != 0) return;
  out[n].loss = static_cast<double>(sum / cols);  // nvcc 13.0 cannot compile the assignment of an aggregate here
  out[n].nll = 0;
  out[n].correct = false;
}

/// One block adds all rows to *sums, in a fixed order.
template <class Row>
__global__ void __launch_bounds__(total_threads) sum_rows(VectorView<Row const, DeviceSpace> rows, LossSums* sums) {
  double loss = 0, nll = 0, correct = 0;
  for (index_t n = threadIdx.x; n < rows.size; n += total_threads) {
    loss += rows[n].loss, nll += rows[n].nll;
    correct += rows[n].correct ? 1 : 0;
  }
  loss = block_total(loss), nll = block_total(nll), correct = block_total(correct);
  if (threadIdx.x != 0) return;
  sums->loss += loss, sums->nll += nll;
  sums->rows += rows.size, sums->correct += static_cast<index_t>(correct);
}

}  // namespace cuda

/// Cross-entropy of softmax(logits[n]) against labels[n] (see CrossEntropyOptions); logits[n] becomes weights[n] times
/// its gradient. logits [n, V]; labels, weights, out [n].
template <class Act>
void cross_entropy(CudaBackend<Act>& be, MatrixView<Act, DeviceSpace> logits,
                   VectorView<std::int32_t const, DeviceSpace> labels, VectorView<float const, DeviceSpace> weights,
                   CrossEntropyOptions const& options, VectorView<RowLoss, DeviceSpace> out) {
  cuda::launch(cuda::cross_entropy_rows<Act>, cuda::grid_of(logits.rows), cuda::loss_threads, 0, be.stream(), logits,
               labels.data, weights.data, options, out.data);
}

/// Mean over the columns of (outputs - targets)^2, as torch's MSELoss; outputs[n] becomes weights[n] times its
/// gradient. outputs, targets [n, k]; weights, out [n].
template <class Act>
void squared_error(CudaBackend<Act>& be, MatrixView<Act, DeviceSpace> outputs,
                   MatrixView<Act const, DeviceSpace> targets, VectorView<float const, DeviceSpace> weights,
                   VectorView<RowLoss, DeviceSpace> out) {
  cuda::launch(cuda::squared_error_rows<Act>, cuda::grid_of(outputs.rows), 32, 0, be.stream(), outputs, targets,
               weights.data, out.data);
}

/// *sums += all rows. Both in device memory.
template <class Act>
void add_losses(CudaBackend<Act>& be, VectorView<RowLoss const, DeviceSpace> rows, LossSums* sums) {
  cuda::launch(cuda::sum_rows<RowLoss>, cuda::grid_of(1), cuda::total_threads, 0, be.stream(), rows, sums);
}

}  // namespace graft
