// SPDX-License-Identifier: Apache-2.0
// New modules as a user describes them: target_modules like PEFT's, options as text.
#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/pedro.hpp>
#include <graft/adapter/road.hpp>
#include <graft/io/peft_targets.hpp>
#include <tests/catch.hpp>
#include <tests/io/llama_sites.hpp>

#include <string>
#include <vector>

namespace {

using namespace graft;
using namespace graft_test;

template <class P>
std::vector<std::string> picked(P const& policy, std::vector<std::string> const& targets) {
  auto const sites = llama_sites({});
  std::vector<std::string> paths;
  for (index_t const site : target_sites(sites, policy, targets)) paths.push_back(sites[site].path);
  return paths;
}

TEST_CASE("targets pick what PEFT's target_modules would") {
  auto const sites = llama_sites({});
  index_t linear = 0, layers = 0;
  for (auto const& site : sites.all()) {
    linear += site.layer >= 0 && site.kind == SiteKind::linear ? 1 : 0;
    layers += site.kind == SiteKind::hidden ? 1 : 0;
  }
  REQUIRE(layers == 2);
  CHECK(static_cast<index_t>(picked(LoRADelta{}, {}).size()) == linear);
  CHECK(picked(LoRADelta{}, {"all-linear"}) == picked(LoRADelta{}, {}));
  CHECK(picked(RoAdRotation{}, {}) == picked(LoRADelta{}, {}));  // and not the residual stream
  CHECK(static_cast<index_t>(picked(PedroGenerator{}, {}).size()) == layers);

  std::vector<std::string> const both{"model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj",
                                      "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"};
  CHECK(picked(LoRADelta{}, {"q_proj", "v_proj"}) == both);
  CHECK(picked(LoRADelta{}, {"self_attn.v_proj", "q_proj"}) == both);
  CHECK(picked(LoRADelta{}, {R"(model\.layers\.\d+\.self_attn\.(q|v)_proj)"}) == both);
  CHECK(picked(LoRADelta{}, {"layers.1.self_attn.q_proj"}) == std::vector{both[2]});
}

TEST_CASE("targets that pick nothing are refused") {
  CHECK_THROWS_WITH(picked(LoRADelta{}, {"q_proj", "w_proj"}), Catch::Contains("'w_proj'"));
  CHECK_THROWS_WITH(picked(LoRADelta{}, {"proj"}), Catch::Contains("'proj'"));  // PEFT compares whole components
  CHECK_THROWS_WITH(picked(LoRADelta{}, {"self_attn.(q_proj)"}),
                    Catch::Contains("names no module"));  // of a whole path
  CHECK_THROWS_WITH(picked(LoRADelta{}, {"(q_proj"}), Catch::Contains("not a regular expression"));
  CHECK_THROWS_AS(picked(PedroGenerator{}, {"q_proj"}), ContractError);
}

TEST_CASE("a layer's path picks the residual stream behind it") {
  CHECK(picked(RoAdRotation{}, {"layers.1"}) == std::vector<std::string>{"model.layers.1"});
  RoAdRotation road;
  set_policy_option(road, "positions", "last_prompt");
  CHECK(road.positions == Positions::last_prompt());
  set_policy_option(road, "positions", "[0, 3, -2]");
  CHECK(road.positions == Positions{{0, 3, -2}});
  set_policy_option(road, "positions", "all");
  CHECK(road.positions.all());
  for (auto const* wrong : {"[]", "[0.5]", "last", "3", "[\"a\"]", "[1e300]"})
    CHECK_THROWS_WITH(set_policy_option(road, "positions", wrong), Catch::Contains("a list of whole numbers"));
}

TEST_CASE("options are set from text, by the keys of adapter_config.json") {
  LoRADelta lora;
  set_policy_option(lora, "r", "3");
  set_policy_option(lora, "lora_alpha", "2.5");
  set_policy_option(lora, "use_rslora", "true");
  set_policy_option(lora, "rank_pattern", R"({"q_proj": 5})");
  CHECK(lora.rank == 3);
  CHECK(lora.alpha == 2.5);
  CHECK(lora.rank_stabilized);
  CHECK(lora.rank_pattern == std::vector<std::pair<std::string, double>>{{"q_proj", 5}});
  CHECK(lora.bias == false);  // untouched
  RoAdRotation road;
  set_policy_option(road, "variant", "road_4");
  CHECK(road.variant == RoAdRotation::Variant::road_4);
  IA3Scaling ia3;
  set_policy_option(ia3, "feedforward_modules", "down_proj,up_proj");
  CHECK(ia3.feedforward_modules == std::vector<std::string>{"down_proj", "up_proj"});
  set_policy_option(ia3, "feedforward_modules", "");
  CHECK(ia3.feedforward_modules.empty());
}

TEST_CASE("options that are not there or not so are refused with what would be right") {
  LoRADelta lora;
  CHECK_THROWS_WITH(set_policy_option(lora, "rnak", "3"),
                    Catch::Contains("'rnak'") && Catch::Contains("lora_alpha, lora_bias, r,"));
  CHECK_THROWS_WITH(set_policy_option(lora, "r", "3.5"), Catch::Contains("a whole number"));
  CHECK_THROWS_WITH(set_policy_option(lora, "r", "three"), Catch::Contains("\"three\""));
  CHECK_THROWS_WITH(set_policy_option(lora, "use_rslora", "1"), Catch::Contains("true or false"));
  CHECK(lora.rank == 8);
  RoAdRotation road;
  CHECK_THROWS_WITH(set_policy_option(road, "variant", "road_3"), Catch::Contains("road_1"));
}

}  // namespace
