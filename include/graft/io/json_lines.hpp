// SPDX-License-Identifier: Apache-2.0
// Files of one JSON object per line: requests, data. A wrong line is a sentence with file and line number.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/types.hpp>
#include <graft/io/checked.hpp>
#include <graft/io/json.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

namespace graft {

/// A line of a JSON-lines file.
struct JsonLine {
  std::string place;  ///< "file:3"
  nlohmann::json value;

  template <class... Parts>
  [[noreturn]] void fail(Parts const&... parts) const {
    raise<FormatError>(place, ": ", parts...);
  }
  [[noreturn]] void wrong(std::string const& key) const {
    fail("key \"", key, "\" has the unexpected value ", value.at(key).dump(-1, ' ', true).substr(0, 80));
  }
  /// Present and not null.
  bool has(std::string const& key) const { return value.contains(key) && !value.at(key).is_null(); }
  /// The member; FormatError when it is missing or has another type.
  template <class T>
  T get(std::string const& key) const {
    if (!has(key)) fail("needs a \"", key, "\"");
    return get<T>(key, {});
  }
  /// The member, or `fallback` where it is missing; FormatError when it has another type.
  template <class T>
  T get(std::string const& key, T fallback) const {
    if (!has(key)) return fallback;
    auto const& member = value.at(key);
    if (!json_is<T>(member)) wrong(key);
    return member.get<T>();
  }
  /// f(), whose ContractErrors are this line's fault.
  auto checked(auto&& f) const { return checked_at(place, f); }
};

/// All non-empty lines, each a JSON object whose keys are among `known`. FormatError when there is none.
inline std::vector<JsonLine> read_json_lines(std::filesystem::path const& path, std::vector<std::string> const& known) {
  std::ifstream file(path);
  if (!file) raise<FormatError>(path.string(), ": cannot be opened");
  std::vector<JsonLine> lines;
  std::string line;
  for (index_t number = 1; std::getline(file, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    JsonLine parsed{text(path.string(), ":", number), nlohmann::json::parse(line, nullptr, false)};
    if (!parsed.value.is_object()) parsed.fail("is not a JSON object");
    for (auto const& [key, member] : parsed.value.items())
      if (std::find(known.begin(), known.end(), key) == known.end()) parsed.fail("unknown key \"", key, "\"");
    lines.push_back(std::move(parsed));
  }
  if (file.bad()) raise<FormatError>(path.string(), ": cannot be read");  // a folder, a broken disk
  if (lines.empty()) raise<FormatError>(path.string(), ": holds no lines");
  return lines;
}

}  // namespace graft
