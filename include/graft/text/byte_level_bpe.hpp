// SPDX-License-Identifier: Apache-2.0
// Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM): every byte is a symbol, so every text has tokens.
#pragma once

#include <graft/text/bpe_merge.hpp>
#include <graft/text/pre_tokenizer.hpp>
#include <graft/text/tokenizer_spec.hpp>
#include <graft/text/unicode.hpp>
#include <graft/text/utf8.hpp>
#include <graft/text/vocabulary.hpp>

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
  ByteLevelBpe(TokenizerSpec const& spec, Vocabulary const& ids)
      : pre_tokenizer_(spec.pre_tokenizer),
        add_prefix_space_(spec.add_prefix_space),
        nfc_(spec.nfc),
        merges_(merge_table(spec, ids)) {
    for (unsigned byte = 0; byte < 256; ++byte)
      byte_ids_[byte] = ids.find(alphabet().spell(static_cast<unsigned char>(byte)));
    if (!spec.ignore_merges) return;
    for (std::string const& token : spec.tokens)
      if (!token.empty()) words_.emplace(alphabet().bytes(token), ids.find(token));
  }

  std::string normalized(std::string_view text) const { return nfc_ ? unicode::nfc(text) : std::string(text); }

  /// Appends the tokens of `text`, normalised and without added tokens. A byte that has no token leaves none, as in
  /// Hugging Face's tokenizers.
  void encode(std::string_view text, bool /*at_start*/, std::vector<std::int32_t>& out) const {
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

  /// Appends the bytes of a token; added tokens stand for themselves.
  void decode(std::string const& token, bool added, bool /*first*/, std::string& bytes) const {
    bytes += added ? token : alphabet().bytes(token);
  }

 private:
  static ByteAlphabet const& alphabet() {
    static ByteAlphabet const one;
    return one;
  }

  PreTokenizer pre_tokenizer_;
  bool add_prefix_space_, nfc_;
  std::array<std::int32_t, 256> byte_ids_;
  MergeTable merges_;
  std::unordered_map<std::string, std::int32_t> words_;  // by their bytes; only where merges may be skipped
};

}  // namespace graft
