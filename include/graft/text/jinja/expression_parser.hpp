// SPDX-License-Identifier: Apache-2.0
// Expressions of a template, by recursive descent from the loosest binding to the tightest, as Jinja has them.
#pragma once

#include <graft/text/jinja/syntax.hpp>
#include <graft/text/jinja/token_stream.hpp>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace graft::jinja {

inline constexpr std::string_view known_filters[] = {
    "abs",  "capitalize", "count",      "d",      "default", "dictsort", "first",  "float",      "int",     "items",
    "join", "last",       "length",     "list",   "lower",   "map",      "reject", "rejectattr", "replace", "reverse",
    "safe", "select",     "selectattr", "string", "title",   "tojson",   "trim",   "upper"};
inline constexpr std::string_view known_tests[] = {
    "!=",    "<",      "<=",  "==",       "boolean", "callable", "defined",   "divisibleby", "eq", "equalto", "even",
    "false", "float",  "ge",  "gt",       "in",      "integer",  "iterable",  "le",          "lt", "mapping", "ne",
    "none",  "number", "odd", "sequence", "string",  "true",     "undefined", ">",           ">="};

class ExpressionParser : public TokenStream {
 public:
  using TokenStream::TokenStream;

 protected:
  /// a, b, c needs no brackets here.
  ExpressionPtr tuple() {
    ExpressionPtr first = expression();
    if (!peek().is_symbol(",")) return first;
    ExpressionPtr list = make_of(Kind::tuple, peek().line, "", std::move(first));
    while (take_symbol(",") && peek().kind != Token::Kind::block_end && peek().kind != Token::Kind::output_end)
      list->children.push_back(expression());
    return list;
  }

  ExpressionPtr expression() {
    Depth const depth(*this);
    ExpressionPtr out = disjunction();
    while (peek().is_name("if")) {
      int const line = next().line;
      ExpressionPtr condition = disjunction();
      ExpressionPtr otherwise = take_name("else") ? expression() : nullptr;
      out = make_of(Kind::condition, line, "", std::move(condition), std::move(out), std::move(otherwise));
    }
    return out;
  }

  ExpressionPtr disjunction() {
    return chain([this] { return conjunction(); }, [this] { return take_name("or") ? "or" : ""; });
  }

 private:
  using Kind = Expression::Kind;

  static ExpressionPtr make(Kind kind, int line, std::string text = {}) {
    return std::make_unique<Expression>(Expression{kind, line, std::move(text)});
  }
  template <class... Children>
  static ExpressionPtr make_of(Kind kind, int line, std::string text, Children... children) {
    ExpressionPtr out = make(kind, line, std::move(text));
    (out->children.push_back(std::move(children)), ...);
    return out;
  }
  static ExpressionPtr literal(int line, Value value) {
    ExpressionPtr out = make(Kind::literal, line);
    out->value = std::move(value);
    return out;
  }

  /// A chain of binary operators, grouped from the left.
  template <class Operand, class TakeOperator>
  ExpressionPtr chain(Operand operand, TakeOperator take_operator) {
    ExpressionPtr left = operand();
    for (int length = 1;; ++length) {
      int const line = peek().line;
      std::string const symbol = take_operator();
      if (symbol.empty()) return left;
      if (length > 200) refuse(line, "an expression has more than 200 operators in a row");
      left = make_of(Kind::binary, line, symbol, std::move(left), operand());
    }
  }
  template <class... Symbols>
  auto one_of(Symbols... symbols) {
    return [this, symbols...]() -> std::string {
      std::string taken;
      (void)((take_symbol(symbols) && (taken = symbols, true)) || ...);
      return taken;
    };
  }

  ExpressionPtr conjunction() {
    return chain([this] { return negation(); }, [this] { return take_name("and") ? "and" : ""; });
  }
  ExpressionPtr negation() {
    Depth const depth(*this);
    int const line = peek().line;
    return take_name("not") ? make_of(Kind::unary, line, "not", negation()) : comparison();
  }
  ExpressionPtr comparison() {
    auto const take_operator = [this]() -> std::string {
      if (std::string const symbol = one_of("==", "!=", "<=", ">=", "<", ">")(); !symbol.empty()) return symbol;
      if (take_name("in")) return "in";
      if (peek().is_name("not") && peek(1).is_name("in")) return next(), next(), "not in";
      return "";
    };
    ExpressionPtr left = sum();
    int const line = peek().line;
    std::string const symbol = take_operator();
    if (symbol.empty()) return left;
    ExpressionPtr out = make_of(Kind::binary, line, symbol, std::move(left), sum());
    if (!take_operator().empty()) refuse(line, "chained comparisons are not supported");
    return out;
  }
  ExpressionPtr sum() {
    return chain([this] { return concatenation(); }, one_of("+", "-"));
  }
  ExpressionPtr concatenation() {
    return chain([this] { return product(); }, one_of("~"));
  }
  ExpressionPtr product() {
    return chain([this] { return power(); }, one_of("*", "//", "/", "%"));
  }
  ExpressionPtr power() {
    return chain([this] { return unary(true); }, one_of("**"));
  }
  ExpressionPtr unary(bool with_filters) {
    Depth const depth(*this);
    Token const token = peek();
    ExpressionPtr out;
    if (take_symbol("-") || take_symbol("+"))
      out = make_of(Kind::unary, token.line, token.value, unary(false));
    else
      out = postfix(primary());
    return with_filters ? filters(std::move(out)) : std::move(out);
  }

  ExpressionPtr primary() {
    Token const token = next();
    switch (token.kind) {
      case Token::Kind::string: {
        std::string joined = token.value;
        while (peek().kind == Token::Kind::string) joined += next().value;
        return literal(token.line, joined);
      }
      case Token::Kind::integer: {
        std::int64_t value = 0;
        if (std::from_chars(token.value.data(), token.value.data() + token.value.size(), value).ec != std::errc())
          refuse(token.line, "the number ", token.value, " is too large");
        return literal(token.line, value);
      }
      case Token::Kind::number: {
        double value = 0;
        std::from_chars(token.value.data(), token.value.data() + token.value.size(), value);
        return literal(token.line, value);
      }
      case Token::Kind::name:
        if (token.value == "true" || token.value == "True") return literal(token.line, true);
        if (token.value == "false" || token.value == "False") return literal(token.line, false);
        if (token.value == "none" || token.value == "None") return literal(token.line, Value::Variant(None{}));
        return make(Kind::name, token.line, token.value);
      default:
        break;
    }
    if (token.is_symbol("(")) {
      if (take_symbol(")")) return make(Kind::tuple, token.line);
      ExpressionPtr out = expression();
      if (peek().is_symbol(",")) {
        out = make_of(Kind::tuple, token.line, "", std::move(out));
        while (take_symbol(",") && !peek().is_symbol(")")) out->children.push_back(expression());
      }
      expect_symbol(")");
      return out;
    }
    if (token.is_symbol("[")) {
      ExpressionPtr out = make(Kind::list, token.line);
      while (!take_symbol("]")) {
        out->children.push_back(expression());
        if (!peek().is_symbol("]")) expect_symbol(",");
      }
      return out;
    }
    if (token.is_symbol("{")) {
      ExpressionPtr out = make(Kind::dict, token.line);
      while (!take_symbol("}")) {
        out->children.push_back(expression());
        expect_symbol(":");
        out->children.push_back(expression());
        if (!peek().is_symbol("}")) expect_symbol(",");
      }
      return out;
    }
    put_back();
    unexpected("a value");
  }

  ExpressionPtr postfix(ExpressionPtr out) {
    for (int length = 0;; ++length) {
      int const line = peek().line;
      if (length > 100) refuse(line, "an expression has more than 100 parts in a row");
      if (take_symbol("."))
        out = make_of(Kind::attribute, line, name("an attribute"), std::move(out));
      else if (take_symbol("["))
        out = subscript(std::move(out), line);
      else if (peek().is_symbol("("))
        arguments(*(out = make_of(Kind::call, line, "", std::move(out))));
      else
        return out;
    }
  }

  ExpressionPtr subscript(ExpressionPtr object, int line) {
    ExpressionPtr parts[3];
    int colons = 0;
    for (; !peek().is_symbol("]");) {
      if (take_symbol(":")) {
        if (++colons > 2) unexpected("\"]\"");
      } else if (parts[colons] == nullptr) {
        parts[colons] = expression();
      } else {
        unexpected("\"]\"");
      }
    }
    next();
    if (colons > 0)
      return make_of(Kind::slice, line, "", std::move(object), std::move(parts[0]), std::move(parts[1]),
                     std::move(parts[2]));
    if (parts[0] == nullptr) refuse(line, "an empty subscript");
    return make_of(Kind::item, line, "", std::move(object), std::move(parts[0]));
  }

  /// Appends the arguments in brackets.
  void arguments(Expression& out) {
    expect_symbol("(");
    while (!take_symbol(")")) {
      if (peek().kind == Token::Kind::name && peek(1).is_symbol("=")) {
        std::string key = next().value;
        next();
        out.named.emplace_back(std::move(key), expression());
      } else {
        if (!out.named.empty()) unexpected("a named argument");
        out.children.push_back(expression());
      }
      if (!peek().is_symbol(")")) expect_symbol(",");
    }
  }

  ExpressionPtr filters(ExpressionPtr out) {
    for (int length = 0;; ++length) {
      int const line = peek().line;
      if (length > 100) refuse(line, "an expression has more than 100 filters in a row");
      if (take_symbol("|")) {
        std::string const filter = name("a filter");
        if (std::find(std::begin(known_filters), std::end(known_filters), filter) == std::end(known_filters))
          refuse(line, "the filter ", in_quotes(filter), " is not supported");
        out = make_of(Kind::filter, line, filter, std::move(out));
        if (peek().is_symbol("(")) arguments(*out);
      } else if (take_name("is")) {
        out = test(std::move(out), line);
      } else if (peek().is_symbol("(")) {
        arguments(*(out = make_of(Kind::call, line, "", std::move(out))));
      } else {
        return out;
      }
    }
  }

  ExpressionPtr test(ExpressionPtr subject, int line) {
    bool const negated = take_name("not");
    std::string const word = name("a test");
    if (std::find(std::begin(known_tests), std::end(known_tests), word) == std::end(known_tests))
      refuse(line, "the test ", in_quotes(word), " is not supported");
    ExpressionPtr out = make_of(Kind::test, line, word, std::move(subject));
    Token const& following = peek();
    bool const is_value =
        following.kind == Token::Kind::string || following.kind == Token::Kind::integer ||
        following.kind == Token::Kind::number || following.is_symbol("[") || following.is_symbol("{") ||
        (following.kind == Token::Kind::name && !following.is_name("else") && !following.is_name("or") &&
         !following.is_name("and") && !following.is_name("if") && !following.is_name("is"));
    if (following.is_symbol("("))
      arguments(*out);
    else if (is_value)
      out->children.push_back(postfix(primary()));
    return negated ? make_of(Kind::unary, line, "not", std::move(out)) : std::move(out);
  }
};

}  // namespace graft::jinja
