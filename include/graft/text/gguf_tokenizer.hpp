// SPDX-License-Identifier: Apache-2.0
// Reads the tokenizer in a GGUF file's metadata (the keys tokenizer.*).
#pragma once

#include <graft/core/error.hpp>
#include <graft/io/checked.hpp>
#include <graft/io/gguf_metadata.hpp>
#include <graft/text/pre_tokenizer.hpp>
#include <graft/text/tokenizer_spec.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace graft {

namespace detail {

inline std::vector<TokenType> read_gguf_token_types(GgufMetadata const& metadata, std::string const& path,
                                                    std::size_t tokens) {
  constexpr char key[] = "tokenizer.ggml.token_type";
  auto const fail = [&](auto const&... parts) { raise<FormatError>(path, ": ", parts...); };
  std::vector<TokenType> types;
  if (metadata.contains(key))
    for (auto const type : metadata.get_array<std::int32_t>(key)) {
      if (type < 1 || type > 6) fail("metadata key ", in_quotes(key), " has the unknown type ", type);
      types.push_back(static_cast<TokenType>(type));
    }
  if (!types.empty() && types.size() != tokens)
    fail("there are ", types.size(), " token types for ", tokens, " tokens");
  return types;
}

inline void read_gguf_byte_level(GgufMetadata const& metadata, TokenizerSpec& spec) {
  auto const fail = [&](auto const&... parts) { raise<FormatError>(spec.source, ": ", parts...); };
  spec.kind = TokenizerKind::byte_level_bpe;
  spec.pre_tokenizer = metadata.get<std::string>("tokenizer.ggml.pre");
  if (!PreTokenizer::knows(spec.pre_tokenizer))
    fail("pre-tokenizer ", in_quotes(spec.pre_tokenizer), " is not supported");
  spec.ignore_merges = PreTokenizer::same(spec.pre_tokenizer, "llama-bpe");
  spec.nfc = PreTokenizer::same(spec.pre_tokenizer, "qwen2");  // the format does not say it, Qwen's tokenizers do it
  spec.add_prefix_space = metadata.get_or("tokenizer.ggml.add_space_prefix", false);
  for (auto const merge : metadata.get_array<std::string_view>("tokenizer.ggml.merges")) {
    auto const space = merge.find(' ', 1);
    if (space == std::string_view::npos) fail("merge ", in_quotes(merge), " is not a pair of tokens");
    spec.merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
  }
}

inline void read_gguf_sentencepiece(GgufMetadata const& metadata, TokenizerSpec& spec) {
  spec.kind = TokenizerKind::sentencepiece_bpe;
  spec.scores = metadata.get_array<float>("tokenizer.ggml.scores");
  bool const spaced = metadata.get_or("tokenizer.ggml.add_space_prefix", true);
  spec.prefix_space = spaced ? PrefixSpace::every_even_doubled : PrefixSpace::never;
  spec.strip_first_space = spaced;
  spec.bos = 1, spec.eos = 2, spec.unknown = 0;
}

/// The tokens whose types say that they are found in the text before all others.
inline std::vector<AddedToken> gguf_added_tokens(TokenizerSpec const& spec) {
  std::vector<AddedToken> added;
  for (std::size_t k = 0; k < spec.types.size(); ++k) {
    TokenType const type = spec.types[k];
    bool const special = type == TokenType::control || type == TokenType::unknown;
    if ((!special && type != TokenType::user_defined) || spec.tokens[k].empty()) continue;
    AddedToken token;
    token.id = static_cast<std::int32_t>(k);
    token.content = spec.tokens[k];
    token.special = special;
    added.push_back(std::move(token));
  }
  return added;
}

}  // namespace detail

/// `path` is for messages. FormatError names it and the key that is missing, wrong or not supported.
inline TokenizerSpec read_gguf_tokenizer(GgufMetadata const& metadata, std::string path) {
  TokenizerSpec spec;
  spec.source = std::move(path);
  auto const model = metadata.get<std::string_view>("tokenizer.ggml.model");
  spec.tokens = metadata.get_array<std::string>("tokenizer.ggml.tokens");
  spec.types = detail::read_gguf_token_types(metadata, spec.source, spec.tokens.size());
  if (model == "gpt2")
    detail::read_gguf_byte_level(metadata, spec);
  else if (model == "llama")
    detail::read_gguf_sentencepiece(metadata, spec);
  else
    raise<FormatError>(spec.source, ": tokenizer model ", in_quotes(model),
                       " is not supported; supported are gpt2 and llama");

  auto const id = [&](char const* key, std::int32_t fallback) { return metadata.get_or<std::int32_t>(key, fallback); };
  spec.bos = id("tokenizer.ggml.bos_token_id", spec.bos);
  spec.eos = id("tokenizer.ggml.eos_token_id", spec.eos);
  spec.unknown = id("tokenizer.ggml.unknown_token_id", spec.unknown);
  spec.padding = id("tokenizer.ggml.padding_token_id", -1);
  spec.end_of_turn = id("tokenizer.ggml.eot_token_id", -1);
  spec.added = detail::gguf_added_tokens(spec);
  bool const usual_bos = spec.ignore_merges || spec.kind == TokenizerKind::sentencepiece_bpe;  // Llama 3, Llama 2
  surround(spec, metadata.get_or("tokenizer.ggml.add_bos_token", usual_bos),
           metadata.get_or("tokenizer.ggml.add_eos_token", false));
  spec.chat_template = metadata.get_or<std::string>("tokenizer.chat_template", "");
  name_end_of_turn(spec);
  return spec;
}

}  // namespace graft
