// SPDX-License-Identifier: Apache-2.0
// Changed at random, tokenizer files and chat templates still work or end in one of graft's errors.
#include <graft/io/json.hpp>
#include <graft/text/chat_template.hpp>
#include <graft/text/model_tokenizer.hpp>
#include <graft/text/tokenizer.hpp>

#include <tests/catch.hpp>
#include <tests/io/files.hpp>

#include <nlohmann/json.hpp>

#include <cstddef>
#include <iterator>
#include <random>
#include <string>
#include <vector>

using nlohmann::json;

namespace {

std::string const data = GRAFT_TEST_DATA;

std::size_t below(std::mt19937& random, std::size_t count) { return random() % count; }

/// A node of the tree, small containers as likely as large ones.
json& pick(json& root, std::mt19937& random) {
  json* node = &root;
  while (node->is_structured() && !node->empty() && below(random, 8) != 0) {
    auto child = node->begin();
    std::advance(child, static_cast<std::ptrdiff_t>(below(random, node->size())));
    node = &*child;
  }
  return *node;
}

}  // namespace

TEST_CASE("a tokenizer.json with any node changed works or is refused") {
  graft_test::TemporaryFolder const folder;
  auto const path = folder / "tokenizer.json";
  std::vector<json> const odd = {nullptr,
                                 true,
                                 -1,
                                 0,
                                 5,
                                 1u << 31,
                                 1e300,
                                 "",
                                 "x",
                                 "\u2581",
                                 "ByteLevel",
                                 "Sequence",
                                 json::array(),
                                 json::object(),
                                 {1, "a"},
                                 {{"type", "NFC"}},
                                 {{"type", "Sequence"}}};
  std::mt19937 random(1);
  int accepted = 0, refused = 0;
  for (std::string const family : {"llama3", "qwen2", "roberta", "llama2", "llama2_metaspace", "bert"}) {
    json whole = graft::read_json(data + "/text_" + family + "/tokenizer.json");
    // A small vocabulary keeps this fast; merges of what is gone are refused, so they go too.
    whole["model"]["merges"] = json::array();
    for (int k = 0; k < 300; ++k) {
      json file = whole;
      for (std::size_t changes = 1 + below(random, 2); changes > 0; --changes)
        pick(file, random) = odd[below(random, odd.size())];
      graft_test::write_bytes(path, file.dump());
      try {
        graft::Tokenizer const tokenizer{graft::read_tokenizer(path)};
        tokenizer.decode(tokenizer.encode("<s> Hello [MASK] w\u00f6rld 123 <|eot_id|>\U0001F642"));
        tokenizer.encode_pair("a", "b");
        ++accepted;
      } catch (graft::FormatError const&) {
        ++refused;
      }
    }
  }
  CHECK(accepted > 100);
  CHECK(refused > 100);
}

TEST_CASE("a chat template put together from pieces of others works or is refused") {
  json const golden = graft::read_json(data + "/text_chat.json");
  std::vector<std::string> sources;
  for (auto const& source : golden["templates"]) sources.push_back(source);
  for (auto const& one : golden["snippets"]) sources.push_back(one["template"]);
  std::mt19937 random(2);
  int accepted = 0, refused = 0;
  for (int k = 0; k < 20000; ++k) {
    std::string source = sources[below(random, sources.size())];
    for (std::size_t changes = 1 + below(random, 3); changes > 0; --changes) {
      std::string const& other = sources[below(random, sources.size())];
      std::size_t const from = below(random, other.size() + 1), at = below(random, source.size() + 1);
      source.replace(at, below(random, 12), other.substr(from, below(random, 40)));
    }
    INFO(source);
    try {
      graft::ChatTemplate(source).render(golden["messages"]);
      ++accepted;
    } catch (graft::Error const&) {
      ++refused;
    }
  }
  CHECK(accepted > 1000);
  CHECK(refused > 1000);
}
