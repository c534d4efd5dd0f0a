// SPDX-License-Identifier: Apache-2.0
// The typed key-value pairs of a GGUF file, kept as the file encodes them and decoded on demand.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/format_blocks.hpp>
#include <graft/io/checked.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace graft {

/// Value types, numbered as in the file.
enum class GgufType : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

inline const char* gguf_type_name(GgufType type) {
  constexpr const char* names[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                   "bool", "string", "array", "u64", "i64", "f64"};
  return names[static_cast<std::size_t>(type)];
}

/// Bytes of a number or truth value; 0 for strings and arrays, which say their own length.
constexpr std::size_t gguf_type_bytes(GgufType type) {
  constexpr std::size_t bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return bytes[static_cast<std::size_t>(type)];
}

/// One pair. A scalar is an array of one as far as `element` and `count` go.
struct GgufEntry {
  std::string key;
  bool array = false;
  GgufType element = GgufType::u32;
  std::uint64_t count = 1;
  std::string_view values;  ///< the encoded elements, lengths of strings included; whole, because the reader checked
  std::shared_ptr<const std::string> owned;  ///< what `values` points into when it is not a mapped file

  std::string type_name() const { return array ? text("array of ", gguf_type_name(element)) : gguf_type_name(element); }
};

/// Types that metadata values are asked for and set as. Text comes as std::string_view into the file.
template <class T>
concept GgufValue =
    std::integral<T> || std::floating_point<T> || std::same_as<T, std::string_view> || std::same_as<T, std::string>;

/// Pairs in file order. An integer may be asked for as any integer type that holds its value, a float as float or
/// double.
class GgufMetadata {
 public:
  GgufMetadata() = default;
  /// `path` is for messages. FormatError when a key occurs twice.
  GgufMetadata(std::string path, std::vector<GgufEntry> entries)
      : path_(std::move(path)), entries_(std::move(entries)) {
    std::vector<std::string_view> keys;
    for (auto const& entry : entries_) keys.push_back(entry.key);
    std::sort(keys.begin(), keys.end());
    auto const twice = std::adjacent_find(keys.begin(), keys.end());
    if (twice != keys.end()) fail("metadata key ", in_quotes(*twice), " occurs twice");
  }

  const std::vector<GgufEntry>& entries() const { return entries_; }
  bool contains(std::string_view key) const { return find(key) != nullptr; }
  const GgufEntry* find(std::string_view key) const {
    for (auto const& entry : entries_) {
      if (entry.key == key) return &entry;
    }
    return nullptr;
  }

  /// FormatError naming path and key when it is missing, of another type or out of T's range.
  template <GgufValue T>
  T get(std::string_view key) const {
    const GgufEntry& entry = at(key);
    if (entry.array) refuse<T>(entry);
    const char* from = entry.values.data();
    return decode<T>(entry, from);
  }
  /// As `get`, with a value for when the key is missing (not for when it is wrong).
  template <GgufValue T>
  T get_or(std::string_view key, T fallback) const {
    return contains(key) ? get<T>(key) : fallback;
  }
  /// All elements of an array, in order; text as views into the file.
  template <GgufValue T>
  std::vector<T> get_array(std::string_view key) const {
    const GgufEntry& entry = at(key);
    if (!entry.array) refuse<T>(entry, "array of ");
    std::vector<T> result;
    result.reserve(static_cast<std::size_t>(entry.count));
    const char* from = entry.values.data();
    for (std::uint64_t k = 0; k < entry.count; ++k) result.push_back(decode<T>(entry, from));
    return result;
  }

  /// Adds a pair, or replaces the value of the one with this key in its place. The type is T's own: std::uint32_t
  /// becomes u32, bool a bool, anything textual a string.
  template <class T>
  void set(std::string key, const T& value) {
    std::string bytes;
    encode(bytes, value);
    put(std::move(key), false, type_of<T>(), 1, std::move(bytes));
  }
  template <class T>
  void set_array(std::string key, const std::vector<T>& values) {
    std::string bytes;
    for (auto const& value : values) encode(bytes, static_cast<const T&>(value));
    put(std::move(key), true, type_of<T>(), values.size(), std::move(bytes));
  }

 private:
  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    raise<FormatError>(path_, path_.empty() ? "" : ": ", parts...);
  }
  template <class T>
  [[noreturn]] void refuse(const GgufEntry& entry, const char* prefix = "") const {
    fail("metadata key ", in_quotes(entry.key), " has type ", entry.type_name(), ", expected ", prefix,
         std::is_same_v<T, bool>       ? "bool"
         : std::is_integral_v<T>       ? "integer"
         : std::is_floating_point_v<T> ? "float"
                                       : "string");
  }
  const GgufEntry& at(std::string_view key) const {
    const GgufEntry* const entry = find(key);
    if (entry == nullptr) fail("metadata key ", in_quotes(key), " is missing");
    return *entry;
  }

  template <class Stored>
  static Stored take(const char*& from) {
    auto const value = detail::load<Stored>(reinterpret_cast<const std::byte*>(from));
    from += sizeof(Stored);
    return value;
  }
  template <class T, class Stored>
  T take_integer(const GgufEntry& entry, const char*& from) const {
    auto const value = take<Stored>(from);
    if (!std::in_range<T>(value)) fail("metadata key ", in_quotes(entry.key), " is out of range: ", +value);
    return static_cast<T>(value);
  }
  /// The element at `from`, which moves behind it.
  template <class T>
  T decode(const GgufEntry& entry, const char*& from) const {
    if constexpr (std::is_same_v<T, bool>) {
      if (entry.element == GgufType::boolean) return take<std::uint8_t>(from) != 0;
    } else if constexpr (std::is_integral_v<T>) {
      switch (entry.element) {
        case GgufType::u8:
          return take_integer<T, std::uint8_t>(entry, from);
        case GgufType::i8:
          return take_integer<T, std::int8_t>(entry, from);
        case GgufType::u16:
          return take_integer<T, std::uint16_t>(entry, from);
        case GgufType::i16:
          return take_integer<T, std::int16_t>(entry, from);
        case GgufType::u32:
          return take_integer<T, std::uint32_t>(entry, from);
        case GgufType::i32:
          return take_integer<T, std::int32_t>(entry, from);
        case GgufType::u64:
          return take_integer<T, std::uint64_t>(entry, from);
        case GgufType::i64:
          return take_integer<T, std::int64_t>(entry, from);
        default:
          break;
      }
    } else if constexpr (std::is_floating_point_v<T>) {
      if (entry.element == GgufType::f32) return static_cast<T>(take<float>(from));
      if (entry.element == GgufType::f64) return static_cast<T>(take<double>(from));
    } else {
      if (entry.element == GgufType::string) {
        auto const length = static_cast<std::size_t>(take<std::uint64_t>(from));
        std::string_view const value(from, length);
        from += length;
        return T(value);
      }
    }
    refuse<T>(entry, entry.array ? "array of " : "");
  }

  template <class T>
  static constexpr GgufType type_of() {
    if constexpr (std::is_same_v<T, bool>)
      return GgufType::boolean;
    else if constexpr (std::is_same_v<T, float>)
      return GgufType::f32;
    else if constexpr (std::is_same_v<T, double>)
      return GgufType::f64;
    else if constexpr (std::is_integral_v<T>) {
      constexpr GgufType types[2][4] = {{GgufType::u8, GgufType::u16, GgufType::u32, GgufType::u64},
                                        {GgufType::i8, GgufType::i16, GgufType::i32, GgufType::i64}};
      return types[std::is_signed_v<T>][sizeof(T) == 1 ? 0 : sizeof(T) == 2 ? 1 : sizeof(T) == 4 ? 2 : 3];
    } else {
      static_assert(std::is_convertible_v<const T&, std::string_view>, "graft: GGUF metadata are numbers and text");
      return GgufType::string;
    }
  }
  template <class T>
  static void encode(std::string& bytes, const T& value) {
    if constexpr (std::is_arithmetic_v<T>) {
      bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
    } else {
      std::string_view const characters = value;
      encode(bytes, static_cast<std::uint64_t>(characters.size()));
      bytes += characters;
    }
  }
  void put(std::string key, bool array, GgufType element, std::uint64_t count, std::string bytes) {
    auto const owned = std::make_shared<const std::string>(std::move(bytes));
    GgufEntry entry{std::move(key), array, element, count, *owned, owned};
    auto const same = std::find_if(entries_.begin(), entries_.end(), [&](auto const& e) { return e.key == entry.key; });
    if (same != entries_.end()) {
      *same = std::move(entry);
    } else {
      entries_.push_back(std::move(entry));
    }
  }

  std::string path_;
  std::vector<GgufEntry> entries_;
};

}  // namespace graft
