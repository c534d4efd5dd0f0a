// SPDX-License-Identifier: Apache-2.0
// What the operators of templates do to values: Python's rules, and bounds on what a hostile template can make.
#pragma once

#include <graft/text/jinja/lexer.hpp>
#include <graft/text/jinja/value.hpp>
#include <graft/text/utf8.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace graft::jinja {

inline constexpr std::size_t longest_list = 100000;

[[noreturn]] inline void refuse_operands(int line, std::string_view symbol, Value const& a, Value const& b) {
  refuse(line, "\"", symbol, "\" does not take ", a.kind(), " and ", b.kind());
}

/// The elements a loop runs over: a list's, a mapping's keys, a string's characters, nothing of what is undefined.
inline List elements(int line, Value const& value) {
  if (List const* const list = value.list()) return *list;
  List out;
  if (auto const* const characters = value.get<std::string>()) {
    for (std::size_t k = 0, begin = 0; k < characters->size(); begin = k) {
      utf8::next(*characters, k);
      out.push_back(characters->substr(begin, k - begin));
    }
  } else if (Dict const* const dict = value.dict()) {
    for (auto const& entry : dict->entries) out.push_back(entry.first);
  } else if (value.is_defined()) {
    refuse(line, "cannot iterate over ", value.kind());
  }
  return out;
}

inline bool contains(int line, Value const& container, Value const& element) {
  if (auto const* const whole = container.get<std::string>()) {
    auto const* const part = element.get<std::string>();
    if (part == nullptr) refuse_operands(line, "in", element, container);
    return whole->find(*part) != std::string::npos;
  }
  if (Dict const* const dict = container.dict()) {
    auto const* const key = element.get<std::string>();
    return key != nullptr && dict->find(*key) != nullptr;
  }
  for (Value const& one : elements(line, container))
    if (one == element) return true;
  return false;
}

/// a < b for numbers and strings.
inline bool less(int line, Value const& a, Value const& b) {
  if (a.is_number() && b.is_number()) {
    if (!a.get<double>() && !b.get<double>()) return a.integer_or(0) < b.integer_or(0);
    return a.number() < b.number();
  }
  if (a.get<std::string>() && b.get<std::string>()) return *a.get<std::string>() < *b.get<std::string>();
  refuse_operands(line, "<", a, b);
}

inline Value integer_arithmetic(int line, std::string_view symbol, std::int64_t a, std::int64_t b) {
  std::int64_t out = 0;
  bool overflow = false;
  if (symbol == "+") {
    overflow = __builtin_add_overflow(a, b, &out);
  } else if (symbol == "-") {
    overflow = __builtin_sub_overflow(a, b, &out);
  } else if (symbol == "*") {
    overflow = __builtin_mul_overflow(a, b, &out);
  } else if (symbol == "**" && b >= 0) {
    out = 1;
    for (std::int64_t k = 0; k < b && !overflow && a != 0 && a != 1 && a != -1; ++k)
      overflow = __builtin_mul_overflow(out, a, &out);
    if (a == 0) out = b == 0;
    if (a == -1) out = b % 2 == 0 ? 1 : -1;
  } else if ((symbol == "//" || symbol == "%") && b != 0) {
    overflow = b == -1 && a == INT64_MIN;
    if (overflow) refuse(line, "an integer is too large");
    std::int64_t const quotient = a / b - (a % b != 0 && (a % b < 0) != (b < 0) ? 1 : 0);  // Python rounds down
    out = symbol == "//" ? quotient : a - quotient * b;
  } else if (symbol == "**" || (symbol == "/" && b != 0)) {
    auto const x = static_cast<double>(a), y = static_cast<double>(b);
    return symbol == "/" ? x / y : std::pow(x, y);
  } else {
    refuse(line, "division by zero");
  }
  if (overflow) refuse(line, "an integer is too large");
  return out;
}

inline Value float_arithmetic(int line, std::string_view symbol, double a, double b) {
  if (symbol == "+") return a + b;
  if (symbol == "-") return a - b;
  if (symbol == "*") return a * b;
  if (symbol == "**") return std::pow(a, b);
  if (b == 0) refuse(line, "division by zero");
  if (symbol == "/") return a / b;
  double const quotient = std::floor(a / b);
  return symbol == "//" ? quotient : a - quotient * b;
}

inline Value repeated(int line, std::string const& part, std::int64_t count) {
  if (count <= 0 || part.empty()) return std::string();
  if (static_cast<std::uint64_t>(count) > longest_text / part.size())
    refuse(line, "a string is longer than ", longest_text, " bytes");
  std::string out;
  for (; count > 0; --count) out += part;
  return out;
}

inline std::string joined(std::string out, std::string_view part) {
  append(out, part);
  return out;
}

/// Everything but "and" and "or", which may leave their right side alone.
inline Value binary(int line, std::string_view symbol, Value const& a, Value const& b) {
  if (symbol == "==") return a == b;
  if (symbol == "!=") return !(a == b);
  if (symbol == "in") return contains(line, b, a);
  if (symbol == "not in") return !contains(line, b, a);
  if (symbol == "<") return less(line, a, b);
  if (symbol == ">") return less(line, b, a);
  if (symbol == "<=") return less(line, a, b) || a == b;
  if (symbol == ">=") return less(line, b, a) || a == b;
  if (symbol == "~") return joined(to_text(a), to_text(b));
  auto const *const left = a.get<std::string>(), *const right = b.get<std::string>();
  if (symbol == "+" && left && right) return joined(*left, *right);
  if (symbol == "+" && a.list() && b.list()) {
    List out = *a.list();
    out.insert(out.end(), b.list()->begin(), b.list()->end());
    if (out.size() > longest_list) refuse(line, "a list grows beyond ", longest_list, " elements");
    return out;
  }
  if (symbol == "*" && left && b.get<std::int64_t>()) return repeated(line, *left, *b.get<std::int64_t>());
  if (symbol == "*" && right && a.get<std::int64_t>()) return repeated(line, *right, *a.get<std::int64_t>());
  if (!a.is_number() || !b.is_number()) refuse_operands(line, symbol, a, b);
  if (a.get<double>() || b.get<double>()) return float_arithmetic(line, symbol, a.number(), b.number());
  return integer_arithmetic(line, symbol, a.integer_or(0), b.integer_or(0));
}

/// container[key]; what is not there is undefined, an element of what is undefined is an error.
inline Value item(int line, Value const& container, Value const& key) {
  auto const* const name = key.get<std::string>();
  if (auto const* const undefined = container.get<Undefined>())
    refuse(line, in_quotes(undefined->name), " is undefined and has no element ", in_quotes(to_text(key)));
  if (Dict const* const dict = container.dict(); dict != nullptr && name != nullptr)
    if (Value const* const found = dict->find(*name)) return *found;
  if (key.get<std::int64_t>() && (container.list() || container.get<std::string>())) {
    List const all = container.list() ? List() : elements(line, container);
    List const& list = container.list() ? *container.list() : all;
    auto const size = static_cast<std::int64_t>(list.size());
    std::int64_t const k = *key.get<std::int64_t>() + (*key.get<std::int64_t>() < 0 ? size : 0);
    if (k >= 0 && k < size) return list[static_cast<std::size_t>(k)];
  }
  return Value::Variant(Undefined{to_text(key).substr(0, 100)});
}

}  // namespace graft::jinja
