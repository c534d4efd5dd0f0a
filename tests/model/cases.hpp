// SPDX-License-Identifier: Apache-2.0
// The golden cases: a tiny model each, adapters for it, requests, and what transformers and PEFT answer.
#pragma once

#include <graft/adapter/adapter_set.hpp>
#include <graft/io/json.hpp>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace graft_test {

using namespace graft;

/// One line of a case's requests.jsonl.
struct Request {
  std::vector<std::int32_t> tokens, token_types;
  std::vector<AdapterUse> adapters;
  index_t prompt_tokens = -1;
};

/// A folder under tests/golden/data/models.
struct Case {
  std::string name;
  std::filesystem::path folder;
  std::vector<Request> requests;
};
/// Whether it is a language model that goes on from its prompt.
inline bool is_decoder(Case const& c) {
  return !c.name.starts_with("bert") && !c.name.starts_with("roberta") && !c.name.ends_with("_classifier");
}
/// All of them, by name; there is at least one.
inline std::vector<Case> const& cases() {
  static std::vector<Case> const all = [] {
    std::vector<Case> result;
    for (auto const& entry : std::filesystem::directory_iterator(GRAFT_TEST_DATA "/models")) {
      if (!std::filesystem::exists(entry.path() / "expected.safetensors")) continue;
      Case found{entry.path().filename().string(), entry.path(), {}};
      std::ifstream lines(entry.path() / "requests.jsonl");
      for (std::string line; std::getline(lines, line);) {
        auto const json = nlohmann::json::parse(line);
        Request request;
        request.tokens = json.at("tokens").get<std::vector<std::int32_t>>();
        request.token_types = json.value("token_type_ids", std::vector<std::int32_t>{});
        request.prompt_tokens = json.value("prompt_tokens", index_t{-1});
        for (auto const& use : json.value("adapters", nlohmann::json::array()))
          request.adapters.push_back({use.at("name").get<std::string>(), use.value("weight", 1.0)});
        found.requests.push_back(std::move(request));
      }
      result.push_back(std::move(found));
    }
    std::sort(result.begin(), result.end(), [](auto const& a, auto const& b) { return a.name < b.name; });
    if (result.empty()) throw std::runtime_error("no golden models under " GRAFT_TEST_DATA "/models");
    return result;
  }();
  return all;
}

inline Case const& case_of(std::string const& name) {
  for (auto const& one : cases())
    if (one.name == name) return one;
  throw std::runtime_error("no golden model is called " + name);
}

}  // namespace graft_test
