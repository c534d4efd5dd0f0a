// SPDX-License-Identifier: Apache-2.0
// What a Trainer is told, and what it tells.
#pragma once

#include <graft/backend/loss.hpp>
#include <graft/core/types.hpp>
#include <graft/train/examples.hpp>
#include <graft/train/optimizer.hpp>
#include <graft/train/schedule.hpp>

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>
#include <vector>

namespace graft {

struct TrainerOptions {
  enum class Method : std::uint8_t { adamw, sgd };
  static constexpr std::array<std::string_view, 2> names(Method = {}) { return {"adamw", "sgd"}; }

  double epochs = 3;
  index_t steps = 0;       ///< optimiser steps; 0: as `epochs` says
  index_t batch = 8;       ///< sequences that pass through the model together
  index_t accumulate = 1;  ///< batches per step; a step of 2 x 4 sequences is one of 8, up to rounding

  Method method = Method::adamw;
  AdamWOptions adamw;
  SgdOptions sgd;
  double rate = 1e-3;           ///< at the schedule's peak
  double expansion_ratio = 1;   ///< LoRA+: times the rate for LoRA's B
  double activation_ratio = 1;  ///< times the rate for PEDRO's rational coefficients
  Schedule::Kind schedule = Schedule::Kind::linear;
  double warmup = 0;  ///< steps; below 1: a share of all steps
  double clip = 1;    ///< global norm; 0: not at all

  CrossEntropyOptions loss;
  double dropout = 0;  ///< on what low-rank deltas see
  index_t parts = 0;   ///< of a RoAd module's blocks; examples say which is theirs (task_parts.hpp)

  index_t validate_every = 0;  ///< steps; 0: behind each epoch
  index_t save_every = 0;      ///< steps; 0: behind each epoch, and every half minute
  bool recompute = false;      ///< layers run again on the way back, which saves memory
  std::uint64_t seed = 0;
};

/// What is learned from. With a `second` split training is bi-level (bilevel.hpp).
struct TrainingData {
  std::vector<Example> train, validation, second;
};

/// The state of a training behind an optimiser step.
struct TrainingProgress {
  index_t step = 0, steps = 0;  ///< done, of
  double epoch = 0;
  double loss = 0;  ///< mean over the step's rows
  double rate = 0, norm = 0;
  index_t tokens = 0;  ///< of this run so far
  double seconds = 0;  ///< of this run so far
  std::optional<double> validation_loss, validation_accuracy;
};

struct TrainingResult {
  bool finished = false;  ///< false: stopped before the last step
  index_t step = 0, steps = 0;
  double loss = 0;                  ///< of the last step
  std::optional<double> best_loss;  ///< on the validation data, at `best_step`
  index_t best_step = 0;
  index_t tokens = 0;  ///< of this run
  double seconds = 0;
};

/// What happens around the steps; all may be left out.
struct TrainerHooks {
  std::function<void(TrainingProgress const&)> progress;  ///< behind each step; on a device during the next one
  std::function<void()> save;                             ///< at times a checkpoint is due
  std::atomic<bool> const* stop = nullptr;                ///< once true, the run ends behind the current step
};

}  // namespace graft
