// SPDX-License-Identifier: Apache-2.0
// Jinja's filters and tests, those that parser.hpp lists.
#pragma once

#include <graft/text/jinja/lexer.hpp>
#include <graft/text/jinja/operators.hpp>
#include <graft/text/jinja/text_functions.hpp>
#include <graft/text/jinja/value.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace graft::jinja {

/// What a call, filter or test was given besides its subject.
struct Arguments {
  int line = 0;
  List positional = {};
  Dict named = {};

  /// By position or name; undefined where it is neither.
  Value get(std::size_t position, std::string_view name) const {
    if (position < positional.size()) return positional[position];
    Value const* const found = named.find(name);
    return found == nullptr ? Value() : *found;
  }
  std::optional<std::string> text(std::size_t position, std::string_view name) const {
    Value const value = get(position, name);
    if (!value.is_defined() || value.is_none()) return std::nullopt;
    if (!value.get<std::string>()) refuse(line, "expected a string, found ", value.kind());
    return *value.get<std::string>();
  }
  std::int64_t integer(std::size_t position, std::string_view name, std::int64_t fallback) const {
    Value const value = get(position, name);
    if (value.is_defined() && !value.get<std::int64_t>()) refuse(line, "expected an integer, found ", value.kind());
    return value.integer_or(fallback);
  }
  Arguments without_first(std::size_t count) const {
    Arguments out{line, {}, named};
    for (std::size_t k = count; k < positional.size(); ++k) out.positional.push_back(positional[k]);
    return out;
  }
};

inline bool passes(std::string const& test, Value const& value, Arguments const& given) {
  int const line = given.line;
  Value const other = given.get(0, "other");
  auto const integer = [&](Value const& v) {
    if (!v.get<std::int64_t>() && !v.get<bool>())
      refuse(line, "the test ", in_quotes(test), " expects an integer, found ", v.kind());
    return v.integer_or(0);
  };
  bool const is_list = value.list() != nullptr, is_string = value.get<std::string>() != nullptr;
  bool const is_mapping = value.dict() != nullptr && !value.get<Namespace>();
  if (test == "defined") return value.is_defined();
  if (test == "undefined") return !value.is_defined();
  if (test == "none") return value.is_none();
  if (test == "string") return is_string;
  if (test == "number") return value.is_number();
  if (test == "integer") return value.get<std::int64_t>() != nullptr;
  if (test == "float") return value.get<double>() != nullptr;
  if (test == "boolean") return value.get<bool>() != nullptr;
  if (test == "true") return value.get<bool>() && *value.get<bool>();
  if (test == "false") return value.get<bool>() && !*value.get<bool>();
  if (test == "mapping") return is_mapping;
  if (test == "iterable" || test == "sequence") return is_list || is_string || is_mapping || !value.is_defined();
  if (test == "callable") return value.get<Function>() != nullptr;
  if (test == "odd") return integer(value) % 2 != 0;
  if (test == "even") return integer(value) % 2 == 0;
  if (test == "divisibleby") return integer_arithmetic(line, "%", integer(value), integer(other)).integer_or(0) == 0;
  if (test == "in") return contains(line, other, value);
  if (test == "equalto" || test == "eq" || test == "==") return value == other;
  if (test == "ne" || test == "!=") return !(value == other);
  if (test == "lt" || test == "<") return less(line, value, other);
  if (test == "gt" || test == ">") return less(line, other, value);
  if (test == "le" || test == "<=") return less(line, value, other) || value == other;
  if (test == "ge" || test == ">=") return less(line, other, value) || value == other;
  refuse(line, "the test ", in_quotes(test), " is not supported");
}

inline Value filtered(std::string const& filter, Value const& value, Arguments const& given);

/// value.a.b for "a.b".
inline Value attribute_path(int line, Value value, std::string const& path) {
  for (std::string const& name : split(path, std::string("."), -1)) value = item(line, value, name);
  return value;
}

/// select, reject: elements that pass a test (truth, without one); selectattr, rejectattr: by one of their attributes.
inline Value selected(std::string const& filter, Value const& value, Arguments const& given) {
  bool const keep = filter.starts_with("select"), by_attribute = filter.ends_with("attr");
  std::string const attribute = by_attribute ? given.text(0, "attribute").value_or("") : "";
  Arguments const rest = given.without_first(by_attribute ? 1 : 0);
  std::optional<std::string> const test = rest.text(0, "test");
  List out;
  for (Value const& element : elements(given.line, value)) {
    Value const subject = by_attribute ? attribute_path(given.line, element, attribute) : element;
    if ((test ? passes(*test, subject, rest.without_first(1)) : subject.truth()) == keep) out.push_back(element);
  }
  return out;
}

inline Value mapped(Value const& value, Arguments const& given) {
  List out;
  std::size_t bytes = 0;
  auto const attribute = given.text(given.positional.size(), "attribute");
  for (Value const& element : elements(given.line, value)) {
    if (!attribute) {
      out.push_back(filtered(given.text(0, "filter").value_or(""), element, given.without_first(1)));
      if (auto const* const made = out.back().get<std::string>()) bytes += made->size();
      if (bytes > longest_text) refuse(given.line, "map makes more than ", longest_text, " bytes");
      continue;
    }
    Value found = attribute_path(given.line, element, *attribute);
    if (!found.is_defined() && given.named.find("default")) found = *given.named.find("default");
    out.push_back(std::move(found));
  }
  return out;
}

inline Value as_json(Value const& value, Arguments const& given) {
  if (given.get(3, "sort_keys").truth() || given.get(0, "ensure_ascii").truth())
    refuse(given.line, "tojson with sort_keys or ensure_ascii is not supported");
  JsonStyle style;
  style.indent = static_cast<int>(std::min<std::int64_t>(given.integer(1, "indent", -1), 64));
  if (style.indent >= 0) style.item_separator = ",";
  if (Value const separators = given.get(2, "separators");
      separators.list() != nullptr && separators.list()->size() == 2) {
    style.item_separator = to_text((*separators.list())[0]);
    style.key_separator = to_text((*separators.list())[1]);
  }
  return to_json(value, style);
}

/// The number that a value spells, or `fallback`.
inline Value as_number(Value const& value, bool integer, Value fallback) {
  if (value.is_number()) {
    if (!integer) return value.number();
    if (!value.get<double>()) return value.integer_or(0);
    double const number = std::trunc(value.number());
    return std::abs(number) < 9e18 ? Value(static_cast<std::int64_t>(number)) : fallback;
  }
  if (!value.get<std::string>()) return fallback;
  std::string const digits = stripped(*value.get<std::string>(), std::nullopt, true, true);
  char* end = nullptr;
  double const number = std::strtod(digits.c_str(), &end);
  if (digits.empty() || *end != '\0' || digits.find_first_of("xXpPnN") != std::string::npos) return fallback;
  return integer ? as_number(number, true, std::move(fallback)) : Value(number);
}

inline Value joined(Value const& value, Arguments const& given) {
  std::string const separator = given.text(0, "d").value_or("");
  auto const attribute = given.text(1, "attribute");
  std::string out;
  bool first = true;
  for (Value const& element : elements(given.line, value)) {
    if (!first) append(out, separator);
    append(out, to_text(attribute ? attribute_path(given.line, element, *attribute) : element));
    first = false;
  }
  return out;
}

/// items, and dictsort: pairs of key and value.
inline Value pairs_of(std::string const& filter, Value const& value, Arguments const& given) {
  List out;
  if (!value.is_defined()) return out;
  if (!value.dict()) refuse(given.line, "the filter ", in_quotes(filter), " expects a mapping, found ", value.kind());
  auto entries = value.dict()->entries;
  if (filter == "dictsort") {
    if (!given.positional.empty() || !given.named.entries.empty())
      refuse(given.line, "dictsort takes no arguments here");
    std::stable_sort(entries.begin(), entries.end(),
                     [](auto const& a, auto const& b) { return lower(a.first) < lower(b.first); });
  }
  for (auto const& [key, element] : entries) out.push_back(Value::tuple({key, element}));
  return out;
}

inline Value length_of(Value const& value, int line) {
  if (!value.is_defined()) return std::int64_t{0};
  if (value.get<std::string>() == nullptr && !value.list() && !value.dict())
    refuse(line, value.kind(), " has no length");
  return static_cast<std::int64_t>(elements(line, value).size());
}

inline Value filtered(std::string const& filter, Value const& value, Arguments const& given) {
  int const line = given.line;
  if (filter == "trim") return stripped(to_text(value), given.text(0, "chars"), true, true);
  if (filter == "length" || filter == "count") return length_of(value, line);
  if (filter == "tojson") return as_json(value, given);
  if (filter == "default" || filter == "d") {
    bool const missing = !value.is_defined() || (given.get(1, "boolean").truth() && !value.truth());
    Value const fallback = given.get(0, "default_value");
    return missing ? (fallback.is_defined() ? fallback : Value(std::string())) : value;
  }
  if (filter == "join") return joined(value, given);
  if (filter == "items" || filter == "dictsort") return pairs_of(filter, value, given);
  if (filter == "list") return elements(line, value);
  if (filter == "first" || filter == "last") {
    List const all = elements(line, value);
    return all.empty() ? Value(Value::Variant(Undefined{filter})) : filter == "first" ? all.front() : all.back();
  }
  if (filter == "reverse") {
    List all = elements(line, value);
    std::reverse(all.begin(), all.end());
    return value.get<std::string>() ? filtered("join", all, {line}) : Value(all);
  }
  if (filter == "replace") {
    std::string const from = given.text(0, "old").value_or("");
    if (from.empty()) refuse(line, "the filter 'replace' needs something to replace");
    return replaced(to_text(value), from, given.text(1, "new").value_or(""), given.integer(2, "count", -1));
  }
  if (filter == "map") return mapped(value, given);
  if (filter == "select" || filter == "reject" || filter == "selectattr" || filter == "rejectattr")
    return selected(filter, value, given);
  if (filter == "string" || filter == "safe") return to_text(value);
  if (filter == "lower") return lower(to_text(value));
  if (filter == "upper") return capitals(to_text(value), Capitals::all);
  if (filter == "capitalize") return capitals(to_text(value), Capitals::first_of_text);
  if (filter == "title") return capitals(to_text(value), Capitals::first_of_words);
  if (filter == "int")
    return as_number(value, true,
                     given.get(0, "default").is_defined() ? given.get(0, "default") : Value(std::int64_t{0}));
  if (filter == "float")
    return as_number(value, false, given.get(0, "default").is_defined() ? given.get(0, "default") : Value(0.0));
  if (filter == "abs") {
    if (!value.is_number()) refuse(line, "the filter 'abs' expects a number, found ", value.kind());
    return value.get<double>()       ? Value(std::abs(value.number()))
           : value.integer_or(0) < 0 ? integer_arithmetic(line, "-", 0, value.integer_or(0))
                                     : value;
  }
  refuse(line, "the filter ", in_quotes(filter), " is not supported");
}

}  // namespace graft::jinja
