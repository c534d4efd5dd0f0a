// SPDX-License-Identifier: Apache-2.0
// Optimisers over a flat vector of parameters: AdamW, and stochastic gradient descent with momentum. What one element
// does is in backend/optimizer.hpp.
#pragma once

#include <graft/backend/optimizer.hpp>
#include <graft/core/error.hpp>
#include <graft/core/executor.hpp>
#include <graft/core/memory.hpp>
#include <graft/core/view.hpp>
#include <graft/train/parameter_ranges.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

namespace graft {

/// Who runs the optimisers of a backend's parameters: on the host an executor, elsewhere the backend itself.
template <class B>
using OptimizerRunner = std::conditional_t<std::same_as<typename B::Space, HostSpace>, Executor, B>;
template <class B>
OptimizerRunner<B>& optimizer_runner(B& be) {
  if constexpr (std::same_as<typename B::Space, HostSpace>)
    return be.executor();
  else
    return be;
}

namespace detail {

template <class Runner>
struct RunnerSpace {
  using Type = typename Runner::Space;
};
template <>
struct RunnerSpace<Executor> {
  using Type = HostSpace;
};

}  // namespace detail

/// Steps of one vector of parameters, which lies where the runner works, as all that the optimiser keeps. R: float or
/// double. Nothing waits for a device.
template <class R, class Runner = Executor>
class Optimizer {
 public:
  using Space = typename detail::RunnerSpace<Runner>::Type;
  virtual ~Optimizer() = default;

  /// Moves the ranges of every group that has a rate; each such group counts one step.
  /// parameters, gradient [size]
  void step(Runner& runner, VectorView<R, Space> parameters, VectorView<R const, Space> gradient,
            GroupRates const& rates) {
    expects(parameters.size == size_ && gradient.size == size_, "graft: an optimiser of ", size_, " parameters got ",
            parameters.size, " and a gradient of ", gradient.size);
    for (std::size_t g = 0; g < rates.size(); ++g) steps_[g] += rates[g] ? 1 : 0;
    move(runner, parameters, gradient, rates);
  }

  /// f("name", view) for every vector a checkpoint must hold, each [size].
  virtual void for_each(FunctionRef<void(char const*, VectorView<R, Space>)> f) = 0;
  /// Steps made so far by group; part of the state too.
  std::array<std::int64_t, parameter_group_count>& steps() { return steps_; }

 protected:
  explicit Optimizer(std::vector<ParameterRange> ranges) : ranges_(std::move(ranges)) {
    std::sort(ranges_.begin(), ranges_.end(), [](auto const& a, auto const& b) { return a.first < b.first; });
    for (auto const& range : ranges_) size_ = std::max(size_, range.first + range.size);
  }
  /// One vector of the state.
  Storage<R, Space> zeros() const {
    Storage<R, Space> made(size_);
    made.clear();
    return made;
  }
  /// step_of(range, rate, step) for every range that moves; `step` counts from 1.
  template <class Step>
  void move_ranges(Runner& runner, VectorView<R, Space> parameters, VectorView<R const, Space> gradient,
                   GroupRates const& rates, OptimizerState<R, Step::states> const& state, auto&& step_of) {
    std::vector<RangeStep<Step>> moves;
    for (auto const& range : ranges_)
      if (auto const g = static_cast<std::size_t>(range.group); rates[g])
        moves.push_back({range.first, range.size, step_of(range, *rates[g], static_cast<double>(steps_[g]))});
    step_ranges(runner, std::span<RangeStep<Step> const>(moves), gradient, parameters, state);
  }

 private:
  virtual void move(Runner& runner, VectorView<R, Space> parameters, VectorView<R const, Space> gradient,
                    GroupRates const& rates) = 0;

  std::vector<ParameterRange> ranges_;  ///< ascending
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
template <class R, class Runner = Executor>
class AdamW final : public Optimizer<R, Runner> {
 public:
  using Space = typename Optimizer<R, Runner>::Space;
  explicit AdamW(std::vector<ParameterRange> ranges, AdamWOptions const& options = {})
      : Optimizer<R, Runner>(std::move(ranges)), options_(options), mean_(this->zeros()), square_(this->zeros()) {}

  void for_each(FunctionRef<void(char const*, VectorView<R, Space>)> f) override {
    f("exp_avg", mean_.view());
    f("exp_avg_sq", square_.view());
  }

 private:
  void move(Runner& runner, VectorView<R, Space> parameters, VectorView<R const, Space> gradient,
            GroupRates const& rates) override {
    auto const step_of = [&](ParameterRange const& range, double rate, double t) {
      return AdamWStep<R>{static_cast<R>(range.decays ? 1 - rate * options_.weight_decay : 1.0),
                          static_cast<R>(1 - options_.beta1),
                          static_cast<R>(options_.beta2),
                          static_cast<R>(1 - options_.beta2),
                          static_cast<R>(rate / (1 - std::pow(options_.beta1, t))),
                          static_cast<R>(std::sqrt(1 - std::pow(options_.beta2, t))),
                          static_cast<R>(options_.epsilon)};
    };
    this->template move_ranges<AdamWStep<R>>(runner, parameters, gradient, rates, {{mean_.data(), square_.data()}},
                                             step_of);
  }

  AdamWOptions options_;
  Storage<R, Space> mean_, square_;
};

struct SgdOptions {
  double momentum = 0;
  bool nesterov = false;
  double weight_decay = 0;  ///< added to the gradient, as torch.optim.SGD does
};

/// u = momentum u + (g + decay p), u = g + decay p at the first step;  p -= rate u, or rate (g + momentum u)
/// (Nesterov).
template <class R, class Runner = Executor>
class Sgd final : public Optimizer<R, Runner> {
 public:
  using Space = typename Optimizer<R, Runner>::Space;
  explicit Sgd(std::vector<ParameterRange> ranges, SgdOptions const& options = {})
      : Optimizer<R, Runner>(std::move(ranges)), options_(options), velocity_(this->zeros()) {}

  void for_each(FunctionRef<void(char const*, VectorView<R, Space>)> f) override {
    f("momentum_buffer", velocity_.view());
  }

 private:
  void move(Runner& runner, VectorView<R, Space> parameters, VectorView<R const, Space> gradient,
            GroupRates const& rates) override {
    auto const step_of = [&](ParameterRange const& range, double rate, double) {
      return SgdStep<R>{static_cast<R>(options_.momentum), static_cast<R>(range.decays ? options_.weight_decay : 0.0),
                        static_cast<R>(rate), options_.nesterov};
    };
    this->template move_ranges<SgdStep<R>>(runner, parameters, gradient, rates, {{velocity_.data()}}, step_of);
  }

  SgdOptions options_;
  Storage<R, Space> velocity_;
};

}  // namespace graft
