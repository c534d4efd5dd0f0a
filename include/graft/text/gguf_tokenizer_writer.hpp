// SPDX-License-Identifier: Apache-2.0
// Writes a tokenizer into GGUF metadata (the keys tokenizer.*).
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/types.hpp>
#include <graft/io/checked.hpp>
#include <graft/io/gguf_metadata.hpp>
#include <graft/text/pre_tokenizer.hpp>
#include <graft/text/sentencepiece_merges.hpp>
#include <graft/text/tokenizer_spec.hpp>
#include <graft/text/vocabulary.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace graft {

namespace detail {

/// The token types llama.cpp needs, where the tokenizer came from files that have none.
inline std::vector<std::int32_t> gguf_token_types(TokenizerSpec const& spec) {
  std::vector<TokenType> types = spec.types;
  if (types.empty()) {
    types.assign(spec.tokens.size(), TokenType::normal);
    bool const sentencepiece = spec.kind == TokenizerKind::sentencepiece_bpe;
    for (std::size_t k = 0; k < types.size(); ++k) {
      auto const& token = spec.tokens[k];
      bool const byte = token.size() == 6 && token.starts_with("<0x") && token[5] == '>';
      types[k] = token.empty() ? TokenType::unused : sentencepiece && byte ? TokenType::byte : TokenType::normal;
    }
    for (auto const& token : spec.added)
      types[static_cast<std::size_t>(token.id)] = token.special ? TokenType::control : TokenType::user_defined;
    if (sentencepiece && spec.unknown >= 0) types[static_cast<std::size_t>(spec.unknown)] = TokenType::unknown;
  }
  std::vector<std::int32_t> numbers;
  for (TokenType const type : types) numbers.push_back(static_cast<std::int32_t>(type));
  return numbers;
}

}  // namespace detail

/// Adds the tokenizer of a model with `vocabulary` rows of embeddings to `metadata`; what the format cannot say and
/// llama.cpp may do otherwise is returned, a line each. FormatError, naming the tokenizer's file, for WordPiece and for
/// more tokens than rows.
inline std::vector<std::string> write_gguf_tokenizer(TokenizerSpec const& spec, index_t vocabulary,
                                                     GgufMetadata& metadata) {
  auto const fail = [&](auto const&... parts) { raise<FormatError>(spec.source, ": ", parts...); };
  if (spec.kind == TokenizerKind::wordpiece) fail("a WordPiece tokenizer cannot be written to a GGUF file");
  if (static_cast<index_t>(spec.tokens.size()) > vocabulary)
    fail("has ", spec.tokens.size(), " tokens, the model ", vocabulary);
  std::vector<std::string> notes;
  std::vector<std::string> tokens = spec.tokens;
  auto types = detail::gguf_token_types(spec);
  tokens.resize(static_cast<std::size_t>(vocabulary));
  types.resize(tokens.size(), static_cast<std::int32_t>(TokenType::unused));
  for (std::size_t k = 0; k < tokens.size(); ++k)
    if (tokens[k].empty()) tokens[k] = text("[PAD", k, "]");

  bool const byte_level = spec.kind == TokenizerKind::byte_level_bpe;
  metadata.set("tokenizer.ggml.model", byte_level ? "gpt2" : "llama");
  if (byte_level) {
    metadata.set("tokenizer.ggml.pre", spec.pre_tokenizer);
    bool const llama3 = PreTokenizer::same(spec.pre_tokenizer, "llama-bpe"),
               qwen2 = PreTokenizer::same(spec.pre_tokenizer, "qwen2");
    if (spec.ignore_merges != llama3)
      notes.push_back(text("GGUF cannot say that words ", spec.ignore_merges ? "that are tokens are not" : "are always",
                           " cut and merged"));
    if (spec.nfc != qwen2) notes.push_back("GGUF cannot say whether text is brought to Unicode's form C");
    metadata.set("tokenizer.ggml.add_space_prefix", spec.add_prefix_space);
  } else {
    metadata.set("tokenizer.ggml.pre", "default");
    metadata.set("tokenizer.ggml.add_space_prefix", spec.prefix_space != PrefixSpace::never);
    if (spec.prefix_space == PrefixSpace::first || spec.prefix_space == PrefixSpace::every)
      notes.push_back("GGUF cannot say where but at the start this tokenizer puts spaces of its own");
    if (!spec.byte_fallback) notes.push_back("GGUF cannot say that unknown characters do not become bytes");
  }
  metadata.set_array("tokenizer.ggml.tokens", tokens);
  if (!byte_level) {
    bool exact = true;
    auto scores = spec.scores.empty() ? scores_from_merges(spec, exact) : spec.scores;
    scores.resize(tokens.size());
    metadata.set_array("tokenizer.ggml.scores", scores);
    if (!exact) notes.push_back("GGUF's scores cannot say all merges; some words may be cut otherwise");
  }
  metadata.set_array("tokenizer.ggml.token_type", types);
  if (byte_level) {
    std::vector<std::string> merges;
    for (auto const& [left, right] : spec.merges) merges.push_back(left + " " + right);
    metadata.set_array("tokenizer.ggml.merges", merges);
  }

  auto const set_id = [&](char const* key, std::int32_t id) {
    if (id >= 0) metadata.set(text("tokenizer.ggml.", key, "_token_id"), static_cast<std::uint32_t>(id));
  };
  set_id("bos", spec.bos);
  set_id("eos", spec.eos);
  set_id("unknown", spec.unknown);
  set_id("padding", spec.padding);
  set_id("eot", spec.end_of_turn);
  bool const bos = spec.bos >= 0 && spec.single.front().id == spec.bos,
             eos = spec.eos >= 0 && spec.single.back().id == spec.eos;
  if (spec.single.size() != 1u + bos + eos) notes.push_back("GGUF can put only BOS and EOS around a text");
  metadata.set("tokenizer.ggml.add_bos_token", bos);
  metadata.set("tokenizer.ggml.add_eos_token", eos);
  if (!spec.chat_template.empty()) metadata.set("tokenizer.chat_template", spec.chat_template);
  for (auto const& token : spec.added)
    if (token.left_strip || token.right_strip || token.single_word) {
      notes.push_back(text("GGUF cannot say what token ", in_quotes(token.content), " does with the spaces around it"));
      break;
    }
  return notes;
}

}  // namespace graft
