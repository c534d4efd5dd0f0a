// SPDX-License-Identifier: Apache-2.0
// Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM): every byte is a symbol, so every text has tokens.
#pragma once

#include <graft/core/error.hpp>
#include <graft/text/bpe_merge.hpp>
#include <graft/text/pre_tokenizer.hpp>
#include <graft/text/tokenizer_spec.hpp>
#include <graft/text/utf8.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace graft {

/// GPT-2's printable alphabet for bytes: files spell a token as one character per byte, a space as "Ġ".
class ByteAlphabet {
 public:
  ByteAlphabet() {
    char32_t spare = 256;
    for (unsigned byte = 0; byte < 256; ++byte) {
      bool const printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
      characters_[byte] = printable ? static_cast<char32_t>(byte) : spare++;
    }
    bytes_.fill(-1);
    for (unsigned byte = 0; byte < 256; ++byte) bytes_[characters_[byte]] = static_cast<int>(byte);
  }

  std::string spell(unsigned char byte) const {
    std::string out;
    utf8::append(out, characters_[byte]);
    return out;
  }
  /// The bytes that `token` spells; a token with other characters (added tokens may have them) stands for itself.
  std::string bytes(std::string const& token) const {
    std::string out;
    for (std::size_t k = 0; k < token.size();) {
      char32_t const c = utf8::next(token, k);
      if (c >= bytes_.size() || bytes_[c] < 0) return token;
      out.push_back(static_cast<char>(bytes_[c]));
    }
    return out;
  }

 private:
  std::array<char32_t, 256> characters_;
  std::array<int, 324> bytes_;  // 256 + the 68 bytes that are not printable
};

class ByteLevelBpe {
 public:
  using Vocabulary = std::unordered_map<std::string_view, std::int32_t>;

  /// `ids` finds tokens by the file's spelling.
  ByteLevelBpe(TokenizerSpec const& spec, Vocabulary const& ids)
      : pre_tokenizer_(spec.pre_tokenizer), add_prefix_space_(spec.add_prefix_space), merges_(spec.merges.size()) {
    auto const id_of = [&](std::string const& token) {
      auto const found = ids.find(token);
      return found == ids.end() ? -1 : found->second;
    };
    for (unsigned byte = 0; byte < 256; ++byte)
      byte_ids_[byte] = id_of(alphabet().spell(static_cast<unsigned char>(byte)));
    std::int32_t rank = 0;
    for (auto const& [left, right] : spec.merges) {
      std::int32_t const a = id_of(left), b = id_of(right), merged = id_of(left + right);
      if (a < 0 || b < 0 || merged < 0)
        raise<FormatError>(text("merge ", rank, ", \"", left, "\" with \"", right, "\", needs a token \"",
                                a < 0   ? left
                                : b < 0 ? right
                                        : left + right,
                                "\" that the vocabulary lacks"));
      merges_.insert(a, b, {rank++, merged});
    }
    if (spec.ignore_merges)
      for (auto const& [token, id] : ids) words_.emplace(alphabet().bytes(std::string(token)), id);
  }

  /// Appends the tokens of `text`, valid UTF-8 without added tokens. A byte that has no token leaves none, as in
  /// Hugging Face's tokenizers.
  void encode(std::string_view text, std::vector<std::int32_t>& out) const {
    std::string spaced;
    if (add_prefix_space_ && !text.empty() && text[0] != ' ') text = spaced.append(" ").append(text);
    Merger merger;
    std::vector<std::int32_t> symbols;
    pre_tokenizer_.split(text, [&](std::string_view word) {
      if (!words_.empty())
        if (auto const whole = words_.find(std::string(word)); whole != words_.end())
          return out.push_back(whole->second);
      symbols.clear();
      for (char const c : word)
        if (auto const id = byte_ids_[static_cast<unsigned char>(c)]; id >= 0) symbols.push_back(id);
      merger.merge(merges_, symbols);
      out.insert(out.end(), symbols.begin(), symbols.end());
    });
  }

  /// Appends the bytes that a token spells; `first`: no token came before it.
  void decode(std::string const& token, std::int32_t /*id*/, bool /*first*/, std::string& bytes) const {
    bytes += alphabet().bytes(token);
  }

 private:
  static ByteAlphabet const& alphabet() {
    static ByteAlphabet const one;
    return one;
  }

  PreTokenizer pre_tokenizer_;
  bool add_prefix_space_;
  std::array<std::int32_t, 256> byte_ids_;
  MergeTable merges_;
  std::unordered_map<std::string, std::int32_t> words_;  // by their bytes; only where merges may be skipped
};

}  // namespace graft
