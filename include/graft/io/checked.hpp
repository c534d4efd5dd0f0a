// SPDX-License-Identifier: Apache-2.0
// What all readers need before they believe a file: whose fault an error is, names fit for a message, products that
// cannot overflow, UTF-8.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/format.hpp>
#include <graft/core/types.hpp>

#include <cstddef>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace graft {

/// What a ContractError says, without the library's name in front: for a sentence that begins with something else.
inline std::string_view reason_of(ContractError const& error) {
  std::string_view reason = error.what();
  constexpr std::string_view library = "graft: ";
  if (reason.starts_with(library)) reason.remove_prefix(library.size());
  return reason;
}

/// f(), whose ContractErrors are the fault of what stands at `place`, a file or a line of one: FormatErrors.
auto checked_at(std::string const& place, auto&& f) {
  try {
    return f();
  } catch (ContractError const& error) {
    raise<FormatError>(place, ": ", reason_of(error));
  }
}

/// Whether the bytes are well-formed UTF-8 (no surrogates, no overlong forms, nothing above U+10FFFF).
inline bool valid_utf8(std::string_view bytes) {
  std::size_t k = 0;
  auto const at = [&](std::size_t i) { return i < bytes.size() ? static_cast<unsigned char>(bytes[i]) : 0u; };
  while (k < bytes.size()) {
    unsigned const lead = at(k);
    if (lead < 0x80) {
      ++k;
      continue;
    }
    std::size_t const length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4) return false;
    // the second byte's range excludes overlong forms, surrogates and what lies beyond U+10FFFF
    unsigned const low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    unsigned const high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    if (at(k + 1) < low || at(k + 1) > high) return false;
    for (std::size_t i = 2; i < length; ++i) {
      if ((at(k + i) & 0xc0) != 0x80) return false;
    }
    k += length;
  }
  return true;
}

/// A name from a file as part of a one-line message: quoted, control characters and broken UTF-8 as \xNN, at most about
/// a hundred bytes.
inline std::string in_quotes(std::string_view name) {
  constexpr std::size_t longest = 96;
  constexpr char digits[] = "0123456789abcdef";
  std::string_view shown = name.substr(0, longest);
  // do not cut a character in two
  while (shown.size() < name.size() && !shown.empty() &&
         (static_cast<unsigned char>(name[shown.size()]) & 0xc0) == 0x80) {
    shown.remove_suffix(1);
  }
  bool const is_text = valid_utf8(shown);
  std::string result = "'";
  for (char const c : shown) {
    auto const byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f || (byte >= 0x80 && !is_text)) {
      result += {'\\', 'x', digits[byte >> 4], digits[byte & 15]};
    } else {
      result += c;
    }
  }
  if (shown.size() < name.size()) result += "...";
  return result += '\'';
}

/// a * b, or nothing where it exceeds index_t. Both are non-negative.
inline std::optional<index_t> checked_product(index_t a, index_t b) {
  if (a != 0 && b > std::numeric_limits<index_t>::max() / a) return std::nullopt;
  return a * b;
}

/// "[49152, 576]"
inline std::string shape_text(std::span<const index_t> shape) {
  std::string result = "[";
  for (std::size_t k = 0; k < shape.size(); ++k) result += (k == 0 ? "" : ", ") + std::to_string(shape[k]);
  return result += ']';
}

/// Bytes of a tensor of `shape` (outermost first; empty for a scalar), or nothing where a size is negative, the product
/// overflows or rows are not whole blocks.
inline std::optional<std::size_t> stored_bytes(Format format, std::span<const index_t> shape) {
  FormatInfo const info = format_info(format);
  index_t const cols = shape.empty() ? 1 : shape.back();
  if (cols < 0 || cols % info.block != 0) return std::nullopt;
  auto bytes = checked_product(cols / info.block, info.bytes);
  for (std::size_t k = 0; bytes && k + 1 < shape.size(); ++k) {
    bytes = shape[k] < 0 ? std::nullopt : checked_product(*bytes, shape[k]);
  }
  if (!bytes) return std::nullopt;
  return static_cast<std::size_t>(*bytes);
}

}  // namespace graft
