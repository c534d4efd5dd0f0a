// SPDX-License-Identifier: Apache-2.0
// Chat templates: how a model wants the messages of a conversation written. The language is the part of Jinja that the
// templates of Llama, Mistral, Qwen, SmolLM and their like use; anything else is refused by name when it is parsed.
#pragma once

#include <graft/core/error.hpp>
#include <graft/text/jinja/interpreter.hpp>
#include <graft/text/jinja/parser.hpp>
#include <graft/text/jinja/value.hpp>
#include <graft/text/tokenizer.hpp>

#include <nlohmann/json.hpp>

#include <ctime>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace graft {

struct ChatOptions {
  bool add_generation_prompt = true;                                    ///< end where the assistant's answer begins
  std::string bos_token, eos_token;                                     ///< as templates spell them out
  nlohmann::ordered_json variables = nlohmann::ordered_json::object();  ///< more of them: tools, enable_thinking, ...
  std::time_t now = std::time(nullptr);                                 ///< what templates that state the date state
};

/// Immutable and cheap to copy.
class ChatTemplate {
 public:
  /// FormatError naming line and construct where `source` is not a template or uses what is not supported.
  explicit ChatTemplate(std::string_view source)
      : block_(std::make_shared<jinja::Block const>(jinja::Parser(source).parse())) {}

  /// `messages`: an array of objects with "role" and "content" and whatever else the template asks for.
  /// ContractError with the template's own sentence where it does not accept them, FormatError where it breaks.
  std::string render(nlohmann::ordered_json const& messages, ChatOptions const& options = {}) const {
    jinja::Dict variables;
    for (auto const& [name, value] : options.variables.items()) variables.set(name, jinja::from_json(value));
    variables.set("messages", jinja::from_json(messages));
    variables.set("add_generation_prompt", options.add_generation_prompt);
    variables.set("bos_token", options.bos_token);
    variables.set("eos_token", options.eos_token);
    return jinja::Interpreter(std::move(variables), options.now).run(*block_);
  }

 private:
  std::shared_ptr<jinja::Block const> block_;
};

/// A conversation as the tokenizer's own template writes it; encode it with add_special = false, because templates
/// write BOS themselves. ContractError where there is no template.
inline std::string apply_chat_template(Tokenizer const& tokenizer, nlohmann::ordered_json const& messages,
                                       ChatOptions options = {}) {
  expects(!tokenizer.chat_template().empty(), "the tokenizer has no chat template");
  if (options.bos_token.empty() && tokenizer.bos() >= 0) options.bos_token = tokenizer.token(tokenizer.bos());
  if (options.eos_token.empty() && tokenizer.eos() >= 0) options.eos_token = tokenizer.token(tokenizer.eos());
  return ChatTemplate(tokenizer.chat_template()).render(messages, options);
}

}  // namespace graft
