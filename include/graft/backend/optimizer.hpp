// SPDX-License-Identifier: Apache-2.0
// Steps of optimisers, element by element, shared by all backends, and how the host makes them.
#pragma once

#include <graft/config.hpp>
#include <graft/core/executor.hpp>
#include <graft/core/types.hpp>
#include <graft/core/view.hpp>

#include <algorithm>
#include <cmath>
#include <span>

namespace graft {

/// What an optimiser keeps: n vectors as long as the parameters.
template <class R, int n>
struct OptimizerState {
  R* vectors[n];
};

/// AdamW with the numbers of one step: m += (1 - b1)(g - m);  v = b2 v + (1 - b2) g^2;  p = keep p - length m /
/// (sqrt(v) / correction + epsilon).
template <class R>
struct AdamWStep {
  static constexpr int states = 2;  ///< m, v
  R keep, new_mean, old_square, new_square, length, correction, epsilon;

  GRAFT_HOST_DEVICE void operator()(R g, R& p, OptimizerState<R, states> const& state, index_t k) const {
    using std::sqrt;
    R &m = state.vectors[0][k], &v = state.vectors[1][k];
    m += new_mean * (g - m);
    v = old_square * v + new_square * g * g;
    p = keep * p - length * m / (sqrt(v) / correction + epsilon);
  }
};

/// Gradient descent: u = momentum u + (g + decay p);  p -= length u, or length (g + decay p + momentum u) (Nesterov).
template <class R>
struct SgdStep {
  static constexpr int states = 1;  ///< u
  R momentum, decay, length;
  bool nesterov;

  GRAFT_HOST_DEVICE void operator()(R g, R& p, OptimizerState<R, states> const& state, index_t k) const {
    R& u = state.vectors[0][k];  // zero at first, so the first step needs no case of its own
    R const slope = g + decay * p;
    u = momentum * u + slope;
    p -= length * (nesterov ? slope + momentum * u : u);
  }
};

/// How the parameters [first, first + size) move.
template <class Step>
struct RangeStep {
  index_t first = 0, size = 0;
  Step step;
};

/// What a gradient is multiplied with so that its norm is at most `most`, as torch's clip_grad_norm_, whose 1e-6 it
/// keeps.
GRAFT_HOST_DEVICE inline double clip_scale(double norm, double most) {
  double const scale = most / (norm + 1e-6);
  return scale < 1 ? scale : 1;  // 1 for NaN
}

/// Moves the parameters of all ranges. gradient, parameters and every vector of the state have the same length; the
/// chunk grid depends on the ranges only, so the bits do not depend on the executor.
template <class R, class Step>
void step_ranges(Executor& executor, std::span<RangeStep<Step> const> ranges, VectorView<R const> gradient,
                 VectorView<R> parameters, OptimizerState<R, Step::states> const& state) {
  constexpr index_t chunk = 8192;  // some tens of microseconds of work
  for (auto const& range : ranges)
    executor.run(ceil_div(range.size, chunk), [&](index_t c) {
      auto const step = range.step;
      auto const own = state;
      index_t const first = range.first + c * chunk, end = range.first + std::min(range.size, (c + 1) * chunk);
      for (index_t k = first; k < end; ++k) step(gradient.data[k], parameters.data[k], own, k);
    });
}

}  // namespace graft
