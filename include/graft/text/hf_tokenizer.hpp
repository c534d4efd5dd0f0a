// SPDX-License-Identifier: Apache-2.0
// Reads Hugging Face's tokenizer.json, tokenizer_config.json and chat_template.jinja.
#pragma once

#include <graft/core/error.hpp>
#include <graft/text/pre_tokenizer.hpp>
#include <graft/text/tokenizer_spec.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace graft {

namespace detail {

using nlohmann::json;

inline std::string read_whole_file(std::filesystem::path const& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) raise<FormatError>(text(path.string(), ": cannot be opened"));
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

/// Turns the sections of one tokenizer.json into a TokenizerSpec; what it does not know it refuses by name.
class HfTokenizerReader {
 public:
  HfTokenizerReader(std::filesystem::path const& path, std::string const& content)
      : path_(path.string()), size_(content.size()), root_(json::parse(content)) {}

  TokenizerSpec read() {
    json const& model = at(root_, "model");
    std::string const type = model.value("type", model.contains("merges") ? "BPE" : "(no type)");
    if (type == "BPE")
      read_bpe(model);
    else if (type == "WordPiece")
      read_wordpiece(model);
    else
      refuse("model", type);
    read_added_tokens();
    read_normalizers();
    read_decoders();
    for (json const& processor : flattened("post_processor", "processors")) read_post_processor(processor);
    return std::move(spec_);
  }

  /// tokenizer_config.json, which names the special tokens and may overrule where BOS and EOS are put.
  void apply_config(json const& config, TokenizerSpec& spec) const {
    auto const id_of = [&](char const* key) -> std::int32_t {
      if (!config.contains(key) || config[key].is_null()) return -1;
      std::string const name =
          config[key].is_object() ? config[key].value("content", "") : config[key].get<std::string>();
      auto const found = std::find(spec.tokens.begin(), spec.tokens.end(), name);
      return found == spec.tokens.end() ? -1 : static_cast<std::int32_t>(found - spec.tokens.begin());
    };
    spec.bos = id_of("bos_token");
    spec.eos = id_of("eos_token");
    spec.padding = id_of("pad_token");
    if (std::int32_t const unknown = id_of("unk_token"); unknown >= 0) spec.unknown = unknown;

    auto const flag = [&](char const* key) { return config.contains(key) && config[key] == true; };
    if (config.contains("add_bos_token") || config.contains("add_eos_token")) {
      bool const bos = flag("add_bos_token") && spec.bos >= 0, eos = flag("add_eos_token") && spec.eos >= 0;
      spec.single.clear(), spec.pair.clear();
      for (std::int32_t k = 0; k < 2; ++k) {
        if (bos) spec.pair.push_back({spec.bos, k});
        spec.pair.push_back({k == 0 ? TemplatePiece::first_text : TemplatePiece::second_text, k});
        if (eos) spec.pair.push_back({spec.eos, k});
        if (k == 0) spec.single = spec.pair;
      }
    }
    if (!config.contains("chat_template") || config["chat_template"].is_null()) return;
    json const& chat = config["chat_template"];
    if (chat.is_string()) spec.chat_template = chat.get<std::string>();
    if (chat.is_array())  // several named templates
      for (json const& entry : chat)
        if (entry.value("name", "") == "default") spec.chat_template = entry.value("template", "");
  }

 private:
  [[noreturn]] void refuse(std::string const& section, std::string const& what) const {
    raise<FormatError>(text(path_, ": ", section, " \"", what, "\" is not supported"));
  }
  void require(bool ok, std::string const& section, std::string const& what) const {
    if (!ok) refuse(section, what);
  }
  json const& at(json const& object, char const* key) const {
    if (!object.is_object() || !object.contains(key)) raise<FormatError>(text(path_, ": \"", key, "\" is missing"));
    return object[key];
  }

  /// A section that may be absent, one element, or a Sequence of them.
  std::vector<json> flattened(char const* section, char const* members) const {
    if (!root_.contains(section) || root_[section].is_null()) return {};
    std::vector<json> out;
    auto const add = [&](auto const& self, json const& element) -> void {
      if (element.at("type") != "Sequence") return out.push_back(element);
      for (json const& member : element.at(members)) self(self, member);
    };
    add(add, root_[section]);
    return out;
  }

  void place(std::string const& token, std::int64_t id) {
    // Every id takes more than a byte of the file; a larger one would only make us allocate.
    if (id < 0 || static_cast<std::size_t>(id) >= size_)
      raise<FormatError>(text(path_, ": token \"", token, "\" has id ", id, ", expected 0 to ", size_));
    auto const k = static_cast<std::size_t>(id);
    if (spec_.tokens.size() <= k) spec_.tokens.resize(k + 1);
    if (!spec_.tokens[k].empty() && spec_.tokens[k] != token)
      raise<FormatError>(text(path_, ": id ", id, " belongs to both \"", spec_.tokens[k], "\" and \"", token, "\""));
    spec_.tokens[k] = token;
  }
  void read_vocabulary(json const& model) {
    json const& vocabulary = at(model, "vocab");
    require(vocabulary.is_object(), "vocabulary", "not an object");
    for (auto const& [token, id] : vocabulary.items()) place(token, id.get<std::int64_t>());
    if (!model.contains("unk_token") || model["unk_token"].is_null()) return;
    spec_.unknown = vocabulary.value(model["unk_token"].get<std::string>(), -1);
    if (spec_.unknown < 0)
      raise<FormatError>(text(path_, ": unk_token ", model["unk_token"].dump(), " is not in the vocabulary"));
  }

  void read_bpe(json const& model) {
    read_vocabulary(model);
    for (char const* key : {"continuing_subword_prefix", "end_of_word_suffix"})
      require(!model.contains(key) || model[key].is_null() || model[key] == "", "BPE option", key);
    require(!model.contains("dropout") || model["dropout"].is_null() || model["dropout"] == 0.0, "BPE option",
            "dropout");
    for (json const& merge : at(model, "merges")) {
      if (merge.is_array()) {
        spec_.merges.emplace_back(merge.at(0).get<std::string>(), merge.at(1).get<std::string>());
      } else {
        auto const pair = merge.get<std::string>();
        auto const space = pair.find(' ');
        if (space == std::string::npos) raise<FormatError>(text(path_, ": merge \"", pair, "\" is not a pair"));
        spec_.merges.emplace_back(pair.substr(0, space), pair.substr(space + 1));
      }
    }
    spec_.ignore_merges = model.value("ignore_merges", false);
    std::vector<json> const stages = flattened("pre_tokenizer", "pretokenizers");
    if (!stages.empty() && stages.back().at("type") == "ByteLevel") {
      spec_.kind = TokenizerKind::byte_level_bpe;
      require(!model.value("byte_fallback", false), "BPE option", "byte_fallback with ByteLevel");
      read_byte_level(stages);
    } else {
      spec_.kind = TokenizerKind::sentencepiece_bpe;
      spec_.byte_fallback = model.value("byte_fallback", false);
      spec_.prefix_space = PrefixSpace::never;
      require(spec_.unknown < 0 || model.value("fuse_unk", false), "BPE option", "fuse_unk = false");
      require(!spec_.ignore_merges, "BPE option", "ignore_merges without ByteLevel");
      for (json const& stage : stages) read_metaspace(stage);
    }
  }

  /// Recognises the pre-tokenizers that PreTokenizer knows by name.
  void read_byte_level(std::vector<json> const& stages) {
    json const& last = stages.back();
    spec_.add_prefix_space = last.value("add_prefix_space", true);
    bool const own_pattern = last.value("use_regex", true);
    if (stages.size() == 1 && own_pattern) {
      spec_.pre_tokenizer = "gpt-2";
      return;
    }
    require(stages.size() == 2, "pre_tokenizer", text("sequence of ", stages.size()));
    json const& split = stages.front();
    std::string const type = split.at("type").get<std::string>();
    if (type == "Digits" && split.value("individual_digits", false) && own_pattern) {
      spec_.pre_tokenizer = "smollm";
      return;
    }
    require(type == "Split" && !own_pattern, "pre_tokenizer", type);
    json const& pattern = at(split, "pattern");
    require(pattern.contains("Regex"), "pre_tokenizer pattern", pattern.dump());
    require(at(split, "behavior") == "Isolated" && !split.value("invert", false), "pre_tokenizer behavior",
            split.dump());
    auto const regex = pattern["Regex"].get<std::string>();
    if (regex == pre_tokenizers::llama3)
      spec_.pre_tokenizer = "llama-bpe";
    else if (regex == pre_tokenizers::qwen2)
      spec_.pre_tokenizer = "qwen2";
    else if (regex == pre_tokenizers::gpt2)
      spec_.pre_tokenizer = "gpt-2";
    else
      refuse("pre_tokenizer pattern", regex);
  }

  void read_metaspace(json const& stage) {
    std::string const type = stage.at("type").get<std::string>();
    require(type == "Metaspace", "pre_tokenizer", type);
    require(stage.value("replacement", "") == "▁", "Metaspace replacement", stage.value("replacement", ""));
    require(!stage.value("split", true), "Metaspace option", "split = true");
    std::string const scheme =
        stage.value("prepend_scheme", stage.value("add_prefix_space", true) ? "always" : "never");
    if (scheme == "always")
      spec_.prefix_space = PrefixSpace::every;
    else if (scheme == "first")
      spec_.prefix_space = PrefixSpace::first;
    else
      require(scheme == "never", "Metaspace prepend_scheme", scheme);
  }

  void read_wordpiece(json const& model) {
    spec_.kind = TokenizerKind::wordpiece;
    read_vocabulary(model);
    spec_.wordpiece.continuation = model.value("continuing_subword_prefix", "##");
    spec_.wordpiece.max_word_length = model.value("max_input_chars_per_word", std::int32_t{100});
    spec_.wordpiece.clean_text = spec_.wordpiece.split_chinese = false;  // unless a BertNormalizer says so
    spec_.wordpiece.lower_case = spec_.wordpiece.strip_accents = false;
    std::vector<json> const stages = flattened("pre_tokenizer", "pretokenizers");
    require(stages.size() == 1 && stages[0].at("type") == "BertPreTokenizer", "pre_tokenizer of WordPiece",
            stages.empty() ? "null" : stages[0].at("type").get<std::string>());
  }

  void read_added_tokens() {
    if (!root_.contains("added_tokens")) return;
    for (json const& token : root_["added_tokens"]) {
      AddedToken added;
      auto const id = at(token, "id").get<std::int64_t>();
      added.content = at(token, "content").get<std::string>();
      added.special = token.value("special", false);
      added.left_strip = token.value("lstrip", false);
      added.right_strip = token.value("rstrip", false);
      added.single_word = token.value("single_word", false);
      added.normalized = token.value("normalized", false);
      place(added.content, id);
      added.id = static_cast<std::int32_t>(id);
      spec_.added.push_back(std::move(added));
    }
  }

  void read_normalizers() {
    bool marks_spaces = false, prepends = false;
    for (json const& step : flattened("normalizer", "normalizers")) {
      std::string const type = step.at("type").get<std::string>();
      bool const sentencepiece = spec_.kind == TokenizerKind::sentencepiece_bpe;
      if (type == "NFC" && spec_.kind == TokenizerKind::byte_level_bpe) {
        spec_.nfc = true;
      } else if (type == "Prepend" && sentencepiece && step.at("prepend") == "▁") {
        prepends = true;
      } else if (type == "Replace" && sentencepiece && step.at("content") == "▁" &&
                 step.at("pattern") == json{{"String", " "}}) {
        marks_spaces = true;
      } else if (type == "BertNormalizer" && spec_.kind == TokenizerKind::wordpiece) {
        spec_.wordpiece.clean_text = step.value("clean_text", true);
        spec_.wordpiece.split_chinese = step.value("handle_chinese_chars", true);
        spec_.wordpiece.lower_case = step.value("lowercase", true);
        bool const given = step.contains("strip_accents") && !step["strip_accents"].is_null();
        spec_.wordpiece.strip_accents = given ? step["strip_accents"].get<bool>() : spec_.wordpiece.lower_case;
      } else {
        refuse("normalizer", type);
      }
    }
    if (spec_.kind != TokenizerKind::sentencepiece_bpe) return;
    bool const metaspace = root_.contains("pre_tokenizer") && !root_["pre_tokenizer"].is_null();
    require(marks_spaces != metaspace, "normalizer",
            metaspace ? "Replace together with Metaspace" : "none that turns blanks into ▁");
    if (prepends) spec_.prefix_space = PrefixSpace::every_even_doubled;
  }

  void read_decoders() {
    spec_.strip_first_space = false;
    spec_.wordpiece.clean_decoding = false;
    for (json const& step : flattened("decoder", "decoders")) {
      std::string const type = step.at("type").get<std::string>();
      bool const sentencepiece = spec_.kind == TokenizerKind::sentencepiece_bpe;
      if (type == "ByteLevel" && spec_.kind == TokenizerKind::byte_level_bpe) continue;
      if (type == "WordPiece" && spec_.kind == TokenizerKind::wordpiece) {
        spec_.wordpiece.clean_decoding = step.value("cleanup", true);
      } else if (type == "Replace" && sentencepiece) {
        require(step.at("pattern") == json{{"String", "▁"}} && step.at("content") == " ", "decoder", step.dump());
      } else if (type == "Strip" && sentencepiece) {
        require(step.at("content") == " " && step.at("start") == 1 && step.at("stop") == 0, "decoder", step.dump());
        spec_.strip_first_space = true;
      } else if (!((type == "ByteFallback" || type == "Fuse") && sentencepiece)) {
        refuse("decoder", type);
      }
    }
  }

  void read_post_processor(json const& processor) {
    std::string const type = processor.at("type").get<std::string>();
    if (type == "ByteLevel") return;  // changes offsets only
    if (type == "BertProcessing" || type == "RobertaProcessing") {
      auto const cls = processor.at("cls").at(1).get<std::int32_t>(),
                 sep = processor.at("sep").at(1).get<std::int32_t>();
      bool const roberta = type == "RobertaProcessing";
      spec_.single = {{cls, 0}, {TemplatePiece::first_text, 0}, {sep, 0}};
      spec_.pair = spec_.single;
      if (roberta) spec_.pair.push_back({sep, 0});
      spec_.pair.push_back({TemplatePiece::second_text, roberta ? 0 : 1});
      spec_.pair.push_back({sep, roberta ? 0 : 1});
    } else if (type == "TemplateProcessing") {
      spec_.single = pieces(processor, "single");
      spec_.pair = pieces(processor, "pair");
    } else {
      refuse("post_processor", type);
    }
  }

  std::vector<TemplatePiece> pieces(json const& processor, char const* which) const {
    std::vector<TemplatePiece> out;
    for (json const& piece : processor.at(which)) {
      if (piece.contains("Sequence")) {
        json const& sequence = piece["Sequence"];
        out.push_back({sequence.at("id") == "A" ? TemplatePiece::first_text : TemplatePiece::second_text,
                       sequence.value("type_id", std::int32_t{0})});
      } else {
        json const& token = at(piece, "SpecialToken");
        for (json const& id : processor.at("special_tokens").at(token.at("id").get<std::string>()).at("ids"))
          out.push_back({id.get<std::int32_t>(), token.value("type_id", std::int32_t{0})});
      }
    }
    return out;
  }

  std::string path_;
  std::size_t size_;
  json root_;
  TokenizerSpec spec_;
};

}  // namespace detail

/// Reads the tokenizer of an HF model folder, or a tokenizer.json by its own name; the files beside it are optional.
/// FormatError names the file and what is wrong with it or not supported.
inline TokenizerSpec read_hf_tokenizer(std::filesystem::path const& path) {
  namespace fs = std::filesystem;
  fs::path const main = fs::is_directory(path) ? path / "tokenizer.json" : path;
  fs::path current = main;
  try {
    detail::HfTokenizerReader reader(main, detail::read_whole_file(main));
    TokenizerSpec spec = reader.read();
    current = main.parent_path() / "tokenizer_config.json";
    if (fs::exists(current)) reader.apply_config(nlohmann::json::parse(detail::read_whole_file(current)), spec);
    current = main.parent_path() / "chat_template.jinja";
    if (fs::exists(current)) spec.chat_template = detail::read_whole_file(current);
    return spec;
  } catch (nlohmann::json::exception const& error) {
    raise<FormatError>(text(current.string(), ": ", error.what()));
  }
}

}  // namespace graft
