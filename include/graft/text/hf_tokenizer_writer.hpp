// SPDX-License-Identifier: Apache-2.0
// Writes a tokenizer as Hugging Face's tokenizer.json and tokenizer_config.json.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/types.hpp>
#include <graft/text/pre_tokenizer.hpp>
#include <graft/text/sentencepiece_merges.hpp>
#include <graft/text/tokenizer_spec.hpp>

#include <nlohmann/json.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace graft {

namespace detail {

inline std::string const& token_of(TokenizerSpec const& spec, std::int32_t id) {
  return spec.tokens[static_cast<std::size_t>(id)];
}

inline nlohmann::json hf_added_tokens(TokenizerSpec const& spec) {
  auto tokens = nlohmann::json::array();
  for (auto const& token : spec.added)
    tokens.push_back({{"id", token.id},
                      {"content", token.content},
                      {"single_word", token.single_word},
                      {"lstrip", token.left_strip},
                      {"rstrip", token.right_strip},
                      {"normalized", token.normalized},
                      {"special", token.special}});
  return tokens;
}

inline nlohmann::json hf_byte_level(bool add_prefix_space, bool use_regex) {
  return {
      {"type", "ByteLevel"}, {"add_prefix_space", add_prefix_space}, {"trim_offsets", true}, {"use_regex", use_regex}};
}

/// The stages that cut text into words, as the models' own files have them.
inline nlohmann::json hf_pre_tokenizer(TokenizerSpec const& spec) {
  using Json = nlohmann::json;
  if (spec.kind == TokenizerKind::sentencepiece_bpe) {
    if (spec.prefix_space != PrefixSpace::first && spec.prefix_space != PrefixSpace::every) return nullptr;
    return {{"type", "Metaspace"},
            {"replacement", "▁"},
            {"prepend_scheme", spec.prefix_space == PrefixSpace::first ? "first" : "always"},
            {"split", false}};
  }
  if (PreTokenizer::same(spec.pre_tokenizer, "gpt-2")) return hf_byte_level(spec.add_prefix_space, true);
  bool const digits = PreTokenizer::same(spec.pre_tokenizer, "smollm");
  bool const llama3 = PreTokenizer::same(spec.pre_tokenizer, "llama-bpe");
  expects(digits || llama3 || PreTokenizer::same(spec.pre_tokenizer, "qwen2"),
          "graft: tokenizer.json of pre-tokenizer ", spec.pre_tokenizer, " is not known");
  Json const split =
      digits ? Json{{"type", "Digits"}, {"individual_digits", true}}
             : Json{{"type", "Split"},
                    {"pattern", {{"Regex", std::string(llama3 ? pre_tokenizers::llama3 : pre_tokenizers::qwen2)}}},
                    {"behavior", "Isolated"},
                    {"invert", false}};
  return {{"type", "Sequence"}, {"pretokenizers", Json::array({split, hf_byte_level(spec.add_prefix_space, digits)})}};
}

/// What is done to the text before anything else: SentencePiece's marks for spaces, or Unicode's form C.
inline nlohmann::json hf_normalizer(TokenizerSpec const& spec) {
  using Json = nlohmann::json;
  if (spec.kind == TokenizerKind::byte_level_bpe) return spec.nfc ? Json{{"type", "NFC"}} : Json();
  if (!hf_pre_tokenizer(spec).is_null()) return nullptr;  // Metaspace sets the marks
  auto steps = Json::array();
  if (spec.prefix_space != PrefixSpace::never) steps.push_back({{"type", "Prepend"}, {"prepend", "▁"}});
  steps.push_back({{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}});
  return {{"type", "Sequence"}, {"normalizers", steps}};
}

inline nlohmann::json hf_decoder(TokenizerSpec const& spec) {
  using Json = nlohmann::json;
  if (spec.kind == TokenizerKind::byte_level_bpe) return hf_byte_level(true, true);
  auto steps = Json::array({Json{{"type", "Replace"}, {"pattern", {{"String", "▁"}}}, {"content", " "}},
                            Json{{"type", "ByteFallback"}}, Json{{"type", "Fuse"}}});
  if (spec.strip_first_space) steps.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  return {{"type", "Sequence"}, {"decoders", steps}};
}

/// The tokens around one and two texts.
inline nlohmann::json hf_post_processor(TokenizerSpec const& spec) {
  using Json = nlohmann::json;
  if (spec.single.size() == 1 && spec.pair.size() == 2)
    return spec.kind == TokenizerKind::byte_level_bpe ? hf_byte_level(true, true) : Json();
  Json special = Json::object();
  auto const pieces = [&](std::vector<TemplatePiece> const& from) {
    auto list = Json::array();
    for (auto const& piece : from) {
      std::string const name = piece.id == TemplatePiece::first_text    ? "A"
                               : piece.id == TemplatePiece::second_text ? "B"
                                                                        : token_of(spec, piece.id);
      list.push_back({{piece.id < 0 ? "Sequence" : "SpecialToken", {{"id", name}, {"type_id", piece.type_id}}}});
      if (piece.id >= 0)
        special[name] = {{"id", name}, {"ids", Json::array({piece.id})}, {"tokens", Json::array({name})}};
    }
    return list;
  };
  auto const single = pieces(spec.single), pair = pieces(spec.pair);
  return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", special}};
}

inline nlohmann::json hf_bpe_model(TokenizerSpec const& spec) {
  using Json = nlohmann::json;
  bool const sentencepiece = spec.kind == TokenizerKind::sentencepiece_bpe;
  Json vocabulary = Json::object();
  for (std::size_t k = 0; k < spec.tokens.size(); ++k)
    if (!spec.tokens[k].empty() && (spec.types.empty() || spec.types[k] != TokenType::unused))
      vocabulary.emplace(spec.tokens[k], k);  // of equal tokens the first counts
  auto merges = Json::array();
  for (auto const& [left, right] : sentencepiece&& spec.merges.empty() ? merges_from_scores(spec) : spec.merges)
    merges.push_back(left + " " + right);
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", sentencepiece && spec.unknown >= 0 ? Json(token_of(spec, spec.unknown)) : Json()},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", sentencepiece},
          {"byte_fallback", sentencepiece && spec.byte_fallback},
          {"ignore_merges", spec.ignore_merges},
          {"vocab", vocabulary},
          {"merges", merges}};
}

}  // namespace detail

/// tokenizer.json of a byte-level or SentencePiece-BPE tokenizer. FormatError, naming its file, for WordPiece.
inline nlohmann::json hf_tokenizer(TokenizerSpec const& spec) {
  if (spec.kind == TokenizerKind::wordpiece)
    raise<FormatError>(spec.source, ": writing a WordPiece tokenizer is not supported");
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", detail::hf_added_tokens(spec)},
          {"normalizer", detail::hf_normalizer(spec)},
          {"pre_tokenizer", detail::hf_pre_tokenizer(spec)},
          {"post_processor", detail::hf_post_processor(spec)},
          {"decoder", detail::hf_decoder(spec)},
          {"model", detail::hf_bpe_model(spec)}};
}

/// tokenizer_config.json of the tokenizer; `positions`: the longest text the model takes.
inline nlohmann::json hf_tokenizer_config(TokenizerSpec const& spec, index_t positions) {
  nlohmann::json config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                           {"model_max_length", positions},
                           {"clean_up_tokenization_spaces", false}};
  auto const name = [&](char const* key, std::int32_t id) {
    if (id >= 0) config[key] = detail::token_of(spec, id);
  };
  name("bos_token", spec.bos);
  name("eos_token", spec.eos);
  name("unk_token", spec.unknown);
  name("pad_token", spec.padding);
  if (!spec.chat_template.empty()) config["chat_template"] = spec.chat_template;
  return config;
}

}  // namespace graft
