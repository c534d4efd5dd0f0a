// SPDX-License-Identifier: Apache-2.0
// Sites are found by path and bound with their shapes; mistakes are one sentence each.
#include <graft/adapter/site.hpp>
#include <tests/catch.hpp>

namespace {

using namespace graft;

TEST_CASE("a site is found by its path and bound with its shape") {
  SiteTable table;
  Site const q = table.add_linear(0, "q_proj", "model.layers.0.self_attn.q_proj", 64, 48);
  Site const down = table.add_linear(0, "down_proj", "model.layers.0.mlp.down_proj", 128, 64);
  CHECK(table.size() == 2);
  CHECK(table.find("model.layers.0.mlp.down_proj") == down.index);
  CHECK(table.find("model.layers.0.mlp.gate_proj") == -1);
  CHECK(table[q.index].id == "q_proj");
  CHECK(table[q.index].layer == 0);
  Site const bound = table.bind("model.layers.0.self_attn.q_proj", 64, 48);
  CHECK((bound.index == q.index && bound.in == 64 && bound.out == 48));
}

TEST_CASE("sites that do not exist, do not fit or exist twice are refused with names and numbers") {
  SiteTable table;
  table.add_linear(0, "q_proj", "layers.0.q_proj", 64, 48);
  CHECK_THROWS_WITH(table.bind("layers.0.k_proj", 64, 48), "graft: no site is called layers.0.k_proj");
  CHECK_THROWS_WITH(table.bind("layers.0.q_proj", 64, 64),
                    "graft: site layers.0.q_proj is 64 -> 48, it cannot be bound as 64 -> 64");
  CHECK_THROWS_WITH(table.add_linear(0, "q_proj", "layers.0.q_proj", 64, 48),
                    "graft: site layers.0.q_proj is listed twice");
  CHECK_THROWS_WITH(table.add_linear(0, "v_proj", "layers.0.v_proj", 64, 0),
                    "graft: site layers.0.v_proj needs positive sizes, got in=64 out=0");
  CHECK(table.size() == 1);
}

TEST_CASE("the rotated query stands beside the projection of the same path") {
  SiteTable table;
  Site const q = table.add_linear(0, "q_proj", "layers.0.q_proj", 64, 48);
  Site const rotated = table.add({0, "rotated_q", "layers.0.q_proj", 48, 48, SiteKind::rotated_q});
  CHECK(rotated.index != q.index);
  CHECK(table.find("layers.0.q_proj") == q.index);
}

}  // namespace
