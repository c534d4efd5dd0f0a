// SPDX-License-Identifier: Apache-2.0
// Adapter folders that are broken, contradict themselves or are not supported: refused in one sentence that names file
// and key or tensor, with nothing left behind.
#include <tests/catch.hpp>
#include <tests/io/adapter_folders.hpp>
#include <tests/io/files.hpp>
#include <tests/io/llama_sites.hpp>

#include <graft/io/peft.hpp>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace fs = std::filesystem;
using graft::Format;
using graft::IA3Scaling;
using graft::index_t;
using graft::LoRADelta;
using graft::Module;
using graft::PedroGenerator;
using graft::RoAdRotation;
using graft::SiteTable;
using graft_test::B;
using graft_test::config_of;
using graft_test::Json;
using graft_test::llama_sites;
using graft_test::read_any;
using graft_test::read_bytes;
using graft_test::sample;
using graft_test::TemporaryFolder;
using graft_test::write_bytes;

namespace {

/// A LoRA and a RoAd folder that are right, to be broken one thing at a time.
struct Broken {
  SiteTable sites = llama_sites({});
  TemporaryFolder folder;

  template <class P>
  void write(P const& policy, std::vector<std::string> const& paths) {
    fs::remove_all(folder / "a");
    graft::write_peft(folder / "a", sample(policy, sites, paths), sites);
  }
  void lora() { write(LoRADelta{.rank = 4}, {"model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"}); }

  /// The sentence, without the folder; "" when the folder is read.
  std::string sentence() {
    try {
      read_any(folder / "a", sites);
    } catch (graft::FormatError const& error) {
      std::string const all = error.what(), start = (folder / "a").string();
      REQUIRE(all.substr(0, start.size()) == start);
      REQUIRE(all.find('\n') == std::string::npos);
      return all.substr(start.size());
    }
    return "";
  }
  std::string with_config(std::function<void(Json&)> const& change) {
    Json const before = config_of(folder / "a");
    Json config = before;
    change(config);
    write_bytes(folder / "a/adapter_config.json", config.dump());
    auto const result = sentence();
    write_bytes(folder / "a/adapter_config.json", before.dump());
    return result;
  }
  std::string with_key(std::string const& key, Json const& value) {
    return with_config([&](Json& config) { config[key] = value; });
  }
  std::string with_tensors(std::function<void(std::vector<graft::TensorInfo>&)> const& change) {
    auto const path = folder / "a/adapter_model.safetensors";
    auto const before = read_bytes(path);
    {
      auto const file = graft::read_safetensors(path);
      auto tensors = file.tensors();
      change(tensors);
      graft::write_safetensors(path, tensors);
    }
    auto const result = sentence();
    write_bytes(path, before);
    return result;
  }
};

}  // namespace

TEST_CASE("configurations that do not say what they must are refused by key") {
  Broken b;
  b.lora();
  CHECK(b.sentence() == "");
  auto const config = [](std::string const& rest) { return "/adapter_config.json: " + rest; };
  CHECK(b.with_key("r", "eight") == config("key 'r' is \"eight\", expected a whole number"));
  CHECK(b.with_key("r", 2.5) == config("key 'r' is 2.5, expected a whole number"));
  CHECK(b.with_key("r", true) == config("key 'r' is true, expected a whole number"));
  CHECK(b.with_key("r", 1e300) == config("key 'r' is 1e+300, expected a whole number"));
  CHECK(b.with_key("r", 0) == config("LoRA's rank r must be positive, it is 0 at model.layers.0.self_attn.q_proj"));
  CHECK(b.with_key("r", -4) == config("LoRA's rank r must be positive, it is -4 at model.layers.0.self_attn.q_proj"));
  CHECK(b.with_key("lora_alpha", {8}) == config("key 'lora_alpha' is [8], expected a number"));
  CHECK(b.with_key("use_rslora", 1) == config("key 'use_rslora' is 1, expected true or false"));
  CHECK(b.with_key("rank_pattern", {4}) == config("key 'rank_pattern' is [4], expected an object of numbers"));
  CHECK(b.with_key("rank_pattern", {{"q_proj", "4"}}) ==
        config("key 'rank_pattern.q_proj' is \"4\", expected a number"));
  CHECK(b.with_key("rank_pattern", {{"q_proj", 1e40}}) ==
        config("key 'rank_pattern.q_proj' is 1e+40, expected a number"));
  CHECK(b.with_key("rank_pattern", {{"q_(proj", 4}}) == config("pattern 'q_(proj' is not a regular expression"));
  CHECK(b.with_key("alpha_pattern", {{"\\Amodel.layers", 4}}) ==
        config("pattern '\\Amodel.layers' has Python's \\A or \\Z; write ^ or $"));
  CHECK(b.with_key("rank_pattern", {{"q_proj", 4.5}}) ==
        config("LoRA's rank_pattern says 4.5, a rank is a whole number"));
  CHECK(b.with_key("lora_alpha", 1e300) ==
        config("LoRA's lora_alpha 1e+300 at model.layers.0.self_attn.q_proj gives a scale that no float holds"));
  CHECK_THAT(b.with_key("rank_pattern", {{std::string(1001, '('), 4}}), Catch::Contains("is 1001 characters long"));
  CHECK(b.with_key("target_modules", 3) ==
        config("key 'target_modules' is 3, expected a list of strings or a pattern"));
  CHECK(b.with_key("modules_to_save", "score") ==
        config("key 'modules_to_save' is \"score\", expected a list of strings"));
  CHECK(b.with_key("base_model_name_or_path", 3) == config("key 'base_model_name_or_path' is 3, expected a string"));
  CHECK(b.with_key("peft_type", "VERA") ==
        config("peft_type 'VERA' is not supported; known are IA3, ROAD, LORA, PEDRO"));
  CHECK(b.with_config([](Json& c) { c.erase("peft_type"); }) ==
        config("has no peft_type, the one key an adapter must have"));
  CHECK(b.with_config([](Json& c) { c = Json::array(); }) == config("is not a JSON object"));
  write_bytes(b.folder / "a/adapter_config.json", "{");
  CHECK(b.sentence() == config("is not valid JSON"));
  CHECK_THROWS_WITH(
      (graft::read_peft<RoAdRotation, B>(fs::path(GRAFT_TEST_DATA "/models/llama_lora/adapter_a"), b.sites, "x")),
      Catch::Contains("adapter_config.json: is of peft_type 'LORA', expected 'ROAD'"));
}

TEST_CASE("what would be computed wrongly is refused by name") {
  Broken b;
  b.lora();
  std::pair<char const*, Json> const keys[] = {{"use_dora", true},
                                               {"use_qalora", true},
                                               {"bias", "all"},
                                               {"bias", "lora_only"},
                                               {"bias", "some"},
                                               {"bias", 3},
                                               {"layer_replication", Json::array({{0, 1}})},
                                               {"target_parameters", Json::array({"experts.w"})},
                                               {"alora_invocation_tokens", Json::array({1, 2})},
                                               {"use_bdlora", {{"nblocks", 2}}},
                                               {"trainable_token_indices", Json::array({5})},
                                               {"kasa_config", {{"beta", 1}}},
                                               {"init_lora_weights", "pissa"},
                                               {"init_lora_weights", "pissa_niter_4"},
                                               {"init_lora_weights", "olora"},
                                               {"init_lora_weights", "loftq"},
                                               {"init_lora_weights", "corda"},
                                               {"init_lora_weights", "lora_ga"}};
  for (auto const& [key, value] : keys) {
    INFO(key);
    auto const sentence = b.with_key(key, value);
    CHECK_THAT(sentence, Catch::Contains(std::string("/adapter_config.json: key '") + key + "' is " + value.dump()));
    CHECK_THAT(sentence, Catch::Contains(" is not supported"));
  }
  for (auto const& harmless : {Json(true), Json(false), Json("gaussian"), Json("eva"), Json("orthogonal")})
    CHECK(b.with_key("init_lora_weights", harmless) == "");
  CHECK(b.with_key("bias", "none") == "");
}

TEST_CASE("tensors that do not fit are refused by name") {
  Broken b;
  b.lora();
  auto const file = [](std::string const& rest) { return "/adapter_model.safetensors: " + rest; };
  std::string const a = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
                    bb = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";
  auto const named = [](std::vector<graft::TensorInfo>& tensors, std::string const& name) -> graft::TensorInfo& {
    return *std::find_if(tensors.begin(), tensors.end(), [&](auto const& t) { return t.name == name; });
  };
  auto const rename = [&](std::string const& to) {
    return b.with_tensors([&](auto& tensors) { named(tensors, a).name = to; });
  };
  std::vector<float> values(4 * 8, 1.0f);
  auto const with_extra = [&](graft::TensorInfo const& extra) {
    return b.with_tensors([&](auto& tensors) { tensors.push_back(extra); });
  };

  CHECK(
      rename("base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight") ==
      file("tensor 'base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight' belongs to no module of the model "
           "that LORA can adapt, nor to one of modules_to_save"));
  CHECK_THAT(rename("lora_A"), Catch::Contains("tensor 'lora_A' belongs to no module"));
  CHECK(rename("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector") ==
        file("tensor 'model.layers.0.self_attn.q_proj.lora_A.weight' is missing"));
  CHECK(b.with_tensors([&](auto& tensors) { std::erase_if(tensors, [&](auto const& t) { return t.name == bb; }); }) ==
        file("tensor 'model.layers.0.self_attn.q_proj.lora_B.weight' is missing"));
  CHECK(b.with_tensors([](auto& tensors) { tensors.clear(); }) == file("has no tensor of a LORA adapter"));
  std::string const module = "base_model.model.model.layers.0.self_attn.q_proj.";
  CHECK(with_extra(graft::tensor_info(module + "lora_magnitude_vector", {8}, values.data())) ==
        file("tensor '" + module +
             "lora_magnitude_vector' is not one that a LORA adapter with this configuration has "
             "at model.layers.0.self_attn.q_proj"));
  CHECK_THAT(with_extra(graft::tensor_info(module + "lora_B.bias", {8}, values.data())),
             Catch::Contains("lora_B.bias' is not one that a LORA adapter with this configuration has"));
  CHECK_THAT(with_extra(graft::tensor_info(module + "base_layer.bias", {8}, values.data())),
             Catch::Contains("base_layer.bias' is not one"));
  CHECK(with_extra(graft::tensor_info("model.layers.0.self_attn.q_proj.lora_A.weight", {4, 8}, values.data())) ==
        file("tensor 'model.layers.0.self_attn.q_proj.lora_A.weight' occurs under two names"));
  CHECK_THAT(with_extra(graft::tensor_info("base_model.model.score.weight", {2, 8}, values.data())),
             Catch::Contains("tensor 'base_model.model.score.weight' belongs to no module"));
  CHECK(with_extra(graft::tensor_info("base_model.model.lm_head.weight", {11, 2}, values.data())) ==
        file("tensor 'base_model.model.lm_head.weight' has shape [11, 2], expected [10, 8]; a vocabulary or head of "
             "another size than the model's is not supported"));

  auto const saved = [&](std::string const& name, std::vector<index_t> const& shape) {
    Json const before = config_of(b.folder / "a");
    Json config = before;
    config["modules_to_save"] = {"lm_head", "v_proj"};
    write_bytes(b.folder / "a/adapter_config.json", config.dump());
    auto const result = with_extra(graft::tensor_info("base_model.model." + name, shape, values.data()));
    write_bytes(b.folder / "a/adapter_config.json", before.dump());
    return result;
  };
  CHECK(saved("lm_head.bias", {10}) == "");
  CHECK_THAT(saved("lm_head.bias", {9}), Catch::Contains("has shape [9], expected [10]; a vocabulary or head"));
  CHECK_THAT(saved("lm_head.scale", {10}), Catch::Contains("neither a head nor an embedding"));
  CHECK_THAT(saved("model.layers.0.self_attn.v_proj.weight", {4, 8}),
             Catch::Contains("v_proj.weight' replaces a part of the model that is neither a head nor an embedding"));

  CHECK(b.with_key("r", 5) == file("tensor '" + a +
                                   "' has shape [4, 8], expected [5, 8] at a site of 8 inputs and 8 "
                                   "outputs with fan_in_fan_out false, lora_alpha 8, lora_bias false, r 5, "
                                   "use_rslora false"));
  CHECK_THAT(b.with_key("r", std::int64_t{1} << 50), Catch::Contains("expected [1125899906842624, 8]"));
  for (auto const& shape : {std::vector<index_t>{8, 4}, {32}, {2, 2, 8}})
    CHECK_THAT(b.with_tensors([&](auto& tensors) { named(tensors, a).shape = shape; }),
               Catch::Contains("has shape " + graft::shape_text(shape) + ", expected [4, 8]"));

  std::vector<std::int32_t> integers(4 * 8);
  CHECK(b.with_tensors([&](auto& tensors) {
    named(tensors, a) = graft::tensor_info(a, {4, 8}, integers.data());
  }) == file("tensor '" + a + "' is I32; adapters hold F32, F16, BF16 or F64"));
  for (float const bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    values[9] = bad;
    CHECK_THAT(b.with_tensors([&](auto& tensors) {
      named(tensors, a) = graft::tensor_info(a, {4, 8}, values.data());
    }),
               Catch::Contains("tensor '" + a + "' holds ") && Catch::Contains(" at place 9"));
  }
  std::vector<double> large(4 * 8, 1e300);  // not a float
  CHECK_THAT(b.with_tensors([&](auto& tensors) {
    named(tensors, a) = graft::tensor_info(a, {4, 8}, large.data());
  }),
             Catch::Contains("holds inf at place 0"));
}

TEST_CASE("RoAd, IA3 and PEDRO folders that contradict themselves are refused") {
  Broken b;
  std::vector<float> const values(64, 1.0f);
  SECTION("RoAd") {
    b.write(RoAdRotation{.variant = RoAdRotation::Variant::road_2, .group_size = 4},
            {"model.layers.0.self_attn.q_proj"});
    CHECK_THAT(b.with_key("variant", "road_1"),
               Catch::Contains("has shape [8], expected [4]") && Catch::Contains("variant \"road_1\""));
    CHECK_THAT(b.with_key("variant", "1"),
               Catch::Contains("key 'variant' is \"1\", expected one of \"road_1\", \"road_2\", \"road_4\""));
    CHECK(b.with_key("group_size", 6) ==
          "/adapter_config.json: RoAd's group_size 6 must be even and divide the 8 outputs "
          "of model.layers.0.self_attn.q_proj");
    CHECK_THAT(b.with_key("group_size", 0), Catch::Contains("RoAd's group_size 0 must"));
    CHECK_THAT(b.with_key("group_size", nullptr), Catch::Contains("RoAd's group_size 64 must"));
    CHECK(b.with_key("group_size", 2) == "");
  }
  SECTION("IA3") {
    b.write(IA3Scaling{}, {"model.layers.0.self_attn.k_proj"});
    CHECK_THAT(b.with_tensors([&](auto& tensors) {
      tensors[0] = graft::tensor_info(tensors[0].name, {1, 4}, values.data());
    }),
               Catch::Contains("has shape [1, 4], expected [4, 1] at a site of 8 inputs and 4 outputs"));
  }
  SECTION("PEDRO") {
    PedroGenerator policy;
    policy.rank = 2;
    b.write(policy, {"model.layers.0", "model.layers.1"});
    CHECK(b.sentence() == "");
    CHECK_THAT(b.with_key("activation", "relu"), Catch::Contains("pedro_den' is not one that a PEDRO adapter"));
    CHECK_THAT(b.with_key("pooling", "attention"), Catch::Contains("pedro_pool.weight' is missing"));
    CHECK_THAT(b.with_key("numerator_degree", -1), Catch::Contains("degrees not negative"));
    CHECK_THAT(b.with_key("up_bias", true), Catch::Contains("pedro_up.bias' is missing"));
    CHECK_THAT(b.with_key("offset", "two"), Catch::Contains("expected one of \"one\", \"bias\""));
  }
}

TEST_CASE("folders that are none say what to do") {
  Broken b;
  auto const make = [&] { fs::create_directories(b.folder / "a"); };
  CHECK(b.sentence() == ": is not a folder; an adapter is one with adapter_config.json in it");
  make();
  CHECK(b.sentence() == ": has no adapter_config.json, so it is not an adapter folder");
  fs::create_directories(b.folder / "a/other");
  write_bytes(b.folder / "a/other/adapter_config.json", "{}");
  CHECK(b.sentence() == ": has no adapter_config.json; its folder 'other' is an adapter, name that one");
  b.lora();
  fs::rename(b.folder / "a/adapter_model.safetensors", b.folder / "a/adapter_model.bin");
  CHECK(b.sentence() ==
        "/adapter_model.bin: is a Python pickle, which can run any code and is not read; load it with "
        "PEFT and save it again, which writes adapter_model.safetensors");
  fs::remove(b.folder / "a/adapter_model.bin");
  CHECK_THAT(b.sentence(), Catch::Contains("/adapter_model.safetensors: cannot be opened"));
}

TEST_CASE("a failed writing leaves what was there and nothing else") {
  SiteTable const sites = llama_sites({});
  TemporaryFolder folder;
  auto module = sample(LoRADelta{}, sites, {"lm_head"});
  graft::write_peft(folder.path(), module, sites);
  auto const before = read_bytes(folder / "adapter_model.safetensors");
  module.parameters()[5] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_WITH(
      graft::write_peft(folder.path(), module, sites),
      Catch::Contains("tensor lm_head.lora_A.weight holds") && Catch::Contains("cannot be written as F32"));
  module.parameters()[5] = 1e6f;
  CHECK_THROWS_WITH(graft::write_peft(folder.path(), module, sites, {Format::f16}),
                    Catch::Contains("cannot be written as F16"));
  CHECK_THROWS_AS(graft::write_peft(folder.path(), module, sites, {Format::q8_0}), graft::ContractError);
  CHECK_THROWS_AS(graft::write_peft(folder.path(), Module<LoRADelta, B>{}, sites), graft::ContractError);
  CHECK(read_bytes(folder / "adapter_model.safetensors") == before);
  CHECK_THROWS_AS(graft::write_peft(folder / "adapter_config.json", module, sites), graft::FormatError);
  graft::write_peft(folder.path(), module, sites, {Format::bf16});
  CHECK(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator{}) == 2);
  CHECK(graft::read_peft<LoRADelta, B>(folder.path(), sites, "x").module.parameters()[5] == 999424.0f);
}

TEST_CASE("whatever the bytes of a folder are, it is read or refused") {
  Broken b;
  auto module = sample(LoRADelta{.rank = 2, .rank_pattern = {{"q_.*", 1}}}, b.sites,
                       {"model.embed_tokens", "model.layers.0.self_attn.q_proj"});
  module.saved["score.weight"] = {{2, 2}, {1, 2, 3, 4}};
  graft::write_peft(b.folder / "a", module, b.sites);
  graft::Random random(7);
  for (auto const* name : {"a/adapter_config.json", "a/adapter_model.safetensors"}) {
    auto const original = read_bytes(b.folder / name);
    int refused = 0;
    for (int k = 0; k < 1500; ++k) {
      auto bytes = original;
      auto const header = std::min<std::uint64_t>(bytes.size(), 1200);
      auto const at = static_cast<std::size_t>(random.next() % header);
      constexpr std::string_view likely = "\"{}[],:0123456789.-eln_ \xff";
      switch (random.next() % 3) {
        case 0:
          bytes[at] = likely[static_cast<std::size_t>(random.next() % likely.size())];
          break;
        case 1:
          bytes.erase(at, 1 + random.next() % 8);
          break;
        default:
          bytes.insert(at, 1, likely[static_cast<std::size_t>(random.next() % likely.size())]);
      }
      write_bytes(b.folder / name, bytes);
      refused += !b.sentence().empty();  // anything but a FormatError fails the test
    }
    write_bytes(b.folder / name, original);
    CHECK(refused > 100);
  }
}
