// SPDX-License-Identifier: Apache-2.0
// The values that templates compute with, and how Python would print, compare and serialise them.
#pragma once

#include <graft/core/error.hpp>
#include <graft/text/utf8.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace graft::jinja {

class Value;
using List = std::vector<Value>;

/// In the order of insertion. Linear search: what templates see has a handful of keys.
struct Dict {
  std::vector<std::pair<std::string, Value>> entries;

  Value const* find(std::string_view key) const;
  void set(std::string const& key, Value value);
};

struct None {};
/// What a missing name or attribute yields: prints as nothing, is false, and has no attributes.
struct Undefined {
  std::string name;
};
struct Statement;
/// What templates may call: a function by its name, or a macro with the number of scopes it saw where it was written.
struct Function {
  std::string name;
  Statement const* macro = nullptr;
  std::size_t scopes = 1;
};
/// namespace(): the only thing a template can change after having made it.
struct Namespace {
  std::shared_ptr<Dict> members;
};

/// Copies share what they hold.
class Value {
 public:
  using Variant = std::variant<Undefined, None, bool, std::int64_t, double, std::shared_ptr<std::string const>,
                               std::shared_ptr<List const>, std::shared_ptr<Dict const>, Function, Namespace>;

  Value() = default;
  Value(Variant value) : value_(std::move(value)) {}  // NOLINT: implicit on purpose, for this and the next
  Value(bool value) : value_(value) {}
  Value(std::int64_t value) : value_(value) {}
  Value(double value) : value_(value) {}
  Value(std::string value) : value_(std::make_shared<std::string const>(std::move(value))) {}
  Value(char const*) = delete;  // would become a bool
  Value(List list) {
    for (Value const& element : list) contain(element);
    value_ = std::make_shared<List const>(std::move(list));
  }
  Value(Dict dict) {
    for (auto const& entry : dict.entries) contain(entry.second);
    value_ = std::make_shared<Dict const>(std::move(dict));
  }

  /// A list that prints in round brackets and equals no list in square ones.
  static Value tuple(List list) {
    Value out(std::move(list));
    out.tuple_ = true;
    return out;
  }
  bool is_tuple() const { return tuple_; }

  /// nullptr when the value is of another kind.
  template <class T>
  T const* get() const {
    if constexpr (std::is_same_v<T, std::string>) {
      auto const* const held = std::get_if<std::shared_ptr<std::string const>>(&value_);
      return held == nullptr ? nullptr : held->get();
    } else {
      return std::get_if<T>(&value_);
    }
  }
  List const* list() const {
    auto const* const held = get<std::shared_ptr<List const>>();
    return held == nullptr ? nullptr : held->get();
  }
  Dict const* dict() const {
    if (auto const* const held = get<Namespace>()) return held->members.get();
    auto const* const held = get<std::shared_ptr<Dict const>>();
    return held == nullptr ? nullptr : held->get();
  }
  bool is_defined() const { return get<Undefined>() == nullptr; }
  bool is_none() const { return get<None>() != nullptr; }
  bool is_number() const {
    return get<std::int64_t>() != nullptr || get<double>() != nullptr || get<bool>() != nullptr;
  }
  double number() const {
    if (auto const* const integer = get<std::int64_t>()) return static_cast<double>(*integer);
    if (auto const* const truth = get<bool>()) return *truth ? 1 : 0;
    return *get<double>();
  }
  /// An integer, or a truth value as one; `fallback` for anything else.
  std::int64_t integer_or(std::int64_t fallback) const {
    if (auto const* const truth = get<bool>()) return *truth ? 1 : 0;
    auto const* const integer = get<std::int64_t>();
    return integer == nullptr ? fallback : *integer;
  }

  bool truth() const {
    if (auto const* const truth = get<bool>()) return *truth;
    if (auto const* const text = get<std::string>()) return !text->empty();
    if (get<std::int64_t>() || get<double>()) return number() != 0;
    if (auto const* const items = list()) return !items->empty();
    if (get<Namespace>() || get<Function>()) return true;
    if (auto const* const members = dict()) return !members->entries.empty();
    return false;
  }

  char const* kind() const {
    constexpr char const* names[] = {"undefined", "none",   "a truth value", "an integer", "a float",
                                     "a string",  "a list", "a mapping",     "a function", "a namespace"};
    return names[value_.index()];
  }

 private:
  /// Everything that walks a value calls itself, so values stay shallow and never contain themselves.
  void contain(Value const& element) {
    if (element.get<Namespace>())
      raise<FormatError>("chat template: a namespace within a list or mapping is not supported");
    depth_ = std::max(depth_, element.depth_ + 1);
    if (depth_ > 100) raise<FormatError>("chat template: lists and mappings nest deeper than 100 levels");
  }

  Variant value_;
  int depth_ = 0;
  bool tuple_ = false;
};

inline Value const* Dict::find(std::string_view key) const {
  for (auto const& entry : entries)
    if (entry.first == key) return &entry.second;
  return nullptr;
}
inline void Dict::set(std::string const& key, Value value) {
  for (auto& entry : entries)
    if (entry.first == key) return void(entry.second = std::move(value));
  entries.emplace_back(key, std::move(value));
}

inline bool operator==(Value const& a, Value const& b) {
  if (a.is_number() && b.is_number()) {
    if (!a.get<double>() && !b.get<double>()) return a.integer_or(0) == b.integer_or(0);
    return a.number() == b.number();
  }
  if (a.get<std::string>() && b.get<std::string>()) return *a.get<std::string>() == *b.get<std::string>();
  if (a.list() && b.list()) return a.is_tuple() == b.is_tuple() && *a.list() == *b.list();
  if (a.get<Namespace>() || b.get<Namespace>()) return false;
  if (a.dict() && b.dict()) {
    if (a.dict()->entries.size() != b.dict()->entries.size()) return false;
    for (auto const& [key, value] : a.dict()->entries) {
      Value const* const other = b.dict()->find(key);
      if (other == nullptr || !(*other == value)) return false;
    }
    return true;
  }
  return (a.is_none() && b.is_none()) || (!a.is_defined() && !b.is_defined());
}

inline Value from_json(nlohmann::ordered_json const& json) {
  if (json.is_null()) return Value::Variant(None{});
  if (json.is_boolean()) return json.get<bool>();
  if (json.is_number_unsigned() && json.get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX))
    return json.get<double>();
  if (json.is_number_integer()) return json.get<std::int64_t>();
  if (json.is_number()) return json.get<double>();
  if (json.is_string()) return json.get<std::string>();
  if (json.is_array()) {
    List list;
    for (auto const& element : json) list.push_back(from_json(element));
    return list;
  }
  Dict dict;
  for (auto const& [key, element] : json.items()) dict.entries.emplace_back(key, from_json(element));
  return dict;
}

inline constexpr std::size_t longest_text = std::size_t{16} << 20;  // bytes; a million tokens are about 4 MB

inline void append(std::string& out, std::string_view part) {
  if (out.size() + part.size() > longest_text)
    raise<FormatError>("chat template: makes a string longer than ", longest_text, " bytes");
  out += part;
}

/// Python's repr of a float: the shortest digits that read back, with an exponent below 1e-4 and from 1e16 on.
inline std::string float_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[40];
  auto const put = [&](std::chars_format format) {
    return std::string(buffer, std::to_chars(buffer, buffer + sizeof buffer, value, format).ptr);
  };
  double const size = std::abs(value);
  if (size != 0 && (size < 1e-4 || size >= 1e16)) return put(std::chars_format::scientific);
  std::string const text = put(std::chars_format::fixed);
  return text.find('.') == std::string::npos ? text + ".0" : text;
}

/// Python's repr of a string.
inline std::string quoted(std::string const& text) {
  bool const doubled = text.find('\'') != std::string::npos && text.find('"') == std::string::npos;
  char const quote = doubled ? '"' : '\'';
  std::string out(1, quote);
  for (char const c : text) {
    auto const byte = static_cast<unsigned char>(c);
    if (c == quote || c == '\\')
      out += {'\\', c};
    else if (c == '\n' || c == '\r' || c == '\t')
      out += {'\\', c == '\n' ? 'n' : c == '\r' ? 'r' : 't'};
    else if (byte < 0x20 || byte == 0x7F)
      out += {'\\', 'x', "0123456789abcdef"[byte / 16], "0123456789abcdef"[byte % 16]};
    else
      out += c;
  }
  return out += quote;
}

/// Python's str(), and within lists and mappings its repr().
inline std::string to_text(Value const& value, bool nested = false) {
  if (auto const* const text = value.get<std::string>()) return nested ? quoted(*text) : *text;
  if (value.is_none()) return "None";
  if (auto const* const truth = value.get<bool>()) return *truth ? "True" : "False";
  if (auto const* const integer = value.get<std::int64_t>()) return std::to_string(*integer);
  if (auto const* const number = value.get<double>()) return float_text(*number);
  std::string out;
  auto const separate = [&] { append(out, out.size() > 1 ? ", " : ""); };
  if (auto const* const list = value.list()) {
    out = value.is_tuple() ? "(" : "[";
    for (Value const& element : *list) separate(), append(out, to_text(element, true));
    append(out, !value.is_tuple() ? "]" : list->size() == 1 ? ",)" : ")");
  } else if (auto const* const dict = value.dict()) {
    out = "{";
    for (auto const& [key, element] : dict->entries)
      separate(), append(out, quoted(key) + ": "), append(out, to_text(element, true));
    append(out, "}");
  }
  return out;
}

/// How json.dumps is asked to write: on one line when `indent` is negative.
struct JsonStyle {
  int indent = -1;
  std::string item_separator = ", ", key_separator = ": ";
};

/// json.dumps(value, ensure_ascii=False): what Hugging Face's `tojson` does.
inline std::string to_json(Value const& value, JsonStyle const& style, int depth = 0) {
  if (auto const* const text = value.get<std::string>()) return nlohmann::json(*text).dump();
  if (value.is_none()) return "null";
  if (auto const* const truth = value.get<bool>()) return *truth ? "true" : "false";
  if (value.is_number()) return to_text(value);
  auto const line = [&](int at) {
    return style.indent < 0 ? "" : "\n" + std::string(std::size_t(style.indent * at), ' ');
  };
  auto const wrap = [&](char open, char close, auto const& entries, auto const& write) {
    std::string out(1, open);
    for (std::size_t k = 0; k < entries.size(); ++k) {
      append(out, (k == 0 ? "" : style.item_separator) + line(depth + 1));
      append(out, write(entries[k]));
    }
    return out + (entries.empty() ? "" : line(depth)) + close;
  };
  if (auto const* const list = value.list())
    return wrap('[', ']', *list, [&](Value const& element) { return to_json(element, style, depth + 1); });
  if (auto const* const dict = value.dict(); dict != nullptr && !value.get<Namespace>())
    return wrap('{', '}', dict->entries, [&](auto const& entry) {
      return nlohmann::json(entry.first).dump() + style.key_separator + to_json(entry.second, style, depth + 1);
    });
  raise<FormatError>("chat template: ", value.kind(), " cannot be written as JSON");
}

}  // namespace graft::jinja
