// SPDX-License-Identifier: Apache-2.0
// SentencePiece-BPE's two ways to say which pairs merge first: scores of tokens, or a list of merges.
#pragma once

#include <graft/text/tokenizer_spec.hpp>
#include <graft/text/utf8.hpp>
#include <graft/text/vocabulary.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace graft {

namespace detail {

/// Whether merging can use or make this token. Files without types say by position only what is special.
inline std::vector<bool> mergeable_tokens(TokenizerSpec const& spec) {
  std::vector<bool> result(spec.tokens.size(), true);
  for (std::size_t k = 0; k < spec.types.size(); ++k)
    result[k] = spec.types[k] == TokenType::normal || spec.types[k] == TokenType::user_defined ||
                spec.types[k] == TokenType::unused;
  if (spec.types.empty())
    for (auto const& token : spec.added) result[static_cast<std::size_t>(token.id)] = false;
  return result;
}

/// Calls f(left, right) for every way to cut the token into two mergeable ones, shortest left part first.
template <class F>
void for_each_cut(std::string_view token, Vocabulary const& ids, std::vector<bool> const& mergeable, F&& f) {
  for (std::size_t cut = 0; cut < token.size();) {
    utf8::next(token, cut);
    if (cut == token.size()) return;
    auto const left = ids.find(token.substr(0, cut)), right = ids.find(token.substr(cut));
    if (left >= 0 && right >= 0 && mergeable[static_cast<std::size_t>(left)] &&
        mergeable[static_cast<std::size_t>(right)])
      f(left, right);
  }
}

}  // namespace detail

/// The merges that the scores mean: every cut of a token, by falling score of the whole.
inline std::vector<std::pair<std::string, std::string>> merges_from_scores(TokenizerSpec const& spec) {
  Vocabulary const ids(spec.tokens);
  auto const mergeable = detail::mergeable_tokens(spec);
  std::vector<std::size_t> order(spec.tokens.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return spec.scores[a] > spec.scores[b]; });
  std::vector<std::pair<std::string, std::string>> merges;
  for (std::size_t const k : order)
    if (mergeable[k])
      detail::for_each_cut(spec.tokens[k], ids, mergeable, [&](std::int32_t left, std::int32_t right) {
        merges.emplace_back(spec.tokens[static_cast<std::size_t>(left)], spec.tokens[static_cast<std::size_t>(right)]);
      });
  return merges;
}

/// Scores under which tokens are made in the order of the merges. `exact` becomes false where scores cannot say what
/// the list says: a cut of a token that is no merge, or merges of one token on both sides of another's.
inline std::vector<float> scores_from_merges(TokenizerSpec const& spec, bool& exact) {
  Vocabulary const ids(spec.tokens);
  auto const mergeable = detail::mergeable_tokens(spec);
  // a token that no merge makes comes last, and never is a choice
  std::vector<float> scores(spec.tokens.size(), -static_cast<float>(spec.merges.size()));
  std::vector<std::size_t> made(spec.tokens.size()), cuts(spec.tokens.size());
  std::int32_t before = -1;
  for (std::size_t rank = 0; rank < spec.merges.size(); ++rank) {
    auto const whole = ids.find(spec.merges[rank].first + spec.merges[rank].second);
    if (whole < 0) continue;
    auto const k = static_cast<std::size_t>(whole);
    if (made[k]++ == 0)
      scores[k] = -static_cast<float>(rank);
    else if (whole != before)
      exact = false;
    before = whole;
  }
  for (std::size_t k = 0; k < spec.tokens.size(); ++k)
    if (mergeable[k]) detail::for_each_cut(spec.tokens[k], ids, mergeable, [&](auto, auto) { ++cuts[k]; });
  if (cuts != made) exact = false;
  return scores;
}

}  // namespace graft
