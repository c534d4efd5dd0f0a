// SPDX-License-Identifier: Apache-2.0
// Writes adapter folders of every kind HF PEFT knows, for tests/io/peft_loads_samples.py to load with PEFT:
//   write_peft_samples MODEL_FOLDER OUT_FOLDER
#include <tests/io/llama_sites.hpp>

#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/road.hpp>
#include <graft/backend/cpu/cpu_backend.hpp>
#include <graft/io/peft.hpp>

#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace {

using namespace graft;
using B = CpuBackend<>;

struct Samples {
  SiteTable sites;
  std::filesystem::path out;

  /// A module at every site whose id is one of `ids`, in `layer` alone or, for -1, in all.
  template <class P>
  Module<P, B> module(std::string name, P const& policy, std::vector<std::string_view> const& ids, index_t layer = -1) {
    Module<P, B> result;
    result.policy = policy;
    PeftPatterns const patterns(name);
    for (index_t s = 0; s < sites.size(); ++s)
      for (auto const id : ids)
        if (sites[s].id == id && (layer < 0 || sites[s].layer == layer))
          result.add(sites, s, policy_at(policy, [&](auto const& p) { return patterns(p, sites[s].path); }));
    result.allocate();
    Random random(name.size());
    for (auto& x : result.parameters()) x = static_cast<float>(0.2 * random.normal() + (name[0] == 'l' ? 0 : 1));
    result.name = std::move(name);
    return result;
  }
  template <class P>
  void write(Module<P, B> const& module, Format dtype = Format::f32) {
    write_peft(out / module.name, module, sites, {dtype});
  }
};

void write_all(Samples& samples) {
  std::vector<std::string_view> const every = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                               "gate_proj", "up_proj", "down_proj"};
  LoRADelta lora;
  lora.rank = 3;
  lora.alpha = 5;
  samples.write(samples.module("lora", lora, {"q_proj", "v_proj"}));
  samples.write(samples.module("lora_f16", lora, every), Format::f16);
  samples.write(samples.module("lora_bf16", lora, every), Format::bf16);
  samples.write(samples.module("lora_one_layer", lora, {"q_proj", "down_proj"}, 1));
  samples.write(samples.module("lora_embedding_and_head", lora, {"embed_tokens", "lm_head", "o_proj"}));
  lora.rank_stabilized = lora.bias = true;
  samples.write(samples.module("lora_stabilized_with_bias", lora, every));
  lora = {};
  lora.rank_pattern = {{".*\\.1\\..*_proj", 2}, {"q_proj", 5}};
  lora.alpha_pattern = {{"v_proj|down_proj", 1.5}};
  samples.write(samples.module("lora_patterns", lora, every));
  Random random(11);
  auto mixed = samples.module("lora_mixed_ranks", LoRADelta{}, {});  // patterns are the writer's
  for (index_t s = 0; s < samples.sites.size(); ++s)
    if (samples.sites[s].kind == SiteKind::linear && samples.sites[s].layer >= 0) {
      LoRADelta here;
      here.rank = 1 + s % 4;
      here.alpha = 2 + static_cast<double>(s % 3);
      mixed.add(samples.sites, s, here);
    }
  mixed.allocate();
  for (auto& x : mixed.parameters()) x = static_cast<float>(0.2 * random.normal());
  samples.write(mixed);

  for (auto const variant :
       {RoAdRotation::Variant::road_1, RoAdRotation::Variant::road_2, RoAdRotation::Variant::road_4}) {
    RoAdRotation road;
    road.variant = variant;
    road.group_size = 4;
    samples.write(samples.module("road_" + std::string(RoAdRotation::names(variant)[static_cast<std::size_t>(variant)]),
                                 road, {"q_proj", "k_proj", "o_proj", "up_proj"}));
  }
  IA3Scaling ia3;
  samples.write(samples.module("ia3", ia3, {"k_proj", "v_proj", "down_proj"}));
  ia3.feedforward_modules = {"0.mlp.down_proj", "q_proj"};  // down_proj on both sides
  samples.write(samples.module("ia3_both_sides", ia3, every));
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) {
    std::fprintf(stderr, "usage: write_peft_samples MODEL_FOLDER OUT_FOLDER\n");
    return 2;
  }
  try {
    Samples samples{graft_test::llama_sites(graft_test::llama_sizes(arguments[1])), arguments[2]};
    write_all(samples);
  } catch (std::exception const& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
