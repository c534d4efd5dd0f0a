// SPDX-License-Identifier: Apache-2.0
// Losses: functors that turn a chunk of outputs into its gradient, in place, and remember what was lost.
//
// TrainingPass::head makes the outputs of the wanted rows a chunk at a time and hands each to such a functor, so the
// logits [m, V] of a batch never exist together.
#pragma once

#include <graft/adapter/policy.hpp>
#include <graft/backend/loss.hpp>
#include <graft/core/error.hpp>
#include <graft/core/memory.hpp>
#include <graft/core/view.hpp>

#include <concepts>
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

/// What each row lost, where the backend writes it. Rows whose outputs have not come yet have lost nothing.
template <class B>
class RowLosses {
 public:
  using Space = typename B::Space;
  explicit RowLosses(index_t rows) : host_(static_cast<std::size_t>(rows)), memory_(std::span<RowLoss const>(host_)) {}

  VectorView<RowLoss, Space> part(index_t first, index_t count) const { return memory_.view().part(first, count); }
  /// Waits for a device.
  std::span<RowLoss const> host(B& be) {
    if constexpr (std::same_as<Space, HostSpace>)
      return {memory_.data(), host_.size()};
    else
      copy_to_host(be, static_cast<RowLoss const*>(memory_.data()), host_.data(), memory_.size());
    return host_;
  }

 private:
  std::vector<RowLoss> host_;
  Storage<RowLoss, Space> memory_;
};

/// Cross-entropy over logits: the next token of a language model, or the class of a classifier. Deterministic for any
/// executor and any chunks.
template <class B>
class CrossEntropy {
  using R = Real<B>;
  using Space = typename B::Space;

 public:
  using Act = typename B::Act;

  /// One row for each wanted row of the batch, in the same order.
  CrossEntropy(B& be, std::span<LossRow const> rows, CrossEntropyOptions options = {})
      : be_(be), options_(options), results_(static_cast<index_t>(rows.size())) {
    expects(options.label_smoothing >= 0 && options.label_smoothing < 1, "graft: label_smoothing is ",
            options.label_smoothing, ", expected 0 to below 1");
    expects(options.z_loss >= 0, "graft: z_loss is ", options.z_loss, ", expected 0 or more");
    std::vector<R> weights;
    for (auto const& row : rows) {
      labels_.push_back(row.label), groups_.push_back(row.group);
      weights.push_back(static_cast<R>(row.weight));
    }
    resident_labels_ = Storage<std::int32_t, Space>(std::span<std::int32_t const>(labels_));
    weights_ = Storage<R, Space>(std::span<R const>(weights));
  }

  /// logits [rows, V] of the wanted rows from `first` on become dL/dlogits.
  void operator()(index_t first, MatrixView<Act, Space> logits) {
    auto const rows = static_cast<index_t>(labels_.size());
    expects(first >= 0 && first + logits.rows <= rows, "graft: logits of rows ", first, " to ", first + logits.rows,
            " came, but there are ", rows, " labels");
    for (index_t n = first; n < first + logits.rows; ++n) {
      auto const label = labels_[static_cast<std::size_t>(n)];
      expects(label >= 0 && label < logits.cols, "graft: label ", label, " of wanted row ", n, " is not one of ",
              logits.cols);
    }
    using Labels = VectorView<std::int32_t const, Space>;
    using Weights = VectorView<R const, Space>;
    cross_entropy(be_, logits, Labels(resident_labels_.view().part(first, logits.rows)),
                  Weights(weights_.view().part(first, logits.rows)), options_, results_.part(first, logits.rows));
  }

  /// Of one group's rows, once all chunks have come.
  LossSums sums(index_t group = 0) {
    return sum_losses(rows(), [&](std::size_t n) { return groups_[n] == group; });
  }
  /// Of each wanted row. Waits for a device.
  std::span<RowLoss const> rows() { return results_.host(be_); }

 private:
  B& be_;
  CrossEntropyOptions options_;
  std::vector<std::int32_t> labels_;
  std::vector<index_t> groups_;
  Storage<std::int32_t, Space> resident_labels_;
  Storage<R, Space> weights_;
  RowLosses<B> results_;
};

/// Regression with a classification head: mean over the outputs of (output - target)^2.
template <class B>
class SquaredError {
  using R = Real<B>;
  using Space = typename B::Space;

 public:
  using Act = typename B::Act;

  /// targets [m, k] and weights [m] of the wanted rows, in host memory; both are copied.
  SquaredError(B& be, MatrixView<Act const> targets, std::span<double const> weights)
      : be_(be), cols_(targets.cols), results_(static_cast<index_t>(weights.size())) {
    expects(targets.rows == static_cast<index_t>(weights.size()), "graft: ", targets.rows, " rows of targets have ",
            weights.size(), " weights");
    std::vector<Act> all;
    for (index_t n = 0; n < targets.rows; ++n) all.insert(all.end(), targets.row(n), targets.row(n) + cols_);
    std::vector<R> reals;
    for (double weight : weights) reals.push_back(static_cast<R>(weight));
    targets_ = Storage<Act, Space>(std::span<Act const>(all));
    weights_ = Storage<R, Space>(std::span<R const>(reals));
  }

  /// outputs [rows, k] of the wanted rows from `first` on become dL/doutputs.
  void operator()(index_t first, MatrixView<Act, Space> outputs) {
    auto const rows = weights_.size();
    expects(first >= 0 && first + outputs.rows <= rows && outputs.cols == cols_, "graft: outputs [", outputs.rows, ", ",
            outputs.cols, "] from row ", first, " on came for targets [", rows, ", ", cols_, "]");
    squared_error(
        be_, outputs, matrix_view<Space>(static_cast<Act const*>(targets_.data()) + first * cols_, outputs.rows, cols_),
        VectorView<R const, Space>(weights_.view().part(first, outputs.rows)), results_.part(first, outputs.rows));
  }

  LossSums sums() {
    return sum_losses(rows(), [](std::size_t) { return true; });
  }
  /// Waits for a device.
  std::span<RowLoss const> rows() { return results_.host(be_); }

 private:
  B& be_;
  index_t cols_;
  Storage<Act, Space> targets_;
  Storage<R, Space> weights_;
  RowLosses<B> results_;
};

}  // namespace graft
