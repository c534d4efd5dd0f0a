// SPDX-License-Identifier: Apache-2.0
// adapter_config.json: the keys that all PEFT methods share, and PEFT's patterns for modules.
#pragma once

#include <graft/core/error.hpp>
#include <graft/io/checked.hpp>
#include <graft/io/compiled.hpp>

#include <nlohmann/json_fwd.hpp>

#if GRAFT_FILES_ARE_HERE
#include <graft/io/json.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <map>
#include <regex>
#include <system_error>
#include <utility>
#endif

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace graft {

/// The configuration of an adapter folder; members are the keys that say the same for every method.
struct PeftConfig {
  std::filesystem::path folder;
  std::string path;  ///< of adapter_config.json, for messages
  std::string peft_type, task_type, base_model;
  std::vector<std::string> target_modules;  ///< empty when the file has a pattern instead of a list
  std::vector<std::string> modules_to_save;
  std::shared_ptr<nlohmann::ordered_json> document;  ///< patterns are tried in the file's order

  /// The value of a key; null when the file does not have it or says null.
  nlohmann::ordered_json const* find(std::string_view key) const;
  template <class... Parts>
  [[noreturn]] void fail(Parts const&... parts) const {
    raise<FormatError>(path, ": ", parts...);
  }
  [[noreturn]] void wrong(std::string_view key, nlohmann::ordered_json const& value, std::string_view expected) const;
  static std::string shown(nlohmann::ordered_json const& value);
};

/// FormatError when the folder has no adapter_config.json, or one that PEFT could not read either.
GRAFT_FILES PeftConfig read_peft_config(std::filesystem::path const& folder);

/// PEFT's rank_pattern and alpha_pattern: a regular expression for the whole path or for its last components. Patterns
/// are ECMAScript's here and Python's there; what names modules is the same in both.
class PeftPatterns {
 public:
  /// `path` names the file in messages.
  explicit PeftPatterns(std::string path);

  /// FormatError when `pattern` is no regular expression.
  bool operator()(std::string const& pattern, std::string const& module) const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

#if GRAFT_FILES_ARE_HERE
GRAFT_FILES nlohmann::ordered_json const* PeftConfig::find(std::string_view key) const {
  auto const found = document->find(std::string(key));
  return found == document->end() || found->is_null() ? nullptr : &*found;
}
GRAFT_FILES void PeftConfig::wrong(std::string_view key, nlohmann::ordered_json const& value,
                                   std::string_view expected) const {
  fail("key ", in_quotes(key), " is ", shown(value), ", expected ", expected);
}
GRAFT_FILES std::string PeftConfig::shown(nlohmann::ordered_json const& value) {
  std::string const all = value.dump(-1, ' ', true);  // ASCII: may be cut anywhere
  return all.size() <= 80 ? all : all.substr(0, 77) + "...";
}

GRAFT_FILES PeftConfig read_peft_config(std::filesystem::path const& folder) {
  namespace fs = std::filesystem;
  PeftConfig config;
  config.folder = folder;
  config.path = (folder / "adapter_config.json").string();
  std::error_code ignored;
  if (!fs::exists(config.path, ignored)) {
    if (!fs::is_directory(folder, ignored))
      raise<FormatError>(folder.string(), ": is not a folder; an adapter is one with adapter_config.json in it");
    for (auto const& entry : fs::directory_iterator(folder, ignored))
      if (fs::exists(entry.path() / "adapter_config.json", ignored))
        raise<FormatError>(folder.string(), ": has no adapter_config.json; its folder ",
                           in_quotes(entry.path().filename().string()), " is an adapter, name that one");
    raise<FormatError>(folder.string(), ": has no adapter_config.json, so it is not an adapter folder");
  }
  config.document =
      std::make_shared<nlohmann::ordered_json>(read_json<nlohmann::ordered_json>(config.path, std::size_t{2} << 20));
  if (!config.document->is_object()) config.fail("is not a JSON object");

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

struct PeftPatterns::State {
  std::string path;
  std::map<std::string, std::regex> compiled;

  std::regex compile(std::string const& pattern) const {
    auto flags = std::regex::ECMAScript;
#ifdef __GLIBCXX__
    flags |= std::regex_constants::__polynomial;  // a file must not be able to keep us busy for ever
#endif
    // the matcher recurses
    if (pattern.size() > 1000) fail(pattern, text("is ", pattern.size(), " characters long, at most 1000 are tried"));
    for (std::size_t k = 0; k + 1 < pattern.size(); k += pattern[k] == '\\' ? 2u : 1u)
      if (pattern[k] == '\\' && (pattern[k + 1] == 'A' || pattern[k + 1] == 'Z'))
        fail(pattern, "has Python's \\A or \\Z; write ^ or $");
    try {
      return std::regex("(.*\\.)?(" + pattern + ")$", flags);
    } catch (std::regex_error const&) {
      fail(pattern, "is not a regular expression");
    }
  }
  [[noreturn]] void fail(std::string const& pattern, std::string const& reason) const {
    raise<FormatError>(path, ": pattern ", in_quotes(pattern), " ", reason);
  }
};

GRAFT_FILES PeftPatterns::PeftPatterns(std::string path) : state_(std::make_shared<State>()) {
  state_->path = std::move(path);
}
GRAFT_FILES bool PeftPatterns::operator()(std::string const& pattern, std::string const& module) const {
  auto known = state_->compiled.find(pattern);
  if (known == state_->compiled.end()) known = state_->compiled.emplace(pattern, state_->compile(pattern)).first;
  return std::regex_match(module, known->second);
}
#endif

}  // namespace graft
