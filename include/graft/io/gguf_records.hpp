// SPDX-License-Identifier: Apache-2.0
// The pieces of a GGUF file's header: metadata pairs and tensor records, read front to back with every length checked.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/format.hpp>
#include <graft/core/types.hpp>
#include <graft/io/checked.hpp>
#include <graft/io/gguf_metadata.hpp>
#include <graft/io/mapped_file.hpp>
#include <graft/io/tensor_file.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>

namespace graft::detail {

static_assert(std::endian::native == std::endian::little, "graft: model files are little-endian and read in place");

inline constexpr std::uint32_t gguf_default_alignment = 32, gguf_most_alignment = 1 << 16;
constexpr bool gguf_legal_alignment(std::uint32_t value) {
  return std::has_single_bit(value) && value <= gguf_most_alignment;
}
/// `bytes` and what stands behind them up to the next multiple of the alignment.
constexpr std::uint64_t gguf_padded(std::uint64_t bytes, std::uint32_t alignment) {
  return (bytes + alignment - 1) / alignment * alignment;
}
inline constexpr std::size_t gguf_most_dimensions = 4, gguf_longest_name = 63;

/// A number ggml gives a tensor type; those without a format are known by name only, to be refused by it.
struct GgmlType {
  std::uint32_t number;
  const char* name;
  std::optional<Format> format = std::nullopt;
};
inline constexpr std::array ggml_types = {GgmlType{0, "F32", Format::f32},
                                          GgmlType{1, "F16", Format::f16},
                                          GgmlType{2, "Q4_0", Format::q4_0},
                                          GgmlType{3, "Q4_1", Format::q4_1},
                                          GgmlType{4, "Q4_2"},
                                          GgmlType{5, "Q4_3"},
                                          GgmlType{6, "Q5_0", Format::q5_0},
                                          GgmlType{7, "Q5_1", Format::q5_1},
                                          GgmlType{8, "Q8_0", Format::q8_0},
                                          GgmlType{9, "Q8_1"},
                                          GgmlType{10, "Q2_K"},
                                          GgmlType{11, "Q3_K"},
                                          GgmlType{12, "Q4_K", Format::q4_k},
                                          GgmlType{13, "Q5_K", Format::q5_k},
                                          GgmlType{14, "Q6_K", Format::q6_k},
                                          GgmlType{15, "Q8_K"},
                                          GgmlType{16, "IQ2_XXS"},
                                          GgmlType{17, "IQ2_XS"},
                                          GgmlType{18, "IQ3_XXS"},
                                          GgmlType{19, "IQ1_S"},
                                          GgmlType{20, "IQ4_NL"},
                                          GgmlType{21, "IQ3_S"},
                                          GgmlType{22, "IQ2_S"},
                                          GgmlType{23, "IQ4_XS"},
                                          GgmlType{24, "I8", Format::i8},
                                          GgmlType{25, "I16", Format::i16},
                                          GgmlType{26, "I32", Format::i32},
                                          GgmlType{27, "I64", Format::i64},
                                          GgmlType{28, "F64", Format::f64},
                                          GgmlType{29, "IQ1_M"},
                                          GgmlType{30, "BF16", Format::bf16},
                                          GgmlType{31, "Q4_0_4_4"},
                                          GgmlType{32, "Q4_0_4_8"},
                                          GgmlType{33, "Q4_0_8_8"},
                                          GgmlType{34, "TQ1_0"},
                                          GgmlType{35, "TQ2_0"},
                                          GgmlType{36, "IQ4_NL_4_4"},
                                          GgmlType{37, "IQ4_NL_4_8"},
                                          GgmlType{38, "IQ4_NL_8_8"},
                                          GgmlType{39, "MXFP4"},
                                          GgmlType{40, "NVFP4"},
                                          GgmlType{41, "Q1_0"}};

/// Reads a file front to back; whatever would pass its end is a FormatError that says inside of what.
class GgufCursor {
 public:
  explicit GgufCursor(const MappedFile& file) : file_(file) {}

  std::size_t position() const { return position_; }
  std::size_t left() const { return file_.size() - position_; }
  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    raise<FormatError>(file_.path(), ": ", parts...);
  }

  std::string_view bytes(std::uint64_t count, const char* part, std::string_view name) {
    if (count > left()) {
      fail("the file ends inside ", part, name.empty() ? "" : " ", name.empty() ? "" : in_quotes(name), ": ", count,
           " bytes expected, ", left(), " left");
    }
    auto const result = file_.characters().substr(position_, static_cast<std::size_t>(count));
    position_ += result.size();
    return result;
  }
  template <class T>
  T number(const char* part, std::string_view name = {}) {
    return load<T>(reinterpret_cast<const std::byte*>(bytes(sizeof(T), part, name).data()));
  }
  std::string_view string(const char* part, std::string_view name = {}) {
    return bytes(number<std::uint64_t>(part, name), part, name);
  }
  /// A count of things of at least `size` bytes each: one that cannot fit is refused before anything is made of it.
  std::uint64_t count(std::size_t size, const char* what) {
    auto const value = number<std::uint64_t>("the header");
    if (value > left() / size) fail("claims ", value, ' ', what, ", more than its ", file_.size(), " bytes can hold");
    return value;
  }

 private:
  const MappedFile& file_;
  std::size_t position_ = 0;
};

inline GgufType gguf_type(GgufCursor& cursor, std::string_view key) {
  auto const number = cursor.number<std::uint32_t>("metadata key", key);
  if (number > static_cast<std::uint32_t>(GgufType::f64)) {
    cursor.fail("metadata key ", in_quotes(key), " has the unknown value type ", number);
  }
  return static_cast<GgufType>(number);
}

inline GgufEntry read_gguf_entry(GgufCursor& cursor) {
  constexpr auto part = "metadata key";
  GgufEntry entry;
  entry.key = cursor.string("a metadata key");
  if (!valid_utf8(entry.key)) cursor.fail("metadata key ", in_quotes(entry.key), " is not UTF-8");
  entry.element = gguf_type(cursor, entry.key);
  entry.array = entry.element == GgufType::array;
  if (entry.array) {
    entry.element = gguf_type(cursor, entry.key);
    if (entry.element == GgufType::array) {
      cursor.fail("metadata key ", in_quotes(entry.key), " is an array of arrays, which is not supported");
    }
    entry.count = cursor.number<std::uint64_t>(part, entry.key);
  }
  if (std::size_t const size = gguf_type_bytes(entry.element); size != 0) {
    if (entry.array && entry.count > cursor.left() / size) {
      cursor.fail("metadata key ", in_quotes(entry.key), " claims ", entry.count, " elements of ", size, " bytes, ",
                  cursor.left(), " bytes are left in the file");
    }
    entry.values = cursor.bytes(entry.count * size, part, entry.key);
    return entry;
  }
  const char* const first = cursor.bytes(0, part, entry.key).data();
  std::size_t const begin = cursor.position();
  for (std::uint64_t k = 0; k < entry.count; ++k) cursor.string(part, entry.key);
  entry.values = {first, cursor.position() - begin};
  return entry;
}

/// A tensor's record in the header; its data are found once all are known.
struct GgufTensor {
  TensorInfo info;
  std::uint64_t offset;
};
inline GgufTensor read_gguf_tensor(GgufCursor& cursor) {
  constexpr auto part = "the record of tensor";
  TensorInfo info;
  info.name = cursor.string("a tensor's name");
  auto const name = in_quotes(info.name);
  if (!valid_utf8(info.name)) cursor.fail("tensor name ", name, " is not UTF-8");
  auto const dimensions = cursor.number<std::uint32_t>(part, info.name);
  if (dimensions == 0 || dimensions > gguf_most_dimensions) {
    cursor.fail("tensor ", name, " has ", dimensions, " dimensions, expected 1 to ", gguf_most_dimensions);
  }
  for (std::uint32_t k = 0; k < dimensions; ++k) {
    auto const size = cursor.number<std::uint64_t>(part, info.name);
    if (size == 0 || size > static_cast<std::uint64_t>(std::numeric_limits<index_t>::max())) {
      cursor.fail("tensor ", name, " has a dimension of ", size);
    }
    info.shape.insert(info.shape.begin(), static_cast<index_t>(size));
  }
  auto const number = cursor.number<std::uint32_t>(part, info.name);
  auto const type = std::find_if(ggml_types.begin(), ggml_types.end(), [=](auto& t) { return t.number == number; });
  if (type == ggml_types.end()) cursor.fail("tensor ", name, " has the unknown type ", number);
  if (!type->format) cursor.fail("tensor ", name, " has type ", type->name, ", which is not supported");
  info.format = *type->format;
  auto const bytes = stored_bytes(info.format, info.shape);
  if (!bytes) {
    cursor.fail("tensor ", name, " of shape ", shape_text(info.shape), " cannot be stored as ", type->name,
                ": rows are blocks of ", format_info(info.format).block, " and sizes fit 63 bits");
  }
  info.bytes = *bytes;
  auto const offset = cursor.number<std::uint64_t>(part, info.name);
  return {std::move(info), offset};
}

}  // namespace graft::detail
