// SPDX-License-Identifier: Apache-2.0
// Tokenizers written to GGUF metadata and to tokenizer.json give the tokens they gave before.
#include <graft/io/json.hpp>
#include <graft/text/gguf_tokenizer.hpp>
#include <graft/text/gguf_tokenizer_writer.hpp>
#include <graft/text/hf_tokenizer.hpp>
#include <graft/text/hf_tokenizer_writer.hpp>
#include <graft/text/model_tokenizer.hpp>
#include <graft/text/tokenizer.hpp>

#include <tests/catch.hpp>
#include <tests/io/files.hpp>

#include <nlohmann/json.hpp>

#include <string>
#include <vector>

using namespace graft;
using graft_test::TemporaryFolder;
using Ids = std::vector<std::int32_t>;

namespace {

std::string const data = GRAFT_TEST_DATA;
std::vector<std::string> const families = {"gpt2", "smollm", "llama3", "qwen2", "llama2"};

std::vector<std::string> lines() {
  auto all = read_json(data + "/text_lines.json").get<std::vector<std::string>>();
  REQUIRE(all.size() > 200);
  return all;
}

TokenizerSpec through_gguf(TokenizerSpec const& spec, std::vector<std::string>* notes = nullptr) {
  GgufMetadata metadata;
  auto said = write_gguf_tokenizer(spec, static_cast<index_t>(spec.tokens.size()) + 3, metadata);
  if (notes != nullptr) *notes = std::move(said);
  auto result = read_gguf_tokenizer(metadata, "metadata");
  check_spec(result);
  return result;
}
TokenizerSpec through_hf(TokenizerSpec const& spec) {
  TemporaryFolder const folder;
  graft_test::write_bytes(folder / "tokenizer.json", hf_tokenizer(spec).dump());
  graft_test::write_bytes(folder / "tokenizer_config.json", hf_tokenizer_config(spec, 2048).dump());
  auto result = read_hf_tokenizer(folder.path());
  check_spec(result);
  return result;
}

void check_same(TokenizerSpec const& a, TokenizerSpec const& b) {
  Tokenizer const x{a}, y{b};
  for (auto const& line : lines()) {
    INFO(nlohmann::json(line).dump());
    Ids const ids = x.encode(line);
    CHECK(y.encode(line) == ids);
    CHECK(y.encode(line, true, false) == x.encode(line, true, false));
    CHECK(y.decode(ids) == x.decode(ids));
    CHECK(y.decode(ids, true) == x.decode(ids, true));
  }
  CHECK(a.bos == b.bos);
  CHECK(a.eos == b.eos);
  CHECK(a.padding == b.padding);
  CHECK(a.end_of_turn == b.end_of_turn);
  CHECK(a.chat_template == b.chat_template);
}

TokenizerSpec sentencepiece() {
  auto const golden = read_json(data + "/text_sentencepiece.json");
  TokenizerSpec spec;
  spec.kind = TokenizerKind::sentencepiece_bpe;
  spec.tokens = golden["tokens"].get<std::vector<std::string>>();
  spec.scores = golden["scores"].get<std::vector<float>>();
  for (int const type : golden["types"]) spec.types.push_back(static_cast<TokenType>(type));
  spec.unknown = 0, spec.bos = 1, spec.eos = 2;
  for (std::int32_t id = 0; id < 3; ++id) {
    AddedToken token;
    token.id = id;
    token.content = spec.tokens[static_cast<std::size_t>(id)];
    token.special = true;
    spec.added.push_back(token);
  }
  surround(spec, true, false);
  return spec;
}

}  // namespace

TEST_CASE("every family's tokenizer is the same behind GGUF metadata") {
  for (auto const& family : families) DYNAMIC_SECTION(family) {
      auto spec = read_tokenizer(data + "/text_" + family);
      spec.chat_template = "{{ messages }}";
      auto const back = through_gguf(spec);
      check_same(spec, back);
      CHECK(back.tokens.size() == spec.tokens.size() + 3);  // rows of embeddings without a token
      CHECK(back.types.back() == TokenType::unused);
    }
}

TEST_CASE("every family's tokenizer is the same behind tokenizer.json, from HF's files and from GGUF") {
  for (auto const& family : families) DYNAMIC_SECTION(family) {
      auto const spec = read_tokenizer(data + "/text_" + family);
      check_same(spec, through_hf(spec));
      check_same(spec, through_hf(through_gguf(spec)));
    }
  auto const metaspace = read_tokenizer(data + "/text_llama2_metaspace");
  check_same(metaspace, through_hf(metaspace));
}

TEST_CASE("SentencePiece's scores become merges, and merges scores, that cut alike") {
  auto const scored = sentencepiece();
  auto const merged = through_hf(scored);
  CHECK(merged.scores.empty());
  REQUIRE(merged.merges.size() > 20);
  check_same(scored, merged);
  bool exact = true;
  scores_from_merges(merged, exact);
  CHECK(exact);
  std::vector<std::string> notes;
  check_same(scored, through_gguf(merged, &notes));
  CHECK(notes.empty());
}

TEST_CASE("lists of merges that scores cannot say are told apart") {
  TokenizerSpec spec;
  spec.kind = TokenizerKind::sentencepiece_bpe;
  spec.tokens = {"a", "b", "ab", "bb", "abb"};
  auto const exact = [&](std::vector<std::pair<std::string, std::string>> merges) {
    spec.merges = std::move(merges);
    bool result = true;
    auto const scores = scores_from_merges(spec, result);
    CHECK(scores.size() == spec.tokens.size());
    return result;
  };
  CHECK(exact({{"a", "b"}, {"b", "b"}, {"ab", "b"}, {"a", "bb"}}));
  CHECK_FALSE(exact({{"a", "b"}, {"ab", "b"}, {"b", "b"}, {"a", "bb"}}));  // abb before and after bb
  CHECK_FALSE(exact({{"a", "b"}, {"b", "b"}, {"ab", "b"}}));               // a, bb is not to merge
}

TEST_CASE("what a file format cannot say of a tokenizer is said or refused") {
  auto const notes = [](TokenizerSpec const& spec) {
    std::vector<std::string> result;
    through_gguf(spec, &result);
    return result;
  };
  CHECK(notes(read_tokenizer(data + "/text_qwen2")).empty());
  CHECK_THAT(notes(read_tokenizer(data + "/text_llama2_metaspace")).at(0), Catch::Contains("spaces of its own"));
  CHECK_THAT(notes(read_tokenizer(data + "/text_roberta")).at(0), Catch::Contains("<mask>"));
  auto spec = read_tokenizer(data + "/text_gpt2");
  spec.nfc = true;
  CHECK_THAT(notes(spec).at(0), Catch::Contains("form C"));
  spec = read_tokenizer(data + "/text_gpt2");
  spec.ignore_merges = true;
  CHECK_THAT(notes(spec).at(0), Catch::Contains("words"));
  spec = read_tokenizer(data + "/text_llama3");
  spec.single.push_back({5});
  CHECK_THAT(notes(spec).at(0), Catch::Contains("only BOS and EOS"));

  auto const bert = read_tokenizer(data + "/text_bert");
  GgufMetadata metadata;
  CHECK_THROWS_WITH(write_gguf_tokenizer(bert, 10000, metadata), Catch::Contains("WordPiece"));
  CHECK_THROWS_WITH(hf_tokenizer(bert), Catch::Contains("WordPiece"));
  CHECK_THROWS_WITH(write_gguf_tokenizer(read_tokenizer(data + "/text_gpt2"), 700, metadata),
                    Catch::Contains("has 701 tokens, the model 700"));
}
