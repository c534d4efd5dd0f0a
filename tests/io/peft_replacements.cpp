// SPDX-License-Identifier: Apache-2.0
// Adapters that bring tensors of the model's own: what is listed in modules_to_save, and what PEFT saves beside adapted
// embeddings, whether it differs from the base or not.
#include <tests/catch.hpp>
#include <tests/io/adapter_folders.hpp>
#include <tests/io/files.hpp>
#include <tests/io/llama_sites.hpp>

#include <graft/arch/weights.hpp>
#include <graft/io/peft.hpp>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace {

namespace fs = std::filesystem;
using graft::index_t;
using graft::LoRADelta;
using graft::SiteTable;
using namespace graft_test;

TEST_CASE("replacements of the model's own tensors: modules_to_save and saved embeddings") {
  SiteTable const sites = llama_sites({});
  TemporaryFolder folder;
  auto module = sample(LoRADelta{.rank = 2}, sites, {"model.embed_tokens", "model.layers.0.self_attn.q_proj"});
  module.modules_to_save = {"classifier"};
  module.saved["classifier.dense.weight"] = {{3, 8}, std::vector<float>(24, 2.0f)};
  module.saved["model.embed_tokens.weight"] = {{10, 8}, std::vector<float>(80, 3.0f)};
  module.saved["lm_head.weight"] = {{10, 8}, std::vector<float>(80, 4.0f)};
  graft::write_peft(folder / "a", module, sites);
  auto const file = graft::read_safetensors(folder / "a/adapter_model.safetensors");
  CHECK(file.find("base_model.model.model.embed_tokens.base_layer.weight") != nullptr);
  CHECK(file.find("base_model.model.classifier.dense.weight") != nullptr);
  CHECK(config_of(folder / "a")["modules_to_save"] == Json::array({"classifier", "lm_head"}));
  auto const again = round_trip(module, sites);
  CHECK(again.saved.at("model.embed_tokens.weight").values[7] == 3);
  CHECK(again.saved.at("model.embed_tokens.weight").of_base);
  CHECK(again.saved.at("lm_head.weight").shape == std::vector<index_t>{10, 8});
  CHECK_FALSE(again.saved.at("lm_head.weight").of_base);
  // PEFT lists neither the embedding nor the head when it saves them by itself
  Json config = config_of(folder / "a");
  config["modules_to_save"] = {"classifier"};
  write_bytes(folder / "a/adapter_config.json", config.dump());
  CHECK(graft::read_peft<LoRADelta, B>(folder / "a", sites, "x").module.saved.size() == 3);
  auto const warnings = graft::read_peft<LoRADelta, B>(folder / "a", sites, "x").warnings;
  REQUIRE(warnings.size() == 1);
  CHECK_THAT(warnings[0], Catch::Contains("'base_model.model.classifier.dense.weight' replaces one of the model's own "
                                          "that is no site; it has no effect unless the caller gives it one"));
  config["modules_to_save"] = {"classify"};
  write_bytes(folder / "a/adapter_config.json", config.dump());
  CHECK_THROWS_WITH((graft::read_peft<LoRADelta, B>(folder / "a", sites, "x")),
                    Catch::Contains("classifier.dense.weight' belongs to no module"));

  // beside an adapted head PEFT saves a bias too
  auto with_bias = file.tensors();
  std::vector<float> const bias(10, 5.0f);
  with_bias.push_back(graft::tensor_info("base_model.model.lm_head.base_layer.bias", {10}, bias.data()));
  fs::create_directories(folder / "b");
  graft::write_safetensors(folder / "b/adapter_model.safetensors", with_bias);
  config["modules_to_save"] = {"classifier"};
  write_bytes(folder / "b/adapter_config.json", config.dump());
  CHECK(graft::read_peft<LoRADelta, B>(folder / "b", sites, "x").module.saved.at("lm_head.bias").values == bias);

  CHECK(graft::is_saved_module("classifier.dense", "classifier"));
  CHECK(graft::is_saved_module("a.classifier", "classifier"));
  CHECK(graft::is_saved_module("a.classifier.x", "a.classifier"));
  CHECK(graft::is_saved_module("a.lm_head.x", "head"));  // PEFT: key.endswith(name)
  CHECK_FALSE(graft::is_saved_module("classifier2", "classifier"));
  CHECK_FALSE(graft::is_saved_module("classifier", ""));
}

TEST_CASE("what PEFT saves of the base's own and is unchanged replaces nothing") {
  struct {  // of a model, what loading needs
    graft::Bank<Policies, B> own_bank;
    graft::WeightMap own_weights;
    graft::Bank<Policies, B>& bank() { return own_bank; }
    graft::WeightMap const& weights() const { return own_weights; }
  } model{graft::Bank<Policies, B>(llama_sites({.tied = true})), {}};
  SiteTable const& sites = model.bank().sites();
  std::string const embedding = "model.embed_tokens.weight", head = "lm_head.weight";
  std::vector<graft::bf16> const own(80, graft::bf16(3.0f));  // another format than the adapter's
  model.own_weights.tensors[embedding] = {reinterpret_cast<std::byte const*>(own.data()), graft::Format::bf16, 10, 8,
                                          nullptr};
  TemporaryFolder folder;
  B be;
  auto const kept = [&](std::vector<std::pair<std::string, float>> const& saved, bool listed) {
    auto module = sample(LoRADelta{.rank = 2}, sites, {"model.embed_tokens"});
    for (auto const& [path, last] : saved) {
      module.saved[path] = {{10, 8}, std::vector<float>(80, 3.0f)};
      module.saved[path].values.back() = last;
    }
    graft::write_peft(folder.path(), module, sites);
    Json config = config_of(folder.path());
    config["modules_to_save"] = listed ? Json::array({"lm_head"}) : Json();
    write_bytes(folder / "adapter_config.json", config.dump());
    graft::load_adapter(be, model, "a", folder.path());
    return model.bank().find("a")->replacements.size();
  };
  CHECK(kept({{embedding, 3}}, false) == 0);
  CHECK(kept({{embedding, 3}, {head, 3}}, false) == 0);
  CHECK(kept({{embedding, 4}}, false) == 2);
  CHECK(kept({{embedding, 3}, {head, 4}}, false) == 2);  // the head is loaded last
  CHECK(kept({{embedding, 4}, {head, 3}}, false) == 0);
  CHECK(kept({{embedding, 3}, {head, 3}}, true) == 1);  // the head is asked for
  graft::load_adapter(be, model.bank(), "a", folder.path());
  CHECK(model.bank().find("a")->replacements.size() == 2);  // nothing to compare with

  model.own_weights.tensors[embedding].rows = 9;  // a vocabulary of another size is another tensor
  CHECK(kept({{embedding, 3}}, false) == 2);
}

TEST_CASE("where head and embedding are one tensor, what PEFT saves of the base's own is both") {
  SiteTable const sites = llama_sites({.tied = true});
  TemporaryFolder folder;
  std::string const embedding = "model.embed_tokens.weight", head = "lm_head.weight";
  std::vector<float> const one(80, 3.0f), other(80, 4.0f);
  auto const read = [&](std::vector<std::string> const& saved, std::vector<std::string> const& modules_to_save) {
    auto module = sample(LoRADelta{.rank = 2}, sites, {"model.layers.0.self_attn.q_proj"});
    for (auto const& path : saved) module.saved[path] = {{10, 8}, path == head ? other : one};
    graft::write_peft(folder.path(), module, sites);
    Json config = config_of(folder.path());
    config["modules_to_save"] = modules_to_save;
    write_bytes(folder / "adapter_config.json", config.dump());
    return graft::read_peft<LoRADelta, B>(folder.path(), sites, "x").module.saved;
  };
  for (auto const& [saved, value] : {std::pair(embedding, one), std::pair(head, other)}) {
    auto const both = read({saved}, {});
    REQUIRE(both.size() == 2);
    CHECK(both.at(embedding).values == value);
    CHECK(both.at(head).values == value);
  }
  CHECK(read({embedding, head}, {}).at(embedding).values == other);  // loaded last
  // copies beside the base's own
  CHECK(read({embedding}, {"embed_tokens"}).size() == 1);
  CHECK(read({head}, {"lm_head"}).size() == 1);
  CHECK(read({head}, {"head"}).size() == 1);  // names are endings, as in PEFT
  auto const mixed = read({embedding, head}, {"lm_head"});
  CHECK(mixed.at(embedding).values == one);
  CHECK(mixed.at(head).values == other);
}

}  // namespace
