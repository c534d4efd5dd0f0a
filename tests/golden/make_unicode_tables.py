# SPDX-License-Identifier: Apache-2.0
"""Writes include/graft/text/unicode_tables.hpp from Python's unicodedata; what BERT's normaliser and pre-tokenizer
take for accents, control characters and punctuation is asked of Hugging Face's tokenizers, whose tables are older.

    python tests/golden/make_unicode_tables.py > include/graft/text/unicode_tables.hpp
"""
import sys
import unicodedata

from tokenizers import normalizers, pre_tokenizers

CODES = [k for k in range(0x110000) if not 0xD800 <= k < 0xE000]
HANGUL = range(0xAC00, 0xAC00 + 11172)  # computed, not tabulated


def rows(entries):
    """Entries "{...}" packed into lines of at most 120 columns."""
    lines, line = [], "   "
    for entry in entries:
        if len(line) + len(entry) + 2 > 120:
            lines.append(line)
            line = "   "
        line += " " + entry + ","
    return "\n".join(lines + [line])


def braces(*values):
    return "{" + ", ".join(f"0x{v:X}" if v > 9 else str(v) for v in values) + "}"


decompositions, exclusions = [], []
for code in CODES:
    mapping = unicodedata.decomposition(chr(code))
    if not mapping or mapping.startswith("<") or code in HANGUL:
        continue
    parts = [int(part, 16) for part in mapping.split()]
    assert len(parts) <= 2
    decompositions.append((code, parts[0], parts[1] if len(parts) == 2 else 0))
    if len(parts) == 2 and unicodedata.normalize("NFC", chr(parts[0]) + chr(parts[1])) != chr(code):
        exclusions.append(code)

classes = []  # first, last, combining class
for code in CODES:
    value = unicodedata.combining(chr(code))
    if value and classes and classes[-1][1] == code - 1 and classes[-1][2] == value:
        classes[-1][1] = code
    elif value:
        classes.append([code, code, value])

lower = []  # first, last, step, lower case of first
for code in CODES:
    mapped = chr(code).lower()
    if mapped == chr(code):
        continue
    if code == 0x130:
        assert mapped == "i\u0307"
        continue
    target = ord(mapped)
    last = lower[-1] if lower else None
    if last and target - code == last[3] - last[0] and (code - last[1] == last[2] or (last[0] == last[1] and code - last[1] <= 2)):
        last[2], last[1] = code - last[1], code
    else:
        lower.append([code, code, 1, target])

OFF = dict(clean_text=False, handle_chinese_chars=False, strip_accents=False, lowercase=False)
strip_accents = normalizers.BertNormalizer(**{**OFF, "strip_accents": True})
clean_text = normalizers.BertNormalizer(**{**OFF, "clean_text": True})
split = pre_tokenizers.BertPreTokenizer()


def ranges(holds):
    found = []
    for code in CODES:
        if holds(chr(code)):
            if found and found[-1][1] == code - 1:
                found[-1][1] = code
            else:
                found.append([code, code])
    return found


accents = ranges(lambda c: strip_accents.normalize_str(c) == "")
dropped = ranges(lambda c: clean_text.normalize_str(c) == "")
punctuation = ranges(lambda c: len(split.pre_tokenize_str("a" + c + "b")) == 3)

print(f"""// SPDX-License-Identifier: Apache-2.0
// Unicode {unicodedata.unidata_version}: canonical decompositions, combining classes, lower case.
// Written by tests/golden/make_unicode_tables.py.
#pragma once

#include <cstdint>

namespace graft::unicode {{

/// `code` decomposes canonically into `first` and, unless it is 0, `second`.
struct Decomposition {{
  std::uint32_t code, first, second;
}};
/// The characters first ... last have this canonical combining class; all others have class 0.
struct CombiningRange {{
  std::uint32_t first, last, combining_class;
}};
/// first, first + step, ..., last have the lower case lower, lower + step, ...
struct LowerRange {{
  std::uint32_t first, last, step, lower;
}};

/// The characters first ... last.
struct Range {{
  std::uint32_t first, last;
}};

// clang-format off
inline constexpr Decomposition decompositions[] = {{  // sorted by code
{rows(braces(*d) for d in decompositions)}
}};

/// Pairs that decompose but never compose again.
inline constexpr std::uint32_t composition_exclusions[] = {{  // sorted
{rows(f"0x{code:X}" for code in exclusions)}
}};

inline constexpr CombiningRange combining_ranges[] = {{  // sorted
{rows(braces(*c) for c in classes)}
}};

inline constexpr LowerRange lower_ranges[] = {{  // sorted; U+0130 alone has two characters as its lower case
{rows(braces(*entry) for entry in lower)}
}};

// What BERT's tokenizer takes for ..., as Hugging Face's tokenizers have it (Unicode 8). All sorted.
inline constexpr Range bert_accents[] = {{  // stripped after decomposition
{rows(braces(*r) for r in accents)}
}};
inline constexpr Range bert_dropped[] = {{  // control, format and private use characters, U+0000, U+FFFD
{rows(braces(*r) for r in dropped)}
}};
inline constexpr Range bert_punctuation[] = {{  // a word each
{rows(braces(*r) for r in punctuation)}
}};
// clang-format on

}}  // namespace graft::unicode""")
print(len(decompositions), len(exclusions), len(classes), len(lower), len(accents), len(dropped), len(punctuation), file=sys.stderr)
