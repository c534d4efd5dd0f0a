// SPDX-License-Identifier: Apache-2.0
// Tokenizer files that are wrong, or hold what is not supported, are refused in one sentence.
#include <graft/io/gguf_metadata.hpp>
#include <graft/io/json.hpp>
#include <graft/text/gguf_tokenizer.hpp>
#include <graft/text/hf_tokenizer.hpp>
#include <graft/text/model_tokenizer.hpp>
#include <graft/text/tokenizer.hpp>

#include <tests/catch.hpp>
#include <tests/io/files.hpp>

#include <nlohmann/json.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

using graft_test::TemporaryFolder;
using graft_test::write_bytes;
using nlohmann::json;

namespace {

json family(std::string const& name) { return graft::read_json(GRAFT_TEST_DATA "/text_" + name + "/tokenizer.json"); }

/// The sentence with which a tokenizer is refused; "" where it is not.
std::string refusal(json const& file) {
  TemporaryFolder const folder;
  return graft_test::refusal(folder / "tokenizer.json", file.dump(),
                             [&](auto const&) { graft::Tokenizer{graft::read_tokenizer(folder.path())}; });
}

}  // namespace

TEST_CASE("what a tokenizer.json holds that is not supported is named") {
  struct Case {
    std::string family, named;
    std::function<void(json&)> change;
  };
  std::vector<Case> const cases = {
      {"gpt2", "Unigram", [](json& f) { f["model"]["type"] = "Unigram"; }},
      {"gpt2", "dropout", [](json& f) { f["model"]["dropout"] = 0.1; }},
      {"gpt2", "end_of_word_suffix", [](json& f) { f["model"]["end_of_word_suffix"] = "</w>"; }},
      {"gpt2", "NFKC",
       [](json& f) {
         f["normalizer"] = {{"type", "NFKC"}};
       }},
      {"gpt2", "Whitespace",
       [](json& f) {
         f["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {{{"type", "Whitespace"}}, f["pre_tokenizer"]}}};
       }},
      {"llama3", "+!", [](json& f) { f["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "\\w+!"; }},
      {"llama3", "MergedWithNext",
       [](json& f) { f["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "MergedWithNext"; }},
      {"qwen2", "Metaspace",
       [](json& f) {
         f["decoder"] = {{"type", "Metaspace"}};
       }},
      {"llama2_metaspace", "split = true", [](json& f) { f["pre_tokenizer"]["split"] = true; }},
      {"llama2", "fuse_unk", [](json& f) { f["model"]["fuse_unk"] = false; }},
      {"llama2", "Precompiled",
       [](json& f) {
         f["normalizer"] = {{"type", "Precompiled"}};
       }},
      {"bert", "Punctuation",
       [](json& f) {
         f["pre_tokenizer"] = {{"type", "Punctuation"}};
       }},
      {"bert", "StripProcessing",
       [](json& f) {
         f["post_processor"] = {{"type", "StripProcessing"}};
       }},
  };
  for (Case const& one : cases) {
    INFO(one.family << ": " << one.named);
    json file = family(one.family);
    CHECK(refusal(file).empty());
    one.change(file);
    std::string const sentence = refusal(file);
    CHECK_THAT(sentence, Catch::Contains(one.named));
    CHECK_THAT(sentence, Catch::Contains("not supported"));
  }
}

TEST_CASE("a tokenizer.json that contradicts itself is refused") {
  struct Case {
    std::string named;
    std::function<void(json&)> change;
  };
  std::vector<Case> const cases = {
      {"'vocab'", [](json& f) { f["model"].erase("vocab"); }},
      {"'vocab'", [](json& f) { f["model"]["vocab"] = 3; }},
      {"'merges'", [](json& f) { f["model"]["merges"] = "a b"; }},
      {"is not a JSON object", [](json& f) { f["model"] = json::array(); }},
      {"has no integer id", [](json& f) { f["model"]["vocab"]["x"] = "y"; }},
      {"has id -5", [](json& f) { f["model"]["vocab"]["odd"] = -5; }},
      {"has id 4000000000", [](json& f) { f["model"]["vocab"]["odd"] = 4000000000; }},
      {"belongs to both", [](json& f) { f["model"]["vocab"]["odd"] = 5; }},
      {"not a pair", [](json& f) { f["model"]["merges"][0] = "alone"; }},
      {"not a pair",
       [](json& f) {
         f["model"]["merges"][0] = json::array({"a", 1});
       }},
      {"needs token 'nowhere'",
       [](json& f) {
         f["model"]["merges"][0] = json::array({"nowhere", "a"});
       }},
      {"'content'", [](json& f) { f["added_tokens"][0].erase("content"); }},
      {"'type'", [](json& f) { f["decoder"].erase("type"); }},
      {"unk_token 'lost'", [](json& f) { f["model"]["unk_token"] = "lost"; }},
  };
  for (Case const& one : cases) {
    INFO(one.named);
    json file = family("gpt2");
    one.change(file);
    CHECK_THAT(refusal(file), Catch::Contains(one.named));
  }
  json file = family("bert");
  file["post_processor"]["special_tokens"]["[CLS]"]["ids"] = {5000};
  CHECK_THAT(refusal(file), Catch::Contains("5000"));
}

TEST_CASE("files that do not state the model's type") {
  for (std::string const name : {"gpt2", "bert"}) {
    json file = family(name);
    file["model"].erase("type");
    CHECK(refusal(file).empty());
  }
  json file = family("bert");
  file["model"].erase("type"), file["model"].erase("max_input_chars_per_word");
  CHECK_THAT(refusal(file), Catch::Contains("without a type"));
}

TEST_CASE("every cut of a tokenizer.json is refused, never half read") {
  std::string const whole = graft_test::read_bytes(GRAFT_TEST_DATA "/text_gpt2/tokenizer.json");
  TemporaryFolder const folder;
  for (std::size_t length = 0; length + 1 < whole.size(); length += 97) {  // the last character is a line's end
    write_bytes(folder / "tokenizer.json", whole.substr(0, length));
    CHECK_THROWS_AS(graft::read_tokenizer(folder.path()), graft::FormatError);
  }
}

TEST_CASE("the files beside tokenizer.json") {
  TemporaryFolder const folder;
  write_bytes(folder / "tokenizer.json", family("llama2").dump());
  auto const load = [&] { return graft::Tokenizer{graft::read_tokenizer(folder.path())}; };
  CHECK(load().bos() == -1);
  CHECK(load().adds_bos() == false);  // no file says which token BOS is
  CHECK(load().encode("a").front() == 1);

  write_bytes(folder / "tokenizer_config.json", R"({"bos_token": {"content": "<s>"}, "eos_token": "</s>",
    "add_bos_token": false, "add_eos_token": true,
    "chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]})");
  CHECK(load().bos() == 1);
  CHECK(load().encode("a").front() != 1);
  CHECK(load().encode("a").back() == 2);
  CHECK(load().chat_template() == "d");

  write_bytes(folder / "chat_template.jinja", "{{ j }}\n");
  CHECK(load().chat_template() == "{{ j }}\n");

  write_bytes(folder / "tokenizer_config.json", R"({"bos_token": 5})");
  CHECK_THROWS_WITH(load(), Catch::Contains("tokenizer_config.json") && Catch::Contains("bos_token"));
}

TEST_CASE("a GGUF file's metadata that make no tokenizer are refused") {
  auto const metadata = [](auto const& change) {
    graft::GgufMetadata m;
    m.set("tokenizer.ggml.model", "gpt2");
    m.set("tokenizer.ggml.pre", "qwen2");
    m.set_array("tokenizer.ggml.tokens", std::vector<std::string>{"a", "b", "ab", "<e>"});
    m.set_array("tokenizer.ggml.token_type", std::vector<std::int32_t>{1, 1, 1, 3});
    m.set_array("tokenizer.ggml.merges", std::vector<std::string>{"a b"});
    m.set("tokenizer.ggml.eos_token_id", std::uint32_t{3});
    change(m);
    return graft::Tokenizer{graft::read_gguf_tokenizer(m, "m.gguf")};
  };
  auto const tokenizer = metadata([](auto&) {});
  CHECK(tokenizer.encode("ab<e>b") == std::vector<std::int32_t>{2, 3, 1});
  CHECK(tokenizer.eos() == 3);

  using Strings = std::vector<std::string>;
  auto const refusal = [&](auto const& change) -> std::string {
    try {
      metadata(change);
    } catch (graft::FormatError const& error) {
      return error.what();
    }
    return "";
  };
  CHECK(refusal([](auto& m) { m.set("tokenizer.ggml.model", "t5"); }) ==
        "m.gguf: tokenizer model 't5' is not supported; supported are gpt2 and llama");
  CHECK(refusal([](auto& m) { m.set("tokenizer.ggml.pre", "default"); }) ==
        "m.gguf: pre-tokenizer 'default' is not supported");
  CHECK(refusal([](auto& m) { m.set_array("tokenizer.ggml.merges", Strings{"ab"}); }) ==
        "m.gguf: merge 'ab' is not a pair of tokens");
  CHECK(refusal([](auto& m) { m.set_array("tokenizer.ggml.merges", Strings{"a c"}); }) ==
        "m.gguf: merge 0 needs token 'c', which is not in the vocabulary");
  CHECK(refusal([](auto& m) { m.set("tokenizer.ggml.eos_token_id", std::uint32_t{4}); }) ==
        "m.gguf: EOS has id 4, the vocabulary has 4 tokens");
  CHECK(refusal([](auto& m) {
          m.set_array("tokenizer.ggml.tokens", Strings{"a", "\xFF", "ab", "b"});
        }) == "m.gguf: token '\\xff' is not UTF-8");
  CHECK(refusal([](auto& m) {
          m.set_array("tokenizer.ggml.token_type", std::vector<std::int32_t>{1, 1});
        }) == "m.gguf: there are 2 token types for 4 tokens");
  CHECK(refusal([](auto& m) {
          m.set_array("tokenizer.ggml.token_type", std::vector<std::int32_t>{1, 1, 1, 9});
        }) == "m.gguf: metadata key 'tokenizer.ggml.token_type' has the unknown type 9");
  CHECK(refusal([](auto& m) { m.set("tokenizer.ggml.model", "llama"); }) ==
        "metadata key 'tokenizer.ggml.scores' is missing");  // these metadata came from no file
}
