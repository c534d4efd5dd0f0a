// SPDX-License-Identifier: Apache-2.0
// WordPiece (BERT): text is cleaned and cut into words, each word into the longest known pieces from left to right.
#pragma once

#include <graft/text/tokenizer_spec.hpp>
#include <graft/text/unicode.hpp>
#include <graft/text/utf8.hpp>
#include <graft/text/vocabulary.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

namespace graft {

class WordPiece {
 public:
  WordPiece(TokenizerSpec const& spec, Vocabulary const& ids)
      : ids_(ids), options_(spec.wordpiece), unknown_(spec.unknown) {}

  std::string normalized(std::string_view text) const {
    std::string out;
    out.reserve(text.size());
    std::u32string const characters = options_.strip_accents ? unicode::decomposed(text) : utf8::to_utf32(text);
    for (char32_t const c : characters) {
      if (options_.clean_text && unicode::contains(unicode::bert_dropped, c)) continue;
      if (options_.strip_accents && unicode::contains(unicode::bert_accents, c)) continue;
      options_.lower_case ? unicode::append_lower(out, c) : utf8::append(out, c);
    }
    return out;
  }

  /// Appends the tokens of `text`, normalised and without added tokens.
  void encode(std::string_view text, bool /*at_start*/, std::vector<std::int32_t>& out) const {
    std::size_t begin = 0;  // of the word that is being read
    auto const end_word = [&](std::size_t end) {
      if (end > begin) encode_word(text.substr(begin, end - begin), out);
      begin = end;
    };
    for (std::size_t k = 0; k < text.size();) {
      std::size_t const here = k;
      char32_t const c = utf8::next(text, k);
      bool const space = utf8::is_white_space(c);
      bool const alone = unicode::contains(unicode::bert_punctuation, c) || (options_.split_chinese && is_chinese(c));
      if (!space && !alone) continue;
      end_word(here);
      if (alone) end_word(k);
      begin = k;
    }
    end_word(text.size());
  }

  /// Appends the bytes of a token; `first`: no token came before it.
  void decode(std::string_view token, bool /*added*/, bool first, std::string& bytes) const {
    auto const starts_with = [&](std::string_view start) { return token.substr(0, start.size()) == start; };
    if (!first && starts_with(options_.continuation)) return void(bytes += token.substr(options_.continuation.size()));
    constexpr std::string_view close_up[] = {".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re"};
    bool const clings = options_.clean_decoding && std::any_of(std::begin(close_up), std::end(close_up), starts_with);
    if (!first && !clings) bytes += ' ';
    bytes += token;
  }

 private:
  /// CJK ideographs by BERT's list, in which Hugging Face's tokenizers start extension E at 2B920.
  static bool is_chinese(char32_t c) {
    static constexpr unicode::Range ideographs[] = {{0x3400, 0x4DBF},   {0x4E00, 0x9FFF},   {0xF900, 0xFAFF},
                                                    {0x20000, 0x2A6DF}, {0x2A700, 0x2B73F}, {0x2B740, 0x2B81F},
                                                    {0x2B920, 0x2CEAF}, {0x2F800, 0x2FA1F}};
    return unicode::contains(ideographs, c);
  }

  void encode_word(std::string_view word, std::vector<std::int32_t>& out) const {
    std::vector<std::size_t> ends;  // where a piece may end: behind every character
    for (std::size_t k = 0; k < word.size(); ends.push_back(k)) utf8::next(word, k);
    if (ends.size() > static_cast<std::size_t>(options_.max_word_length)) return out.push_back(unknown_);
    std::size_t const before = out.size();
    std::string piece;
    for (std::size_t begin = 0; begin < word.size();) {
      std::int32_t id = -1;
      std::size_t last = ends.size();
      for (; id < 0 && last > 0 && ends[last - 1] > begin; --last) {
        piece = begin == 0 ? "" : options_.continuation;
        id = ids_.find(piece.append(word.substr(begin, ends[last - 1] - begin)));
      }
      if (id < 0) {  // one piece unknown: the whole word is
        out.resize(before);
        return out.push_back(unknown_);
      }
      out.push_back(id);
      begin = ends[last];
    }
  }

  Vocabulary const& ids_;
  WordPieceOptions options_;
  std::int32_t unknown_;
};

}  // namespace graft
