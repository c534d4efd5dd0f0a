// SPDX-License-Identifier: Apache-2.0
// Sampling against its definition in plain loops over all tokens, sorted; and how often tokens are drawn.
#include <graft/model/sampling.hpp>
#include <graft/testing/random.hpp>
#include <tests/catch.hpp>
#include <tests/model/sampling_options.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace {

using namespace graft;
using namespace graft::testing;
using graft_test::every_kind;

/// The definition: everything sorted, filter by filter.
std::int32_t plain_sample(std::vector<float> logits, std::vector<std::int32_t> const& seen, SamplingOptions const& o,
                          Random& random) {
  std::vector<std::int32_t> once = seen;
  std::sort(once.begin(), once.end());
  once.erase(std::unique(once.begin(), once.end()), once.end());
  auto const penalty = static_cast<float>(o.repeat_penalty);
  for (auto const token : once) {
    float& logit = logits[static_cast<std::size_t>(token)];
    logit = logit > 0 ? logit / penalty : logit * penalty;
  }
  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  auto const logit = [&](std::int32_t token) { return static_cast<double>(logits[static_cast<std::size_t>(token)]); };
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return logit(a) > logit(b); });
  if (o.temperature == 0) return order.front();
  auto const share = [&](std::int32_t token) { return std::exp((logit(token) - logit(order[0])) / o.temperature); };
  auto const total = [&] {
    double sum = 0;
    for (auto const token : order) sum += share(token);
    return sum;
  };
  if (o.top_k > 0 && static_cast<std::size_t>(o.top_k) < order.size()) order.resize(static_cast<std::size_t>(o.top_k));
  if (o.top_p < 1) {
    double rest = o.top_p * total();
    std::size_t kept = 0;
    while (kept < order.size() && rest > 0) rest -= share(order[kept++]);
    order.resize(kept);
  }
  std::erase_if(order, [&](auto token) { return share(token) < o.min_p; });
  double point = random.uniform(0, total());
  for (auto const token : order)
    if ((point -= share(token)) < 0) return token;
  return order.back();
}

TEST_CASE("tokens are those of sampling by its definition") {
  Random random(1);
  for (index_t const vocabulary : {1, 2, 15, 130, 1024, 1025, 5003, 50000})
    for (bool const ties : {false, true})
      for (auto const& options : every_kind()) {
        Sampler sampler(options);
        Random draws(options.seed);
        std::vector<float> logits(static_cast<std::size_t>(vocabulary));
        for (int step = 0; step < 3; ++step) {
          for (auto& logit : logits) {
            logit = static_cast<float>(3 * random.normal());
            if (ties) logit = std::round(2 * logit) / 2;
          }
          std::vector<std::int32_t> seen;
          for (int k = 0; k < 30; ++k) seen.push_back(static_cast<std::int32_t>(pick(random, 0, vocabulary - 1)));
          seen.push_back(seen.front());  // seen twice, penalised once
          auto const expected = plain_sample(logits, seen, options, draws);
          INFO(vocabulary << " tokens, ties " << ties << ", seed " << options.seed << ", step " << step);
          CHECK(sampler.sample(logits, seen) == expected);
        }
      }
}

TEST_CASE("tokens are drawn as often as they are likely") {
  std::vector<float> const logits = {0, std::log(2.f), std::log(4.f), std::log(1.f)};
  Sampler sampler({.temperature = 1, .seed = 3});
  int count[4] = {};
  constexpr int draws = 80000;
  for (int k = 0; k < draws; ++k) {
    auto copy = logits;
    ++count[sampler.sample(copy, {})];
  }
  // 1, 2, 4 and 1 of 8; a count is off by more than 5 of its deviations once in two million
  for (auto const& [token, share] : {std::pair{0, 0.125}, {1, 0.25}, {2, 0.5}, {3, 0.125}})
    CHECK(std::fabs(count[token] - draws * share) < 5 * std::sqrt(draws * share * (1 - share)));
}

TEST_CASE("what is forbidden, or no number, is never drawn, and zeros of both signs are equal") {
  float const hidden = -std::numeric_limits<float>::infinity(), none = std::numeric_limits<float>::quiet_NaN();
  Sampler sampler({.temperature = 1, .seed = 3});
  for (int k = 0; k < 50; ++k) {
    std::vector<float> logits(600);
    for (std::size_t j = 0; j < logits.size(); ++j) logits[j] = j % 3 == 1 ? 0.f : j % 3 == 2 ? hidden : none;
    CHECK(sampler.sample(logits, {}) % 3 == 1);
  }
  std::vector<float> zeros = {-1, -0.f, 0.f, -2};
  CHECK(Sampler().sample(zeros, {}) == 1);
  std::vector<float> first = {none, -1, none, 2};
  CHECK(Sampler().sample(first, {}) == 3);
}

}  // namespace
