// SPDX-License-Identifier: Apache-2.0
// Finds added tokens (<|im_end|>, [MASK], ...) in text: leftmost first, of several in one place the longest.
#pragma once

#include <graft/text/regex.hpp>
#include <graft/text/tokenizer_spec.hpp>
#include <graft/text/utf8.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace graft {

class AddedTokens {
 public:
  explicit AddedTokens(std::vector<AddedToken> tokens = {}) : tokens_(std::move(tokens)) {
    for (std::size_t k = 0; k < tokens_.size(); ++k)
      if (!tokens_[k].content.empty()) by_first_byte_[first_byte(tokens_[k].content)].push_back(k);
    for (auto& bucket : by_first_byte_)
      std::stable_sort(bucket.begin(), bucket.end(), [this](std::size_t a, std::size_t b) {
        return tokens_[a].content.size() > tokens_[b].content.size();
      });
  }

  /// Cuts `text` (valid UTF-8) and calls piece(part, id) in order; id is -1 for what lies between the tokens.
  /// Special tokens are left in the text unless `parse_special`.
  template <class F>
  void split(std::string_view text, bool parse_special, F const& piece) const {
    std::size_t done = 0;
    for (std::size_t k = 0; k < text.size();) {
      AddedToken const* const token = longest_at(text.substr(k));
      if (token == nullptr) {
        ++k;
        continue;
      }
      std::size_t begin = k, end = k + token->content.size();
      k = end;
      if (token->special && !parse_special) continue;
      if (token->single_word && (ends_in_word(text.substr(0, begin)) || starts_with_word(text.substr(end)))) continue;
      if (token->left_strip) begin = skip_white_space_back(text, begin);
      if (token->right_strip) end = skip_white_space(text, end);
      begin = std::max(begin, done);  // the token before may have taken the white space already
      if (begin > done) piece(text.substr(done, begin - done), std::int32_t{-1});
      piece(text.substr(begin, end - begin), token->id);
      k = done = end;
    }
    if (done < text.size()) piece(text.substr(done), std::int32_t{-1});
  }

 private:
  static std::size_t first_byte(std::string_view s) { return static_cast<unsigned char>(s[0]); }

  AddedToken const* longest_at(std::string_view rest) const {
    for (std::size_t const k : by_first_byte_[first_byte(rest)])
      if (rest.substr(0, tokens_[k].content.size()) == tokens_[k].content) return &tokens_[k];
    return nullptr;
  }

  static std::size_t skip_white_space(std::string_view text, std::size_t position) {
    for (std::size_t k = position; k < text.size() && utf8::is_white_space(utf8::next(text, k));) position = k;
    return position;
  }
  static std::size_t skip_white_space_back(std::string_view text, std::size_t position) {
    for (std::size_t k = position; k > 0 && utf8::is_white_space(utf8::previous(text, k));) position = k;
    return position;
  }
  static bool starts_with_word(std::string_view text) {
    std::size_t length = 0;
    if (!text.empty()) utf8::next(text, length);
    return is_word(text.substr(0, length));
  }
  static bool ends_in_word(std::string_view text) {
    std::size_t start = text.size();
    if (!text.empty()) utf8::previous(text, start);
    return is_word(text.substr(start));
  }
  static bool is_word(std::string_view character) {
    static Regex const word(R"([\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}\x{200C}\x{200D}])");
    return word.found_in(character);
  }

  std::vector<AddedToken> tokens_;
  std::array<std::vector<std::size_t>, 256> by_first_byte_;
};

}  // namespace graft
