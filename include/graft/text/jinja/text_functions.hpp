// SPDX-License-Identifier: Apache-2.0
// Python's string methods and slices, over code points.
#pragma once

#include <graft/core/error.hpp>
#include <graft/text/jinja/lexer.hpp>
#include <graft/text/jinja/value.hpp>
#include <graft/text/unicode.hpp>
#include <graft/text/utf8.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace graft::jinja {

/// Without the characters of `unwanted` (white space when absent) at its ends.
inline std::string stripped(std::string_view text, std::optional<std::string> const& unwanted, bool left, bool right) {
  std::u32string const set = unwanted ? utf8::to_utf32(*unwanted) : std::u32string();
  auto const goes = [&](char32_t c) { return unwanted ? set.find(c) != std::u32string::npos : is_python_space(c); };
  std::size_t begin = 0, end = text.size();
  if (left)
    for (std::size_t k = 0; k < end && goes(utf8::next(text, k));) begin = k;
  if (right)
    for (std::size_t k = end; k > begin && goes(utf8::previous(text, k));) end = k;
  return std::string(text.substr(begin, end - begin));
}

/// At each `separator`, or at runs of white space without one; at most `most` times unless negative.
inline std::vector<std::string> split(std::string_view text, std::optional<std::string> const& separator,
                                      std::int64_t most) {
  std::vector<std::string> out;
  if (separator) {
    for (;;) {
      std::size_t const at = most == 0 ? std::string_view::npos : text.find(*separator);
      out.emplace_back(text.substr(0, at));
      if (at == std::string_view::npos) return out;
      text.remove_prefix(at + separator->size());
      --most;
    }
  }
  for (;;) {
    std::string const rest = stripped(text, std::nullopt, true, false);
    if (rest.empty()) return out;
    std::size_t end = 0;
    for (std::size_t k = 0; k < rest.size() && !is_python_space(utf8::next(rest, k));) end = k;
    if (most-- == 0) {
      out.push_back(rest);
      return out;
    }
    out.push_back(rest.substr(0, end));
    text.remove_prefix(text.size() - rest.size() + end);
  }
}

/// At most `most` occurrences of `from`, which is not empty, unless `most` is negative.
inline std::string replaced(std::string_view text, std::string const& from, std::string const& to, std::int64_t most) {
  std::string out;
  for (std::size_t at; most-- != 0 && (at = text.find(from)) != std::string_view::npos;) {
    append(out, text.substr(0, at));
    append(out, to);
    text.remove_prefix(at + from.size());
  }
  append(out, text);
  return out;
}

/// Without the final sigma.
inline std::string lower(std::string_view text) {
  std::string out;
  for (std::size_t k = 0; k < text.size();) unicode::append_lower(out, utf8::next(text, k));
  return out;
}

enum class Capitals { all, first_of_text, first_of_words };

/// Upper case of ASCII letters, lower case of the others where not `all`. Nothing else has its upper case tabulated:
/// FormatError.
inline std::string capitals(std::string_view text, Capitals which) {
  std::string out;
  bool first = true;
  for (char const c : text) {
    if (static_cast<unsigned char>(c) >= 0x80)
      raise<FormatError>("chat template: upper case is supported for ASCII text only");
    bool const is_lower = c >= 'a' && c <= 'z', is_upper = c >= 'A' && c <= 'Z';
    bool const raised = which == Capitals::all || first;
    out += static_cast<char>(raised && is_lower ? c - 32 : !raised && is_upper ? c + 32 : c);
    first = which == Capitals::first_of_words && !is_lower && !is_upper;
  }
  return out;
}

/// Which of `size` elements sequence[start:stop:step] takes, in order.
inline std::vector<std::size_t> slice_indices(std::size_t size, std::optional<std::int64_t> start,
                                              std::optional<std::int64_t> stop, std::int64_t step) {
  auto const count = static_cast<std::int64_t>(size);
  auto const bound = [&](std::optional<std::int64_t> value, std::int64_t absent) {
    if (!value) return absent;
    std::int64_t const lowest = step < 0 ? -1 : 0, highest = step < 0 ? count - 1 : count;
    return std::clamp(*value < 0 ? *value + count : *value, lowest, highest);
  };
  std::int64_t const last = bound(stop, step < 0 ? -1 : count);
  std::vector<std::size_t> out;
  for (std::int64_t k = bound(start, step < 0 ? count - 1 : 0); step < 0 ? k > last : k < last;) {
    out.push_back(static_cast<std::size_t>(k));
    if (step > count || step < -count) break;  // k + step might overflow
    k += step;
  }
  return out;
}

}  // namespace graft::jinja
