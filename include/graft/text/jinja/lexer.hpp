// SPDX-License-Identifier: Apache-2.0
// Cuts a template into text and the tokens of its tags. White space is treated as chat templates are written for:
// trim_blocks and lstrip_blocks are on, one line break at the very end is dropped.
#pragma once

#include <graft/core/error.hpp>
#include <graft/io/checked.hpp>
#include <graft/text/utf8.hpp>

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace graft::jinja {

struct Token {
  enum class Kind {
    text,
    output_begin,
    output_end,
    block_begin,
    block_end,
    name,
    string,
    integer,
    number,
    symbol,
    end
  };
  Kind kind;
  std::string value;
  int line;

  bool is(Kind wanted, std::string_view text) const { return kind == wanted && value == text; }
  bool is_symbol(std::string_view text) const { return is(Kind::symbol, text); }
  bool is_name(std::string_view text) const { return is(Kind::name, text); }
};

template <class... Parts>
[[noreturn]] void refuse(int line, Parts const&... parts) {
  raise<FormatError>("chat template, line ", line, ": ", parts...);
}

/// What Python's str.strip removes.
inline bool is_python_space(char32_t c) { return utf8::is_white_space(c) || (c >= 0x1C && c <= 0x1F); }

class Lexer {
 public:
  /// FormatError where the source is not UTF-8, a tag is not closed or a character means nothing in one.
  explicit Lexer(std::string_view source) {
    if (!valid_utf8(source)) raise<FormatError>("chat template: is not UTF-8");
    for (std::size_t k = 0; k < source.size(); ++k) {  // all line breaks become \n
      if (source[k] == '\r' && k + 1 < source.size() && source[k + 1] == '\n') continue;
      source_ += source[k] == '\r' ? '\n' : source[k];
    }
    if (!source_.empty() && source_.back() == '\n') source_.pop_back();
    while (at_ < source_.size()) lex_text();
    put(Token::Kind::end, "");
  }

  std::vector<Token> take() { return std::move(tokens_); }

 private:
  std::string_view rest() const { return std::string_view(source_).substr(at_); }
  bool at(std::string_view text) const { return rest().substr(0, text.size()) == text; }
  void put(Token::Kind kind, std::string value) { tokens_.push_back({kind, std::move(value), line_}); }
  void advance(std::size_t count) {
    line_ += static_cast<int>(
        std::count(source_.begin() + std::ptrdiff_t(at_), source_.begin() + std::ptrdiff_t(at_ + count), '\n'));
    at_ += count;
  }
  void skip_space() {
    std::size_t end = at_;
    for (std::size_t k = at_; k < source_.size() && is_python_space(utf8::next(source_, k));) end = k;
    advance(end - at_);
  }

  /// Text up to the next tag, then the tag.
  void lex_text() {
    std::size_t tag = at_;
    while (tag < source_.size() && !(source_[tag] == '{' && tag + 1 < source_.size() &&
                                     (source_[tag + 1] == '{' || source_[tag + 1] == '%' || source_[tag + 1] == '#')))
      ++tag;
    std::string out = source_.substr(at_, tag - at_);
    bool const starts_line = at_ == 0 || source_[at_ - 1] == '\n';
    if (tag == source_.size()) {
      put_text(out);
      return advance(tag - at_);
    }
    char const kind = source_[tag + 1], sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    if (sign == '-') {
      std::size_t end = out.size();
      for (std::size_t k = end; k > 0 && is_python_space(utf8::previous(out, k));) end = k;
      out.resize(end);
    } else if (sign != '+' && kind != '{') {
      std::size_t const line = out.rfind('\n') + 1;  // 0 where there is no line break
      if ((line > 0 || starts_line) && is_blank(std::string_view(out).substr(line))) out.resize(line);
    }
    put_text(out);
    advance(tag - at_ + 2 + (sign == '-' || sign == '+' ? 1 : 0));
    if (kind == '#') return lex_comment();
    put(kind == '{' ? Token::Kind::output_begin : Token::Kind::block_begin, "");
    lex_tag(kind == '{' ? "}}" : "%}");
  }
  void put_text(std::string const& out) {
    if (!out.empty()) put(Token::Kind::text, out);
  }
  static bool is_blank(std::string_view text) {
    for (std::size_t k = 0; k < text.size();)
      if (!is_python_space(utf8::next(text, k))) return false;
    return true;
  }

  void lex_comment() {
    std::size_t const end = source_.find("#}", at_);
    if (end == std::string::npos) refuse(line_, "a comment is not closed");
    bool const strips = end > at_ && source_[end - 1] == '-', keeps = end > at_ && source_[end - 1] == '+';
    advance(end + 2 - at_);
    strips ? skip_space() : skip_line_break(!keeps);
  }
  void skip_line_break(bool really) {
    if (really && at("\n")) advance(1);
  }

  /// The tokens of a tag up to and with its end; inside brackets "}}" is two brackets.
  void lex_tag(std::string_view end) {
    int depth = 0, first_line = line_;
    bool const block = end == "%}";
    for (;;) {
      skip_space();
      if (at_ == source_.size()) refuse(first_line, "a tag is not closed");
      bool const strips = at("-") && rest().substr(1, 2) == end, keeps = block && at("+") && rest().substr(1, 2) == end;
      if (depth == 0 && (strips || keeps || at(end))) {
        put(block ? Token::Kind::block_end : Token::Kind::output_end, "");
        advance(strips || keeps ? 3 : 2);
        return strips ? skip_space() : skip_line_break(block && !keeps);
      }
      char const c = source_[at_];
      if (c == '"' || c == '\'')
        lex_string(c);
      else if (std::isdigit(static_cast<unsigned char>(c)))
        lex_number();
      else if (is_name_character(c))
        lex_name();
      else
        depth += lex_symbol();
      if (depth < 0) refuse(line_, "a bracket is closed that was not opened");
    }
  }

  static bool is_name_character(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }
  void lex_name() {
    std::size_t length = 0;
    while (length < rest().size() && is_name_character(rest()[length])) ++length;
    put(Token::Kind::name, std::string(rest().substr(0, length)));
    advance(length);
  }
  void lex_number() {
    std::string digits;
    bool fraction = false;
    std::size_t length = 0;
    auto const peek = [&](std::size_t ahead) { return length + ahead < rest().size() ? rest()[length + ahead] : '\0'; };
    auto const is_digit = [](char c) { return c >= '0' && c <= '9'; };
    for (; length < rest().size(); ++length) {
      char const c = peek(0);
      bool const exponent =
          (c == 'e' || c == 'E') && (is_digit(peek(1)) || ((peek(1) == '-' || peek(1) == '+') && is_digit(peek(2))));
      bool const sign = (c == '-' || c == '+') && !digits.empty() && (digits.back() == 'e' || digits.back() == 'E');
      if (c == '_') continue;
      if (!is_digit(c) && !sign && !exponent && !(c == '.' && is_digit(peek(1)) && !fraction)) break;
      fraction = fraction || !is_digit(c);
      digits += c;
    }
    put(fraction ? Token::Kind::number : Token::Kind::integer, digits);
    advance(length);
  }
  /// The length change in brackets' depth.
  int lex_symbol() {
    constexpr std::string_view symbols[] = {"//", "**", "==", "!=", "<=", ">=", "+", "-", "*", "/", "%", "~", "<",
                                            ">",  "=",  ".",  ":",  "|",  ",",  "(", ")", "[", "]", "{", "}"};
    for (std::string_view const symbol : symbols) {
      if (!at(symbol)) continue;
      put(Token::Kind::symbol, std::string(symbol));
      advance(symbol.size());
      return symbol == "(" || symbol == "[" || symbol == "{"   ? 1
             : symbol == ")" || symbol == "]" || symbol == "}" ? -1
                                                               : 0;
    }
    std::size_t length = 0;
    utf8::next(rest(), length);
    refuse(line_, "the character ", in_quotes(rest().substr(0, length)), " means nothing in a tag");
  }

  void lex_string(char quote) {
    std::string out;
    int const first_line = line_;
    advance(1);
    for (;; advance(1)) {
      if (at_ == source_.size()) refuse(first_line, "a string is not closed");
      char const c = source_[at_];
      if (c == quote) break;
      if (c != '\\')
        out += c;
      else
        lex_escape(out);
    }
    advance(1);
    put(Token::Kind::string, std::move(out));
  }
  /// At a backslash; leaves the last character of the escape to be passed.
  void lex_escape(std::string& out) {
    if (at_ + 1 == source_.size()) return;
    advance(1);
    char const c = source_[at_];
    constexpr std::string_view names = "abfnrtv0\\'\"", values("\a\b\f\n\r\t\v\0\\'\"", 11);
    if (auto const k = names.find(c); k != std::string_view::npos) {
      out += values[k];
    } else if (c == 'x' || c == 'u' || c == 'U') {
      std::size_t const count = c == 'x' ? 2 : c == 'u' ? 4 : 8;
      char32_t code = 0;
      for (std::size_t digit_at = 1; digit_at <= count; ++digit_at) {
        char const digit = digit_at < rest().size() ? rest()[digit_at] : '\0';
        if (!std::isxdigit(static_cast<unsigned char>(digit))) refuse(line_, "a string has a wrong escape");
        code = code * 16 + static_cast<char32_t>(
                               std::isdigit(static_cast<unsigned char>(digit)) ? digit - '0' : (digit | 32) - 'a' + 10);
      }
      if (code >= 0x110000 || (code >= 0xD800 && code < 0xE000))
        refuse(line_, "a string has an escape for no character");
      utf8::append(out, code);
      advance(count);
    } else if (c != '\n') {  // an escaped line break vanishes, an unknown escape stays as it is
      out += '\\';
      out += c;
    }
  }

  std::string source_;
  std::size_t at_ = 0;
  int line_ = 1;
  std::vector<Token> tokens_;
};

}  // namespace graft::jinja
