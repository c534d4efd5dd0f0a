// SPDX-License-Identifier: Apache-2.0
// Tokens to syntax tree: the statements of a template. What is not supported is refused here, by name.
#pragma once

#include <graft/text/jinja/expression_parser.hpp>
#include <graft/text/jinja/syntax.hpp>

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace graft::jinja {

class Parser : private ExpressionParser {
 public:
  explicit Parser(std::string_view source) : ExpressionParser(source) {}

  Block parse() {
    Block out = block({});
    if (peek().kind != Token::Kind::end) refuse(peek().line, "a statement ends that was not begun");
    return out;
  }

 private:
  /// Up to a tag that starts with one of `ends`, which stays, its opening bracket taken.
  Block block(std::vector<std::string_view> const& ends) {
    Depth const depth(*this);
    Block out;
    for (;;) {
      Token const token = next();
      if (token.kind == Token::Kind::end) {
        if (!ends.empty()) refuse(token.line, "\"", ends.back(), "\" is missing");
        return out;
      }
      if (token.kind == Token::Kind::text) {
        out.push_back({Statement::Kind::text, token.line, token.value});
      } else if (token.kind == Token::Kind::output_begin) {
        Statement output{Statement::Kind::output, token.line};
        output.expression = tuple();
        expect(Token::Kind::output_end, "the end of the output");
        out.push_back(std::move(output));
      } else {
        if (std::find(ends.begin(), ends.end(), peek().value) != ends.end()) return out;
        statement(out);
      }
    }
  }

  void statement(Block& out) {
    int const line = peek().line;
    std::string const word = name("a statement");
    if (word == "if") {
      out.push_back(branch(line));
    } else if (word == "for") {
      out.push_back(loop(line));
    } else if (word == "set") {
      out.push_back(assignment(line));
    } else if (word == "break" || word == "continue") {
      if (loops_ == 0) refuse(line, "\"", word, "\" outside of a loop");
      end_tag();
      out.push_back({word == "break" ? Statement::Kind::leave : Statement::Kind::skip, line});
    } else if (word == "macro") {
      out.push_back(macro(line));
    } else if (word == "generation") {  // marks what an assistant said, for training; nothing is printed for it
      end_tag();
      for (Statement& inner : block({"endgeneration"})) out.push_back(std::move(inner));
      next();
      end_tag();
    } else {
      refuse(line, "the statement ", in_quotes(word), " is not supported");
    }
  }
  void end_tag() { expect(Token::Kind::block_end, "the end of the tag"); }

  Statement branch(int line) {
    Depth const depth(*this);  // each elif nests in the one before
    Statement out{Statement::Kind::branch, line};
    out.expression = tuple();
    end_tag();
    out.body = block({"elif", "else", "endif"});
    std::string const word = next().value;
    if (word == "elif") {
      out.otherwise.push_back(branch(peek().line));
      return out;
    }
    end_tag();
    if (word == "else") {
      out.otherwise = block({"endif"});
      next();
      end_tag();
    }
    return out;
  }

  Statement loop(int line) {
    Statement out{Statement::Kind::loop, line};
    out.targets = targets();
    if (!take_name("in")) unexpected("\"in\"");
    out.expression = disjunction();
    if (take_name("if")) out.condition = expression();
    if (peek().is_name("recursive")) refuse(line, "recursive loops are not supported");
    end_tag();
    ++loops_;
    out.body = block({"else", "endfor"});
    --loops_;
    if (next().value == "else") {
      end_tag();
      out.otherwise = block({"endfor"});
      next();
    }
    end_tag();
    return out;
  }

  Statement assignment(int line) {
    Statement out{Statement::Kind::assign, line};
    if (peek(1).is_symbol(".")) {
      out.kind = Statement::Kind::assign_to;
      out.targets.push_back(name("a name"));
      next();
      out.targets.push_back(name("a name"));
    } else {
      out.targets = targets();
    }
    if (take_symbol("=")) {
      out.expression = tuple();
      end_tag();
      return out;
    }
    if (out.kind == Statement::Kind::assign_to || out.targets.size() != 1) unexpected("\"=\"");
    end_tag();
    out.body = block({"endset"});
    next();
    end_tag();
    return out;
  }

  Statement macro(int line) {
    Statement out{Statement::Kind::macro, line, name("a name")};
    expect_symbol("(");
    while (!take_symbol(")")) {
      out.targets.push_back(name("a parameter"));
      out.defaults.push_back(take_symbol("=") ? expression() : nullptr);
      if (!peek().is_symbol(")")) expect_symbol(",");
    }
    end_tag();
    int const loops = std::exchange(loops_, 0);  // a loop around the definition is not one around its statements
    out.body = block({"endmacro"});
    loops_ = loops;
    next();
    end_tag();
    return out;
  }

  std::vector<std::string> targets() {
    bool const enclosed = take_symbol("(");
    std::vector<std::string> out = {name("a name")};
    while (take_symbol(",")) out.push_back(name("a name"));
    if (enclosed) expect_symbol(")");
    return out;
  }

  int loops_ = 0;
};

}  // namespace graft::jinja
