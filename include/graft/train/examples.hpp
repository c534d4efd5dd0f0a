// SPDX-License-Identifier: Apache-2.0
// Training data: lines of JSON as tokens, their order in each epoch, and a part kept for validation.
#pragma once

#include <graft/core/random.hpp>
#include <graft/core/scalar.hpp>
#include <graft/io/json_lines.hpp>
#include <graft/text/completion.hpp>
#include <graft/text/tokenizer.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace graft {

/// One sequence and what is to be learned from it.
struct Example {
  std::vector<std::int32_t> tokens;
  index_t prompt = 0;            ///< tokens of the prompt: what PEDRO reads
  index_t first_loss = 0;        ///< the first token with a loss, at least 1; a language model learns all from there on
  std::int32_t label = -1;       ///< of a classifier
  std::optional<double> target;  ///< of a regression
  index_t part = -1;             ///< of the module's blocks that learns it alone; -1: all of them
  /// Rows of outputs that are wanted: the one before each token with a loss, or a classifier's answer.
  index_t loss_rows() const { return first_loss == 0 ? 1 : static_cast<index_t>(tokens.size()) - first_loss; }
};

struct ExampleOptions {
  index_t max_length = 0;  ///< tokens of one example
  bool chat = false;       ///< the prompt is a user's turn of the model's chat template
  bool whole = false;      ///< the loss is on the prompt's tokens too
  index_t parts = 0;       ///< of the module's blocks, which examples can be for
};

/// Lines {"prompt", "completion"} for a language model, with "part": k for part k of a module's blocks alone:
/// tokenizer(prompt) (+ BOS if it adds one) ++ completion without specials ++ EOS (the end of the turn, in a chat); the
/// loss is on completion and EOS. A prompt that is too long is cut on the left and keeps its BOS. FormatError with file
/// and line for what is wrong; then nothing is returned.
inline std::vector<Example> read_completions(std::filesystem::path const& path, Tokenizer const& tokenizer,
                                             ExampleOptions const& options) {
  bool const turn = options.chat && tokenizer.end_of_turn() >= 0;
  std::int32_t const end = turn ? tokenizer.end_of_turn() : tokenizer.eos();
  expects(end >= 0, "graft: the tokenizer has no EOS, so nothing can learn where a completion ends");
  std::vector<Example> examples;
  for (auto const& line : read_json_lines(path, {"prompt", "completion", "part"})) {
    auto const prompt = line.get<std::string>("prompt"), completion = line.get<std::string>("completion");
    auto joined = line.checked([&] {
      auto tokens = tokenizer.encode(completion, false, false);
      expects(!tokens.empty(), "graft: the completion is empty");
      tokens.push_back(end);
      return join_completion(tokenizer, prompt_tokens(tokenizer, prompt, options.chat), tokens, options.max_length);
    });
    Example example;
    example.prompt = joined.prompt;
    example.first_loss = options.whole ? 1 : joined.prompt;
    example.tokens = std::move(joined.tokens);
    if (line.has("part")) {
      example.part = line.get<index_t>("part");
      if (example.part < 0) line.wrong("part");
      if (example.part >= options.parts)
        line.fail("is for part ", example.part, " of the module, which has ", options.parts, " parts");
    }
    examples.push_back(std::move(example));
  }
  return examples;
}

namespace detail {

/// A text for a classifier, cut on the right in front of what the tokenizer puts behind it ([SEP]).
inline std::vector<std::int32_t> classified_tokens(Tokenizer const& tokenizer, std::string const& prompt,
                                                   index_t longest) {
  auto tokens = tokenizer.encode(prompt);
  expects(!tokens.empty(), "graft: the prompt is empty");
  auto const excess = static_cast<index_t>(tokens.size()) - longest;
  if (excess <= 0) return tokens;
  auto const bare = tokenizer.encode(prompt, false);
  auto const text = std::search(tokens.begin(), tokens.end(), bare.begin(), bare.end());
  expects(excess < static_cast<index_t>(bare.size()), "graft: no text fits into ", longest, " tokens");
  auto const end = text + static_cast<index_t>(bare.size());
  tokens.erase(end - excess, end);
  return tokens;
}

inline std::int32_t label_of(JsonLine const& line, std::vector<std::string> const& labels) {
  auto const& value = line.value.at("label");
  if (value.is_number_integer()) {
    auto const index = line.get<std::int64_t>("label");
    if (index < 0 || index >= static_cast<std::int64_t>(labels.size()))
      line.fail("label ", index, " is not one of the model's ", labels.size());
    return static_cast<std::int32_t>(index);
  }
  auto const name = line.get<std::string>("label");
  auto const found = std::find(labels.begin(), labels.end(), name);
  if (found == labels.end()) {
    std::string all;
    for (auto const& label : labels) all += text(all.empty() ? "" : ", ", label);
    line.fail("label ", in_quotes(name), " is not one of the model's: ", all);
  }
  return static_cast<std::int32_t>(found - labels.begin());
}

}  // namespace detail

/// Lines {"prompt", "label"} for a classifier, the label by name or number; a model with a single label is a
/// regression, and the label any number. A text that is too long is cut on the right. Errors as above.
inline std::vector<Example> read_classified(std::filesystem::path const& path, Tokenizer const& tokenizer,
                                            std::vector<std::string> const& labels, ExampleOptions const& options) {
  std::vector<Example> examples;
  for (auto const& line : read_json_lines(path, {"prompt", "label"})) {
    Example example;
    auto const prompt = line.get<std::string>("prompt");
    if (!line.has("label")) line.fail("needs a \"label\"");
    if (labels.size() == 1) {
      example.target = line.get<double>("label");
      if (!is_finite(*example.target)) line.wrong("label");
    } else {
      example.label = detail::label_of(line, labels);
    }
    example.tokens = line.checked([&] { return detail::classified_tokens(tokenizer, prompt, options.max_length); });
    example.prompt = static_cast<index_t>(example.tokens.size());
    examples.push_back(std::move(example));
  }
  return examples;
}

/// 0 ... count - 1 in the order of one epoch; a pure function of its arguments, so a resumed training needs no state.
inline std::vector<index_t> epoch_order(index_t count, std::uint64_t seed, index_t epoch) {
  std::vector<index_t> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), index_t{0});
  Random random(Random(seed).next() ^ (0x9e3779b97f4a7c15u * (static_cast<std::uint64_t>(epoch) + 1)));
  for (auto k = order.size(); k > 1; --k) std::swap(order[k - 1], order[static_cast<std::size_t>(random.next() % k)]);
  return order;
}

/// Takes a random `fraction` of the examples, rounded up, out of them: for validation, or as the second split of
/// bi-level training. Both parts keep the order of the file. ContractError when nothing would be left.
inline std::vector<Example> split_off(std::vector<Example>& examples, double fraction, std::uint64_t seed) {
  auto const count = static_cast<index_t>(examples.size());
  auto const taken = static_cast<index_t>(std::ceil(fraction * static_cast<double>(count)));
  expects(fraction > 0 && taken < count, "graft: a fraction of ", fraction, " of ", count,
          " examples cannot be split off");
  std::vector<bool> goes(examples.size());
  auto const order = epoch_order(count, seed, -1);
  for (index_t k = 0; k < taken; ++k) goes[static_cast<std::size_t>(order[static_cast<std::size_t>(k)])] = true;
  std::vector<Example> rest, split;
  for (std::size_t k = 0; k < examples.size(); ++k) (goes[k] ? split : rest).push_back(std::move(examples[k]));
  examples = std::move(rest);
  return split;
}

}  // namespace graft
