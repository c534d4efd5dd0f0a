// SPDX-License-Identifier: Apache-2.0
// The JSON header of a safetensors file: read token by token without building a document, and written.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/format.hpp>
#include <graft/core/types.hpp>
#include <graft/io/checked.hpp>
#include <graft/io/json.hpp>
#include <graft/io/mapped_file.hpp>
#include <graft/io/tensor_file.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace graft::detail {

static_assert(std::endian::native == std::endian::little, "graft: model files are little-endian and read in place");

/// The formats a safetensors file can hold, in the order the reference implementation lays them out: widest first.
inline constexpr std::array safetensors_formats = {Format::i64, Format::f64, Format::f32, Format::i32, Format::bf16,
                                                   Format::f16, Format::i16, Format::i8,  Format::u8,  Format::boolean};

struct SafetensorsEntry {
  std::string name;
  Format format = Format::f32;
  std::vector<index_t> shape;
  std::uint64_t begin = 0, end = 0;  ///< bytes within the data, as the file has them: unchecked
};

struct SafetensorsHeader {
  std::size_t bytes = 0;  ///< where the data begin
  std::vector<SafetensorsEntry> tensors;
  std::map<std::string, std::string> metadata;
};

/// Consumer of JSON tokens that accepts exactly the header's grammar; whatever else comes is refused where it comes, so
/// memory never exceeds a small multiple of the header.
class SafetensorsParser final : public JsonEvents {
 public:
  SafetensorsParser(const std::string& path, SafetensorsHeader& header) : path_(path), header_(header) {}

  bool start_object(std::size_t) override {
    if (place_ == Place::start) return enter(Place::root);
    if (place_ == Place::root && name_ == "__metadata__") return enter(Place::metadata);
    if (place_ == Place::root) {
      header_.tensors.push_back({name_, Format::f32, {}, 0, 0});
      seen_.clear();
      return enter(Place::tensor);
    }
    unexpected("an object");
  }
  bool end_object() override {
    if (place_ == Place::tensor && seen_.size() != 3) fail(here(), " lacks dtype, shape or data_offsets");
    return enter(place_ == Place::root ? Place::finished : Place::root);
  }
  bool key(std::string& key) override {
    if (place_ == Place::root) {
      if (!names_.insert(key).second) fail("tensor ", in_quotes(key), " occurs twice in the header");
      name_ = key;
    } else {
      if (place_ == Place::metadata && header_.metadata.contains(key))
        fail("metadata key ", in_quotes(key), " occurs twice");
      if (place_ == Place::tensor && key != "dtype" && key != "shape" && key != "data_offsets") {
        fail(here(), " has the unknown key ", in_quotes(key));
      }
      if (place_ == Place::tensor && !seen_.insert(key).second) fail(here(), " has ", key, " twice");
      key_ = key;
    }
    return true;
  }
  bool start_array(std::size_t) override {
    if (place_ != Place::tensor || key_ == "dtype") unexpected("an array");
    count_ = 0;
    return enter(key_ == "shape" ? Place::shape : Place::offsets);
  }
  bool end_array() override {
    if (place_ == Place::offsets && count_ != 2) fail(here(), " has ", count_, " data_offsets, expected 2");
    return enter(Place::tensor);
  }
  bool string(std::string& value) override {
    if (place_ == Place::metadata) {
      header_.metadata.emplace(key_, value);
      return true;
    }
    if (place_ != Place::tensor || key_ != "dtype") unexpected("a string");
    auto const found = std::find_if(safetensors_formats.begin(), safetensors_formats.end(),
                                    [&](Format format) { return value == format_info(format).name; });
    if (found == safetensors_formats.end()) fail(here(), " has dtype ", in_quotes(value), ", which is not supported");
    header_.tensors.back().format = *found;
    return true;
  }
  bool number_unsigned(std::uint64_t value) override {
    auto const most = static_cast<std::uint64_t>(std::numeric_limits<index_t>::max());
    auto* const tensor = header_.tensors.empty() ? nullptr : &header_.tensors.back();
    if (place_ == Place::shape) {
      if (value > most) fail(here(), " has a dimension of ", value);
      if (++count_ > most_dimensions) fail(here(), " has more than ", most_dimensions, " dimensions");
      tensor->shape.push_back(static_cast<index_t>(value));
    } else if (place_ == Place::offsets) {
      if (++count_ > 2) fail(here(), " has more than two data_offsets");
      (count_ == 1 ? tensor->begin : tensor->end) = value;
    } else {
      unexpected("a number");
    }
    return true;
  }
  bool number_integer(std::int64_t value) override { unexpected("the negative number ", value); }
  bool number_float(double, const std::string& value) override { unexpected("the number ", value.substr(0, 32)); }
  bool boolean(bool) override { unexpected("a truth value"); }
  bool null() override { unexpected("null"); }
  bool binary(binary_t&) override { unexpected("binary data"); }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) override {
    fail("the header is not valid JSON at its byte ", position);
  }

 private:
  enum class Place { start, root, metadata, tensor, shape, offsets, finished };
  static constexpr std::size_t most_dimensions = 64;

  bool enter(Place place) {
    place_ = place;
    return true;
  }
  std::string here() const {
    switch (place_) {
      case Place::start:
      case Place::finished:
        return "the header";
      case Place::root:
        return "header entry " + in_quotes(name_);
      case Place::metadata:
        return "metadata key " + in_quotes(key_);
      default:
        return "tensor " + in_quotes(name_);
    }
  }
  template <class... Parts>
  [[noreturn]] void unexpected(const Parts&... what) {
    bool const in_tensor = place_ == Place::tensor || place_ == Place::shape || place_ == Place::offsets;
    fail(here(), in_tensor ? " has in its " + key_ + " " : " is ", what...);
  }
  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) {
    raise<FormatError>(path_, ": ", parts...);
  }

  const std::string& path_;
  SafetensorsHeader& header_;
  Place place_ = Place::start;
  std::string name_, key_;
  std::size_t count_ = 0;
  std::set<std::string> names_, seen_;
};

inline SafetensorsHeader read_safetensors_header(const MappedFile& file) {
  auto const fail = [&](auto const&... parts) { raise<FormatError>(file.path(), ": ", parts...); };
  constexpr std::uint64_t most = 100'000'000;  // the limit of the reference implementation
  if (file.size() < 8) fail(file.size(), " bytes are too few for a safetensors file");
  auto const length = load<std::uint64_t>(file.data());
  if (length > file.size() - 8) {
    fail("is not a safetensors file or is cut off: a header of ", length, " bytes in a file of ", file.size());
  }
  if (length > most) fail("has a header of ", length, " bytes, more than ", most);
  auto const json = file.characters().substr(8, static_cast<std::size_t>(length));
  if (json.empty() || json.front() != '{') fail("is not a safetensors file: its header does not begin with '{'");
  SafetensorsHeader header;
  header.bytes = 8 + json.size();
  SafetensorsParser parser(file.path(), header);
  parse_json(json, parser);
  return header;
}

/// Sorts the tensors into file order and returns the header that describes them, padded to a multiple of 8 bytes.
inline std::string safetensors_header_text(std::vector<TensorInfo>& tensors,
                                           const std::map<std::string, std::string>& metadata) {
  auto const place = [](const TensorInfo& tensor) {
    return std::find(safetensors_formats.begin(), safetensors_formats.end(), tensor.format);
  };
  auto const json_string = [](const std::string& value) {
    expects(valid_utf8(value), "safetensors holds UTF-8 only, not ", in_quotes(value));
    return nlohmann::json(value).dump();
  };
  for (auto const& tensor : tensors) {
    auto const name = in_quotes(tensor.name);
    expects(place(tensor) != safetensors_formats.end(), "tensor ", name, " of format ", format_info(tensor.format).name,
            " cannot be written to safetensors");
    expects(tensor.name != "__metadata__", "a tensor cannot be named ", name, " in safetensors");
    auto const bytes = stored_bytes(tensor.format, tensor.shape);
    expects(bytes && *bytes == tensor.bytes, "tensor ", name, " of shape ", shape_text(tensor.shape), " and format ",
            format_info(tensor.format).name, " has ", tensor.bytes, " bytes");
  }
  std::sort(tensors.begin(), tensors.end(), [&](const TensorInfo& a, const TensorInfo& b) {
    return place(a) != place(b) ? place(a) < place(b) : a.name < b.name;
  });

  std::string header = "{", separator;
  if (!metadata.empty()) {
    header += "\"__metadata__\":{";
    for (auto const& [key, value] : metadata) {
      header += separator + json_string(key) + ':' + json_string(value);
      separator = ",";
    }
    header += '}';
  }
  std::set<std::string_view> names;
  std::size_t offset = 0;
  for (auto const& tensor : tensors) {
    expects(names.insert(tensor.name).second, "two tensors are named ", in_quotes(tensor.name));
    std::string shape;
    for (index_t const size : tensor.shape) shape += (shape.empty() ? "" : ",") + std::to_string(size);
    header += text(separator, json_string(tensor.name), ":{\"dtype\":\"", format_info(tensor.format).name,
                   "\",\"shape\":[", shape, "],\"data_offsets\":[", offset, ',', offset + tensor.bytes, "]}");
    separator = ",";
    offset += tensor.bytes;
  }
  header += '}';
  header.append((8 - header.size() % 8) % 8, ' ');
  return header;
}

}  // namespace graft::detail
