// SPDX-License-Identifier: Apache-2.0
// Tokenizers against what Hugging Face's tokenizers and sentencepiece say (tests/golden/make_text.py).
#include <graft/io/json.hpp>
#include <graft/text/model_tokenizer.hpp>
#include <graft/text/tokenizer.hpp>

#include <tests/catch.hpp>

#include <nlohmann/json.hpp>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

using graft::read_json;
using graft::Tokenizer;
using Ids = std::vector<std::int32_t>;
using nlohmann::json;

namespace {

std::string const data = GRAFT_TEST_DATA;

/// Decoding token by token gives the same text, and every part is whole.
void check_stream(Tokenizer const& tokenizer, Ids const& ids, std::string const& expected) {
  graft::StreamDecoder stream(tokenizer);
  std::string streamed;
  for (std::int32_t const id : ids) {
    std::string const part = stream.push(id);
    CHECK(graft::valid_utf8(part));
    streamed += part;
  }
  CHECK(streamed + stream.finish() == expected);
}

void check_line(Tokenizer const& tokenizer, std::string const& line, json const& expected) {
  INFO(json(line).dump());
  Ids const ids = expected.at("ids").get<Ids>();
  CHECK(tokenizer.encode(line) == ids);
  CHECK(tokenizer.encode(line, true, false) == expected.value("plain", ids));
  std::string const decoded = expected.value("decoded", line);
  CHECK(tokenizer.decode(ids) == decoded);
  CHECK(tokenizer.decode(ids, true) == expected.value("visible", decoded));
  check_stream(tokenizer, ids, decoded);
}

}  // namespace

TEST_CASE("every family's tokenizer.json gives the tokens and the text that HF's tokenizers give") {
  auto const family = GENERATE(as<std::string>(), "gpt2", "smollm", "llama3", "qwen2", "roberta", "llama2",
                               "llama2_metaspace", "bert", "bert_cased");
  std::string const folder = data + "/text_" + family;
  INFO(family);
  Tokenizer const tokenizer{graft::read_tokenizer(folder)};
  json const lines = read_json(data + "/text_lines.json"), expected = read_json(folder + "/expected.json");
  REQUIRE(lines.size() == expected["lines"].size());
  REQUIRE(lines.size() > 200);
  for (std::size_t k = 0; k < lines.size(); ++k) check_line(tokenizer, lines[k], expected["lines"][k]);

  auto const pair = tokenizer.encode_pair("Is it so?", "It is: 42 ünits.");
  CHECK(pair.tokens == expected["pair"]["ids"].get<Ids>());
  CHECK(pair.type_ids == expected["pair"]["type_ids"].get<Ids>());
}

TEST_CASE("a vocabulary with scores merges as SentencePiece does") {
  json const golden = read_json(data + "/text_sentencepiece.json");
  graft::TokenizerSpec spec;
  spec.kind = graft::TokenizerKind::sentencepiece_bpe;
  spec.tokens = golden["tokens"].get<std::vector<std::string>>();
  spec.scores = golden["scores"].get<std::vector<float>>();
  for (int const type : golden["types"]) spec.types.push_back(static_cast<graft::TokenType>(type));
  spec.unknown = 0, spec.bos = 1, spec.eos = 2;
  Tokenizer const tokenizer(spec);
  for (json const& line : golden["lines"]) {
    INFO(line.dump());
    CHECK(tokenizer.encode(line["text"].get<std::string>()) == line["ids"].get<Ids>());
    CHECK(tokenizer.decode(line["ids"].get<Ids>()) == line["decoded"].get<std::string>());
  }
}

TEST_CASE("SmolLM2's tokenizer from its GGUF file gives HF's tokens") {
  std::string const path = GRAFT_SOURCE_DIR "/.cache/models/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!std::filesystem::exists(path)) GRAFT_SKIP("the model is not there: " + path);
  Tokenizer const tokenizer{graft::read_tokenizer(path)};
  CHECK(tokenizer.vocabulary_size() == 49152);
  CHECK(tokenizer.token_id("<|im_end|>") == 2);
  CHECK(tokenizer.eos() == 2);
  CHECK(tokenizer.end_of_turn() == 2);
  CHECK_FALSE(tokenizer.adds_bos());
  CHECK(tokenizer.chat_template().find("<|im_start|>") != std::string::npos);
  json const lines = read_json(data + "/text_smollm2.json");
  REQUIRE(lines.size() == 300);
  for (json const& line : lines) check_line(tokenizer, line["text"], line);
}

TEST_CASE("the special tokens that a configuration names") {
  Tokenizer const llama{graft::read_tokenizer(data + "/text_llama2")};
  CHECK(llama.bos() == 1);
  CHECK(llama.eos() == 2);
  CHECK(llama.unknown() == 0);
  CHECK(llama.padding() == -1);
  CHECK(llama.adds_bos());
  CHECK(llama.is_special(1));
  CHECK_FALSE(llama.is_special(3));
  CHECK(llama.token(3) == "<0x00>");
  CHECK(llama.encode("", true) == Ids{1});
  CHECK(llama.encode("", false).empty());
  CHECK_THROWS_AS(llama.token(-1), graft::ContractError);
  CHECK_THROWS_AS(llama.decode(Ids{-1}), graft::ContractError);
  CHECK_THROWS_AS(llama.token(1 << 20), graft::ContractError);
  Ids padded = llama.encode("a padded model", false);
  padded.insert(padded.begin() + 1, 1 << 20);
  CHECK(llama.decode(padded) == "a padded model");
}

TEST_CASE("bytes that are not UTF-8 count as U+FFFD") {
  Tokenizer const tokenizer{graft::read_tokenizer(data + "/text_gpt2")};
  CHECK(tokenizer.encode("a\xFF z\xE2\x82") == tokenizer.encode("a\uFFFD z\uFFFD"));
  CHECK(tokenizer.encode("\xED\xA0\x80") == tokenizer.encode("\uFFFD\uFFFD\uFFFD"));
}

TEST_CASE("a stream holds back the bytes of an unfinished character and gives up on broken ones") {
  Tokenizer const tokenizer{graft::read_tokenizer(data + "/text_llama2")};
  auto const byte = [&](char const* name) { return tokenizer.token_id(name); };
  graft::StreamDecoder stream(tokenizer);
  CHECK(stream.push(byte("<0xF0>")).empty());
  CHECK(stream.push(byte("<0x9F>")).empty());
  CHECK(stream.push(byte("<0x99>")).empty());
  CHECK(stream.push(byte("<0x82>")) == "🙂");
  CHECK(stream.push(byte("<0xE2>")).empty());
  CHECK(stream.push(byte("<0x41>")) == "\uFFFD\uFFFD");  // the euro sign never came, and the run is lost
  CHECK(stream.push(byte("<0x80>")) == "\uFFFD");
  CHECK(stream.push(byte("<0x41>")) == "\uFFFD");
  CHECK(stream.push(tokenizer.token_id("o")) == "o");
  CHECK(stream.push(byte("<0xC3>")).empty());
  CHECK(stream.finish() == "\uFFFD");
  CHECK(stream.finish().empty());
}

TEST_CASE("runs of byte tokens decode as by HF's ByteFallback") {
  for (std::string const family : {"llama2", "llama2_metaspace"}) {
    Tokenizer const tokenizer{graft::read_tokenizer(data + "/text_" + family)};
    for (json const& entry : read_json(data + "/text_" + family + "/byte_runs.json")) {
      INFO(entry.dump());
      auto const ids = entry["ids"].get<Ids>();
      auto const decoded = entry["decoded"].get<std::string>();
      CHECK(tokenizer.decode(ids) == decoded);
      CHECK(tokenizer.decode(ids, true) == entry["visible"].get<std::string>());
      if (decoded.find("\uFFFD") == std::string::npos) check_stream(tokenizer, ids, decoded);
    }
  }
}

TEST_CASE("long runs of one character take no longer than n log n") {
  std::string const character = GENERATE(as<std::string>(), "a", " ", "\n", "é", "1", "中", "'");
  auto const family = GENERATE(as<std::string>(), "gpt2", "smollm", "llama3", "qwen2", "llama2");
  Tokenizer const tokenizer{graft::read_tokenizer(data + "/text_" + family)};
  std::string text;
  while (text.size() < 300000) text += character;
  auto const start = std::chrono::steady_clock::now();
  Ids const ids = tokenizer.encode(text + "x", false);
  double const seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  INFO(family << " '" << character << "' " << seconds << " s");
  CHECK(tokenizer.decode(ids) == text + "x");
  // About 0.05 s; anything quadratic takes minutes. The margin is for sanitizers and a busy machine.
  CHECK(seconds < 20);
}

TEST_CASE("any number of threads use one tokenizer", "[many_threads]") {
  json const lines = read_json(data + "/text_lines.json");
  for (std::string const family : {"roberta", "llama2", "bert"}) {
    Tokenizer const tokenizer{graft::read_tokenizer(data + "/text_" + family)};
    json const expected = read_json(data + "/text_" + family + "/expected.json")["lines"];
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t)
      threads.emplace_back([&] {
        for (std::size_t k = 0; k < lines.size(); ++k)
          if (tokenizer.encode(lines[k].get<std::string>()) != expected[k]["ids"].get<Ids>()) ++wrong;
      });
    for (auto& thread : threads) thread.join();
    CHECK(wrong == 0);
  }
}
