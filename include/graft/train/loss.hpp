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
#include <graft/train/host_copy.hpp>
#include <graft/train/resident_copy.hpp>

#include <concepts>
#include <cstdint>
#include <span>
#include <vector>

namespace graft {

/// One wanted row of a batch that is trained. With several modules in one batch the step's loss is the sum over them,
/// so the weight is 1 / the number of the module's rows in the whole optimiser step, accumulated batches included.
struct LossRow {
  std::int32_t label = 0;
  double weight = 1;
  index_t group = 0;  ///< for sums: usually which module the row trains
};

/// What each row lost, where the backend writes it.
template <class B>
class RowLosses {
 public:
  using Space = typename B::Space;

  /// Rows whose outputs have not come yet have lost nothing.
  void start(B& be, index_t rows) {
    host_.assign(static_cast<std::size_t>(rows), {});
    memory_.make_room(rows);
    copy_from_host(be, host_, memory_.view().part(0, rows));
  }
  VectorView<RowLoss, Space> part(index_t first, index_t count) const { return memory_.view().part(first, count); }
  VectorView<RowLoss const, Space> all() const { return part(0, static_cast<index_t>(host_.size())); }
  /// Waits for a device.
  std::span<RowLoss const> host([[maybe_unused]] B& be) {
    if constexpr (std::same_as<Space, HostSpace>)
      return {memory_.data(), host_.size()};
    else
      copy_to_host(be, static_cast<RowLoss const*>(memory_.data()), host_.data(), static_cast<index_t>(host_.size()));
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

  explicit CrossEntropy(B& be, CrossEntropyOptions options = {}) : be_(be), options_(options) {
    expects(options.label_smoothing >= 0 && options.label_smoothing < 1, "graft: label_smoothing is ",
            options.label_smoothing, ", expected 0 to below 1");
    expects(options.z_loss >= 0, "graft: z_loss is ", options.z_loss, ", expected 0 or more");
  }
  CrossEntropy(B& be, std::span<LossRow const> rows, CrossEntropyOptions options = {}) : CrossEntropy(be, options) {
    start(rows);
  }

  /// One row for each wanted row of the batch, in the same order. Memory is taken only where a batch has more of them
  /// than all before it.
  void start(std::span<LossRow const> rows) {
    labels_.clear(), groups_.clear(), weights_.clear();
    for (auto const& row : rows) {
      labels_.push_back(row.label), groups_.push_back(row.group);
      weights_.push_back(static_cast<R>(row.weight));
    }
    labels_at_ = resident_labels_.put(be_, labels_);
    weights_at_ = resident_weights_.put(be_, weights_);
    results_.start(be_, static_cast<index_t>(rows.size()));
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
    cross_entropy(be_, logits, Labels{labels_at_ + first, logits.rows}, Weights{weights_at_ + first, logits.rows},
                  options_, results_.part(first, logits.rows));
  }

  /// Of one group's rows, once all chunks have come.
  LossSums sums(index_t group = 0) {
    return sum_losses(rows(), [&](std::size_t n) { return groups_[n] == group; });
  }
  /// Adds all rows, whatever their groups, to sums in B::Space; waits for nothing.
  void add_to(LossSums* sums) { add_losses(be_, results_.all(), sums); }
  /// Of each wanted row. Waits for a device.
  std::span<RowLoss const> rows() { return results_.host(be_); }

 private:
  B& be_;
  CrossEntropyOptions options_;
  std::vector<std::int32_t> labels_;
  std::vector<index_t> groups_;
  std::vector<R> weights_;
  ResidentCopy<std::int32_t, Space> resident_labels_;
  ResidentCopy<R, Space> resident_weights_;
  std::int32_t const* labels_at_ = nullptr;
  R const* weights_at_ = nullptr;
  RowLosses<B> results_;
};

/// Regression with a classification head: mean over the outputs of (output - target)^2.
template <class B>
class SquaredError {
  using R = Real<B>;
  using Space = typename B::Space;

 public:
  using Act = typename B::Act;

  explicit SquaredError(B& be) : be_(be) {}
  SquaredError(B& be, MatrixView<Act const> targets, std::span<double const> weights) : be_(be) {
    start(targets, weights);
  }

  /// targets [m, k] and weights [m] of the wanted rows, in host memory; both are copied. Memory is taken only where a
  /// batch has more of them than all before it.
  void start(MatrixView<Act const> targets, std::span<double const> weights) {
    expects(targets.rows == static_cast<index_t>(weights.size()), "graft: ", targets.rows, " rows of targets have ",
            weights.size(), " weights");
    cols_ = targets.cols;
    targets_.clear(), weights_.clear();
    for (index_t n = 0; n < targets.rows; ++n) targets_.insert(targets_.end(), targets.row(n), targets.row(n) + cols_);
    for (double weight : weights) weights_.push_back(static_cast<R>(weight));
    targets_at_ = resident_targets_.put(be_, targets_);
    weights_at_ = resident_weights_.put(be_, weights_);
    results_.start(be_, targets.rows);
  }

  /// outputs [rows, k] of the wanted rows from `first` on become dL/doutputs.
  void operator()(index_t first, MatrixView<Act, Space> outputs) {
    auto const rows = static_cast<index_t>(weights_.size());
    expects(first >= 0 && first + outputs.rows <= rows && outputs.cols == cols_, "graft: outputs [", outputs.rows, ", ",
            outputs.cols, "] from row ", first, " on came for targets [", rows, ", ", cols_, "]");
    squared_error(be_, outputs, matrix_view<Space>(targets_at_ + first * cols_, outputs.rows, cols_),
                  VectorView<R const, Space>{weights_at_ + first, outputs.rows}, results_.part(first, outputs.rows));
  }

  LossSums sums() {
    return sum_losses(rows(), [](std::size_t) { return true; });
  }
  /// Adds all rows to sums in B::Space; waits for nothing.
  void add_to(LossSums* sums) { add_losses(be_, results_.all(), sums); }
  /// Waits for a device.
  std::span<RowLoss const> rows() { return results_.host(be_); }

 private:
  B& be_;
  index_t cols_ = 0;
  std::vector<Act> targets_;
  std::vector<R> weights_;
  ResidentCopy<Act, Space> resident_targets_;
  ResidentCopy<R, Space> resident_weights_;
  Act const* targets_at_ = nullptr;
  R const* weights_at_ = nullptr;
  RowLosses<B> results_;
};

}  // namespace graft
