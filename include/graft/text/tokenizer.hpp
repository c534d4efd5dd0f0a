// SPDX-License-Identifier: Apache-2.0
// Text to token ids and back, for every kind of tokenizer; and decoding of a stream that never splits a character.
#pragma once

#include <graft/core/error.hpp>
#include <graft/text/added_tokens.hpp>
#include <graft/text/byte_level_bpe.hpp>
#include <graft/text/tokenizer_spec.hpp>
#include <graft/text/utf8.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

namespace graft {

/// Immutable and cheap to copy; any number of threads may use one at once.
class Tokenizer {
 public:
  /// ContractError or FormatError where the parts of `spec` do not fit together.
  explicit Tokenizer(TokenizerSpec spec) : state_(std::make_shared<State const>(std::move(spec))) {}

  /// The tokens of `text`; bytes that are not UTF-8 count as U+FFFD. `add_special` surrounds them by what the
  /// tokenizer puts around a text (BOS, [CLS] ... [SEP]); without `parse_special`, special tokens spelled out in
  /// `text` are ordinary characters.
  std::vector<std::int32_t> encode(std::string_view text, bool add_special = true, bool parse_special = true) const {
    std::vector<std::int32_t> out;
    for (TemplatePiece const& piece : state_->spec.single) {
      if (piece.id == TemplatePiece::first_text)
        append(text, parse_special, out);
      else if (add_special)
        out.push_back(piece.id);
    }
    return out;
  }

  struct Pair {
    std::vector<std::int32_t> tokens, type_ids;
  };
  /// Two texts in one sequence, as encoders take sentence pairs, with the type of each token.
  Pair encode_pair(std::string_view first, std::string_view second, bool parse_special = true) const {
    Pair out;
    for (TemplatePiece const& piece : state_->spec.pair) {
      if (piece.id >= 0)
        out.tokens.push_back(piece.id);
      else
        append(piece.id == TemplatePiece::first_text ? first : second, parse_special, out.tokens);
      out.type_ids.resize(out.tokens.size(), piece.type_id);
    }
    return out;
  }

  /// The text of `tokens`; byte sequences that are not UTF-8 become U+FFFD. ContractError for an id out of range.
  std::string decode(std::span<std::int32_t const> tokens, bool skip_special = false) const;

  std::size_t vocabulary_size() const { return state_->spec.tokens.size(); }
  /// The id of a token in the file's spelling ("<|im_end|>", "Ġthe"), or -1.
  std::int32_t token_id(std::string_view token) const {
    auto const found = state_->ids.find(token);
    return found == state_->ids.end() ? -1 : found->second;
  }
  /// What `id` says, in the file's spelling.
  std::string const& token(std::int32_t id) const { return state_->spec.tokens[index_of(id)]; }
  bool is_special(std::int32_t id) const { return state_->roles[index_of(id)] == Role::special; }

  std::int32_t bos() const { return state_->spec.bos; }  ///< -1: there is none; so for the next four
  std::int32_t eos() const { return state_->spec.eos; }
  std::int32_t unknown() const { return state_->spec.unknown; }
  std::int32_t padding() const { return state_->spec.padding; }
  std::int32_t end_of_turn() const { return state_->spec.end_of_turn; }
  /// Whether encode(..., add_special) starts with BOS.
  bool adds_bos() const { return bos() >= 0 && state_->spec.single.front().id == bos(); }
  std::string const& chat_template() const { return state_->spec.chat_template; }

 private:
  friend class StreamDecoder;
  using Model = std::variant<ByteLevelBpe>;
  enum class Role : char { ordinary, added, special };

  struct State {
    explicit State(TokenizerSpec given) : spec(std::move(given)), ids(index(spec)), model(make_model(spec, ids)) {
      roles.resize(spec.tokens.size(), Role::ordinary);
      for (AddedToken const& token : spec.added) {
        expects(token.id >= 0 && static_cast<std::size_t>(token.id) < spec.tokens.size(), "added token \"",
                token.content, "\" has id ", token.id, " outside the vocabulary of ", spec.tokens.size());
        roles[static_cast<std::size_t>(token.id)] = token.special ? Role::special : Role::added;
      }
      added = AddedTokens(spec.added);
    }

    TokenizerSpec spec;
    ByteLevelBpe::Vocabulary ids;  // views into spec.tokens
    Model model;
    AddedTokens added;
    std::vector<Role> roles;  // by id
  };

  static ByteLevelBpe::Vocabulary index(TokenizerSpec const& spec) {
    ByteLevelBpe::Vocabulary ids;
    ids.reserve(spec.tokens.size());
    for (std::size_t k = 0; k < spec.tokens.size(); ++k)
      if (!spec.tokens[k].empty()) ids.emplace(spec.tokens[k], static_cast<std::int32_t>(k));
    return ids;
  }
  static Model make_model(TokenizerSpec const& spec, ByteLevelBpe::Vocabulary const& ids) {
    return ByteLevelBpe(spec, ids);
  }

  void append(std::string_view text, bool parse_special, std::vector<std::int32_t>& out) const {
    std::string repaired;
    if (!utf8::is_valid(text)) text = repaired = utf8::repaired(std::string(text));
    state_->added.split(text, parse_special, [&](std::string_view part, std::int32_t id) {
      if (id >= 0)
        out.push_back(id);
      else
        std::visit([&](auto const& model) { model.encode(part, out); }, state_->model);
    });
  }

  std::size_t index_of(std::int32_t id) const {
    expects(id >= 0 && static_cast<std::size_t>(id) < state_->spec.tokens.size(), "token ", id,
            " is outside the vocabulary of ", state_->spec.tokens.size());
    return static_cast<std::size_t>(id);
  }

  void append_bytes(std::int32_t id, bool first, std::string& bytes) const {
    std::string const& spelled = token(id);
    if (state_->roles[index_of(id)] != Role::ordinary)
      bytes += spelled;
    else
      std::visit([&](auto const& model) { model.decode(spelled, id, first, bytes); }, state_->model);
  }

  std::shared_ptr<State const> state_;
};

/// Decodes tokens as they arrive; what it returns, joined, is what Tokenizer::decode gives for all of them.
class StreamDecoder {
 public:
  explicit StreamDecoder(Tokenizer tokenizer, bool skip_special = false)
      : tokenizer_(std::move(tokenizer)), skip_special_(skip_special) {}

  /// The text that became complete with token `id`; empty while a character's last bytes have not come yet.
  std::string push(std::int32_t id) {
    std::string out;
    if (skip_special_ && tokenizer_.is_special(id)) return out;
    tokenizer_.append_bytes(id, first_, pending_);
    first_ = false;
    utf8::drain(pending_, out);
    return out;
  }

  /// What is still held back: U+FFFD for an unfinished character, otherwise nothing. The decoder may be used again.
  std::string finish() {
    std::string const out = pending_.empty() ? "" : std::string(utf8::replacement);
    pending_.clear();
    first_ = true;
    return out;
  }

 private:
  Tokenizer tokenizer_;
  bool skip_special_, first_ = true;
  std::string pending_;
};

inline std::string Tokenizer::decode(std::span<std::int32_t const> tokens, bool skip_special) const {
  StreamDecoder stream(*this, skip_special);
  std::string out;
  for (std::int32_t const id : tokens) out += stream.push(id);
  return out += stream.finish();
}

}  // namespace graft
