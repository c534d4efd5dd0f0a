// SPDX-License-Identifier: Apache-2.0
// Optimisers over a flat vector of parameters: AdamW, and stochastic gradient descent with momentum.
//
// Elements are independent of each other and the chunk grid depends on the ranges only: the same bits on any executor.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/executor.hpp>
#include <graft/core/view.hpp>
#include <graft/train/parameter_ranges.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace graft {

/// Steps of one vector of parameters. R: float or double.
template <class R>
class Optimizer {
 public:
  virtual ~Optimizer() = default;

  /// Moves the ranges of every group that has a rate; each such group counts one step.
  /// parameters, gradient [size]
  void step(Executor& executor, VectorView<R> parameters, VectorView<R const> gradient, GroupRates const& rates) {
    expects(parameters.size == size_ && gradient.size == size_, "graft: an optimiser of ", size_, " parameters got ",
            parameters.size, " and a gradient of ", gradient.size);
    for (std::size_t g = 0; g < rates.size(); ++g) steps_[g] += rates[g] ? 1 : 0;
    for (auto const& range : ranges_) {
      auto const g = static_cast<std::size_t>(range.group);
      if (!rates[g]) continue;
      executor.run(ceil_div(range.size, chunk), [&](index_t c) {
        ParameterRange part = range;
        part.first += c * chunk;
        part.size = std::min(chunk, range.size - c * chunk);
        update(part, parameters.data + part.first, gradient.data + part.first, *rates[g], steps_[g]);
      });
    }
  }

  /// f("name", view) for every vector a checkpoint must hold, each [size].
  virtual void for_each(FunctionRef<void(char const*, VectorView<R>)> f) = 0;
  /// Steps made so far by group; part of the state too.
  std::array<std::int64_t, parameter_group_count>& steps() { return steps_; }

 protected:
  explicit Optimizer(std::vector<ParameterRange> ranges) : ranges_(std::move(ranges)) {
    for (auto const& range : ranges_) size_ = std::max(size_, range.first + range.size);
  }
  std::size_t size() const { return static_cast<std::size_t>(size_); }

 private:
  static constexpr index_t chunk = 8192;  // some tens of microseconds of work
  /// part.first is where the state of p[0] and g[0] lies; `step` counts from 1.
  virtual void update(ParameterRange const& part, R* p, R const* g, double rate, std::int64_t step) = 0;

  std::vector<ParameterRange> ranges_;
  index_t size_ = 0;
  std::array<std::int64_t, parameter_group_count> steps_{};
};

/// The defaults are HF Trainer's.
struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;
  double weight_decay = 0;
};

/// Adam with decoupled weight decay:  p -= rate decay p;  m += (1 - b1)(g - m);  v = b2 v + (1 - b2) g^2;
/// p -= rate / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps).  Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2.
template <class R>
class AdamW final : public Optimizer<R> {
 public:
  explicit AdamW(std::vector<ParameterRange> ranges, AdamWOptions const& options = {})
      : Optimizer<R>(std::move(ranges)), options_(options), mean_(this->size()), square_(this->size()) {}

  void for_each(FunctionRef<void(char const*, VectorView<R>)> f) override {
    f("exp_avg", {mean_.data(), static_cast<index_t>(mean_.size())});
    f("exp_avg_sq", {square_.data(), static_cast<index_t>(square_.size())});
  }

 private:
  void update(ParameterRange const& part, R* p, R const* g, double rate, std::int64_t step) override {
    auto const t = static_cast<double>(step);
    auto const keep = static_cast<R>(part.decays ? 1 - rate * options_.weight_decay : 1.0);
    auto const new_mean = static_cast<R>(1 - options_.beta1);
    auto const old_square = static_cast<R>(options_.beta2), new_square = static_cast<R>(1 - options_.beta2);
    auto const length = static_cast<R>(rate / (1 - std::pow(options_.beta1, t)));
    auto const correction = static_cast<R>(std::sqrt(1 - std::pow(options_.beta2, t)));
    auto const epsilon = static_cast<R>(options_.epsilon);
    R *const m = mean_.data() + part.first, *const v = square_.data() + part.first;
    for (index_t k = 0; k < part.size; ++k) {
      m[k] += new_mean * (g[k] - m[k]);
      v[k] = old_square * v[k] + new_square * g[k] * g[k];
      p[k] = keep * p[k] - length * m[k] / (std::sqrt(v[k]) / correction + epsilon);
    }
  }

  AdamWOptions options_;
  std::vector<R> mean_, square_;
};

struct SgdOptions {
  double momentum = 0;
  bool nesterov = false;
  double weight_decay = 0;  ///< added to the gradient, as torch.optim.SGD does
};

/// u = momentum u + (g + decay p), u = g + decay p at the first step;  p -= rate u, or rate (g + momentum u)
/// (Nesterov).
template <class R>
class Sgd final : public Optimizer<R> {
 public:
  explicit Sgd(std::vector<ParameterRange> ranges, SgdOptions const& options = {})
      : Optimizer<R>(std::move(ranges)), options_(options), velocity_(this->size()) {}

  void for_each(FunctionRef<void(char const*, VectorView<R>)> f) override {
    f("momentum_buffer", {velocity_.data(), static_cast<index_t>(velocity_.size())});
  }

 private:
  void update(ParameterRange const& part, R* p, R const* g, double rate, std::int64_t) override {
    auto const decay = static_cast<R>(part.decays ? options_.weight_decay : 0.0);
    auto const momentum = static_cast<R>(options_.momentum), length = static_cast<R>(rate);
    R* const u = velocity_.data() + part.first;  // zero at first, so the first step needs no case of its own
    for (index_t k = 0; k < part.size; ++k) {
      R const slope = g[k] + decay * p[k];
      u[k] = momentum * u[k] + slope;
      p[k] -= length * (options_.nesterov ? slope + momentum * u[k] : u[k]);
    }
  }

  SgdOptions options_;
  std::vector<R> velocity_;
};

}  // namespace graft
