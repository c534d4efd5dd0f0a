// SPDX-License-Identifier: Apache-2.0
// Everything that defines a tokenizer, as plain data: what files are read into and tokenizers are built from.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/types.hpp>
#include <graft/io/checked.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace graft {

enum class TokenizerKind { byte_level_bpe, sentencepiece_bpe, wordpiece };

/// Values are those of GGUF's tokenizer.ggml.token_type.
enum class TokenType : std::int32_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

/// A token that is found in the text before anything else happens to it.
struct AddedToken {
  std::int32_t id = -1;
  std::string content;
  bool special = false;      ///< matched only where special tokens are parsed, dropped where they are skipped
  bool left_strip = false;   ///< white space before it belongs to it
  bool right_strip = false;  ///< white space after it belongs to it
  bool single_word = false;  ///< only where no word character touches it
  bool normalized = false;   ///< matched, itself normalised, in the normalised text
};

/// Where a SentencePiece tokenizer puts a space of its own.
enum class PrefixSpace {
  never,
  first,              ///< before the text, unless it starts with a space or an added token
  every,              ///< before the text and after every added token, unless a space is there
  every_even_doubled  ///< as `every`, but also where a space is there: SentencePiece's own rule
};

/// One element of what surrounds the text: a token, or the place of the first or second text.
struct TemplatePiece {
  static constexpr std::int32_t first_text = -1, second_text = -2;
  std::int32_t id = first_text;
  std::int32_t type_id = 0;  ///< BERT's token_type_ids
};

struct WordPieceOptions {
  bool clean_text = true;     ///< drop control characters, make all white space a blank
  bool split_chinese = true;  ///< every CJK ideograph is a word
  bool lower_case = true;
  bool strip_accents = true;
  bool clean_decoding = true;       ///< no blank before . , ? ! and English contractions when decoding
  std::string continuation = "##";  ///< starts every token that is not the first of its word
  index_t max_word_length = 100;    ///< code points; a longer word is unknown
};

struct TokenizerSpec {
  std::string source;  ///< named in messages: the file this was read from
  TokenizerKind kind = TokenizerKind::byte_level_bpe;
  std::vector<std::string> tokens;  ///< by id, in the file's spelling ("Ġthe", "▁the", "##ing"); "" where an id is free
  std::vector<TokenType> types;     ///< by id; empty: all normal
  std::vector<float> scores;        ///< by id, SentencePiece: pairs merge by highest score where `merges` is empty
  std::vector<std::pair<std::string, std::string>> merges;  ///< by rank
  std::vector<AddedToken> added;

  std::string pre_tokenizer;      ///< byte-level BPE: a name `PreTokenizer` knows
  bool ignore_merges = false;     ///< byte-level BPE: a word that is a token is that token (Llama 3)
  bool add_prefix_space = false;  ///< byte-level BPE: a space before each text that does not start with one
  bool nfc = false;               ///< byte-level BPE: text is brought to Unicode's form C first (Qwen)
  PrefixSpace prefix_space = PrefixSpace::every_even_doubled;  ///< SentencePiece-BPE
  bool byte_fallback = true;      ///< SentencePiece-BPE: characters without a token become <0xNN> tokens
  bool strip_first_space = true;  ///< SentencePiece-BPE: decoding drops one space at the start
  WordPieceOptions wordpiece;

  std::int32_t bos = -1, eos = -1, unknown = -1, padding = -1, end_of_turn = -1;  ///< -1: there is none
  std::vector<TemplatePiece> single = {{}};                                       ///< around one text
  std::vector<TemplatePiece> pair = {{TemplatePiece::first_text, 0}, {TemplatePiece::second_text, 1}};
  std::string chat_template;  ///< Jinja source; empty: there is none
};

/// Puts BOS and EOS, where they exist, around each text.
inline void surround(TokenizerSpec& spec, bool with_bos, bool with_eos) {
  spec.pair.clear();
  for (std::int32_t k = 0; k < 2; ++k) {
    if (with_bos && spec.bos >= 0) spec.pair.push_back({spec.bos, k});
    spec.pair.push_back({k == 0 ? TemplatePiece::first_text : TemplatePiece::second_text, k});
    if (with_eos && spec.eos >= 0) spec.pair.push_back({spec.eos, k});
    if (k == 0) spec.single = spec.pair;
  }
}

/// Where a file does not say which token ends a turn of a chat, its name does.
inline void name_end_of_turn(TokenizerSpec& spec) {
  for (std::string_view const name : {"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>"})
    for (AddedToken const& token : spec.added)
      if (spec.end_of_turn < 0 && token.content == name) spec.end_of_turn = token.id;
}

/// FormatError, naming `spec.source`, where an id lies outside the vocabulary or a token is not UTF-8.
inline void check_spec(TokenizerSpec const& spec) {
  auto const fail = [&](auto const&... parts) {
    raise<FormatError>(spec.source, spec.source.empty() ? "" : ": ", parts...);
  };
  auto const size = static_cast<index_t>(spec.tokens.size());
  auto const check_id = [&](char const* what, index_t id, index_t lowest) {
    if (id < lowest || id >= size) fail(what, " has id ", id, ", the vocabulary has ", size, " tokens");
  };
  if (!spec.types.empty() && spec.types.size() != spec.tokens.size())
    fail("there are ", spec.types.size(), " token types for ", size, " tokens");
  if (spec.kind == TokenizerKind::sentencepiece_bpe && spec.merges.empty() && spec.scores.size() != spec.tokens.size())
    fail("there are ", spec.scores.size(), " scores for ", size, " tokens");
  for (std::string const& token : spec.tokens)
    if (!valid_utf8(token)) fail("token ", in_quotes(token), " is not UTF-8");
  for (AddedToken const& token : spec.added) {
    check_id("an added token", token.id, 0);
    if (token.content != spec.tokens[static_cast<std::size_t>(token.id)])
      fail("added token ", in_quotes(token.content), " has the id of ",
           in_quotes(spec.tokens[static_cast<std::size_t>(token.id)]));
  }
  check_id("BOS", spec.bos, -1);
  check_id("EOS", spec.eos, -1);
  check_id("the unknown token", spec.unknown, spec.kind == TokenizerKind::wordpiece ? 0 : -1);
  check_id("the padding token", spec.padding, -1);
  check_id("the end of turn", spec.end_of_turn, -1);
  for (TemplatePiece const& piece : spec.single)
    check_id("a token around the text", piece.id, TemplatePiece::first_text);
  for (TemplatePiece const& piece : spec.pair)
    check_id("a token around two texts", piece.id, TemplatePiece::second_text);
}

}  // namespace graft
