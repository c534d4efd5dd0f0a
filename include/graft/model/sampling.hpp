// SPDX-License-Identifier: Apache-2.0
// From logits to a token.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/random.hpp>
#include <graft/core/types.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

namespace graft {

/// Temperature 0 takes the most likely token. Filters apply in this order: repeat penalty, temperature, top-k, top-p,
/// min-p; a filter at its default does nothing.
struct SamplingOptions {
  double temperature = 0;
  index_t top_k = 0;          ///< keep the k most likely; 0: all
  double top_p = 1;           ///< keep the most likely until their sum reaches p
  double min_p = 0;           ///< keep tokens at least min_p times as likely as the best
  double repeat_penalty = 1;  ///< divides positive (multiplies negative) logits of tokens seen before
  std::uint64_t seed = 0;
};

/// One per sequence: its random stream depends on the seed alone, not on what else is in the batch.
class Sampler {
 public:
  explicit Sampler(SamplingOptions options = {}) : options_(options), random_(options.seed) {
    expects(options.temperature >= 0 && std::isfinite(options.temperature), "graft: temperature ", options.temperature,
            " is not a number from 0 up");
    expects(options.top_k >= 0, "graft: top_k ", options.top_k, " is negative");
    expects(options.top_p > 0 && options.top_p <= 1, "graft: top_p ", options.top_p, " is not in (0, 1]");
    expects(options.min_p >= 0 && options.min_p <= 1, "graft: min_p ", options.min_p, " is not in [0, 1]");
    expects(options.repeat_penalty > 0, "graft: repeat_penalty ", options.repeat_penalty, " is not positive");
  }

  /// logits [V] are scratch afterwards; `seen` lists the sequence's tokens so far.
  std::int32_t sample(std::span<float> logits, std::span<std::int32_t const> seen) {
    if (options_.repeat_penalty != 1) penalize(logits, seen);
    if (options_.temperature == 0)
      return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());

    candidates_.clear();
    for (std::size_t k = 0; k < logits.size(); ++k)
      candidates_.push_back({logits[k] / options_.temperature, static_cast<std::int32_t>(k)});
    auto const more_likely = [](Candidate const& a, Candidate const& b) {
      return a.value != b.value ? a.value > b.value : a.token < b.token;
    };
    auto const wanted = static_cast<std::size_t>(options_.top_k);
    if (wanted > 0 && wanted < candidates_.size()) {
      std::nth_element(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(wanted),
                       candidates_.end(), more_likely);
      candidates_.resize(wanted);
    }
    std::sort(candidates_.begin(), candidates_.end(), more_likely);
    double const best = candidates_.front().value;
    double sum = 0;
    for (auto& c : candidates_) sum += c.value = std::exp(c.value - best);  // now shares of the best token's
    if (options_.top_p < 1) keep_until(options_.top_p * sum);
    if (options_.min_p > 0) std::erase_if(candidates_, [&](Candidate const& c) { return c.value < options_.min_p; });
    sum = 0;
    for (auto const& c : candidates_) sum += c.value;
    double point = random_.uniform(0, sum);
    for (auto const& c : candidates_)
      if ((point -= c.value) < 0) return c.token;
    return candidates_.back().token;
  }

 private:
  struct Candidate {
    double value;
    std::int32_t token;
  };

  void penalize(std::span<float> logits, std::span<std::int32_t const> seen) {
    penalized_.assign(logits.size(), false);
    for (auto token : seen) {
      auto const k = static_cast<std::size_t>(token);
      if (k >= logits.size() || penalized_[k]) continue;
      penalized_[k] = true;
      auto const penalty = static_cast<float>(options_.repeat_penalty);
      logits[k] = logits[k] > 0 ? logits[k] / penalty : logits[k] * penalty;
    }
  }
  void keep_until(double share) {
    double sum = 0;
    for (std::size_t k = 0; k < candidates_.size(); ++k)
      if ((sum += candidates_[k].value) >= share) {
        candidates_.resize(k + 1);
        return;
      }
  }

  SamplingOptions options_;
  Random random_;
  std::vector<Candidate> candidates_;
  std::vector<bool> penalized_;
};

}  // namespace graft
