// SPDX-License-Identifier: Apache-2.0
// SentencePiece-BPE (Llama 2, Mistral): blanks are written "▁", characters merge, what is unknown becomes bytes.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/scalar.hpp>
#include <graft/text/bpe_merge.hpp>
#include <graft/text/sentencepiece_merges.hpp>
#include <graft/text/tokenizer_spec.hpp>
#include <graft/text/utf8.hpp>
#include <graft/text/vocabulary.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace graft {

class SentencePieceBpe {
 public:
  /// Pairs merge by `spec.merges`, or without them by the score of the token they make: highest first, of equal ones
  /// the leftmost.
  SentencePieceBpe(TokenizerSpec const& spec, Vocabulary const& ids)
      : ids_(ids),
        prefix_space_(spec.prefix_space),
        unknown_(spec.unknown),
        merges_(spec.merges.empty() ? table_of_scores(spec, ids) : merge_table(spec, ids)) {
    byte_ids_.fill(-1);
    if (!spec.byte_fallback) return;
    for (unsigned byte = 0; byte < 256; ++byte) byte_ids_[byte] = ids.find(byte_token(byte));
  }

  std::string normalized(std::string_view text) const {
    if (prefix_space_ != PrefixSpace::every_even_doubled) return std::string(text);
    return with_marks(text.empty() ? "" : blank, text);
  }

  /// Appends the tokens of `text`, normalised and without added tokens; `at_start`: nothing came before it.
  void encode(std::string_view text, bool at_start, std::vector<std::int32_t>& out) const {
    bool const wants_space = prefix_space_ == PrefixSpace::every || (prefix_space_ == PrefixSpace::first && at_start);
    bool const has_space = text.substr(0, 1) == " " || text.substr(0, blank.size()) == blank;
    std::string const marked = with_marks(wants_space && !has_space ? blank : "", text);

    std::vector<std::int32_t> symbols;
    bool after_unknown = false;
    for (std::size_t k = 0; k < marked.size();) {
      std::size_t const begin = k;
      utf8::next(marked, k);
      std::string_view const character = std::string_view(marked).substr(begin, k - begin);
      std::int32_t const id = ids_.find(character);
      bool const known = id >= 0 || append_bytes(character, symbols);
      if (id >= 0) symbols.push_back(id);
      if (!known && !after_unknown && unknown_ >= 0) symbols.push_back(unknown_);  // a run of unknown ones is one token
      after_unknown = !known;
    }
    Merger().merge(merges_, symbols);
    out.insert(out.end(), symbols.begin(), symbols.end());
  }

  /// Whether the token is a byte, <0xNN>.
  static bool is_byte(std::string_view token) { return byte_of(token) >= 0; }

  /// Appends the bytes of a token.
  void decode(std::string_view token, bool /*added*/, bool /*first*/, std::string& bytes) const {
    if (is_byte(token)) return bytes.push_back(static_cast<char>(byte_of(token)));
    for (std::size_t k = 0; k < token.size();) {
      bool const is_blank = token.substr(k, blank.size()) == blank;
      bytes += is_blank ? ' ' : token[k];
      k += is_blank ? blank.size() : 1;
    }
  }

 private:
  static constexpr std::string_view blank = "\xE2\x96\x81";  // U+2581

  static std::string byte_token(unsigned byte) {
    constexpr char digits[] = "0123456789ABCDEF";
    return {'<', '0', 'x', digits[byte / 16], digits[byte % 16], '>'};
  }
  static int byte_of(std::string_view token) {
    if (token.size() != 6 || token.substr(0, 3) != "<0x" || token[5] != '>') return -1;
    auto const digit = [](char c) {
      return c >= '0' && c <= '9'   ? c - '0'
             : c >= 'A' && c <= 'F' ? c - 'A' + 10
             : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                    : -256;
    };
    return 16 * digit(token[3]) + digit(token[4]);
  }

  static std::string with_marks(std::string_view prefix, std::string_view text) {
    std::string out(prefix);
    out.reserve(prefix.size() + 2 * text.size());
    for (char const c : text) c == ' ' ? out.append(blank) : out.append(1, c);
    return out;
  }

  /// The <0xNN> tokens of a character; none unless all its bytes have one.
  bool append_bytes(std::string_view character, std::vector<std::int32_t>& symbols) const {
    auto const id = [&](char c) { return byte_ids_[static_cast<unsigned char>(c)]; };
    if (!std::all_of(character.begin(), character.end(), [&](char c) { return id(c) >= 0; })) return false;
    for (char const c : character) symbols.push_back(id(c));
    return true;
  }

  /// Every way to cut a token into two tokens is a merge, ranked by the score of the whole.
  static MergeTable table_of_scores(TokenizerSpec const& spec, Vocabulary const& ids) {
    for (std::size_t k = 0; k < spec.scores.size(); ++k)
      if (is_nan(spec.scores[k])) raise<FormatError>(spec.source, ": token ", k, " has a score that is not a number");
    std::vector<float> scores = spec.scores;
    std::sort(scores.begin(), scores.end(), std::greater<>{});
    scores.erase(std::unique(scores.begin(), scores.end()), scores.end());

    auto const mergeable = detail::mergeable_tokens(spec);
    std::vector<std::pair<std::pair<std::int32_t, std::int32_t>, Merge>> found;
    for (std::size_t k = 0; k < spec.tokens.size(); ++k) {
      if (!mergeable[k]) continue;
      auto const rank =
          std::lower_bound(scores.begin(), scores.end(), spec.scores[k], std::greater<>{}) - scores.begin();
      Merge const whole{static_cast<std::int32_t>(rank), static_cast<std::int32_t>(k)};
      detail::for_each_cut(spec.tokens[k], ids, mergeable, [&](std::int32_t left, std::int32_t right) {
        found.push_back({{left, right}, whole});
      });
    }
    MergeTable table(found.size());
    for (auto const& [pair, merge] : found) table.insert(pair.first, pair.second, merge);
    return table;
  }

  Vocabulary const& ids_;
  PrefixSpace prefix_space_;
  std::int32_t unknown_;
  std::array<std::int32_t, 256> byte_ids_;
  MergeTable merges_;
};

}  // namespace graft
