// SPDX-License-Identifier: Apache-2.0
// A JSON object whose values are asked for by key and type; a wrong one is a sentence with file and key.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/types.hpp>
#include <graft/io/checked.hpp>
#include <graft/io/json.hpp>

#include <concepts>
#include <string>
#include <utility>

namespace graft {

class JsonObject {
 public:
  JsonObject(std::string path, nlohmann::json value) : path_(std::move(path)), value_(std::move(value)) {
    if (!value_.is_object()) raise<FormatError>(path_, ": is not a JSON object");
  }

  std::string const& path() const { return path_; }
  nlohmann::json const& json() const { return value_; }
  /// Present and not null.
  bool has(std::string const& key) const { return value_.contains(key) && !value_.at(key).is_null(); }

  /// FormatError when the key is missing or its value is of another type.
  template <class T>
  T get(std::string const& key) const {
    if (!has(key)) fail("key ", in_quotes(key), " is missing");
    auto const& value = value_.at(key);
    bool fits = json_is<T>(value);
    if constexpr (std::same_as<T, index_t>)
      fits = fits && value.template get<T>() < index_t{1} << 62;  // so that adding to it does not overflow
    if (!fits) fail("key ", in_quotes(key), " has the unexpected value ", value.dump(-1, ' ', true).substr(0, 100));
    return value.template get<T>();
  }
  /// `fallback` when the key is missing or null.
  template <class T>
  T get_or(std::string const& key, T fallback) const {
    return has(key) ? get<T>(key) : fallback;
  }
  /// A positive size; two of them multiplied fit an index.
  index_t size(std::string const& key, index_t most = index_t{1} << 31) const {
    auto const value = get<index_t>(key);
    if (value <= 0 || value > most) fail("key ", in_quotes(key), " is ", value, ", expected a size from 1 to ", most);
    return value;
  }
  index_t size_or(std::string const& key, index_t fallback) const { return has(key) ? size(key) : fallback; }

  JsonObject object(std::string const& key) const {
    if (!has(key) || !value_.at(key).is_object()) fail("key ", in_quotes(key), " should be an object");
    return JsonObject(path_, value_.at(key));
  }

  template <class... Parts>
  [[noreturn]] void fail(Parts const&... parts) const {
    raise<FormatError>(path_, ": ", parts...);
  }

 private:
  std::string path_;
  nlohmann::json value_;
};

}  // namespace graft
