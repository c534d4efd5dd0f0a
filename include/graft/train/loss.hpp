// SPDX-License-Identifier: Apache-2.0
// Losses: functors that turn a chunk of outputs into its gradient, in place, and remember what was lost.
//
// TrainingPass::head makes the outputs of the wanted rows a chunk at a time and hands each to such a functor, so the
// logits [m, V] of a batch never exist together.
#pragma once

#include <graft/adapter/policy.hpp>
#include <graft/backend/loss.hpp>
#include <graft/core/error.hpp>
#include <graft/core/view.hpp>

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace graft {

/// What the rows of one group lost together.
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

/// Sums rows in their order, whatever chunks they came in.
inline LossSums sum_losses(std::span<RowLoss const> rows, auto&& counts) {
  LossSums sums;
  for (std::size_t n = 0; n < rows.size(); ++n) {
    if (!counts(n)) continue;
    sums.loss += rows[n].loss, sums.nll += rows[n].nll;
    ++sums.rows, sums.correct += rows[n].correct ? 1 : 0;
  }
  return sums;
}

/// One wanted row of a batch that is trained. With several modules in one batch the step's loss is the sum over them,
/// so the weight is 1 / the number of the module's rows in the whole optimiser step, accumulated batches included.
struct LossRow {
  std::int32_t label = 0;
  double weight = 1;
  index_t group = 0;  ///< for sums: usually which module the row trains
};

/// Cross-entropy over logits: the next token of a language model, or the class of a classifier. Deterministic for any
/// executor and any chunks.
template <class B>
class CrossEntropy {
 public:
  using Act = typename B::Act;

  /// One row for each wanted row of the batch, in the same order.
  CrossEntropy(B& be, std::span<LossRow const> rows, CrossEntropyOptions options = {})
      : be_(be), options_(options), results_(rows.size()) {
    expects(options.label_smoothing >= 0 && options.label_smoothing < 1, "graft: label_smoothing is ",
            options.label_smoothing, ", expected 0 to below 1");
    expects(options.z_loss >= 0, "graft: z_loss is ", options.z_loss, ", expected 0 or more");
    for (auto const& row : rows) {
      labels_.push_back(row.label), groups_.push_back(row.group);
      weights_.push_back(static_cast<Act>(row.weight));
    }
  }

  /// logits [rows, V] of the wanted rows from `first` on become dL/dlogits.
  void operator()(index_t first, MatrixView<Act, typename B::Space> logits) {
    auto const rows = static_cast<index_t>(labels_.size());
    expects(first >= 0 && first + logits.rows <= rows, "graft: logits of rows ", first, " to ", first + logits.rows,
            " came, but there are ", rows, " labels");
    for (index_t n = first; n < first + logits.rows; ++n) {
      auto const label = labels_[static_cast<std::size_t>(n)];
      expects(label >= 0 && label < logits.cols, "graft: label ", label, " of wanted row ", n, " is not one of ",
              logits.cols);
    }
    cross_entropy(be_, logits, {labels_.data() + first, logits.rows}, {weights_.data() + first, logits.rows}, options_,
                  {results_.data() + first, logits.rows});
  }

  /// Of one group's rows, once all chunks have come.
  LossSums sums(index_t group = 0) const {
    return sum_losses(results_, [&](std::size_t n) { return groups_[n] == group; });
  }
  /// Of each wanted row.
  std::span<RowLoss const> rows() const { return results_; }

 private:
  B& be_;
  CrossEntropyOptions options_;
  std::vector<std::int32_t> labels_;
  std::vector<Act> weights_;
  std::vector<index_t> groups_;
  std::vector<RowLoss> results_;
};

/// Regression with a classification head: mean over the outputs of (output - target)^2.
template <class B>
class SquaredError {
 public:
  using Act = typename B::Act;

  /// targets [m, k] and weights [m] of the wanted rows; both are copied.
  SquaredError(B& be, MatrixView<Act const> targets, std::span<double const> weights)
      : be_(be), cols_(targets.cols), results_(weights.size()) {
    expects(targets.rows == static_cast<index_t>(weights.size()), "graft: ", targets.rows, " rows of targets have ",
            weights.size(), " weights");
    for (index_t n = 0; n < targets.rows; ++n) targets_.insert(targets_.end(), targets.row(n), targets.row(n) + cols_);
    for (double weight : weights) weights_.push_back(static_cast<Act>(weight));
  }

  /// outputs [rows, k] of the wanted rows from `first` on become dL/doutputs.
  void operator()(index_t first, MatrixView<Act, typename B::Space> outputs) {
    auto const rows = static_cast<index_t>(weights_.size());
    expects(first >= 0 && first + outputs.rows <= rows && outputs.cols == cols_, "graft: outputs [", outputs.rows, ", ",
            outputs.cols, "] from row ", first, " on came for targets [", rows, ", ", cols_, "]");
    squared_error(be_, outputs,
                  MatrixView<Act const>(matrix_view(targets_.data() + first * cols_, outputs.rows, cols_)),
                  {weights_.data() + first, outputs.rows}, {results_.data() + first, outputs.rows});
  }

  LossSums sums() const {
    return sum_losses(results_, [](std::size_t) { return true; });
  }
  std::span<RowLoss const> rows() const { return results_; }

 private:
  B& be_;
  index_t cols_;
  std::vector<Act> targets_, weights_;
  std::vector<RowLoss> results_;
};

}  // namespace graft
