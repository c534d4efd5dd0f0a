// SPDX-License-Identifier: Apache-2.0
// Weights of modules found without gradients, from nothing but a score of what they do on a few examples.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/random.hpp>
#include <graft/core/scalar.hpp>
#include <graft/core/types.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace graft {

struct WeightSearch {
  index_t evaluations = 40;        ///< calls of the score, LoraHub's default
  double bound = 1.5;              ///< weights stay in [-bound, bound]
  double regularization = 0.05;    ///< times the mean of |w|, added to the score
  double step = 0.5;               ///< first deviation of a trial
  std::vector<double> start = {};  ///< zeros when empty
  std::uint64_t seed = 0;
};

struct FoundWeights {
  std::vector<double> weights;
  double score = 0;  ///< with the regularization
};

/// Weights w of `count` modules with a small score(w), for example a loss on a few examples of a task; as LoraHub does
/// (Huang et al. 2023, arXiv:2307.13269), on modules and not on factors. A (1+1) evolution strategy with the 1/5 rule:
/// a trial is normal around the best so far, its deviation grows with success. The same seed gives the same weights.
template <class Score>
FoundWeights search_weights(index_t count, Score&& score, WeightSearch const& options = {}) {
  expects(count > 0 && options.evaluations > 0, "graft: a search needs modules and evaluations; got ", count, " and ",
          options.evaluations);
  expects(options.start.empty() || static_cast<index_t>(options.start.size()) == count, "graft: the search starts at ",
          options.start.size(), " weights for ", count, " modules");
  auto const evaluate = [&](std::vector<double> const& w) {
    double size = 0;
    for (double const x : w) size += std::abs(x);
    return static_cast<double>(score(w)) + options.regularization * size / static_cast<double>(count);
  };
  auto const zeros = std::vector<double>(static_cast<std::size_t>(count));
  FoundWeights best{options.start.empty() ? zeros : options.start, 0};
  best.score = evaluate(best.weights);
  Random random(options.seed);
  double step = options.step;
  for (index_t k = 1; k < options.evaluations; ++k) {
    FoundWeights trial = best;
    for (double& w : trial.weights) w = std::clamp(w + step * random.normal(), -options.bound, options.bound);
    trial.score = evaluate(trial.weights);
    bool const better = trial.score < best.score;  // false for NaN: such weights are never taken
    step *= better ? 1.5 : 0.903602;               // 1.5^(-1/4): in balance at one success in five
    if (better || !is_finite(best.score)) best = trial;
  }
  return best;
}

}  // namespace graft
