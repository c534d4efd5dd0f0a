// SPDX-License-Identifier: Apache-2.0
// adapter_config.json: the keys all PEFT methods share, and those of a policy through its `options`.
#pragma once

#include <graft/adapter/positions.hpp>
#include <graft/core/error.hpp>
#include <graft/core/types.hpp>
#include <graft/io/checked.hpp>
#include <graft/io/json.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <limits>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace graft {

/// The configuration of an adapter folder; members are the keys that say the same for every method.
struct PeftConfig {
  std::filesystem::path folder;
  std::string path;  ///< of adapter_config.json, for messages
  std::string peft_type, task_type, base_model;
  std::vector<std::string> target_modules;  ///< empty when the file has a pattern instead of a list
  std::vector<std::string> modules_to_save;
  nlohmann::ordered_json document;  ///< patterns are tried in the file's order

  /// The value of a key; null when the file does not have it or says null.
  nlohmann::ordered_json const* find(std::string_view key) const {
    auto const found = document.find(std::string(key));
    return found == document.end() || found->is_null() ? nullptr : &*found;
  }
  template <class... Parts>
  [[noreturn]] void fail(Parts const&... parts) const {
    raise<FormatError>(text(path, ": ", parts...));
  }
  [[noreturn]] void wrong(std::string_view key, nlohmann::ordered_json const& value, std::string_view expected) const {
    fail("key ", in_quotes(key), " is ", shown(value), ", expected ", expected);
  }
  static std::string shown(nlohmann::ordered_json const& value) {
    std::string const all = value.dump(-1, ' ', true);  // ASCII: may be cut anywhere
    return all.size() <= 80 ? all : all.substr(0, 77) + "...";
  }
};

/// FormatError when the folder has no adapter_config.json, or one that PEFT could not read either.
inline PeftConfig read_peft_config(std::filesystem::path const& folder) {
  namespace fs = std::filesystem;
  PeftConfig config;
  config.folder = folder;
  config.path = (folder / "adapter_config.json").string();
  std::error_code ignored;
  if (!fs::exists(config.path, ignored)) {
    if (!fs::is_directory(folder, ignored))
      raise<FormatError>(text(folder.string(), ": is not a folder; an adapter is one with adapter_config.json in it"));
    for (auto const& entry : fs::directory_iterator(folder, ignored))
      if (fs::exists(entry.path() / "adapter_config.json", ignored))
        raise<FormatError>(text(folder.string(), ": has no adapter_config.json; its folder ",
                                in_quotes(entry.path().filename().string()), " is an adapter, name that one"));
    raise<FormatError>(text(folder.string(), ": has no adapter_config.json, so it is not an adapter folder"));
  }
  config.document = read_json<nlohmann::ordered_json>(config.path, std::size_t{2} << 20);
  if (!config.document.is_object()) config.fail("is not a JSON object");

  auto const string = [&](char const* key, std::string& to) {
    auto const* value = config.find(key);
    if (value == nullptr) return;
    if (!value->is_string()) config.wrong(key, *value, "a string");
    to = value->get<std::string>();
  };
  auto const strings = [&](char const* key, std::vector<std::string>& to, bool or_pattern) {
    auto const* value = config.find(key);
    if (value == nullptr || (or_pattern && value->is_string())) return;
    bool const list =
        value->is_array() && std::all_of(value->begin(), value->end(), [](auto const& v) { return v.is_string(); });
    if (!list) config.wrong(key, *value, or_pattern ? "a list of strings or a pattern" : "a list of strings");
    to = value->get<std::vector<std::string>>();
  };
  string("peft_type", config.peft_type);
  if (config.peft_type.empty()) config.fail("has no peft_type, the one key an adapter must have");
  string("task_type", config.task_type);
  string("base_model_name_or_path", config.base_model);
  strings("target_modules", config.target_modules, true);
  strings("modules_to_save", config.modules_to_save, false);
  return config;
}

/// PEFT's rank_pattern and alpha_pattern: a regular expression for the whole path or for its last components. Patterns
/// are ECMAScript's here and Python's there; what names modules is the same in both.
class PeftPatterns {
 public:
  /// `path` names the file in messages.
  explicit PeftPatterns(std::string path) : path_(std::move(path)) {}

  bool operator()(std::string const& pattern, std::string const& module) const {
    auto known = compiled_.find(pattern);
    if (known == compiled_.end()) known = compiled_.emplace(pattern, compile(pattern)).first;
    return std::regex_match(module, known->second);
  }

 private:
  std::regex compile(std::string const& pattern) const {
    auto flags = std::regex::ECMAScript;
#ifdef __GLIBCXX__
    flags |= std::regex_constants::__polynomial;  // a file must not be able to keep us busy for ever
#endif
    // the matcher recurses
    if (pattern.size() > 1000) fail(pattern, text("is ", pattern.size(), " characters long, at most 1000 are tried"));
    try {
      return std::regex("(.*\\.)?(" + pattern + ")$", flags);
    } catch (std::regex_error const&) {
      fail(pattern, "is not a regular expression");
    }
  }
  [[noreturn]] void fail(std::string const& pattern, std::string const& reason) const {
    raise<FormatError>(text(path_, ": pattern ", in_quotes(pattern), " ", reason));
  }

  std::string path_;
  mutable std::map<std::string, std::regex> compiled_;
};

/// Visitor for P::options: sets every member whose key the file has, leaves the others at their defaults.
template <class P>
class PeftOptionReader {
 public:
  explicit PeftOptionReader(PeftConfig const& config) : config_(config) {}

  template <class T>
  void option(std::string_view key, T& member) {
    keys_.emplace(key);
    if (auto const* value = config_.find(key)) read(key, *value, member);
  }
  /// FormatError when the key says something: is neither absent, null, false, 0 nor empty.
  void refuse(std::string_view key, std::string_view what) {
    keys_.emplace(key);
    if (auto const* value = config_.find(key); value != nullptr && says_something(*value))
      config_.fail("key ", in_quotes(key), " is ", PeftConfig::shown(*value), ": ", what, " is not supported");
  }
  /// FormatError when the key is one of the values, or one of them with something behind it ("pissa_niter_4").
  void refuse(std::string_view key, std::string_view what, std::initializer_list<std::string_view> values) {
    keys_.emplace(key);
    auto const* value = config_.find(key);
    if (value == nullptr || !value->is_string()) return;
    auto const& word = value->template get_ref<std::string const&>();
    for (auto const refused : values)
      if (word.starts_with(refused))
        config_.fail("key ", in_quotes(key), " is ", PeftConfig::shown(*value), ": ", what, " is not supported");
  }

  /// One line for every key that says something and that neither the policy nor this library knows.
  std::vector<std::string> warnings() const {
    // what concerns training, the choice of modules (the tensors' names tell it) or other files
    static constexpr std::string_view without_effect[] = {
        "peft_type",      "task_type",          "auto_mapping",        "peft_version",   "base_model_name_or_path",
        "revision",       "inference_mode",     "target_modules",      "bias",           "exclude_modules",
        "lora_dropout",   "modules_to_save",    "layers_to_transform", "layers_pattern", "fan_in_fan_out",
        "init_weights",   "init_lora_weights",  "init_ia3_weights",    "megatron_core",  "megatron_config",
        "loftq_config",   "eva_config",         "corda_config",        "lora_ga_config", "qalora_group_size",
        "runtime_config", "ensure_weight_tying"};
    std::vector<std::string> result;
    for (auto const& [key, value] : config_.document.items())
      if (says_something(value) && !keys_.contains(key) &&
          std::find(std::begin(without_effect), std::end(without_effect), key) == std::end(without_effect))
        result.push_back(text(config_.path, ": key ", in_quotes(key), " is unknown and ignored"));
    return result;
  }

 private:
  using Json = nlohmann::ordered_json;

  static bool says_something(Json const& value) {
    if (value.is_number()) return value.template get<double>() != 0;
    if (value.is_string()) return !value.template get_ref<std::string const&>().empty();
    return value.is_boolean() ? value.template get<bool>() : !value.empty();
  }

  template <class T>
  void read(std::string_view key, Json const& value, T& member) {
    if constexpr (std::same_as<T, bool>) {
      if (!value.is_boolean()) config_.wrong(key, value, "true or false");
      member = value.template get<bool>();
    } else if constexpr (std::integral<T>) {
      double const number = value.is_number() ? value.template get<double>() : 0.5;
      if (number != std::floor(number) || !in_range(number)) config_.wrong(key, value, "a whole number");
      member = static_cast<T>(number);
    } else if constexpr (std::floating_point<T>) {
      if (!value.is_number()) config_.wrong(key, value, "a number");
      member = static_cast<T>(value.template get<double>());
    } else if constexpr (std::is_enum_v<T>) {
      auto const names = P::names(T{});
      auto const place = value.is_string()
                             ? std::find(names.begin(), names.end(), value.template get_ref<std::string const&>())
                             : names.end();
      if (place == names.end()) {
        std::string all;
        for (auto const& name : names) all += text(all.empty() ? "" : ", ", '"', name, '"');
        config_.wrong(key, value, "one of " + all);
      }
      member = static_cast<T>(place - names.begin());
    } else if constexpr (std::same_as<T, Positions>) {
      member.list.clear();
      if (value == "last_prompt") member = Positions::last_prompt();
      if (value == "last_prompt" || value == "all") return;
      for (auto const& place : value.is_array() && !value.empty() ? value : Json::array({nullptr})) {
        if (!place.is_number_integer() || !in_range(place.template get<double>()))
          config_.wrong(key, value, "\"all\", \"last_prompt\" or a list of whole numbers");
        member.list.push_back(place.template get<index_t>());
      }
    } else if constexpr (std::same_as<T, std::string>) {
      if (!value.is_string()) config_.wrong(key, value, "a string");
      member = value.template get<std::string>();
    } else if constexpr (std::same_as<T, std::vector<std::string>>) {
      member.clear();
      if (value.is_string()) {  // a pattern, where PEFT takes a list or a pattern
        member.push_back(value.template get<std::string>());
        return;
      }
      for (auto const& item : value.is_array() ? value : Json::array({nullptr})) {
        if (!item.is_string()) config_.wrong(key, value, "a list of strings");
        member.push_back(item.template get<std::string>());
      }
    } else {
      static_assert(std::same_as<T, std::vector<std::pair<std::string, double>>>,
                    "graft: a policy's option is a bool, a number, an enum with names(), a string, a list of strings, "
                    "a list of (pattern, number) or Positions");
      if (!value.is_object()) config_.wrong(key, value, "an object of numbers");
      member.clear();
      for (auto const& [pattern, number] : value.items()) {
        if (!number.is_number() || !in_range(number.template get<double>()))
          config_.wrong(text(key, '.', pattern), number, "a number");
        member.emplace_back(pattern, number.template get<double>());
      }
    }
  }
  // what a double holds exactly and an index_t too
  static bool in_range(double number) { return std::abs(number) <= 0x1p53; }

  PeftConfig const& config_;
  std::set<std::string, std::less<>> keys_;
};

/// Visitor for P::options: collects every key with its value.
template <class P>
class PeftOptionWriter {
 public:
  using Json = nlohmann::ordered_json;

  explicit PeftOptionWriter(P policy) { policy.options(*this); }

  /// By key, ascending.
  std::map<std::string, Json> const& values() const { return values_; }
  /// Those that are one word or number, as "r 8, lora_alpha 16".
  std::string scalars() const {
    std::string result;
    for (auto const& [key, value] : values_)
      if (!value.is_structured()) result += text(result.empty() ? "" : ", ", key, ' ', value.dump());
    return result;
  }

  template <class T>
  void option(std::string_view key, T const& member) {
    values_[std::string(key)] = json(member);
  }
  void refuse(auto&&...) {}
  void refuse(std::string_view, std::string_view, std::initializer_list<std::string_view>) {}

 private:
  template <class T>
  static Json json(T const& member) {
    if constexpr (std::is_enum_v<T>) {
      return std::string(P::names(member)[static_cast<std::size_t>(member)]);
    } else if constexpr (std::floating_point<T>) {
      // Python tells 8 from 8.0, and PEFT wants whole ranks
      if (member == std::floor(member) && std::abs(member) <= 0x1p53) return static_cast<std::int64_t>(member);
      return static_cast<double>(member);
    } else if constexpr (std::same_as<T, std::vector<std::pair<std::string, double>>>) {
      Json object = Json::object();
      for (auto const& [pattern, number] : member) object.emplace(pattern, json(number));  // the first of equals holds
      return object;
    } else if constexpr (std::same_as<T, Positions>) {
      if (member.all()) return "all";
      return member == Positions::last_prompt() ? Json("last_prompt") : Json(member.list);
    } else {
      return member;
    }
  }

  std::map<std::string, Json> values_;
};

}  // namespace graft
