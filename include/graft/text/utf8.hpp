// SPDX-License-Identifier: Apache-2.0
// UTF-8: stepping through code points, finding broken or unfinished ones, repairing.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace graft::utf8 {

/// What stands at the start of some bytes: a whole code point, a broken one, or one whose end has not arrived yet.
struct Step {
  enum class Kind { valid, broken, unfinished } kind;
  std::size_t length;  ///< bytes; of a broken sequence its maximal subpart (Unicode, section 3.9), never 0
};

/// Looks at the first code point of `bytes`, which must not be empty.
inline Step step(std::string_view bytes) {
  auto const at = [&](std::size_t k) { return static_cast<unsigned char>(bytes[k]); };
  unsigned const lead = at(0);
  if (lead < 0x80) return {Step::Kind::valid, 1};
  std::size_t const length = lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
  if (length == 0) return {Step::Kind::broken, 1};
  // The second byte's range excludes overlong forms, surrogates and values above U+10FFFF.
  unsigned const low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  unsigned const high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (std::size_t k = 1; k < length; ++k) {
    if (k == bytes.size()) return {Step::Kind::unfinished, k};
    if (at(k) < (k == 1 ? low : 0x80) || at(k) > (k == 1 ? high : 0xBF)) return {Step::Kind::broken, k};
  }
  return {Step::Kind::valid, length};
}

/// The code point at `position` of valid UTF-8; moves `position` behind it.
inline char32_t next(std::string_view text, std::size_t& position) {
  auto const byte = [&] { return static_cast<char32_t>(static_cast<unsigned char>(text[position++])); };
  char32_t const lead = byte();
  if (lead < 0x80) return lead;
  int const more = lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
  char32_t code = lead & (0x3Fu >> more);
  for (int k = 0; k < more; ++k) code = code << 6 | (byte() & 0x3Fu);
  return code;
}

/// The code point that ends at `position` > 0 of valid UTF-8; moves `position` to its start.
inline char32_t previous(std::string_view text, std::size_t& position) {
  do --position;
  while ((static_cast<unsigned char>(text[position]) & 0xC0u) == 0x80u);
  std::size_t start = position;
  return next(text, start);
}

inline void append(std::string& out, char32_t code) {
  auto const put = [&](char32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0 | code >> 6), put(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    put(0xE0 | code >> 12), put(0x80 | (code >> 6 & 0x3F)), put(0x80 | (code & 0x3F));
  } else {
    put(0xF0 | code >> 18), put(0x80 | (code >> 12 & 0x3F)), put(0x80 | (code >> 6 & 0x3F)), put(0x80 | (code & 0x3F));
  }
}

/// The code points of valid UTF-8.
inline std::u32string to_utf32(std::string_view text) {
  std::u32string out;
  out.reserve(text.size());
  for (std::size_t k = 0; k < text.size();) out += next(text, k);
  return out;
}

inline std::string from_utf32(std::u32string_view characters) {
  std::string out;
  out.reserve(characters.size());
  for (char32_t const c : characters) append(out, c);
  return out;
}

/// Unicode's White_Space.
inline bool is_white_space(char32_t c) {
  return (c >= 0x9 && c <= 0xD) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) ||
         c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

inline constexpr std::string_view replacement = "\xEF\xBF\xBD";  // U+FFFD

/// Moves everything that is complete from `bytes` to `out`, broken sequences as U+FFFD; what is left in `bytes`
/// is the start of a code point, at most three bytes.
inline void drain(std::string& bytes, std::string& out) {
  std::size_t k = 0;
  while (k < bytes.size()) {
    std::string_view const rest = std::string_view(bytes).substr(k);
    Step const s = step(rest);
    if (s.kind == Step::Kind::unfinished) break;
    out += s.kind == Step::Kind::valid ? rest.substr(0, s.length) : replacement;
    k += s.length;
  }
  bytes.erase(0, k);
}

/// `bytes` with every broken or unfinished sequence replaced by U+FFFD.
inline std::string repaired(std::string bytes) {
  std::string out;
  out.reserve(bytes.size());
  drain(bytes, out);
  if (!bytes.empty()) out += replacement;
  return out;
}

}  // namespace graft::utf8
