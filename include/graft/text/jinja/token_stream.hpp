// SPDX-License-Identifier: Apache-2.0
// The tokens of a template one after the other, for a parser: what comes next, whether it is what should come.
#pragma once

#include <graft/text/jinja/lexer.hpp>

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace graft::jinja {

class TokenStream {
 public:
  explicit TokenStream(std::string_view source) : tokens_(Lexer(source).take()) {}

 protected:
  Token const& peek(std::size_t ahead = 0) const { return tokens_[std::min(at_ + ahead, tokens_.size() - 1)]; }
  Token next() { return tokens_[at_ < tokens_.size() - 1 ? at_++ : at_]; }
  void put_back() { --at_; }
  bool take_symbol(std::string_view symbol) { return peek().is_symbol(symbol) && (next(), true); }
  bool take_name(std::string_view name) { return peek().is_name(name) && (next(), true); }
  void expect_symbol(std::string_view symbol) {
    if (!take_symbol(symbol)) unexpected("\"", symbol, "\"");
  }
  void expect(Token::Kind kind, std::string_view what) {
    if (peek().kind != kind) unexpected(what);
    next();
  }
  std::string name(std::string_view what) {
    if (peek().kind != Token::Kind::name) unexpected(what);
    return next().value;
  }
  template <class... Parts>
  [[noreturn]] void unexpected(Parts const&... wanted) const {
    std::string const found = peek().value.empty() ? "the end of the tag" : in_quotes(peek().value);
    refuse(peek().line, "expected ", wanted..., ", found ", found);
  }

  /// Bounds the recursion, here and in the interpreter.
  struct Depth {
    explicit Depth(TokenStream& tokens) : tokens_(tokens) {
      if (++tokens_.depth_ > 300) refuse(tokens_.peek().line, "nests too deep");
    }
    ~Depth() { --tokens_.depth_; }
    TokenStream& tokens_;
  };

 private:
  std::vector<Token> tokens_;
  std::size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace graft::jinja
