// SPDX-License-Identifier: Apache-2.0
// From logits to a token.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/highest.hpp>
#include <graft/core/random.hpp>
#include <graft/core/scalar.hpp>
#include <graft/core/types.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
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
    expects(options.temperature >= 0 && is_finite(options.temperature), "graft: temperature ", options.temperature,
            " is not a number from 0 up");
    expects(options.top_k >= 0, "graft: top_k ", options.top_k, " is negative");
    expects(options.top_p > 0 && options.top_p <= 1, "graft: top_p ", options.top_p, " is not in (0, 1]");
    expects(options.min_p >= 0 && options.min_p <= 1, "graft: min_p ", options.min_p, " is not in [0, 1]");
    expects(options.repeat_penalty > 0 && is_finite(options.repeat_penalty), "graft: repeat_penalty ",
            options.repeat_penalty, " is not a positive number");
  }

  /// logits [V] are scratch afterwards; `seen` lists the sequence's tokens so far. Of tokens that are equally likely
  /// the lower comes first.
  std::int32_t sample(std::span<float> logits, std::span<std::int32_t const> seen) {
    if (options_.repeat_penalty != 1) penalize(logits, seen);
    std::size_t const likeliest = index_of_highest(logits);
    if (options_.temperature == 0) return static_cast<std::int32_t>(likeliest);

    double const highest = static_cast<double>(logits[likeliest]) / options_.temperature;
    candidates_.clear();
    for (std::size_t k = 0; k < logits.size(); ++k) {
      float const logit = is_nan(logits[k]) ? -std::numeric_limits<float>::infinity() : logits[k];
      candidates_.push_back(
          {logit, static_cast<std::int32_t>(k), std::exp(static_cast<double>(logit) / options_.temperature - highest)});
    }
    sorted_ = 0;
    auto const wanted = static_cast<std::size_t>(options_.top_k);
    if (wanted > 0 && wanted < candidates_.size()) {
      sort(wanted);
      keep(wanted);
    }
    if (options_.top_p < 1) keep_until(options_.top_p * sum_of_shares());
    if (options_.min_p > 0) {
      std::erase_if(candidates_, [&](Candidate const& c) { return c.share < options_.min_p; });
      keep(candidates_.size());
    }
    double point = random_.uniform(0, sum_of_shares());
    for (std::size_t k = 0; k < candidates_.size(); ++k)
      if ((point -= in_order(k).share) < 0) return candidates_[k].token;
    return candidates_.back().token;
  }

 private:
  struct Candidate {
    float logit;
    std::int32_t token;
    double share;  ///< how likely over the best
  };

  /// The first of the highest; NaN is none.
  static std::size_t index_of_highest(std::span<float const> x) {
    constexpr std::size_t block = 1024;
    std::size_t begin = 0;  // of the block that has it
    float highest = -std::numeric_limits<float>::infinity();
    for (std::size_t first = 0; first < x.size(); first += block) {
      float const of_block = highest_of(x.data() + first, static_cast<index_t>(std::min(block, x.size() - first)));
      if (of_block > highest) highest = of_block, begin = first;
    }
    auto const found = std::find(x.begin() + static_cast<std::ptrdiff_t>(begin), x.end(), highest);
    return found == x.end() ? begin : static_cast<std::size_t>(found - x.begin());
  }

  double sum_of_shares() const {
    double sum = 0;
    for (auto const& c : candidates_) sum += c.share;
    return sum;
  }
  /// The k-th likeliest. Candidates are sorted as far as they are asked for, which is seldom far.
  Candidate const& in_order(std::size_t k) {
    if (k >= sorted_) sort(std::max<std::size_t>(64, 8 * sorted_));
    return candidates_[k];
  }
  /// Sorts the `count` likeliest at least.
  void sort(std::size_t count) {
    auto const more_likely = [](Candidate const& a, Candidate const& b) {
      return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
    };
    auto const begin = candidates_.begin() + static_cast<std::ptrdiff_t>(sorted_);
    if (count < candidates_.size() / 8) {
      std::partial_sort(begin, candidates_.begin() + static_cast<std::ptrdiff_t>(count), candidates_.end(),
                        more_likely);
      sorted_ = count;
    } else {
      std::sort(begin, candidates_.end(), more_likely);
      sorted_ = candidates_.size();
    }
  }
  /// Those that stand first.
  void keep(std::size_t count) {
    candidates_.resize(count);
    sorted_ = std::min(sorted_, count);
  }
  void keep_until(double share) {
    for (std::size_t k = 0; k < candidates_.size(); ++k)
      if ((share -= in_order(k).share) <= 0) return keep(k + 1);
  }

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

  SamplingOptions options_;
  Random random_;
  std::vector<Candidate> candidates_;
  std::size_t sorted_ = 0;  // so many candidates stand in their places
  std::vector<bool> penalized_;
};

}  // namespace graft
