// SPDX-License-Identifier: Apache-2.0
// Text to token ids and back, for every kind of tokenizer; and decoding of a stream that never splits a character.
#pragma once

#include <graft/io/compiled.hpp>
#include <graft/text/tokenizer_spec.hpp>

#if GRAFT_FILES_ARE_HERE
#include <graft/core/error.hpp>
#include <graft/io/checked.hpp>
#include <graft/text/added_tokens.hpp>
#include <graft/text/byte_level_bpe.hpp>
#include <graft/text/sentencepiece_bpe.hpp>
#include <graft/text/utf8.hpp>
#include <graft/text/vocabulary.hpp>
#include <graft/text/wordpiece.hpp>

#include <variant>
#endif

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace graft {

/// Immutable and cheap to copy; any number of threads may use one at once.
class Tokenizer {
 public:
  /// FormatError, naming `spec.source`, where the parts of `spec` do not fit together.
  explicit Tokenizer(TokenizerSpec spec);

  /// The tokens of `text`; bytes that are not UTF-8 count as U+FFFD. `add_special` surrounds them by what the
  /// tokenizer puts around a text (BOS, [CLS] ... [SEP]); without `parse_special`, special tokens spelled out in
  /// `text` are ordinary characters.
  std::vector<std::int32_t> encode(std::string_view text, bool add_special = true, bool parse_special = true) const;

  struct Pair {
    std::vector<std::int32_t> tokens, type_ids;
  };
  /// Two texts in one sequence, as encoders take sentence pairs, with the type of each token.
  Pair encode_pair(std::string_view first, std::string_view second, bool parse_special = true) const;

  /// The text of `tokens`; byte sequences that are not UTF-8 become U+FFFD, and so does every byte of a run of
  /// SentencePiece's <0xNN> tokens that is not UTF-8 as a whole. An id behind the vocabulary says nothing: many models
  /// have more outputs than their tokenizer has tokens. ContractError for a negative one.
  std::string decode(std::span<std::int32_t const> tokens, bool skip_special = false) const;

  std::size_t vocabulary_size() const { return spec_->tokens.size(); }
  /// The id of a token in the file's spelling ("<|im_end|>", "Ġthe"), or -1.
  std::int32_t token_id(std::string_view token) const;
  /// What `id` says, in the file's spelling.
  std::string const& token(std::int32_t id) const;
  bool is_special(std::int32_t id) const;

  std::int32_t bos() const { return spec_->bos; }  ///< -1: there is none; so for the next four
  std::int32_t eos() const { return spec_->eos; }
  std::int32_t unknown() const { return spec_->unknown; }
  std::int32_t padding() const { return spec_->padding; }
  std::int32_t end_of_turn() const { return spec_->end_of_turn; }
  /// Whether encode(..., add_special) starts with BOS.
  bool adds_bos() const { return bos() >= 0 && spec_->single.front().id == bos(); }
  std::string const& chat_template() const { return spec_->chat_template; }

 private:
  friend class StreamDecoder;
  struct State;

  void append(std::string_view text, bool parse_special, std::vector<std::int32_t>& out) const;
  void append_bytes(std::int32_t id, bool first, std::string& bytes) const;
  bool is_byte(std::int32_t id) const;  // one of SentencePiece's <0xNN>

  std::shared_ptr<State const> state_;
  TokenizerSpec const* spec_;  // in the state
};

/// Decodes tokens as they arrive; what it returns, joined, is what Tokenizer::decode gives for all of them. But for a
/// run of <0xNN> tokens that turns out not to be UTF-8: the characters it began with are not taken back.
class StreamDecoder {
 public:
  explicit StreamDecoder(Tokenizer tokenizer, bool skip_special = false)
      : tokenizer_(std::move(tokenizer)), skip_special_(skip_special) {}

  /// The text that became complete with token `id`; empty while a character's last bytes have not come yet.
  std::string push(std::int32_t id);

  /// What is still held back: U+FFFD for an unfinished character, otherwise nothing. The decoder may be used again.
  std::string finish();

 private:
  friend class Tokenizer;
  void drain_run(std::string& out);
  void end_run(std::string& out);
  std::string from_start(std::string out);

  Tokenizer tokenizer_;
  bool skip_special_, whole_runs_ = false;
  bool first_ = true, at_start_ = true;          // no token, no text yet
  bool in_run_ = false, run_is_broken_ = false;  // of <0xNN> tokens
  std::string pending_;
};

#if GRAFT_FILES_ARE_HERE
namespace detail {
// What Hugging Face's ByteFallback makes of a run of bytes that is not UTF-8.
inline void replace_bytes(std::string& bytes, std::string& out) {
  for (std::size_t k = 0; k < bytes.size(); ++k) out += utf8::replacement;
  bytes.clear();
}
}  // namespace detail

struct Tokenizer::State {
  using Model = std::variant<ByteLevelBpe, SentencePieceBpe, WordPiece>;
  enum class Role : char { ordinary, added, special };

  explicit State(TokenizerSpec given) : spec(checked(std::move(given))), ids(spec.tokens), model(make_model()) {
    roles.resize(spec.tokens.size(), Role::ordinary);
    std::vector<AddedToken> raw, normalized;
    for (AddedToken token : spec.added) {
      roles[static_cast<std::size_t>(token.id)] = token.special ? Role::special : Role::added;
      if (token.normalized) token.content = normal_form(token.content);
      (token.normalized ? normalized : raw).push_back(std::move(token));
    }
    in_raw = AddedTokens(std::move(raw));
    in_normalized = AddedTokens(std::move(normalized));
  }
  State(State const&) = delete;  // the parts below refer to those above

  static TokenizerSpec checked(TokenizerSpec spec) {
    check_spec(spec);
    return spec;
  }
  Model make_model() const {
    switch (spec.kind) {
      case TokenizerKind::byte_level_bpe:
        return Model(std::in_place_type<ByteLevelBpe>, spec, ids);
      case TokenizerKind::sentencepiece_bpe:
        return Model(std::in_place_type<SentencePieceBpe>, spec, ids);
      case TokenizerKind::wordpiece:
        break;
    }
    return Model(std::in_place_type<WordPiece>, spec, ids);
  }
  std::string normal_form(std::string_view text) const {
    return std::visit([&](auto const& one) { return one.normalized(text); }, model);
  }
  std::size_t index_of(std::int32_t id) const {
    expects(id >= 0 && static_cast<std::size_t>(id) < spec.tokens.size(), "token ", id,
            " is outside the vocabulary of ", spec.tokens.size());
    return static_cast<std::size_t>(id);
  }

  TokenizerSpec spec;
  Vocabulary ids;
  Model model;
  AddedTokens in_raw, in_normalized;  // found in the text as it comes; found after normalisation
  std::vector<Role> roles;            // by id
};

GRAFT_FILES Tokenizer::Tokenizer(TokenizerSpec spec)
    : state_(std::make_shared<State const>(std::move(spec))), spec_(&state_->spec) {}

GRAFT_FILES std::vector<std::int32_t> Tokenizer::encode(std::string_view text, bool add_special,
                                                        bool parse_special) const {
  std::vector<std::int32_t> out;
  for (TemplatePiece const& piece : spec_->single) {
    if (piece.id == TemplatePiece::first_text)
      append(text, parse_special, out);
    else if (add_special)
      out.push_back(piece.id);
  }
  return out;
}

GRAFT_FILES Tokenizer::Pair Tokenizer::encode_pair(std::string_view first, std::string_view second,
                                                   bool parse_special) const {
  Pair out;
  for (TemplatePiece const& piece : spec_->pair) {
    if (piece.id >= 0)
      out.tokens.push_back(piece.id);
    else
      append(piece.id == TemplatePiece::first_text ? first : second, parse_special, out.tokens);
    out.type_ids.resize(out.tokens.size(), piece.type_id);
  }
  return out;
}

GRAFT_FILES std::string Tokenizer::decode(std::span<std::int32_t const> tokens, bool skip_special) const {
  StreamDecoder stream(*this, skip_special);
  stream.whole_runs_ = true;
  std::string out;
  for (std::int32_t const id : tokens) out += stream.push(id);
  return out += stream.finish();
}

GRAFT_FILES std::int32_t Tokenizer::token_id(std::string_view token) const { return state_->ids.find(token); }
GRAFT_FILES std::string const& Tokenizer::token(std::int32_t id) const { return spec_->tokens[state_->index_of(id)]; }
GRAFT_FILES bool Tokenizer::is_special(std::int32_t id) const {
  return state_->roles[state_->index_of(id)] == State::Role::special;
}

GRAFT_FILES void Tokenizer::append(std::string_view text, bool parse_special, std::vector<std::int32_t>& out) const {
  std::string repaired;
  if (!valid_utf8(text)) text = repaired = utf8::repaired(std::string(text));
  bool at_start = true;
  auto const put = [&](std::int32_t id) {
    at_start = false;
    out.push_back(id);
  };
  state_->in_raw.split(text, parse_special, [&](std::string_view raw, std::int32_t raw_id) {
    if (raw_id >= 0) return put(raw_id);
    state_->in_normalized.split(state_->normal_form(raw), parse_special, [&](std::string_view part, std::int32_t id) {
      if (id >= 0) return put(id);
      std::visit([&](auto const& model) { model.encode(part, at_start, out); }, state_->model);
      at_start = false;
    });
  });
}

GRAFT_FILES void Tokenizer::append_bytes(std::int32_t id, bool first, std::string& bytes) const {
  bool const added = state_->roles[state_->index_of(id)] != State::Role::ordinary;
  std::visit([&](auto const& model) { model.decode(token(id), added, first, bytes); }, state_->model);
}

GRAFT_FILES bool Tokenizer::is_byte(std::int32_t id) const {
  return std::holds_alternative<SentencePieceBpe>(state_->model) && SentencePieceBpe::is_byte(token(id));
}

GRAFT_FILES std::string StreamDecoder::push(std::int32_t id) {
  std::string out;
  if (id >= 0 && static_cast<std::size_t>(id) >= tokenizer_.vocabulary_size()) return out;
  if (skip_special_ && tokenizer_.is_special(id)) return out;
  bool const was_in_run = std::exchange(in_run_, tokenizer_.is_byte(id));
  if (was_in_run && !in_run_) end_run(out);
  tokenizer_.append_bytes(id, first_, pending_);
  first_ = false;
  if (!in_run_)
    utf8::drain(pending_, out);
  else if (!whole_runs_)
    drain_run(out);
  return from_start(std::move(out));
}

GRAFT_FILES std::string StreamDecoder::finish() {
  std::string out;
  if (in_run_)
    end_run(out);
  else if (!pending_.empty())
    out = utf8::replacement;
  out = from_start(std::move(out));
  *this = StreamDecoder(tokenizer_, skip_special_);
  return out;
}

// Gives whole characters as they come, and from the first wrong byte on U+FFFD for each byte of the run.
GRAFT_FILES void StreamDecoder::drain_run(std::string& out) {
  auto const step = run_is_broken_ ? utf8::Step{utf8::Step::Kind::broken, 1} : utf8::step(pending_);
  if (step.kind == utf8::Step::Kind::unfinished) return;
  run_is_broken_ = step.kind == utf8::Step::Kind::broken;
  if (run_is_broken_) return detail::replace_bytes(pending_, out);
  out += pending_;
  pending_.clear();
}

GRAFT_FILES void StreamDecoder::end_run(std::string& out) {
  if (!valid_utf8(pending_)) detail::replace_bytes(pending_, out);
  out += pending_;
  pending_.clear();
  run_is_broken_ = false;
}

// Without the one space that SentencePiece puts in front of a text.
GRAFT_FILES std::string StreamDecoder::from_start(std::string out) {
  bool const strips = tokenizer_.spec_->kind == TokenizerKind::sentencepiece_bpe && tokenizer_.spec_->strip_first_space;
  if (at_start_ && strips && out.starts_with(' ')) {
    at_start_ = false;
    out.erase(0, 1);
  }
  at_start_ = at_start_ && out.empty();
  return out;
}
#endif

}  // namespace graft
