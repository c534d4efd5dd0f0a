// SPDX-License-Identifier: Apache-2.0
// How byte-level BPE cuts text into words before merging: the known pre-tokenizers, by name.
#pragma once

#include <graft/core/error.hpp>
#include <graft/text/regex.hpp>

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace graft {

namespace pre_tokenizers {

// In the authors' spelling; \s and \S are spelled out when compiled.
inline constexpr std::string_view gpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view llama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view qwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view digits = R"(\p{N})";

/// One family of words. Its stages are applied one after the other, each cutting the pieces of the one before into
/// matches and gaps.
struct Known {
  std::string_view name;  ///< the value of GGUF's tokenizer.ggml.pre
  std::vector<std::string_view> stages;
};

inline std::vector<Known> const& known() {
  static std::vector<Known> const list = {
      {"gpt-2", {gpt2}},          {"gpt2", {gpt2}},
      {"roberta-bpe", {gpt2}},    {"llama-bpe", {llama3}},
      {"llama3", {llama3}},       {"llama-v3", {llama3}},
      {"qwen2", {qwen2}},         {"deepseek-r1-qwen", {qwen2}},
      {"smollm", {digits, gpt2}}, {"starcoder", {digits, gpt2}},
      {"refact", {digits, gpt2}},
  };
  return list;
}

inline Known const* find(std::string_view name) {
  for (auto const& entry : known())
    if (entry.name == name) return &entry;
  return nullptr;
}

/// `pattern` with \s and \S, inside classes and outside, replaced by Unicode's White_Space as the authors meant it.
inline std::string with_explicit_white_space(std::string_view pattern) {
  std::string out;
  bool in_class = false;
  for (std::size_t k = 0; k < pattern.size(); ++k) {
    char const c = pattern[k], following = k + 1 < pattern.size() ? pattern[k + 1] : '\0';
    if (c == '\\' && (following == 's' || (following == 'S' && !in_class))) {
      out += in_class ? std::string(white_space_class) : text(following == 's' ? "[" : "[^", white_space_class, "]");
      ++k;
    } else if (c == '\\') {
      out += c, out += following, ++k;
    } else {
      if (c == '[' || c == ']') in_class = c == '[';
      out += c;
    }
  }
  return out;
}

}  // namespace pre_tokenizers

/// Cuts text into the words that byte-level BPE merges within.
class PreTokenizer {
 public:
  /// `name` as in GGUF's tokenizer.ggml.pre; a ContractError lists the known ones.
  explicit PreTokenizer(std::string_view name) {
    pre_tokenizers::Known const* const entry = pre_tokenizers::find(name);
    if (entry == nullptr) {
      std::string names;
      for (auto const& one : pre_tokenizers::known()) names += text(names.empty() ? "" : ", ", one.name);
      raise<ContractError>("pre-tokenizer \"", name, "\" is not known; known are ", names);
    }
    for (auto const stage : entry->stages) stages_.emplace_back(pre_tokenizers::with_explicit_white_space(stage));
  }

  static bool knows(std::string_view name) { return pre_tokenizers::find(name) != nullptr; }
  /// Whether two known names mean the same.
  static bool same(std::string_view a, std::string_view b) {
    return knows(a) && knows(b) && pre_tokenizers::find(a)->stages == pre_tokenizers::find(b)->stages;
  }

  /// Calls word(part) for each word of `subject` (valid UTF-8), in order.
  template <class F>
  void split(std::string_view subject, F const& word) const {
    split_from(0, subject, word);
  }

 private:
  template <class F>
  void split_from(std::size_t stage, std::string_view subject, F const& word) const {
    if (stage == stages_.size()) return word(subject);
    stages_[stage].split(subject, [&](std::string_view part, bool) { split_from(stage + 1, part, word); });
  }

  std::vector<Regex> stages_;
};

}  // namespace graft
