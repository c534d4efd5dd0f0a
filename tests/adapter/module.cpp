// SPDX-License-Identifier: Apache-2.0
// Modules: one buffer of parameters in the order of the sites, starting values, and the papers' parameter counts.
#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/module.hpp>
#include <graft/adapter/pedro.hpp>
#include <graft/adapter/road.hpp>
#include <graft/backend/cpu/cpu_backend.hpp>
#include <tests/catch.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

namespace {

using namespace graft;
using B = CpuBackend<float>;

struct Size {
  index_t layers, d, ffn;
};
constexpr Size llama_7b{32, 4096, 11008}, llama_13b{40, 5120, 13824};

/// q, k, v, o, gate, up, down and the block of every layer of a LLaMA.
SiteTable llama(Size size) {
  SiteTable table;
  for (index_t l = 0; l < size.layers; ++l) {
    std::string const layer = text("model.layers.", l);
    Site const q = table.add_linear(l, "q_proj", layer + ".self_attn.q_proj", size.d, size.d);
    table.add_linear(l, "k_proj", layer + ".self_attn.k_proj", size.d, size.d);
    Site const v = table.add_linear(l, "v_proj", layer + ".self_attn.v_proj", size.d, size.d);
    table.add_linear(l, "o_proj", layer + ".self_attn.o_proj", size.d, size.d);
    table.add_linear(l, "gate_proj", layer + ".mlp.gate_proj", size.d, size.ffn);
    Site const up = table.add_linear(l, "up_proj", layer + ".mlp.up_proj", size.d, size.ffn);
    table.add_linear(l, "down_proj", layer + ".mlp.down_proj", size.ffn, size.d);
    Site const block = table.add({l, "block_out", layer, size.d, size.d, SiteKind::hidden});
    table.add_layer({block.index, {q.index, 0, size.d}, {v.index, 0, size.d}, {up.index, 0, size.ffn}, {}});
  }
  return table;
}
std::vector<index_t> of_kind(SiteTable const& table, SiteKind kind) {
  std::vector<index_t> result;
  for (index_t s = 0; s < table.size(); ++s)
    if (table[s].kind == kind) result.push_back(s);
  return result;
}
template <class P>
index_t count(P const& policy, SiteTable const& table, SiteKind kind = SiteKind::linear) {
  return make_module<P, B>("m", policy, table, of_kind(table, kind)).parameters().size;
}

TEST_CASE("parameter counts are the papers'") {
  auto const table = llama(llama_7b);
  using Variant = RoAdRotation::Variant;
  // Liao and Monz 2024, all linear layers of LLaMA-7B: 0.02, 0.04 and 0.08 % of 6.74e9
  CHECK(count(RoAdRotation{Variant::road_1}, table) == 1'359'872);
  CHECK(count(RoAdRotation{Variant::road_2}, table) == 2'719'744);
  CHECK(count(RoAdRotation{Variant::road_4}, table) == 5'439'488);
  // PEDRO's 8.9M at r = 12, rational coefficients not counted
  CHECK(count(PedroGenerator{.activation = PedroGenerator::Activation::gelu}, table, SiteKind::hidden) == 8'945'664);
  CHECK(count(PedroGenerator{}, table, SiteKind::hidden) == 8'945'664 + 32 * (6 + 4));
  CHECK(count(LoRADelta{.rank = 8}, table) == 32 * 8 * (4 * 2 * 4096 + 3 * (4096 + 11008)));
  CHECK(count(IA3Scaling{}, table) == 32 * (4 * 4096 + 3 * 11008));
  // RoAd1 on LLaMA-13B: 0.016 % of 13.02e9
  CHECK(count(RoAdRotation{Variant::road_1}, llama(llama_13b)) / 13.02e9 == Approx(0.00016).margin(0.000005));
}

TEST_CASE("entries stand in the order of the sites, however they were added, and once each") {
  SiteTable table;
  for (int k = 0; k < 4; ++k) table.add_linear(0, "l", text("l", k), 4, 4);
  auto module = make_module<RoAdRotation, B>("r", {RoAdRotation::Variant::road_1, 2}, table, {2, 0, 3});
  std::vector<index_t> order;
  for (auto const& entry : module.entries) order.push_back(entry.site);
  CHECK(order == std::vector<index_t>{0, 2, 3});
  CHECK_THROWS_WITH((make_module<RoAdRotation, B>("r", {RoAdRotation::Variant::road_1, 2}, table, {1, 1})),
                    "graft: the module already has l1");
}

TEST_CASE("a site that is not there, as find says of an unknown path, is refused") {
  SiteTable table;
  table.add_linear(0, "l", "l", 4, 4);
  CHECK_THROWS_WITH((make_module<IA3Scaling, B>("i", {}, table, {table.find("m")})),
                    "graft: there is no site -1, the model has 1");
  CHECK_THROWS_WITH((make_module<IA3Scaling, B>("i", {}, table, {1})), "graft: there is no site 1, the model has 1");
}

TEST_CASE("all tensors lie in one buffer, in the order they are visited") {
  SiteTable table;
  for (int k = 0; k < 3; ++k) table.add_linear(0, "l", text("l", k), 4 + k, 6);
  auto module = make_module<LoRADelta, B>("l", {.rank = 3, .bias = true}, table, {0, 1, 2}, 1);
  float const* next = module.parameters().begin();
  module.for_each([&](index_t, char const*, auto& tensor) {
    CHECK(tensor.data == next);
    if constexpr (requires { tensor.rows; })
      next += tensor.size();
    else
      next += tensor.size;
  });
  CHECK(next == module.parameters().end());
  // moving a module leaves its tensors where they are
  auto const* const a = module.entries[1].state.a.data;
  auto const moved = std::move(module);
  CHECK(moved.entries[1].state.a.data == a);
}

TEST_CASE("init gives the start again, also after training") {
  SiteTable table;
  Site const q = table.add_linear(0, "q", "q", 4, 6), v = table.add_linear(0, "v", "v", 4, 6),
             up = table.add_linear(0, "up", "up", 4, 6);
  Site const block = table.add({0, "block_out", "layers.0", 4, 4, SiteKind::hidden});
  table.add_layer({block.index, {q.index, 0, 6}, {v.index, 0, 6}, {up.index, 0, 6}, {}});
  auto const again = [&](auto const& policy, index_t site) {
    using P = std::remove_cvref_t<decltype(policy)>;
    auto const fresh = make_module<P, B>("m", policy, table, {site}, 7);
    auto module = make_module<P, B>("m", policy, table, {site}, 7);
    for (float& x : module.parameters()) x += 3;
    module.init(7);
    CHECK(std::equal(module.parameters().begin(), module.parameters().end(), fresh.parameters().begin()));
  };
  again(LoRADelta{.rank = 2, .bias = true}, q.index);
  again(RoAdRotation{RoAdRotation::Variant::road_4, 2}, q.index);
  again(IA3Scaling{}, q.index);
  again(PedroGenerator{.rank = 2, .pooling = PedroGenerator::Pooling::attention, .up_bias = true}, block.index);
}

TEST_CASE("other seeds and other sites start with other numbers, not with the same ones shifted") {
  SiteTable table;
  for (int k = 0; k < 2; ++k) table.add_linear(0, "l", text("l", k), 50, 2);
  std::vector<float> seen;
  for (std::uint64_t const seed : {0, 1, 2, 3})
    for (auto& entry : make_module<LoRADelta, B>("l", {.rank = 4}, table, {0, 1}, seed).entries)
      seen.insert(seen.end(), entry.state.a.data, entry.state.a.data + entry.state.a.size());
  std::sort(seen.begin(), seen.end());
  // 1600 floats in [-0.14, 0.14] have a few values in common by chance (about 1600^2 / 2 / 2^23); a shift gives 1500
  CHECK(std::unique(seen.begin(), seen.end()) - seen.begin() >= 1590);
}

TEST_CASE("random numbers are uniform and normal") {
  Random random(3);
  constexpr int n = 100'000;
  double uniform = 0, normal = 0, squares = 0, within = 0;
  for (int k = 0; k < n; ++k) {
    double const u = random.uniform(2, 4), z = random.normal();
    REQUIRE((u >= 2 && u < 4));
    uniform += u, normal += z, squares += z * z, within += std::fabs(z) < 1;
  }
  // five standard errors each
  CHECK(std::fabs(uniform / n - 3) <= 5 * std::sqrt(4.0 / 12 / n));
  CHECK(std::fabs(normal / n) <= 5 / std::sqrt(double{n}));
  CHECK(std::fabs(squares / n - 1) <= 5 * std::sqrt(2.0 / n));
  CHECK(std::fabs(within / n - 0.6827) <= 5 * std::sqrt(0.6827 * 0.3173 / n));
}

TEST_CASE("a module that has its memory takes no further site") {
  auto const table = llama({1, 8, 16});
  auto module = make_module<LoRADelta, B>("m", LoRADelta{}, table, {0});
  CHECK_THROWS_WITH(module.add(table, 1, LoRADelta{}),
                    "graft: a module that has its memory takes no further site, model.layers.0.self_attn.k_proj");
}

}  // namespace
