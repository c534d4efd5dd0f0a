// SPDX-License-Identifier: Apache-2.0
// Reads Hugging Face's tokenizer.json, tokenizer_config.json and chat_template.jinja.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/types.hpp>
#include <graft/io/json_object.hpp>
#include <graft/io/mapped_file.hpp>
#include <graft/text/pre_tokenizer.hpp>
#include <graft/text/tokenizer_spec.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace graft {

namespace detail {

/// Turns the sections of one tokenizer.json into a TokenizerSpec; what it does not know it refuses by name.
class HfTokenizerReader {
 public:
  /// `most_tokens` bounds the ids, so that a wrong one does not make us allocate.
  HfTokenizerReader(std::string path, nlohmann::json root, index_t most_tokens)
      : path_(std::move(path)), most_tokens_(most_tokens) {
    if (!root.is_object()) raise<FormatError>(path_, ": is not a JSON object");
    spec_.source = path_;
    JsonObject const model(path_, std::move(root["model"]));
    root_ = std::move(root);
    // Files of 2020 do not state the type.
    std::string const type =
        model.get_or<std::string>("type", model.has("merges")                     ? "BPE"
                                          : model.has("max_input_chars_per_word") ? "WordPiece"
                                                                                  : "without a type");
    if (type == "BPE")
      read_bpe(model);
    else if (type == "WordPiece")
      read_wordpiece(model);
    else
      refuse("model", type);
    read_added_tokens();
    read_normalizers();
    read_decoders();
    for (JsonObject const& processor : section("post_processor", "processors")) read_post_processor(processor);
  }

  TokenizerSpec take() { return std::move(spec_); }

 private:
  [[noreturn]] void refuse(std::string const& section, std::string const& what) const {
    raise<FormatError>(path_, ": ", section, " ", in_quotes(what), " is not supported");
  }
  void require(bool ok, std::string const& section, std::string const& what) const {
    if (!ok) refuse(section, what);
  }
  static std::string type_of(JsonObject const& element) { return element.get<std::string>("type"); }
  static std::string source_of(JsonObject const& element) { return element.json().dump(); }

  /// A section that may be absent, one element, or a Sequence of `members`.
  std::vector<JsonObject> section(char const* name, char const* members) const {
    std::vector<JsonObject> out;
    auto const add = [&](auto const& self, nlohmann::json const& value) -> void {
      JsonObject element(path_, value);
      if (type_of(element) != "Sequence") return out.push_back(std::move(element));
      for (auto const& member : element.get<nlohmann::json::array_t>(members)) self(self, member);
    };
    if (root_.contains(name) && !root_[name].is_null()) add(add, root_[name]);
    return out;
  }

  void place(std::string const& token, index_t id) {
    if (id < 0 || id >= most_tokens_)
      raise<FormatError>(path_, ": token ", in_quotes(token), " has id ", id, ", expected less than ", most_tokens_);
    auto const k = static_cast<std::size_t>(id);
    if (spec_.tokens.size() <= k) spec_.tokens.resize(k + 1);
    if (!spec_.tokens[k].empty() && spec_.tokens[k] != token)
      raise<FormatError>(path_, ": id ", id, " belongs to both ", in_quotes(spec_.tokens[k]), " and ",
                         in_quotes(token));
    spec_.tokens[k] = token;
  }

  void read_vocabulary(JsonObject const& model) {
    if (!model.has("vocab") || !model.json()["vocab"].is_object())
      raise<FormatError>(path_, ": key 'vocab' of the model should be an object");
    for (auto const& [token, id] : model.json()["vocab"].items()) {
      if (!id.is_number_integer()) raise<FormatError>(path_, ": token ", in_quotes(token), " has no integer id");
      place(token, id.get<index_t>());
    }
    if (!model.has("unk_token")) return;
    auto const unknown = model.get<std::string>("unk_token");
    auto const found = std::find(spec_.tokens.begin(), spec_.tokens.end(), unknown);
    if (found == spec_.tokens.end())
      raise<FormatError>(path_, ": unk_token ", in_quotes(unknown), " is not in the vocabulary");
    spec_.unknown = static_cast<std::int32_t>(found - spec_.tokens.begin());
  }

  void read_bpe(JsonObject const& model) {
    read_vocabulary(model);
    for (char const* key : {"continuing_subword_prefix", "end_of_word_suffix"})
      require(model.get_or<std::string>(key, "").empty(), "BPE option", key);
    require(model.get_or("dropout", 0.0) == 0, "BPE option", "dropout");
    if (!model.has("merges") || !model.json()["merges"].is_array())
      raise<FormatError>(path_, ": key 'merges' of the model should be an array");
    for (auto const& merge : model.json()["merges"]) read_merge(merge);
    spec_.ignore_merges = model.get_or("ignore_merges", false);
    bool const byte_fallback = model.get_or("byte_fallback", false);
    std::vector<JsonObject> const stages = section("pre_tokenizer", "pretokenizers");
    if (!stages.empty() && type_of(stages.back()) == "ByteLevel") {
      spec_.kind = TokenizerKind::byte_level_bpe;
      require(!byte_fallback, "BPE option", "byte_fallback with ByteLevel");
      read_byte_level(stages);
    } else {
      spec_.kind = TokenizerKind::sentencepiece_bpe;
      spec_.byte_fallback = byte_fallback;
      spec_.prefix_space = PrefixSpace::never;
      require(spec_.unknown < 0 || model.get_or("fuse_unk", false), "BPE option", "fuse_unk = false");
      require(!spec_.ignore_merges, "BPE option", "ignore_merges without ByteLevel");
      for (JsonObject const& stage : stages) read_metaspace(stage);
    }
  }

  /// "a b", or ["a", "b"] in newer files.
  void read_merge(nlohmann::json const& merge) {
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      spec_.merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
      return;
    }
    std::string const pair = merge.is_string() ? merge.get<std::string>() : "";
    auto const space = pair.find(' ');
    if (space == std::string::npos)
      raise<FormatError>(path_, ": merge ", in_quotes(merge.dump()), " is not a pair of tokens");
    spec_.merges.emplace_back(pair.substr(0, space), pair.substr(space + 1));
  }

  /// Recognises the pre-tokenizers that PreTokenizer knows by name.
  void read_byte_level(std::vector<JsonObject> const& stages) {
    spec_.add_prefix_space = stages.back().get_or("add_prefix_space", true);
    bool const own_pattern = stages.back().get_or("use_regex", true);
    if (stages.size() == 1 && own_pattern) {
      spec_.pre_tokenizer = "gpt-2";
      return;
    }
    require(stages.size() == 2, "pre_tokenizer", text("Sequence of ", stages.size()));
    JsonObject const& split = stages.front();
    if (type_of(split) == "Digits" && split.get_or("individual_digits", false) && own_pattern) {
      spec_.pre_tokenizer = "smollm";
      return;
    }
    require(type_of(split) == "Split" && !own_pattern, "pre_tokenizer", source_of(split));
    JsonObject const pattern = split.object("pattern");
    require(pattern.has("Regex"), "pre_tokenizer", source_of(split));
    require(split.get_or<std::string>("behavior", "") == "Isolated" && !split.get_or("invert", false), "pre_tokenizer",
            source_of(split));
    auto const regex = pattern.get<std::string>("Regex");
    if (regex == pre_tokenizers::llama3)
      spec_.pre_tokenizer = "llama-bpe";
    else if (regex == pre_tokenizers::qwen2)
      spec_.pre_tokenizer = "qwen2";
    else if (regex == pre_tokenizers::gpt2)
      spec_.pre_tokenizer = "gpt-2";
    else
      refuse("pre_tokenizer pattern", regex);
  }

  void read_metaspace(JsonObject const& stage) {
    require(type_of(stage) == "Metaspace", "pre_tokenizer", type_of(stage));
    require(stage.get<std::string>("replacement") == "▁", "Metaspace", source_of(stage));
    require(!stage.get_or("split", true), "Metaspace option", "split = true");
    auto const scheme =
        stage.get_or<std::string>("prepend_scheme", stage.get_or("add_prefix_space", true) ? "always" : "never");
    if (scheme == "always")
      spec_.prefix_space = PrefixSpace::every;
    else if (scheme == "first")
      spec_.prefix_space = PrefixSpace::first;
    else
      require(scheme == "never", "Metaspace prepend_scheme", scheme);
  }

  void read_wordpiece(JsonObject const& model) {
    spec_.kind = TokenizerKind::wordpiece;
    read_vocabulary(model);
    WordPieceOptions& options = spec_.wordpiece;
    options.continuation = model.get_or<std::string>("continuing_subword_prefix", "##");
    options.max_word_length = model.get_or<index_t>("max_input_chars_per_word", 100);
    options.clean_text = options.split_chinese = false;  // unless a BertNormalizer says so
    options.lower_case = options.strip_accents = false;
    std::vector<JsonObject> const stages = section("pre_tokenizer", "pretokenizers");
    require(stages.size() == 1 && type_of(stages[0]) == "BertPreTokenizer", "pre_tokenizer of WordPiece",
            stages.empty() ? "null" : type_of(stages[0]));
  }

  void read_added_tokens() {
    if (!root_.contains("added_tokens") || !root_["added_tokens"].is_array()) return;
    for (auto const& value : root_["added_tokens"]) {
      JsonObject const token(path_, value);
      AddedToken added;
      added.content = token.get<std::string>("content");
      added.special = token.get_or("special", false);
      added.left_strip = token.get_or("lstrip", false);
      added.right_strip = token.get_or("rstrip", false);
      added.single_word = token.get_or("single_word", false);
      added.normalized = token.get_or("normalized", false);
      auto const id = token.get<index_t>("id");
      place(added.content, id);
      added.id = static_cast<std::int32_t>(id);
      spec_.added.push_back(std::move(added));
    }
  }

  void read_normalizers() {
    bool marks_spaces = false;
    bool const sentencepiece = spec_.kind == TokenizerKind::sentencepiece_bpe;
    for (JsonObject const& step : section("normalizer", "normalizers")) {
      std::string const type = type_of(step);
      if (type == "NFC" && spec_.kind == TokenizerKind::byte_level_bpe) {
        spec_.nfc = true;
      } else if (type == "Prepend" && sentencepiece && !marks_spaces) {
        require(step.get<std::string>("prepend") == "▁", "normalizer", source_of(step));
        spec_.prefix_space = PrefixSpace::every_even_doubled;
      } else if (type == "Replace" && sentencepiece) {
        require(
            step.object("pattern").json() == nlohmann::json{{"String", " "}} && step.get<std::string>("content") == "▁",
            "normalizer", source_of(step));
        marks_spaces = true;
      } else if (type == "BertNormalizer" && spec_.kind == TokenizerKind::wordpiece) {
        spec_.wordpiece.clean_text = step.get_or("clean_text", true);
        spec_.wordpiece.split_chinese = step.get_or("handle_chinese_chars", true);
        spec_.wordpiece.lower_case = step.get_or("lowercase", true);
        spec_.wordpiece.strip_accents = step.get_or("strip_accents", spec_.wordpiece.lower_case);
      } else {
        refuse("normalizer", type);
      }
    }
    bool const metaspace = !section("pre_tokenizer", "pretokenizers").empty();
    if (sentencepiece && marks_spaces == metaspace)
      refuse("BPE", metaspace ? "with both Replace and Metaspace" : "without ByteLevel, Replace or Metaspace");
  }

  void read_decoders() {
    spec_.strip_first_space = false;
    spec_.wordpiece.clean_decoding = false;
    bool const sentencepiece = spec_.kind == TokenizerKind::sentencepiece_bpe;
    for (JsonObject const& step : section("decoder", "decoders")) {
      std::string const type = type_of(step);
      if (type == "ByteLevel" && spec_.kind == TokenizerKind::byte_level_bpe) continue;
      if (type == "WordPiece" && spec_.kind == TokenizerKind::wordpiece) {
        spec_.wordpiece.clean_decoding = step.get_or("cleanup", true);
      } else if (type == "Replace" && sentencepiece) {
        require(
            step.object("pattern").json() == nlohmann::json{{"String", "▁"}} && step.get<std::string>("content") == " ",
            "decoder", source_of(step));
      } else if (type == "Strip" && sentencepiece) {
        require(step.get<std::string>("content") == " " && step.get<index_t>("start") == 1 &&
                    step.get<index_t>("stop") == 0,
                "decoder", source_of(step));
        spec_.strip_first_space = true;
      } else if (!((type == "ByteFallback" || type == "Fuse") && sentencepiece)) {
        refuse("decoder", type);
      }
    }
  }

  void read_post_processor(JsonObject const& processor) {
    std::string const type = type_of(processor);
    if (type == "ByteLevel") return;  // changes offsets only
    if (type == "BertProcessing" || type == "RobertaProcessing") {
      bool const roberta = type == "RobertaProcessing";
      TemplatePiece const cls{id_of_pair(processor, "cls")}, sep{id_of_pair(processor, "sep")};
      std::int32_t const second_type = roberta ? 0 : 1;
      spec_.single = {cls, {TemplatePiece::first_text}, sep};
      spec_.pair = spec_.single;
      if (roberta) spec_.pair.push_back(sep);
      spec_.pair.push_back({TemplatePiece::second_text, second_type});
      spec_.pair.push_back({sep.id, second_type});
    } else if (type == "TemplateProcessing") {
      spec_.single = pieces(processor, "single");
      spec_.pair = pieces(processor, "pair");
    } else {
      refuse("post_processor", type);
    }
  }

  /// Of ["[CLS]", 101] the 101.
  std::int32_t id_of_pair(JsonObject const& processor, char const* key) const {
    auto const pair = processor.get<nlohmann::json::array_t>(key);
    if (pair.size() != 2 || !pair[1].is_number_integer())
      raise<FormatError>(path_, ": key '", key, "' should be a token and its id");
    return checked_id(pair[1].get<index_t>());
  }
  std::int32_t checked_id(index_t id) const {
    if (id < 0 || id >= most_tokens_)
      raise<FormatError>(path_, ": the post_processor uses id ", id, ", which is not in the vocabulary");
    return static_cast<std::int32_t>(id);
  }

  std::vector<TemplatePiece> pieces(JsonObject const& processor, char const* which) const {
    std::vector<TemplatePiece> out;
    for (auto const& value : processor.get<nlohmann::json::array_t>(which)) {
      JsonObject const piece(path_, value);
      bool const is_text = piece.has("Sequence");
      JsonObject const inner = piece.object(is_text ? "Sequence" : "SpecialToken");
      auto const id = inner.get<std::string>("id");
      auto const type_id = static_cast<std::int32_t>(inner.get_or<index_t>("type_id", 0));
      if (is_text) {
        out.push_back({id == "A" ? TemplatePiece::first_text : TemplatePiece::second_text, type_id});
        continue;
      }
      auto const ids = processor.object("special_tokens").object(id).get<nlohmann::json::array_t>("ids");
      for (auto const& each : ids)
        if (each.is_number_integer()) out.push_back({checked_id(each.get<index_t>()), type_id});
    }
    return out;
  }

  std::string path_;
  index_t most_tokens_;
  nlohmann::json root_;
  TokenizerSpec spec_;
};

/// tokenizer_config.json names the special tokens and may overrule where BOS and EOS are put.
inline void apply_hf_tokenizer_config(JsonObject const& config, TokenizerSpec& spec) {
  auto const id_of = [&](char const* key) -> std::int32_t {
    if (!config.has(key)) return -1;
    std::string const name =
        config.json()[key].is_object() ? config.object(key).get<std::string>("content") : config.get<std::string>(key);
    auto const found = std::find(spec.tokens.begin(), spec.tokens.end(), name);
    return found == spec.tokens.end() ? -1 : static_cast<std::int32_t>(found - spec.tokens.begin());
  };
  spec.bos = id_of("bos_token");
  spec.eos = id_of("eos_token");
  spec.padding = id_of("pad_token");
  if (std::int32_t const unknown = id_of("unk_token"); unknown >= 0) spec.unknown = unknown;
  if (config.has("add_bos_token") || config.has("add_eos_token"))
    surround(spec, config.get_or("add_bos_token", false), config.get_or("add_eos_token", false));
  if (!config.has("chat_template")) return;
  if (!config.json()["chat_template"].is_array()) {
    spec.chat_template = config.get<std::string>("chat_template");
    return;
  }
  for (auto const& value : config.json()["chat_template"]) {  // several, by name
    JsonObject const entry(config.path(), value);
    if (entry.get<std::string>("name") == "default") spec.chat_template = entry.get<std::string>("template");
  }
}

}  // namespace detail

/// Reads the tokenizer of an HF model folder, or a tokenizer.json by its own name; the files beside it are optional.
/// FormatError names the file and what is wrong with it or not supported.
inline TokenizerSpec read_hf_tokenizer(std::filesystem::path const& path) {
  namespace fs = std::filesystem;
  fs::path const main = fs::is_directory(path) ? path / "tokenizer.json" : path;
  constexpr std::size_t most_bytes = std::size_t{64} << 20;  // the largest in use, of 260,000 tokens, has 33 MB
  auto root = read_json(main, most_bytes);
  auto const file_bytes = static_cast<index_t>(fs::file_size(main));  // an id takes more than a byte
  TokenizerSpec spec = detail::HfTokenizerReader(main.string(), std::move(root), file_bytes).take();
  fs::path const config = main.parent_path() / "tokenizer_config.json",
                 chat = main.parent_path() / "chat_template.jinja";
  if (fs::exists(config)) detail::apply_hf_tokenizer_config(JsonObject(config.string(), read_json(config)), spec);
  if (fs::exists(chat)) spec.chat_template = MappedFile::open(chat)->characters();
  name_end_of_turn(spec);
  return spec;
}

}  // namespace graft
