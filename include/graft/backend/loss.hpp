// SPDX-License-Identifier: Apache-2.0
// Losses of rows of outputs, shared by all backends.
#pragma once

#include <graft/config.hpp>

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

}  // namespace graft
