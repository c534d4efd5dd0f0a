// SPDX-License-Identifier: Apache-2.0
// JSON files read with care: one sentence for what is broken, no key twice, no depth or size without bound.
#pragma once

#include <graft/core/error.hpp>
#include <graft/io/checked.hpp>
#include <graft/io/mapped_file.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace graft {

/// Whether `value` is a T, or a list of them, as it stands. nlohmann itself would give 1 for 1.5 or true, and what is
/// left of a number that is too large.
template <class T>
bool json_is(const auto& value) {
  if constexpr (std::same_as<T, bool>)
    return value.is_boolean();
  else if constexpr (std::unsigned_integral<T>)
    return value.is_number_unsigned() && std::in_range<T>(value.template get<std::uint64_t>());
  else if constexpr (std::integral<T>)
    return value.is_number_integer() &&
           (value.is_number_unsigned() ? std::in_range<T>(value.template get<std::uint64_t>())
                                       : std::in_range<T>(value.template get<std::int64_t>()));
  else if constexpr (std::floating_point<T>)
    return value.is_number();
  else if constexpr (std::same_as<T, std::string>)
    return value.is_string();
  else if constexpr (requires { typename T::value_type::value_t; })  // a list of anything
    return value.is_array();
  else
    return value.is_array() && std::all_of(value.begin(), value.end(),
                                           [](const auto& item) { return json_is<typename T::value_type>(item); });
}

/// The document in a JSON file. Take nlohmann::ordered_json where the order of keys matters. FormatError when the file
/// exceeds `most_bytes` (a document takes some ten times its text in memory), nests deeper than 100, repeats a key in
/// an object or is not JSON in UTF-8.
template <class Json = nlohmann::json>
Json read_json(const std::filesystem::path& path, std::size_t most_bytes = std::size_t{16} << 20) {
  auto const file = MappedFile::open(path);
  auto const fail = [&](auto const&... parts) { raise<FormatError>(file->path(), ": ", parts...); };
  if (file->size() > most_bytes) fail("is ", file->size(), " bytes long, at most ", most_bytes, " are read as JSON");
  std::vector<std::set<std::string>> open_objects;
  auto const check = [&](int depth, typename Json::parse_event_t event, Json& parsed) {
    using Event = typename Json::parse_event_t;
    if (depth > 100) fail("nests deeper than 100 levels");
    if (event == Event::object_start) open_objects.emplace_back();
    if (event == Event::object_end) open_objects.pop_back();
    if (event == Event::key) {
      auto const& key = parsed.template get_ref<const std::string&>();
      if (!open_objects.back().insert(key).second) fail("key ", in_quotes(key), " occurs twice");
    }
    return true;
  };
  auto const characters = file->characters();
  Json result = Json::parse(characters.begin(), characters.end(), check, false);
  if (result.is_discarded()) fail("is not valid JSON");
  return result;
}

}  // namespace graft
