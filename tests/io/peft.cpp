// SPDX-License-Identifier: Apache-2.0
// Adapter folders: what HF PEFT wrote is read, and written again to the byte; policies of a user travel as well; what
// is broken or not supported is refused in one sentence.
#include <tests/catch.hpp>
#include <tests/io/adapter_folders.hpp>
#include <tests/io/files.hpp>
#include <tests/io/golden_sites.hpp>
#include <tests/io/llama_sites.hpp>

#include <graft/arch/weights.hpp>
#include <graft/io/peft.hpp>

#include <algorithm>
#include <array>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <variant>
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
using graft_test::golden_model;
using graft_test::GoldenModel;
using graft_test::Json;
using graft_test::llama_sites;
using graft_test::numbers;
using graft_test::Policies;
using graft_test::read_any;
using graft_test::read_bytes;
using graft_test::round_trip;
using graft_test::sample;
using graft_test::TemporaryFolder;
using graft_test::write_bytes;

namespace {

void write_any(fs::path const& folder, graft::AnyModule<Policies, B> const& any, SiteTable const& sites,
               graft::PeftWriteOptions options) {
  std::visit([&](auto const& module) { graft::write_peft(folder, module, sites, options); }, any.module);
}

/// f(model, adapter folder) for all golden adapters.
template <class F>
int for_each_golden_adapter(F&& f) {
  int count = 0;
  for (auto const& folder : fs::directory_iterator(GRAFT_TEST_DATA "/models")) {
    auto const model = golden_model(folder.path().filename());
    for (auto const& entry : fs::directory_iterator(folder)) {
      if (!entry.path().filename().string().starts_with("adapter_")) continue;
      INFO(entry.path());
      f(model, entry.path());
      ++count;
    }
  }
  return count;
}

}  // namespace

TEST_CASE("every tensor of PEFT's folders is where its name says") {
  int const count = for_each_golden_adapter([](GoldenModel const& model, fs::path const& folder) {
    auto any = read_any(folder, model.sites);
    CHECK(any.warnings.empty());
    auto const file = graft::read_safetensors(folder / "adapter_model.safetensors");
    std::map<std::string, graft::TensorInfo const*> stored;
    for (auto const& tensor : file.tensors()) stored[std::string(graft::without_peft_prefix(tensor.name))] = &tensor;
    std::visit(
        [&](auto& module) {
          module.for_each([&](index_t site, std::string suffix, auto const& view) {
            auto const found = stored.find(model.sites[site].path + "." + suffix);
            REQUIRE(found != stored.end());
            auto const& tensor = *found->second;
            std::vector<float> values(static_cast<std::size_t>(tensor.elements()));
            graft::decode_row(tensor.format, tensor.data, 0, tensor.elements(), values.data());
            CHECK(graft::tensor_shape(view) == tensor.shape);
            CHECK(std::equal(values.begin(), values.end(), view.data));
            stored.erase(found);
          });
          CHECK(stored.size() == module.saved.size());
        },
        any.module);
  });
  CHECK(count > 40);
}

TEST_CASE("PEFT's folders are written again to the byte") {
  for_each_golden_adapter([](GoldenModel const& model, fs::path const& folder) {
    auto const any = read_any(folder, model.sites);
    auto const file = graft::read_safetensors(folder / "adapter_model.safetensors");
    std::set<Format> formats;
    for (auto const& tensor : file.tensors()) formats.insert(tensor.format);
    TemporaryFolder out;
    graft::PeftWriteOptions options;
    if (formats.size() == 1) options.dtype = *formats.begin();
    write_any(out.path(), any, model.sites, options);
    // files of a model with its head, in one format; what others wrote may lack the prefix
    if (formats.size() == 1 && file.tensors()[0].name.starts_with("base_model.model." + model.config.prefix) &&
        !file.metadata().empty())
      CHECK(read_bytes(out / "adapter_model.safetensors") == read_bytes(folder / "adapter_model.safetensors"));
    // the configuration says the same where it says anything, in PEFT's own spelling; a choice of modules that is more
    // than a list becomes one
    Json const ours = config_of(out.path()), theirs = config_of(folder);
    bool const listed = theirs.value("target_modules", Json()).is_array() &&
                        theirs.value("layers_to_transform", Json()).is_null() &&
                        theirs.value("exclude_modules", Json()).is_null();
    for (auto const& [key, value] : ours.items()) {
      if (key == "auto_mapping" || !theirs.contains(key) || (key == "target_modules" && !listed)) continue;
      INFO(key);
      if (key == "modules_to_save" && value.is_array())  // PEFT lists some twice
        CHECK(value.get<std::set<std::string>>() == theirs.at(key).get<std::set<std::string>>());
      else
        CHECK(value == theirs.at(key));
    }
    // and once more, which must not change anything
    TemporaryFolder again;
    write_any(again.path(), read_any(out.path(), model.sites), model.sites, options);
    CHECK(read_bytes(again / "adapter_config.json") == read_bytes(out / "adapter_config.json"));
    CHECK(read_bytes(again / "adapter_model.safetensors") == read_bytes(out / "adapter_model.safetensors"));
  });
}

TEST_CASE("rank and alpha patterns: the first that matches wins") {
  auto const golden = golden_model("llama_lora");
  auto const& model = golden.folder;
  auto const& sites = golden.sites;
  auto const read = graft::read_peft<LoRADelta, B>(model / "adapter_patterns", sites, "p");
  auto const at = [&](char const* path) -> LoRADelta const& {
    auto const& entries = read.module.entries;
    return std::find_if(entries.begin(), entries.end(), [&](auto const& e) { return e.site == sites.find(path); })
        ->policy;
  };
  // the first of down_proj, q_proj, ^model...layers.0...q_proj, proj; "proj" is nobody's last component
  CHECK(at("model.layers.1.mlp.down_proj").alpha == 10);
  CHECK(at("model.layers.0.self_attn.q_proj").alpha == 3);
  CHECK(at("model.layers.0.mlp.up_proj").alpha == 8);
  CHECK(at("model.layers.1.self_attn.q_proj").rank == 2);
  CHECK(at("model.layers.0.self_attn.q_proj").rank == 4);
  CHECK(at("model.layers.1.mlp.down_proj").rank == 7);
  CHECK(at("model.layers.0.self_attn.k_proj").rank == 3);

  graft::PeftPatterns const patterns("file");
  CHECK(patterns("foo", "a.b.foo"));
  CHECK(patterns("foo", "foo"));
  CHECK_FALSE(patterns("foo", "a.xfoo"));
  CHECK_FALSE(patterns("^foo", "a.foo"));
  CHECK(patterns("^foo", "foo"));
  CHECK(patterns("q_proj|v_proj", "model.layers.0.v_proj"));
  CHECK(patterns("layers\\.\\d+\\..*", "model.layers.10.self_attn.q_proj"));
  CHECK_FALSE(patterns("layers.1", "model.layers.11"));
}

TEST_CASE("a folder is published in a bank under the policy its peft_type names") {
  auto const golden = golden_model("llama_sums");
  auto const& model = golden.folder;
  auto const& sites = golden.sites;
  B be;
  graft::Bank<Policies, B> bank(sites);
  CHECK(graft::load_adapter(be, bank, "l", model / "adapter_lora_a").peft_type == "LORA");
  CHECK(graft::load_adapter(be, bank, "r", model / "adapter_road_a").peft_type == "ROAD");
  CHECK(graft::load_adapter(be, bank, "i", model / "adapter_ia3_a").peft_type == "IA3");
  CHECK(bank.names() == std::vector<std::string>{"i", "l", "r"});
  auto const set = bank.resolve({{"l", 0.5}, {"i", 1}, {"r", 1}});
  CHECK(set->max_rank == 4);
}

TEST_CASE("IA3: the stored shape tells the side, whatever the configuration says") {
  auto const golden = golden_model("llama_ia3");
  auto const& model = golden.folder;
  auto const& sites = golden.sites;
  TemporaryFolder folder;
  fs::copy(model / "adapter_usual", folder / "a");
  for (auto const& value : {Json(), Json("k_proj"), Json::array({"v_proj"}), Json(".*\\.down_proj"), Json::array()}) {
    INFO(value);
    Json config = config_of(model / "adapter_usual");
    config["feedforward_modules"] = value;
    write_bytes(folder / "a/adapter_config.json", config.dump());
    auto const [module, warnings] = graft::read_peft<IA3Scaling, B>(folder / "a", sites, "a");
    for (auto const& entry : module.entries) {
      bool const down = sites[entry.site].path.ends_with("down_proj");
      CHECK((entry.state.l.rows == 1) == down);
    }
    auto const again = round_trip(module, sites);
    CHECK(again.entries.size() == 6);
    graft::write_peft(folder / "b", module, sites);
    Json const written = config_of(folder / "b");  // PEFT wants feedforward_modules to be a subset of the targets
    for (auto const& name : written["feedforward_modules"])
      CHECK(std::count(written["target_modules"].begin(), written["target_modules"].end(), name) == 1);
  }
}

TEST_CASE("IA3: feedforward_modules are among the targets, and add none") {
  auto const sites = graft_test::golden_model("bert").sites;
  auto const written = [&](std::vector<std::string> feedforward, std::vector<std::string> const& paths) {
    TemporaryFolder folder;
    graft::write_peft(folder.path(), sample(IA3Scaling{.feedforward_modules = std::move(feedforward)}, sites, paths),
                      sites);
    auto const config = config_of(folder.path());
    return std::pair(config["target_modules"], config["feedforward_modules"]);
  };
  std::string const layer = "encoder.layer.0.", value = layer + "attention.self.value",
                    attended = layer + "attention.output.dense", last = layer + "output.dense";
  using Names = std::vector<std::string>;
  // one that no module of the adapter has
  CHECK(written({"output.dense"}, {value}) == std::pair(Json(Names{"0.attention.self.value"}), Json(Names{})));
  // one that another module of the model has too
  CHECK(written({"output.dense"}, {value, attended}) ==
        std::pair(Json(Names{"0.attention.output.dense", "0.attention.self.value"}),
                  Json(Names{"0.attention.output.dense"})));
  // one that is more of a path than the targets are
  auto const both = written({"0.attention.output.dense"}, {attended, last});
  CHECK(both.second == Json(Names{"0.attention.output.dense"}));
}

TEST_CASE("modules that no single value describes get patterns") {
  SiteTable const sites = llama_sites({});
  Module<LoRADelta, B> module;
  module.name = "mixed";
  auto const add = [&](char const* path, index_t rank, double alpha) {
    LoRADelta here;
    here.rank = rank;
    here.alpha = alpha;
    module.add(sites, sites.find(path), here);
  };
  add("model.layers.0.self_attn.q_proj", 2, 8);
  add("model.layers.0.self_attn.v_proj", 3, 1.5);
  add("model.layers.1.self_attn.q_proj", 8, 8);
  module.allocate();
  module.init(1);
  auto const again = round_trip(module, sites);
  REQUIRE(again.entries.size() == 3);
  CHECK(again.entries[0].policy.rank == 2);
  CHECK(again.entries[1].policy.rank == 3);
  CHECK(again.entries[1].policy.alpha == 1.5);
  CHECK(again.entries[2].policy.rank == 8);
  CHECK(again.target_modules == std::vector<std::string>{"0.self_attn.v_proj", "q_proj"});

  module.entries[1].policy.rank_stabilized = true;  // PEFT has one use_rslora for all
  TemporaryFolder folder;
  CHECK_THROWS_WITH(graft::write_peft(folder / "x", module, sites),
                    Catch::Contains("model.layers.0.self_attn.v_proj") && Catch::Contains("use_rslora true") &&
                        Catch::Contains("one file cannot say both"));
  CHECK_FALSE(fs::exists(folder / "x"));
}

TEST_CASE("target_modules pick the module's sites and no others") {
  SiteTable const sites = llama_sites({.layers = 12});
  auto const names = [&](std::vector<std::string> const& paths) {
    std::vector<index_t> chosen;
    for (auto const& path : paths) chosen.push_back(sites.find(path));
    std::sort(chosen.begin(), chosen.end());
    auto const result = graft::target_modules_of(sites, chosen);
    CHECK(graft::targets_are(sites, chosen, result));
    return result;
  };
  using Names = std::vector<std::string>;
  Names every_q, every_linear;
  for (auto const& site : sites.all()) {
    if (site.id == "q_proj") every_q.push_back(site.path);
    if (site.kind == graft::SiteKind::linear) every_linear.push_back(site.path);
  }
  CHECK(names(every_q) == Names{"q_proj"});
  CHECK(names(every_linear) ==
        Names{"down_proj", "gate_proj", "k_proj", "lm_head", "o_proj", "q_proj", "up_proj", "v_proj"});
  CHECK(names({"model.layers.1.self_attn.q_proj"}) == Names{"1.self_attn.q_proj"});
  CHECK(names({"model.embed_tokens", "model.layers.3"}) == Names{"embed_tokens", "model.layers.3"});

  // BERT's three kinds of "dense", of which "output.dense" ends two; a pooler that is no site must not be caught
  SiteTable bert;
  for (index_t l = 0; l < 2; ++l) {
    std::string const path = "bert.encoder.layer." + std::to_string(l) + ".";
    for (auto const* id : {"attention.output.dense", "intermediate.dense", "output.dense"})
      bert.add_linear(l, id, path + id, 4, 4);
  }
  CHECK(graft::target_modules_of(bert, {0, 1, 2, 3, 4, 5}) ==
        Names{"attention.output.dense", "intermediate.dense", "output.dense"});
  CHECK(graft::target_modules_of(bert, {2, 5}) == Names{"0.output.dense", "1.output.dense"});
  CHECK(graft::target_modules_of(bert, {0, 3}) == Names{"attention.output.dense"});
}

TEST_CASE("all options of the shipped policies survive a file") {
  SiteTable const sites = llama_sites({});
  SECTION("LoRA") {
    LoRADelta policy{.rank = 3, .alpha = 2.5, .rank_stabilized = true, .bias = true, .fan_in_fan_out = true};
    policy.rank_pattern = {{"v_proj", 2}, {".*proj", 5}};
    policy.alpha_pattern = {{"^model\\.embed_tokens", 7}};
    auto const again = round_trip(
        sample(policy, sites,
               {"model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "model.layers.1.self_attn.v_proj"}),
        sites);
    CHECK(again.policy.rank_pattern == policy.rank_pattern);
    CHECK(again.policy.alpha_pattern == policy.alpha_pattern);
    CHECK(again.policy.alpha == 2.5);
    CHECK((again.policy.rank_stabilized && again.policy.bias && again.policy.fan_in_fan_out));
    CHECK(again.entries[1].policy.rank == 2);
    CHECK(again.entries[2].state.b_bias.size == 8);
  }
  SECTION("LoRA on the embedding and the head") {
    auto const again = round_trip(sample(LoRADelta{.rank = 3}, sites, {"model.embed_tokens", "lm_head"}), sites);
    CHECK(again.entries[0].state.embedding);
    CHECK(graft::tensor_shape(again.entries[0].state.a) == std::vector<index_t>{3, 10});
    CHECK(graft::tensor_shape(again.entries[0].state.b) == std::vector<index_t>{8, 3});
  }
  SECTION("RoAd, also on the residual stream") {
    for (auto const variant :
         {RoAdRotation::Variant::road_1, RoAdRotation::Variant::road_2, RoAdRotation::Variant::road_4}) {
      RoAdRotation const policy{.variant = variant, .group_size = 4};
      auto const again =
          round_trip(sample(policy, sites, {"model.layers.0.self_attn.k_proj", "model.layers.1"}), sites);
      CHECK(again.policy.variant == variant);
      CHECK(again.policy.group_size == 4);
      CHECK(again.policy.positions.all());
      CHECK(sites[again.entries[1].site].kind == graft::SiteKind::hidden);
    }
    for (auto const& positions : {graft::Positions::last_prompt(), graft::Positions{{0, 5, -2}}, graft::Positions{}}) {
      RoAdRotation const policy{.group_size = 2, .positions = positions};
      CHECK(round_trip(sample(policy, sites, {"model.layers.1"}), sites).policy.positions == positions);
    }
    // PEFT does not know the key; it is not bothered with the default
    TemporaryFolder folder;
    graft::write_peft(folder.path(), sample(RoAdRotation{.group_size = 2}, sites, {"lm_head"}), sites);
    CHECK_FALSE(config_of(folder.path()).contains("positions"));
  }
  SECTION("PEDRO") {
    PedroGenerator policy;
    policy.rank = 3;
    policy.pooling = PedroGenerator::Pooling::attention;
    policy.pooler_input = PedroGenerator::PoolerInput::raw;
    policy.offset = PedroGenerator::Offset::bias;
    policy.q_scaling = PedroGenerator::QueryScaling::after_rope;
    policy.activation = PedroGenerator::Activation::rational_b;
    policy.numerator_degree = 6;
    policy.denominator_degree = 5;
    auto const again = round_trip(sample(policy, sites, {"model.layers.0", "model.layers.1"}), sites);
    CHECK(again.policy.pooling == policy.pooling);
    CHECK(again.policy.pooler_input == policy.pooler_input);
    CHECK(again.policy.offset == policy.offset);
    CHECK(again.policy.q_scaling == policy.q_scaling);
    CHECK(again.policy.activation == policy.activation);
    auto const& state = again.entries[1].state;
    CHECK(graft::tensor_shape(state.up) == std::vector<index_t>{8 + 4 + 12, 3});
    CHECK(
        (state.up_bias.size == 24 && state.numerator.size == 7 && state.denominator.size == 5 && state.pool.size == 8));

    PedroGenerator plain;
    plain.rank = 2;
    plain.activation = PedroGenerator::Activation::silu;
    auto const small = round_trip(sample(plain, sites, {"model.layers.1"}), sites);
    CHECK(small.entries[0].state.numerator.empty());
    // a bias that the configuration does not mention
    plain.up_bias = true;
    TemporaryFolder folder;
    graft::write_peft(folder.path(), sample(plain, sites, {"model.layers.0", "model.layers.1"}), sites);
    Json config = config_of(folder.path());
    config.erase("up_bias");
    write_bytes(folder / "adapter_config.json", config.dump());
    auto const read = graft::read_peft<PedroGenerator, B>(folder.path(), sites, "x");
    CHECK(read.module.entries[1].state.up_bias.size == 24);
    round_trip(read.module, sites);
  }
  SECTION("in double, and what surrounds the policy") {
    auto module =
        sample<LoRADelta, graft::CpuBackend<double>>(LoRADelta{.rank = 2}, sites, {"model.layers.0.mlp.up_proj"});
    for (auto& x : module.parameters()) x = static_cast<float>(x);  // F32 holds them
    module.base_model = "a/b";
    module.task_type = "SEQ_CLS";
    module.modules_to_save = {"classifier", "score"};
    module.saved["score.weight"] = {{2, 8}, std::vector<float>(16, 0.5f)};
    module.saved["pre.head.bias"] = {{3}, {1, 2, 3}};
    auto const again = round_trip(module, sites);
    CHECK(again.base_model == "a/b");
    CHECK(again.task_type == "SEQ_CLS");
    CHECK(again.modules_to_save == std::vector<std::string>{"classifier", "pre.head", "score"});
    CHECK(again.saved.at("score.weight").shape == std::vector<index_t>{2, 8});
    CHECK(again.saved.at("pre.head.bias").values == std::vector<float>{1, 2, 3});
  }
}

// ------------------------------------------------------------------------------------------------- a user's own policy

namespace {

/// y' = y + strength * b: a bias of its own for a layer (after BitFit), in a way no shipped policy does it.
struct OutputBias {
  static constexpr std::string_view peft_type = "OUTPUT_BIAS";
  enum class Mode { plain, scaled };
  static constexpr std::array<std::string_view, 2> names(Mode) { return {"plain", "scaled"}; }

  Mode mode = Mode::plain;
  double strength = 1;
  int steps = 0;
  std::string note;
  std::vector<std::string> tags;

  template <class Backend>
  struct State {
    graft::Parameters<Backend> bias;  ///< [o]
    graft::Parameters<Backend> gain;  ///< [1], Mode::scaled only
    void for_each(auto&& f) {
      f("output_bias.value", bias);
      f("output_bias.gain", gain);
    }
  };
  void options(auto&& v) {
    v.option("mode", mode);
    v.option("strength", strength);
    v.option("steps", steps);
    v.option("note", note);
    v.option("tags", tags);
    v.refuse("negate", "negation");
  }
  bool accepts(graft::SiteInfo const& site) const { return site.kind == graft::SiteKind::linear; }
  template <class Backend>
  void shape(graft::SiteInfo const& site, graft::LayerSites const*, State<Backend>& state) const {
    state.bias = {nullptr, site.out};
    state.gain = {nullptr, mode == Mode::scaled ? 1 : 0};
  }
  template <class Backend>
  void init(State<Backend>&, auto&) const {}
  template <class Backend>
  graft::RowMapForm form(graft::SiteInfo const&, State<Backend> const&) const {
    return {.present = true, .e = true, .c = false};
  }
  template <class Backend>
  void coefficients(Backend&, State<Backend> const& state, graft::RowMapRow<graft::Real<Backend>> const& out) const {
    auto const gain = state.gain.empty() ? graft::Real<Backend>{1} : state.gain[0];
    for (index_t j = 0; j < out.size; ++j)
      out.e[j] = static_cast<graft::Real<Backend>>(strength) * gain * state.bias[j];
  }
};

}  // namespace

TEST_CASE("a user's policy is read, written and published with nothing added to this library") {
  SiteTable const sites = llama_sites({});
  OutputBias policy;
  policy.mode = OutputBias::Mode::scaled;
  policy.strength = 0.125;
  policy.steps = 12;
  policy.note = "two \"words\"";
  policy.tags = {"a", "b"};
  auto const module = sample(policy, sites, {"model.layers.0.mlp.down_proj", "lm_head"});
  auto const again = round_trip(module, sites);
  CHECK(again.policy.mode == policy.mode);
  CHECK(again.policy.strength == policy.strength);
  CHECK(again.policy.steps == policy.steps);
  CHECK(again.policy.note == policy.note);
  CHECK(again.policy.tags == policy.tags);

  TemporaryFolder folder;
  graft::write_peft(folder.path(), module, sites);
  B be;
  graft::Bank<graft::Adapters<OutputBias, LoRADelta>, B> bank(sites);
  CHECK(graft::load_adapter(be, bank, "mine", folder.path()).peft_type == "OUTPUT_BIAS");
  auto const published = bank.find("mine");
  auto const& map = published->maps[1][static_cast<std::size_t>(sites.find("lm_head"))];
  auto const& state = again.entries[1].state;
  CHECK(map.e[3] == 0.125f * state.gain[0] * state.bias[3]);
  CHECK_THROWS_WITH(read_any(folder.path(), sites), Catch::Contains("peft_type 'OUTPUT_BIAS' is not supported; known "
                                                                    "are IA3, ROAD, LORA, PEDRO"));
}

// ------------------------------------------------------------------------------------------------------------ spelling

TEST_CASE("names come with or without PEFT's prefix, with torch.compile's, and from a model without its head") {
  SiteTable const sites = llama_sites({});
  auto const module = sample(LoRADelta{.rank = 2}, sites, {"model.layers.1.self_attn.k_proj"});
  TemporaryFolder folder;
  graft::write_peft(folder.path(), module, sites);
  auto const file = graft::read_safetensors(folder / "adapter_model.safetensors");
  auto const renamed = [&](std::string const& prefix) {
    std::vector<graft::TensorInfo> tensors;
    for (auto tensor : file.tensors()) {
      tensor.name = prefix + tensor.name.substr(std::string("base_model.model.model.").size());
      tensors.push_back(tensor);
    }
    TemporaryFolder other;
    fs::copy(folder / "adapter_config.json", other / "adapter_config.json");
    graft::write_safetensors(other / "adapter_model.safetensors", tensors);
    return numbers(graft::read_peft<LoRADelta, B>(other.path(), sites, "x").module);
  };
  for (auto const* prefix :
       {"base_model.model.model.", "model.", "_orig_mod.base_model.model.model.", "base_model.model._orig_mod.model.",
        "base_model.model.", "", "base_model.model.other.model."})
    CHECK(renamed(prefix) == numbers(module));
  CHECK_THROWS_AS(renamed("base_model.model.other.deep.model."), graft::FormatError);
}

TEST_CASE("keys that say nothing pass silently, others give a warning") {
  SiteTable const sites = llama_sites({});
  TemporaryFolder folder;
  graft::write_peft(folder.path(), sample(LoRADelta{}, sites, {"model.layers.0.self_attn.q_proj"}), sites);
  Json config = config_of(folder.path());
  config["future_null"] = nullptr;
  config["future_false"] = false;
  config["future_empty"] = Json::object();
  config["future_key"] = "x";
  config["lora_dropout"] = 0.1;
  config["target_modules"] = {"q_proj"};
  write_bytes(folder / "adapter_config.json", config.dump());
  auto const warnings = graft::read_peft<LoRADelta, B>(folder.path(), sites, "x").warnings;
  REQUIRE(warnings.size() == 2);
  CHECK_THAT(warnings[0], Catch::Contains("key 'future_key' is unknown and ignored"));
  CHECK_THAT(warnings[1], Catch::Contains("1 of the model's modules are in target_modules but have no tensors, "
                                          "model.layers.1.self_attn.q_proj"));
}

TEST_CASE("missing and null keys mean the policy's default") {
  SiteTable const sites = llama_sites({});
  TemporaryFolder folder;
  graft::write_peft(folder.path(), sample(LoRADelta{}, sites, {"lm_head"}), sites);
  write_bytes(folder / "adapter_config.json", R"({"peft_type": "LORA", "r": null, "lora_alpha": 16.0})");
  auto const module = graft::read_peft<LoRADelta, B>(folder.path(), sites, "x").module;
  CHECK(module.policy.rank == 8);
  CHECK(module.policy.alpha == 16);
}
