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
#include <string>
#include <string_view>
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

/// What a parser of JSON tells: the tokens of a text, one after the other.
using JsonEvents = nlohmann::json_sax<nlohmann::json>;

/// Tells `events` of each token in `text`. All of graft's files are read by this one parser: a consumer's type would be
/// a parser of its own to compile, and json::parse has two.
inline void parse_json(std::string_view text, JsonEvents& events) {
  nlohmann::json::sax_parse(text.begin(), text.end(), &events);
}

namespace detail {

/// Makes a document of what a parser tells.
template <class Json>
class JsonBuilder final : public JsonEvents {
 public:
  /// `path` names the file in messages.
  explicit JsonBuilder(std::string const& path) : path_(path) {}

  Json document;

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(std::int64_t value) override { return add(value); }
  bool number_unsigned(std::uint64_t value) override { return add(value); }
  bool number_float(double value, std::string const&) override { return add(value); }
  bool string(std::string& value) override { return add(std::move(value)); }
  bool binary(binary_t&) override { return false; }  // is in no text
  bool start_object(std::size_t) override { return add(Json::value_t::object); }
  bool start_array(std::size_t) override { return add(Json::value_t::array); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(std::string& name) override {
    check_depth();
    auto const [member, fresh] = open_.back()->emplace(std::move(name), nullptr);
    if (!fresh) raise<FormatError>(path_, ": key ", in_quotes(member.key()), " occurs twice");
    member_ = &*member;
    return true;
  }
  bool parse_error(std::size_t, std::string const&, nlohmann::detail::exception const&) override {
    raise<FormatError>(path_, ": is not valid JSON");
  }

 private:
  bool add(Json value) {
    check_depth();
    bool const opens = value.is_structured();
    Json* to = &document;
    if (!open_.empty() && open_.back()->is_array()) {
      open_.back()->push_back(std::move(value));
      to = &open_.back()->back();
    } else {
      if (!open_.empty()) to = member_;
      *to = std::move(value);
    }
    if (opens) open_.push_back(to);
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }
  void check_depth() const {
    if (open_.size() > 100) raise<FormatError>(path_, ": nests deeper than 100 levels");
  }

  std::string const& path_;
  std::vector<Json*> open_;  // objects and arrays, each within the one before
  Json* member_ = nullptr;   // of the innermost object, whose value comes next
};

}  // namespace detail

/// The document in a JSON file. Take nlohmann::ordered_json where the order of keys matters. FormatError when the file
/// exceeds `most_bytes` (a document takes some ten times its text in memory), nests deeper than 100, repeats a key in
/// an object or is not JSON in UTF-8.
template <class Json = nlohmann::json>
Json read_json(const std::filesystem::path& path, std::size_t most_bytes = std::size_t{16} << 20) {
  auto const file = MappedFile::open(path);
  if (file->size() > most_bytes)
    raise<FormatError>(file->path(), ": is ", file->size(), " bytes long, at most ", most_bytes, " are read as JSON");
  detail::JsonBuilder<Json> builder(file->path());
  parse_json(file->characters(), builder);
  return std::move(builder.document);
}

}  // namespace graft
