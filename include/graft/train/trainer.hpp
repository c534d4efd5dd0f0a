// SPDX-License-Identifier: Apache-2.0
// A small training loop over one module: what `graft train` runs. docs/training.md shows how to write your own.
#pragma once

#include <graft/adapter/gradients.hpp>
#include <graft/backend/readback.hpp>
#include <graft/core/error.hpp>
#include <graft/core/scalar.hpp>
#include <graft/train/bilevel.hpp>
#include <graft/train/checkpoint.hpp>
#include <graft/train/host_copy.hpp>
#include <graft/train/loss.hpp>
#include <graft/train/module_optimizer.hpp>
#include <graft/train/task_parts.hpp>
#include <graft/train/trainer_options.hpp>
#include <graft/train/training_pass.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace graft {

/// Trains one module on examples. Which examples a step sees, and its dropout, are functions of (seed, step), so the
/// state of a training is: parameters, optimiser, number of steps, best so far.
template <class M, class P>
class Trainer {
 public:
  using B = typename M::B;
  using R = Real<B>;
  using Act = typename B::Act;

  /// Model, backend and module must outlive it. ContractError when the model has nothing that learns from the data.
  Trainer(M& model, B& be, Module<P, B>& module, TrainingData data, TrainerOptions const& options)
      : model_(model),
        be_(be),
        data_(std::move(data)),
        options_(options),
        optimizer_(module, make_optimizer(options)),
        parts_(module, model.sites(), options.parts),
        pass_(model, be, {.recompute = {options.recompute}}),
        cross_entropy_(be, options.loss),
        squared_error_(be),
        report_(1) {
    auto const& config = model.config();
    expects(config.classifier || (config.language_model && M::Arch::causal), "graft: this ", config.architecture,
            config.language_model ? " model predicts masked tokens, which cannot be trained"
                                  : " model has no head, there is nothing to learn from");
    expects(!data_.train.empty(), "graft: there are no examples to train on");
    expects(options.batch > 0 && options.accumulate > 0, "graft: batch and accumulate must be positive, they are ",
            options.batch, " and ", options.accumulate);
    for (auto const* split : {&data_.train, &data_.validation, &data_.second})
      for (auto const& example : *split)
        expects(example.part < parts_.count(), "graft: an example is for part ", example.part,
                " of the module, which has ", parts_.count(), " parts");
    expects(options.rate > 0 && options.clip >= 0 && options.warmup >= 0 && options.epochs > 0 && options.steps >= 0,
            "graft: a learning rate and a number of epochs are positive, warm-up, clip and steps not negative");
    auto const per_epoch = static_cast<double>(steps_per_epoch(data_.train));
    schedule_.kind = options.schedule;
    schedule_.total = options.steps > 0 ? options.steps : static_cast<index_t>(std::ceil(options.epochs * per_epoch));
    bool const share = options.warmup < 1;
    schedule_.warmup =
        static_cast<index_t>(std::ceil(share ? options.warmup * static_cast<double>(schedule_.total) : options.warmup));
  }

  index_t step() const { return step_; }
  index_t steps() const { return schedule_.total; }
  index_t parameters() const { return optimizer_.size(); }

  /// Steps until the end, or until hooks.stop. Then the module holds the best parameters on the validation data, where
  /// there are any and the end was reached, otherwise the last ones. ContractError when a loss is not finite. The
  /// progress of a step on a device is told when the next one is under way, so that the device has work while the host
  /// talks; behind the last step, and before validation and checkpoints, at once.
  TrainingResult run(TrainerHooks const& hooks = {}) {
    auto const start = std::chrono::steady_clock::now();
    auto const seconds = [&] {
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    };
    std::optional<TrainingProgress> untold;
    TrainingProgress progress;
    double saved_at = 0;
    index_t saved_step = step_;
    auto const save = [&] {
      if (hooks.save && saved_step != step_) hooks.save();
      saved_at = seconds(), saved_step = step_;
    };
    auto const tell = [&](TrainingProgress const& step, bool validates) {
      progress = reported(step);
      if (validates) validate(progress);
      progress.seconds = seconds();
      if (hooks.progress) hooks.progress(progress);
    };
    index_t const epoch = steps_per_epoch(data_.train);
    bool stopped = false;
    tokens_ = 0;
    while (step_ < steps() && !stopped) {
      TrainingProgress const step = one_step();
      if (untold) tell(*untold, false);
      untold = step;
      bool const last = step_ == steps();
      bool const validates = !data_.validation.empty() &&
                             (last || step_ % (options_.validate_every > 0 ? options_.validate_every : epoch) == 0);
      bool const due = hooks.save && (options_.save_every > 0 ? step_ % options_.save_every == 0
                                                              : step_ % epoch == 0 || seconds() - saved_at > 30);
      auto const stop = [&] { return hooks.stop != nullptr && hooks.stop->load(); };
      if (on_host || last || validates || due || stop()) {
        tell(step, validates);
        untold.reset();
      }
      stopped = !untold && stop();
      if (last || stopped || due) save();
    }
    TrainingResult result{step_ == steps(), step_, steps(), progress.loss, {}, 0, tokens_, seconds()};
    if (!best_.empty()) result.best_loss = best_loss_, result.best_step = best_step_;
    if (result.finished) take_best();
    optimizer_.store(be_);
    return result;
  }

  /// Mean loss (-log p, or squared error) and share of right answers over examples, with the parameters as they are.
  LossSums evaluate(std::span<Example const> examples) {
    optimizer_.publish(be_, model_.bank());
    if (parts_.count() > 0) optimizer_.store(be_);
    parts_.publish(be_, model_.bank());
    Gradients<B> frozen;
    start_report();
    for (std::size_t first = 0; first < examples.size(); first += static_cast<std::size_t>(options_.batch)) {
      auto const count = std::min(examples.size() - first, static_cast<std::size_t>(options_.batch));
      std::vector<Example const*> batch;
      for (std::size_t k = 0; k < count; ++k) batch.push_back(&examples[first + k]);
      run_batch(batch, 1, 0, frozen, false, &report_.data()->sums);
    }
    return host_copy(be_, report_.view())[0].sums;
  }

  /// What a checkpoint holds, with the caller's own description of the options beside it.
  void write(CheckpointFolder& folder, nlohmann::ordered_json options,
             FunctionRef<void(std::filesystem::path const&)> more) {
    std::vector<TensorInfo> tensors;
    std::deque<std::vector<R>> values;
    auto const add = [&](std::string const& name, VectorView<R> view) {
      tensors.push_back(tensor_info(name, {view.size}, view.data));
    };
    auto const add_copy = [&](std::string const& name, VectorView<R, Space> view) {
      auto& copy = values.emplace_back(host_copy(be_, view));
      add(name, {copy.data(), view.size});
    };
    optimizer_.for_each_parameter(add_copy);
    optimizer_.for_each_state(add_copy);
    nlohmann::ordered_json best = nullptr;
    if (!best_.empty()) {
      best = {{"step", best_step_}, {"loss", best_loss_}};
      each_best([&](std::string const& name, VectorView<R, Space>, std::vector<R>& kept) {
        add("best:" + name, {kept.data(), static_cast<index_t>(kept.size())});
      });
    }
    optimizer_.store(be_);
    folder.write(step_,
                 {{"step", step_},
                  {"group_steps", optimizer_.steps()},
                  {"best", std::move(best)},
                  {"options", std::move(options)}},
                 std::move(tensors), more);
  }

  /// Goes on from a checkpoint of the same options. FormatError when it does not hold what this training needs.
  void read(Checkpoint const& checkpoint) {
    auto const& state = checkpoint.state;
    try {
      auto const step = state.at("step").template get<index_t>();
      auto const group_steps = state.at("group_steps").template get<std::array<std::int64_t, parameter_group_count>>();
      auto const take = [&](std::string const& name, VectorView<R, Space> view) {
        std::vector<R> values(static_cast<std::size_t>(view.size));
        checkpoint.read(name, vector_view(values.data(), view.size));
        copy_from_host(be_, values, view);
      };
      optimizer_.for_each_parameter(take);
      optimizer_.for_each_state(take);
      if (auto const& best = state.at("best"); !best.is_null()) {
        best_step_ = best.at("step"), best_loss_ = best.at("loss");
        keep_best();
        each_best([&](std::string const& name, VectorView<R, Space>, std::vector<R>& kept) {
          checkpoint.read("best:" + name, vector_view(kept.data(), static_cast<index_t>(kept.size())));
        });
      }
      optimizer_.set_steps(group_steps);
      step_ = step;
    } catch (nlohmann::json::exception const&) {
      raise<FormatError>((checkpoint.folder / "state.json").string(), ": is not a training's state");
    }
  }

 private:
  using Space = typename B::Space;
  using Runner = OptimizerRunner<B>;
  static constexpr bool on_host = std::same_as<Space, HostSpace>;

  static typename ModuleOptimizer<P, B>::Make make_optimizer(TrainerOptions const& options) {
    return [options](std::vector<ParameterRange> ranges) -> std::unique_ptr<Optimizer<R, Runner>> {
      if (options.method == TrainerOptions::Method::sgd)
        return std::make_unique<Sgd<R, Runner>>(std::move(ranges), options.sgd);
      return std::make_unique<AdamW<R, Runner>>(std::move(ranges), options.adamw);
    };
  }

  /// What the backend knows of a step and tells later.
  struct Report {
    LossSums sums;
    double norm = 0;
  };
  void start_report() {
    Report const none;
    copy_from_host(be_, {&none, 1}, report_.view());
  }

  index_t per_step() const { return options_.batch * options_.accumulate; }
  index_t steps_per_epoch(std::vector<Example> const& split) const {
    return ceil_div(static_cast<index_t>(split.size()), per_step());
  }

  /// The examples of step `step` of a split: a slice of its epoch's order.
  std::vector<Example const*> examples_of(std::vector<Example> const& split, index_t step, std::uint64_t seed) {
    auto const count = static_cast<index_t>(split.size()), epoch_steps = steps_per_epoch(split);
    auto const order = epoch_order(count, seed, step / epoch_steps);
    std::vector<Example const*> chosen;
    index_t const first = step % epoch_steps * per_step();
    for (index_t k = first; k < std::min(count, first + per_step()); ++k)
      chosen.push_back(&split[static_cast<std::size_t>(order[static_cast<std::size_t>(k)])]);
    return chosen;
  }

  /// Puts a step on the backend's queue; its loss and norm are in reports_[step % 2].
  TrainingProgress one_step() {
    TrainingProgress progress;
    progress.rate = schedule_.rate(options_.rate, step_);
    progress.steps = steps();
    progress.epoch = static_cast<double>(step_ + 1) / static_cast<double>(steps_per_epoch(data_.train));
    GroupRates const rates{progress.rate, progress.rate * options_.expansion_ratio,
                           progress.rate * options_.activation_ratio};
    bool const two = !data_.second.empty();
    start_report();
    learn(examples_of(data_.train, step_, options_.seed), 2 * step_, &report_.data()->sums);
    optimizer_.step(be_, gradients_, two ? lower_level(rates) : rates, options_.clip, &report_.data()->norm);
    if (two) {
      learn(examples_of(data_.second, step_, options_.seed + 1), 2 * step_ + 1, nullptr);
      optimizer_.step(be_, gradients_, upper_level(rates), options_.clip);
    }
    progress.step = ++step_;
    progress.tokens = tokens_;
    reports_[static_cast<std::size_t>(step_ % 2)].put(be_, report_.data(), 1);
    return progress;
  }
  /// With loss and norm; waits for the step.
  TrainingProgress reported(TrainingProgress progress) {
    Report const& report = *reports_[static_cast<std::size_t>(progress.step % 2)].get(be_);
    progress.loss = report.sums.mean(), progress.norm = report.norm;
    expects(is_finite(progress.loss) && is_finite(progress.norm), "graft: step ", progress.step, " has a loss of ",
            progress.loss, " and a gradient norm of ", progress.norm, "; a lower learning rate may help");
    return progress;
  }

  /// The gradient of the mean loss over the examples, in gradients_; what they lost is added to `sums`.
  void learn(std::vector<Example const*> const& examples, index_t turn, LossSums* sums) {
    optimizer_.publish(be_, model_.bank(), gradients_);
    if (parts_.count() > 0) optimizer_.store(be_);
    parts_.publish(be_, model_.bank(), gradients_);
    index_t rows = 0;
    for (auto const* example : examples) rows += example->loss_rows();
    for (std::size_t first = 0; first < examples.size(); first += static_cast<std::size_t>(options_.batch)) {
      auto const count = std::min(examples.size() - first, static_cast<std::size_t>(options_.batch));
      run_batch(std::span(examples).subspan(first, count), 1 / static_cast<double>(rows),
                turn * per_step() + static_cast<index_t>(first), gradients_, true, sums);
    }
    parts_.gather(gradients_);
  }

  /// Forward, loss, and with `back` the way back. Dropout masks are keyed by `key` and what follows it. What the rows
  /// lost is added to `sums`, unless that is null.
  void run_batch(std::span<Example const* const> examples, double weight, index_t key, Gradients<B>& gradients,
                 bool back, LossSums* sums) {
    std::vector<TrainingSequence<B>> sequences;
    std::vector<index_t> wanted;
    std::vector<LossRow> rows;
    std::vector<Act> targets;
    index_t row = 0;
    for (auto const* example : examples) {
      auto adapters = model_.bank().resolve({AdapterUse{parts_.name(example->part), 1}});
      TrainingSequence<B> sequence{example->tokens, std::move(adapters), example->prompt};
      if (back) {
        sequence.dropout = options_.dropout;
        sequence.dropout_key = Random(options_.seed + static_cast<std::uint64_t>(key++)).next();
      }
      sequences.push_back(sequence);
      auto const size = static_cast<index_t>(example->tokens.size());
      for (index_t k = example->first_loss; k < size && example->first_loss > 0; ++k) {
        wanted.push_back(row + k - 1);  // the row in front of a token predicts it
        rows.push_back({example->tokens[static_cast<std::size_t>(k)], weight});
      }
      if (example->first_loss == 0) {
        wanted.push_back(row + model_.config().answer_row(example->tokens, M::Arch::causal));
        rows.push_back({example->label, weight});
        if (example->target) targets.push_back(static_cast<Act>(static_cast<R>(*example->target)));
      }
      row += size;
    }
    tokens_ += back ? row : 0;
    pass_.forward(sequences, gradients);
    auto const through = [&](auto& loss) {
      if (back) {
        pass_.head(wanted, loss);
        pass_.backward();
      } else {
        pass_.logits(wanted, loss);
      }
      if (sums != nullptr) loss.add_to(sums);
    };
    if (!targets.empty()) {
      std::vector<double> const weights(targets.size(), weight);
      squared_error_.start(matrix_view(std::as_const(targets).data(), static_cast<index_t>(targets.size()), 1),
                           weights);
      return through(squared_error_);
    }
    cross_entropy_.start(rows);
    through(cross_entropy_);
  }

  void validate(TrainingProgress& progress) {
    LossSums const sums = evaluate(data_.validation);
    auto const count = static_cast<double>(sums.rows);
    bool const regression = data_.validation[0].target.has_value();
    double const loss = regression ? sums.mean() : sums.nll / count;
    progress.validation_loss = loss;
    if (!regression) progress.validation_accuracy = static_cast<double>(sums.correct) / count;
    if (!best_.empty() && !(loss < best_loss_)) return;
    best_loss_ = loss, best_step_ = step_;
    keep_best();
  }

  void keep_best() {
    best_.clear();
    optimizer_.for_each_parameter(
        [&](std::string const&, VectorView<R, Space> view) { best_.push_back(host_copy(be_, view)); });
  }
  void each_best(auto&& f) {
    std::size_t k = 0;
    optimizer_.for_each_parameter(
        [&](std::string const& name, VectorView<R, Space> view) { f(name, view, best_[k++]); });
  }
  void take_best() {
    if (best_.empty()) return;
    each_best([this](std::string const&, VectorView<R, Space> view, std::vector<R> const& kept) {
      copy_from_host(be_, kept, view);
    });
  }

  M& model_;
  B& be_;
  TrainingData data_;
  TrainerOptions options_;
  Schedule schedule_;
  ModuleOptimizer<P, B> optimizer_;
  TaskParts<P, B> parts_;
  TrainingPass<M> pass_;
  Gradients<B> gradients_;
  CrossEntropy<B> cross_entropy_;
  SquaredError<B> squared_error_;
  Storage<Report, Space> report_;  ///< of the step that is being put on the queue
  std::array<Readback<Report, B>, 2> reports_;
  index_t step_ = 0, tokens_ = 0, best_step_ = 0;
  double best_loss_ = 0;
  std::vector<std::vector<R>> best_;  // in the order of for_each_parameter; empty: no validation yet
};

}  // namespace graft
