// SPDX-License-Identifier: Apache-2.0
// A policy's options as keys of adapter_config.json: read from one, and collected for one.
#pragma once

#include <graft/adapter/positions.hpp>
#include <graft/core/types.hpp>
#include <graft/io/compiled.hpp>
#include <graft/io/peft_config.hpp>

#include <nlohmann/json_fwd.hpp>

#if GRAFT_FILES_ARE_HERE
#include <graft/core/error.hpp>
#include <graft/io/checked.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <iterator>
#endif

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace graft {

/// What an option can be; an enum is its name.
using PeftOption = std::variant<bool, index_t, double, std::string, std::vector<std::string>,
                                std::vector<std::pair<std::string, double>>, Positions>;

namespace detail {

template <class P, class T>
PeftOption peft_option(T const& member) {
  if constexpr (std::is_enum_v<T>)
    return std::string(P::names(member)[static_cast<std::size_t>(member)]);
  else if constexpr (std::integral<T> && !std::same_as<T, bool>)
    return static_cast<index_t>(member);
  else if constexpr (std::floating_point<T>)
    return static_cast<double>(member);
  else {
    static_assert(std::constructible_from<PeftOption, T>,
                  "graft: a policy's option is a bool, a number, an enum with names(), a string, a list of strings, "
                  "a list of (pattern, number) or Positions");
    return member;
  }
}

/// Reads keys of a configuration and remembers which it was asked for.
class PeftKeys {
 public:
  explicit PeftKeys(PeftConfig const& config) : config_(config) {}

  /// Sets `option`, keeping its type, when the file has the key; a string is one of `names` unless there are none.
  void read(std::string_view key, PeftOption& option, std::span<std::string_view const> names);
  /// FormatError when the key says something: is neither absent, null, false, 0 nor empty.
  void refuse(std::string_view key, std::string_view what);
  /// FormatError when the key is one of the values, or one of them with something behind it ("pissa_niter_4").
  void refuse(std::string_view key, std::string_view what, std::initializer_list<std::string_view> values);
  /// FormatError when the key says something else than `harmless`.
  void refuse_unless(std::string_view key, std::string_view what, std::string_view harmless);
  /// One line for every key that says something and that neither the policy nor this library knows.
  std::vector<std::string> warnings() const;

 private:
  PeftConfig const& config_;
  std::set<std::string, std::less<>> keys_;
};

}  // namespace detail

/// Visitor for P::options: sets every member whose key the file has, leaves the others at their defaults.
template <class P>
class PeftOptionReader : public detail::PeftKeys {
 public:
  using PeftKeys::PeftKeys;

  template <class T>
  void option(std::string_view key, T& member) {
    PeftOption value = detail::peft_option<P>(member);
    if constexpr (std::is_enum_v<T>) {
      static constexpr auto names = P::names(T{});
      read(key, value, names);
      for (std::size_t k = 0; k < names.size(); ++k)
        if (names[k] == std::get<std::string>(value)) member = static_cast<T>(k);
    } else {
      read(key, value, {});
      if constexpr (std::integral<T> && !std::same_as<T, bool>)
        member = static_cast<T>(std::get<index_t>(value));
      else if constexpr (std::floating_point<T>)
        member = static_cast<T>(std::get<double>(value));
      else
        member = std::get<T>(std::move(value));
    }
  }
};

/// Options by key, ascending.
class PeftOptions {
 public:
  PeftOption const* find(std::string_view key) const {
    auto const found = values_.find(key);
    return found == values_.end() ? nullptr : &found->second;
  }
  /// As the file has them.
  std::map<std::string, nlohmann::ordered_json> values() const;
  /// Those that are one word or number, as "r 8, lora_alpha 16".
  std::string scalars() const;

 protected:
  std::map<std::string, PeftOption, std::less<>> values_;
};

/// Visitor for P::options: collects every key with its value.
template <class P>
class PeftOptionWriter : public PeftOptions {
 public:
  explicit PeftOptionWriter(P policy) { policy.options(*this); }

  template <class T>
  void option(std::string_view key, T const& member) {
    values_.insert_or_assign(std::string(key), detail::peft_option<P>(member));
  }
  void refuse(auto&&...) {}
  void refuse(std::string_view, std::string_view, std::initializer_list<std::string_view>) {}
  void refuse_unless(auto&&...) {}
};

#if GRAFT_FILES_ARE_HERE
namespace detail {

inline bool says_something(nlohmann::ordered_json const& value) {
  if (value.is_number()) return value.get<double>() != 0;
  if (value.is_string()) return !value.get_ref<std::string const&>().empty();
  return value.is_boolean() ? value.get<bool>() : !value.empty();
}

/// Sets one kind of option from the value of its key.
class PeftOptionParser {
 public:
  PeftOptionParser(PeftConfig const& config, std::string_view key, nlohmann::ordered_json const& value,
                   std::span<std::string_view const> names)
      : config_(config), key_(key), value_(value), names_(names) {}

  void operator()(bool& member) const {
    if (!value_.is_boolean()) wrong("true or false");
    member = value_.get<bool>();
  }
  void operator()(index_t& member) const {
    double const number = value_.is_number() ? value_.get<double>() : 0.5;
    if (number != std::floor(number) || !in_range(number)) wrong("a whole number");
    member = static_cast<index_t>(number);
  }
  void operator()(double& member) const {
    if (!value_.is_number()) wrong("a number");
    member = value_.get<double>();
  }
  void operator()(std::string& member) const {
    auto const listed = [&](std::string const& name) { return std::find(names_.begin(), names_.end(), name); };
    bool const known = value_.is_string() && listed(value_.get_ref<std::string const&>()) != names_.end();
    if (!names_.empty() && !known) {
      std::string all;
      for (auto const& name : names_) all += text(all.empty() ? "" : ", ", '"', name, '"');
      wrong("one of " + all);
    }
    if (!value_.is_string()) wrong("a string");
    member = value_.get<std::string>();
  }
  void operator()(std::vector<std::string>& member) const {
    member.clear();
    if (value_.is_string()) {  // a pattern, where PEFT takes a list or a pattern
      member.push_back(value_.get<std::string>());
      return;
    }
    if (!value_.is_array()) wrong("a list of strings");
    for (auto const& item : value_) {
      if (!item.is_string()) wrong("a list of strings");
      member.push_back(item.get<std::string>());
    }
  }
  void operator()(std::vector<std::pair<std::string, double>>& member) const {
    if (!value_.is_object()) wrong("an object of numbers");
    member.clear();
    for (auto const& [pattern, number] : value_.items()) {
      if (!number.is_number() || !in_range(number.get<double>()))
        config_.wrong(text(key_, '.', pattern), number, "a number");
      member.emplace_back(pattern, number.get<double>());
    }
  }
  void operator()(Positions& member) const {
    member.list.clear();
    if (value_ == "last_prompt") member = Positions::last_prompt();
    if (value_ == "last_prompt" || value_ == "all") return;
    constexpr char expected[] = "\"all\", \"last_prompt\" or a list of whole numbers";
    if (!value_.is_array() || value_.empty()) wrong(expected);
    for (auto const& place : value_) {
      if (!place.is_number_integer() || !in_range(place.get<double>())) wrong(expected);
      member.list.push_back(place.get<index_t>());
    }
  }

 private:
  [[noreturn]] void wrong(std::string_view expected) const { config_.wrong(key_, value_, expected); }
  // what a double holds exactly and an index_t too
  static bool in_range(double number) { return std::abs(number) <= 0x1p53; }

  PeftConfig const& config_;
  std::string_view key_;
  nlohmann::ordered_json const& value_;
  std::span<std::string_view const> names_;
};

inline nlohmann::ordered_json json_of(PeftOption const& option) {
  using Json = nlohmann::ordered_json;
  struct Kinds {
    Json operator()(double number) const {
      // Python tells 8 from 8.0, and PEFT wants whole ranks
      if (number == std::floor(number) && std::abs(number) <= 0x1p53) return static_cast<std::int64_t>(number);
      return number;
    }
    Json operator()(std::vector<std::pair<std::string, double>> const& patterns) const {
      Json object = Json::object();
      for (auto const& [pattern, number] : patterns) object.emplace(pattern, (*this)(number));  // the first of equals
      return object;
    }
    Json operator()(Positions const& positions) const {
      if (positions.all()) return "all";
      return positions == Positions::last_prompt() ? Json("last_prompt") : Json(positions.list);
    }
    Json operator()(bool value) const { return value; }
    Json operator()(index_t value) const { return value; }
    Json operator()(std::string const& value) const { return value; }
    Json operator()(std::vector<std::string> const& value) const { return value; }
  };
  return std::visit(Kinds{}, option);
}

GRAFT_FILES void PeftKeys::read(std::string_view key, PeftOption& option, std::span<std::string_view const> names) {
  keys_.emplace(key);
  if (auto const* value = config_.find(key)) std::visit(PeftOptionParser(config_, key, *value, names), option);
}

GRAFT_FILES void PeftKeys::refuse(std::string_view key, std::string_view what) { refuse_unless(key, what, ""); }

GRAFT_FILES void PeftKeys::refuse_unless(std::string_view key, std::string_view what, std::string_view harmless) {
  keys_.emplace(key);
  if (auto const* value = config_.find(key); value != nullptr && says_something(*value) && *value != harmless)
    config_.fail("key ", in_quotes(key), " is ", PeftConfig::shown(*value), ": ", what, " is not supported");
}

GRAFT_FILES void PeftKeys::refuse(std::string_view key, std::string_view what,
                                  std::initializer_list<std::string_view> values) {
  keys_.emplace(key);
  auto const* value = config_.find(key);
  if (value == nullptr || !value->is_string()) return;
  auto const& word = value->get_ref<std::string const&>();
  for (auto const refused : values)
    if (word.starts_with(refused))
      config_.fail("key ", in_quotes(key), " is ", PeftConfig::shown(*value), ": ", what, " is not supported");
}

GRAFT_FILES std::vector<std::string> PeftKeys::warnings() const {
  // what concerns training, the choice of modules (the tensors' names tell it) or other files
  static constexpr std::string_view without_effect[] = {
      "peft_type",      "task_type",          "auto_mapping",        "peft_version",   "base_model_name_or_path",
      "revision",       "inference_mode",     "target_modules",      "bias",           "exclude_modules",
      "lora_dropout",   "modules_to_save",    "layers_to_transform", "layers_pattern", "fan_in_fan_out",
      "init_weights",   "init_lora_weights",  "init_ia3_weights",    "megatron_core",  "megatron_config",
      "loftq_config",   "eva_config",         "corda_config",        "lora_ga_config", "qalora_group_size",
      "runtime_config", "ensure_weight_tying"};
  std::vector<std::string> result;
  for (auto const& [key, value] : config_.document->items())
    if (says_something(value) && !keys_.contains(key) &&
        std::find(std::begin(without_effect), std::end(without_effect), key) == std::end(without_effect))
      result.push_back(text(config_.path, ": key ", in_quotes(key), " is unknown and ignored"));
  return result;
}

}  // namespace detail

GRAFT_FILES std::map<std::string, nlohmann::ordered_json> PeftOptions::values() const {
  std::map<std::string, nlohmann::ordered_json> result;
  for (auto const& [key, option] : values_) result.emplace(key, detail::json_of(option));
  return result;
}

GRAFT_FILES std::string PeftOptions::scalars() const {
  std::string result;
  for (auto const& [key, value] : values())
    if (!value.is_structured()) result += text(result.empty() ? "" : ", ", key, ' ', value.dump());
  return result;
}
#endif

}  // namespace graft
