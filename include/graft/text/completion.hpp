// SPDX-License-Identifier: Apache-2.0
// The tokens of a prompt and of what follows it, one way for generation, evaluation and training.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/types.hpp>
#include <graft/text/chat_template.hpp>
#include <graft/text/tokenizer.hpp>

#include <nlohmann/json.hpp>

#include <cstdint>
#include <string_view>
#include <vector>

namespace graft {

/// A prompt as the model takes it: with what the tokenizer puts around a text, or, with `chat`, as one user's turn of
/// the model's template that ends where the answer begins. An empty prompt is BOS; ContractError where there is none.
inline std::vector<std::int32_t> prompt_tokens(Tokenizer const& tokenizer, std::string_view prompt, bool chat = false) {
  auto const turn = nlohmann::ordered_json::array({{{"role", "user"}, {"content", prompt}}});
  auto tokens = chat ? tokenizer.encode(apply_chat_template(tokenizer, turn), false) : tokenizer.encode(prompt);
  if (tokens.empty() && tokenizer.bos() >= 0) tokens = {tokenizer.bos()};
  expects(!tokens.empty(), "graft: the prompt is empty, and the tokenizer has no BOS to start from");
  return tokens;
}

/// A prompt with its completion.
struct Completion {
  std::vector<std::int32_t> tokens;
  index_t prompt = 0;  ///< tokens of the prompt, at least one

  index_t size() const { return static_cast<index_t>(tokens.size()) - prompt; }
};

/// prompt ++ completion, at most `longest` tokens: a prompt that is too long is cut on the left, behind its BOS where
/// it begins with one. ContractError when the completion is empty or leaves no room for one token of the prompt.
inline Completion join_completion(Tokenizer const& tokenizer, std::vector<std::int32_t> prompt,
                                  std::vector<std::int32_t> const& completion, index_t longest) {
  expects(!completion.empty(), "graft: the completion is empty");
  auto const room = longest - static_cast<index_t>(completion.size()), length = static_cast<index_t>(prompt.size());
  expects(room >= 1, "graft: a completion of ", completion.size(), " tokens does not fit into ", longest,
          " with a prompt");
  if (length > room) {
    bool const keeps_bos = tokenizer.bos() >= 0 && prompt[0] == tokenizer.bos() && room > 1;
    auto const first = prompt.begin() + (keeps_bos ? 1 : 0);
    prompt.erase(first, first + (length - room));
  }
  Completion result{std::move(prompt), std::min(length, room)};
  result.tokens.insert(result.tokens.end(), completion.begin(), completion.end());
  return result;
}

}  // namespace graft
