// SPDX-License-Identifier: Apache-2.0
// Unicode normalisation forms C and D, and lower case, of UTF-8 text.
#pragma once

#include <graft/text/unicode_tables.hpp>
#include <graft/text/utf8.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace graft::unicode {

/// Hangul syllables are computed from their parts (Unicode, section 3.12).
struct Hangul {
  static constexpr char32_t syllable = 0xAC00, lead = 0x1100, vowel = 0x1161, tail = 0x11A7;
  static constexpr char32_t leads = 19, vowels = 21, tails = 28, syllables = leads * vowels * tails;
};

/// Whether `c` lies in one of the sorted, disjoint `ranges` of the tables.
template <std::size_t n>
bool contains(Range const (&ranges)[n], char32_t c) {
  auto const range =
      std::upper_bound(ranges, ranges + n, c, [](char32_t code, Range const& r) { return code <= r.last; });
  return range != ranges + n && range->first <= c;
}

/// 0 for characters that start a combining sequence.
inline std::uint32_t combining_class(char32_t c) {
  auto const range = std::upper_bound(std::begin(combining_ranges), std::end(combining_ranges), c,
                                      [](char32_t code, CombiningRange const& r) { return code <= r.last; });
  return range != std::end(combining_ranges) && range->first <= c ? range->combining_class : 0;
}

/// Appends the full canonical decomposition of `c`, not yet in canonical order.
inline void append_decomposed(std::u32string& out, char32_t c) {
  if (c - Hangul::syllable < Hangul::syllables) {
    char32_t const k = c - Hangul::syllable;
    out += Hangul::lead + k / (Hangul::vowels * Hangul::tails);
    out += Hangul::vowel + k / Hangul::tails % Hangul::vowels;
    if (k % Hangul::tails != 0) out += Hangul::tail + k % Hangul::tails;
    return;
  }
  auto const entry = std::lower_bound(std::begin(decompositions), std::end(decompositions), c,
                                      [](Decomposition const& d, char32_t code) { return d.code < code; });
  if (entry == std::end(decompositions) || entry->code != c) {
    out += c;
    return;
  }
  append_decomposed(out, entry->first);
  if (entry->second != 0) append_decomposed(out, entry->second);
}

/// The one character that `first` and `second` compose to, or 0.
inline char32_t composed(char32_t first, char32_t second) {
  if (first - Hangul::lead < Hangul::leads && second - Hangul::vowel < Hangul::vowels)
    return Hangul::syllable + ((first - Hangul::lead) * Hangul::vowels + (second - Hangul::vowel)) * Hangul::tails;
  if (first - Hangul::syllable < Hangul::syllables && (first - Hangul::syllable) % Hangul::tails == 0 &&
      second > Hangul::tail && second < Hangul::tail + Hangul::tails)
    return first + (second - Hangul::tail);
  // The pairs of the decomposition table that may compose, sorted by pair.
  static std::vector<Decomposition> const pairs = [] {
    std::vector<Decomposition> list;
    for (Decomposition const& d : decompositions)
      if (d.second != 0 &&
          !std::binary_search(std::begin(composition_exclusions), std::end(composition_exclusions), d.code))
        list.push_back(d);
    std::sort(list.begin(), list.end(), [](Decomposition const& a, Decomposition const& b) {
      return std::pair(a.first, a.second) < std::pair(b.first, b.second);
    });
    return list;
  }();
  auto const entry =
      std::lower_bound(pairs.begin(), pairs.end(), std::pair<std::uint32_t, std::uint32_t>(first, second),
                       [](Decomposition const& d, auto const& pair) { return std::pair(d.first, d.second) < pair; });
  return entry != pairs.end() && entry->first == first && entry->second == second ? entry->code : 0;
}

/// Decomposed text in canonical order: runs of combining characters stably sorted by class.
inline std::u32string decomposed(std::string_view text) {
  std::u32string out;
  out.reserve(text.size());
  for (std::size_t k = 0; k < text.size();) append_decomposed(out, utf8::next(text, k));
  for (auto first = out.begin(); first != out.end();) {
    if (combining_class(*first) == 0) {
      ++first;
      continue;
    }
    auto const last = std::find_if(first, out.end(), [](char32_t c) { return combining_class(c) == 0; });
    std::stable_sort(first, last, [](char32_t a, char32_t b) { return combining_class(a) < combining_class(b); });
    first = last;
  }
  return out;
}

/// Composes, in place, text in canonical order.
inline void compose(std::u32string& characters) {
  std::size_t length = 0, starter = 0;  // of the result, which overwrites its own beginning
  bool has_starter = false;
  std::uint32_t last_class = 0;  // of the character before, within the starter's sequence
  for (char32_t const c : characters) {
    std::uint32_t const own = combining_class(c);
    bool const adjacent = has_starter && starter + 1 == length;
    bool const blocked = !adjacent && (last_class == 0 || last_class >= own);
    if (char32_t const both = has_starter && !blocked ? composed(characters[starter], c) : 0; both != 0) {
      characters[starter] = both;
      continue;
    }
    if (own == 0) starter = length, has_starter = true;
    last_class = own;
    characters[length++] = c;
  }
  characters.resize(length);
}

/// Canonical decomposition (form D) of valid UTF-8.
inline std::string nfd(std::string_view text) { return utf8::from_utf32(decomposed(text)); }

/// Canonical composition (form C) of valid UTF-8.
inline std::string nfc(std::string_view text) {
  // Nothing below U+0300 combines or decomposes into something that would not compose again.
  if (std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0xCC; }))
    return std::string(text);
  std::u32string characters = decomposed(text);
  compose(characters);
  return utf8::from_utf32(characters);
}

/// Appends the lower case of `c` (without context: no final sigma).
inline void append_lower(std::string& out, char32_t c) {
  if (c == 0x130) return void(out += "i\xCC\x87");
  auto const range = std::upper_bound(std::begin(lower_ranges), std::end(lower_ranges), c,
                                      [](char32_t code, LowerRange const& r) { return code <= r.last; });
  bool const has_lower = range != std::end(lower_ranges) && range->first <= c && (c - range->first) % range->step == 0;
  utf8::append(out, has_lower ? range->lower + (c - range->first) : c);
}

}  // namespace graft::unicode
