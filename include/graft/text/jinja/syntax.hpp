// SPDX-License-Identifier: Apache-2.0
// The syntax tree of a template.
#pragma once

#include <graft/text/jinja/value.hpp>

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace graft::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

struct Expression {
  enum class Kind {
    literal,    ///< `value`
    name,       ///< `text`
    list,       ///< children
    tuple,      ///< children
    dict,       ///< children: key, value, key, value, ...
    attribute,  ///< children[0].text
    item,       ///< children[0][children[1]]
    slice,      ///< children[0][children[1]:children[2]:children[3]]; absent parts are null
    call,       ///< children[0](children[1], ..., named)
    filter,     ///< children[0] | text(children[1], ..., named)
    test,       ///< children[0] is text(children[1], ...)
    unary,      ///< text: not, -, +
    binary,     ///< children[0] text children[1], comparisons and logic included
    condition   ///< children[1] if children[0] else children[2]; the last may be null
  };
  Kind kind;
  int line;
  std::string text = {};
  Value value = {};
  std::vector<ExpressionPtr> children = {};
  std::vector<std::pair<std::string, ExpressionPtr>> named = {};
};

struct Statement;
using Block = std::vector<Statement>;

struct Statement {
  enum class Kind {
    text,       ///< `text`
    output,     ///< {{ expression }}
    assign,     ///< set targets = expression, or to the output of `body` without one
    assign_to,  ///< set targets[0].targets[1] = expression
    loop,       ///< for targets in expression if condition: body, else: otherwise
    branch,     ///< if expression: body, else: otherwise
    leave,      ///< break
    skip,       ///< continue
    macro       ///< macro text(targets): body; defaults[k], or null, belongs to targets[k]
  };
  Kind kind;
  int line;
  std::string text = {};
  std::vector<std::string> targets = {};
  ExpressionPtr expression = {}, condition = {};
  std::vector<ExpressionPtr> defaults = {};
  Block body = {}, otherwise = {};
};

}  // namespace graft::jinja
