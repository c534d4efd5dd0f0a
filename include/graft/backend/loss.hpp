// SPDX-License-Identifier: Apache-2.0
// Losses of rows of outputs, and their sums; shared by all backends.
#pragma once

#include <graft/config.hpp>
#include <graft/core/types.hpp>

#include <cstddef>
#include <span>

namespace graft {

/// The loss of a row of logits z with label y:  (1 - e) -log p[y]  +  e mean_k -log p[k]  +  l log(sum_k exp z[k])^2
struct CrossEntropyOptions {
  double label_smoothing = 0;  ///< e, as torch.nn.CrossEntropyLoss
  double z_loss = 0;           ///< l keeps the normaliser near 1: PaLM, Chowdhery et al. 2022, arXiv:2204.02311, 5
};

/// What a row of outputs lost.
struct RowLoss {
  double loss = 0;       ///< what is minimised, before the row's weight
  double nll = 0;        ///< -log p[label] alone; of no meaning for squared errors
  bool correct = false;  ///< whether the label has the highest output
};

/// What many rows lost together.
struct LossSums {
  double loss = 0;  ///< what is minimised: smoothing and z-loss included, weights not
  double nll = 0;   ///< sum of -log p[label]
  index_t rows = 0, correct = 0;

  LossSums& operator+=(LossSums const& other) {
    loss += other.loss, nll += other.nll, rows += other.rows, correct += other.correct;
    return *this;
  }
  double mean() const { return rows == 0 ? 0 : loss / static_cast<double>(rows); }
};

/// Sums rows in their order, whatever chunks they came in; counts(n) says which.
inline LossSums sum_losses(std::span<RowLoss const> rows, auto&& counts) {
  LossSums sums;
  for (std::size_t n = 0; n < rows.size(); ++n) {
    if (!counts(n)) continue;
    sums.loss += rows[n].loss, sums.nll += rows[n].nll;
    ++sums.rows, sums.correct += rows[n].correct ? 1 : 0;
  }
  return sums;
}

}  // namespace graft
