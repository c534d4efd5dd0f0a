// SPDX-License-Identifier: Apache-2.0
// Computing with adapters: an expression as a request's list and as a module, a product, and a sum made small again.
#include <graft/arithmetic/merging.hpp>
#include <graft/backend/cpu/cpu.hpp>

#include <cstdio>

using namespace graft;
using B = CpuBackend<>;

// Stands for training: parameters that are not the start.
template <class P>
Module<P, B> trained(char const* name, P const& policy, SiteTable const& sites, std::uint64_t seed) {
  auto module = make_module<P, B>(name, policy, sites, {0}, seed);
  Random random(seed);
  for (float& value : module.parameters()) value += static_cast<float>(0.1 * random.normal());
  return module;
}

int main() {
  SiteTable sites;
  sites.add_linear(0, "q_proj", "model.layers.0.self_attn.q_proj", 64, 64);
  auto const chat = trained("chat", LoRADelta{.rank = 16, .alpha = 16}, sites, 1);
  auto const toxic = trained("toxic", LoRADelta{.rank = 8, .alpha = 32}, sites, 2);

  // [expression]
  auto const calm = chat + 0.4f * (chat - toxic);  // no work yet
  for (auto const& use : uses(calm))               // the weighted list of a request ...
    std::printf("%s %.1f\n", use.name.c_str(), use.weight);
  auto const module = materialize(calm, sites, "calm");  // ... or a module that can be saved
  // [/expression]
  std::printf("%s has rank %d\n", module.name.c_str(), static_cast<int>(module.policy.rank));

  // [recompress]
  auto const small = recompress(module, {.rank = 16}, sites);
  // [/recompress]
  std::printf("rank 16 of it leaves %.0f %%\n", 100 * small.relative_error());

  auto const left = trained("left", RoAdRotation{}, sites, 3), right = trained("right", RoAdRotation{}, sites, 4);
  // [maps]
  auto const both = compose(right, left, sites);  // right after left
  auto const neither = compose(inverse(both, sites), both, sites);
  auto const half = power(left, 0.5, sites);
  // [/maps]
  std::printf("angle %.3f, half of it %.3f, undone %.3f\n", static_cast<double>(left.entries[0].state.theta[0]),
              static_cast<double>(half.entries[0].state.theta[0]),
              static_cast<double>(neither.entries[0].state.theta[0]));

  // [merging]
  auto recipe = merge_recipe("ties_svd");  // PEFT's name
  recipe.pruning.density = 0.3;
  ModuleTerm<LoRADelta, B> const modules[] = {{&chat, 0.5}, {&toxic, 0.5}};
  auto const merged = merge_modules<B>(modules, recipe, sites);
  // [/merging]
  std::printf("merged to rank %d\n", static_cast<int>(merged.module.policy.rank));
}
