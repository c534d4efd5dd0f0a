// SPDX-License-Identifier: Apache-2.0
// Losses of rows of outputs on the CPU, each row replaced by its gradient. Rows are independent of each other.
#pragma once

#include <graft/backend/activation.hpp>
#include <graft/backend/cpu/cpu_backend.hpp>
#include <graft/backend/loss.hpp>
#include <graft/core/highest.hpp>

#include <algorithm>
#include <cmath>

namespace graft {
namespace cpu {

// About 4,096 exponentials outweigh handing a chunk out; the grid depends on the shape alone.
inline index_t loss_rows_per_chunk(index_t cols) { return std::max<index_t>(1, 4096 / std::max<index_t>(1, cols)); }

template <class Act>
RowLoss cross_entropy_row(BackwardKernels<Act> const& kernels, Act* x, index_t count, std::int32_t label, Act weight,
                          CrossEntropyOptions const& options) {
  RowLoss result;
  Act const at_label = x[label];
  Act const highest = highest_of(x, count);
  // of equals the first is the answer, so a row of zeros is not always right
  result.correct = at_label == highest && std::find(x, x + label, highest) == x + label;
  double const smoothing = options.label_smoothing, share = smoothing / static_cast<double>(count);
  double mean = 0;  // of all logits; only smoothing needs it
  if (smoothing != 0)
    mean = static_cast<double>(sum_of(x, count, [](auto v) { return v; })) / static_cast<double>(count);
  double const total = kernels.exponentials(x, count, highest);
  double const lse = static_cast<double>(highest) + std::log(total);
  result.nll = lse - static_cast<double>(at_label);
  result.loss = (1 - smoothing) * result.nll + smoothing * (lse - mean) + options.z_loss * lse * lse;
  auto const scale = static_cast<Act>(static_cast<double>(weight) * (1 + 2 * options.z_loss * lse) / total);
  auto const uniform = static_cast<Act>(static_cast<double>(weight) * share);
  for (index_t k = 0; k < count; ++k) x[k] = x[k] * scale - uniform;
  x[label] -= static_cast<Act>(static_cast<double>(weight) * (1 - smoothing));
  return result;
}

}  // namespace cpu

/// Cross-entropy of softmax(logits[n]) against labels[n] (see CrossEntropyOptions); logits[n] becomes weights[n] times
/// its gradient. logits [n, V]; labels, weights, out [n].
template <class Act>
void cross_entropy(CpuBackend<Act>& be, MatrixView<Act> logits, VectorView<std::int32_t const> labels,
                   VectorView<Act const> weights, CrossEntropyOptions const& options, VectorView<RowLoss> out) {
  index_t const chunk = cpu::loss_rows_per_chunk(logits.cols);
  be.executor().run(ceil_div(logits.rows, chunk), [&](index_t c) {
    for (index_t n = c * chunk; n < std::min(logits.rows, (c + 1) * chunk); ++n)
      out[n] =
          cpu::cross_entropy_row(be.backward_kernels(), logits.row(n), logits.cols, labels[n], weights[n], options);
  });
}

/// Mean over the columns of (outputs - targets)^2, as torch's MSELoss; outputs[n] becomes weights[n] times its
/// gradient. outputs, targets [n, k]; weights, out [n].
template <class Act>
void squared_error(CpuBackend<Act>& be, MatrixView<Act> outputs, MatrixView<Act const> targets,
                   VectorView<Act const> weights, VectorView<RowLoss> out) {
  index_t const chunk = cpu::loss_rows_per_chunk(outputs.cols);
  be.executor().run(ceil_div(outputs.rows, chunk), [&](index_t c) {
    for (index_t n = c * chunk; n < std::min(outputs.rows, (c + 1) * chunk); ++n) {
      auto const cols = static_cast<double>(outputs.cols);
      double sum = 0;
      for (index_t k = 0; k < outputs.cols; ++k) {
        double const difference = static_cast<double>(outputs(n, k)) - static_cast<double>(targets(n, k));
        sum += difference * difference;
        outputs(n, k) = static_cast<Act>(2 * static_cast<double>(weights[n]) * difference / cols);
      }
      out[n] = {sum / cols, 0, false};
    }
  });
}

/// *sums += all rows.
template <class Act>
void add_losses(CpuBackend<Act>&, VectorView<RowLoss const> rows, LossSums* sums) {
  *sums += sum_losses({rows.data, static_cast<std::size_t>(rows.size)}, [](std::size_t) { return true; });
}

}  // namespace graft
