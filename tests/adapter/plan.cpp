// SPDX-License-Identifier: Apache-2.0
// The plan: which row belongs to whom, how rows are cut into tiles, and what it refuses.
#include <tests/adapter/loaded.hpp>
#include <tests/catch.hpp>

#include <set>

namespace {

using namespace graft_test;
using List = Adapters<IA3Scaling, RoAdRotation, LoRADelta, PedroGenerator>;
using B = CpuBackend<float>;

TEST_CASE("every row with adapters is in one tile, with rows that share its adapters") {
  Loaded<List, float> engine(Shape::separate, 1);
  std::shared_ptr<AdapterSet<B> const> const sets[] = {nullptr, engine.bank.resolve({{"l3", 1}}),
                                                       engine.bank.resolve({{"l40", 1}, {"lb", 2}, {"r1", 1}}),
                                                       engine.bank.resolve({{"i", 1}})};
  std::deque<SequenceState<B>> states;
  for (auto const& set : sets) states.emplace_back(set, engine.bank.sites());
  Plan<B> plan;
  for (int trial = 0; trial < 50; ++trial) {
    std::vector<RequestRows<B>> requests;
    std::vector<std::size_t> which;  // per row
    for (index_t q = testing::pick(engine.random, 0, 12); q > 0; --q) {
      auto const k = static_cast<std::size_t>(testing::pick(engine.random, 0, 3));
      index_t const rows = testing::pick(engine.random, 0, 20);
      requests.push_back({k == 0 && rows % 2 == 0 ? nullptr : &states[k], rows});
      which.insert(which.end(), static_cast<std::size_t>(rows), k);
    }
    plan.build(requests);
    REQUIRE(plan.rows() == static_cast<index_t>(which.size()));
    auto const deltas = plan.low_rank(0);
    std::set<std::int32_t> seen;
    for (index_t t = 0; t < deltas.tile_count; ++t) {
      auto const& tile = deltas.tiles[t];
      REQUIRE((tile.row_count >= 1 && tile.row_count <= LowRankTile<float>::max_rows));
      for (index_t m = 0; m < tile.row_count; ++m) {
        auto const k = which[static_cast<std::size_t>(tile.rows[m])];
        REQUIRE(seen.insert(tile.rows[m]).second);
        REQUIRE(k != 0);
        REQUIRE(tile.term_count == static_cast<index_t>(sets[k]->low_rank.size()));
        if (tile.term_count > 0) REQUIRE(tile.terms == sets[k]->low_rank.data());
      }
    }
    for (std::size_t n = 0; n < which.size(); ++n)
      REQUIRE(seen.count(static_cast<std::int32_t>(n)) == (which[n] == 0 ? 0 : 1));
    bool const has_2 = std::count(which.begin(), which.end(), 2) > 0,
               has_1 = std::count(which.begin(), which.end(), 1) > 0;
    if (has_2) CHECK(plan.max_rank() == 45);
    if (!has_2 && has_1) CHECK(plan.max_rank() >= 3);
    auto const maps = plan.maps(Stage::output_inner, 0);
    for (std::size_t n = 0; n < which.size(); ++n)
      REQUIRE((maps.row(static_cast<index_t>(n)) != nullptr) == (which[n] == 2 || which[n] == 3));
  }
}

TEST_CASE("rows that do not add up are refused with their numbers") {
  Plan<B> plan;
  auto const build = [&](RequestRows<B> request) { plan.build(std::span(&request, 1)); };
  build({nullptr, 3, 3});
  build({nullptr, 0});
  build({nullptr, 3, 0, 7, 5});
  CHECK_THROWS_WITH(build({nullptr, 3, 4}), Catch::Contains("a request brings 3 rows from position 0 on; its first 4 "
                                                            "cannot be prompt"));
  CHECK_THROWS_WITH(build({nullptr, 3, 0, 0, -2}), Catch::Contains("nor can the prompt end before position -2"));
  CHECK_THROWS_AS(build({nullptr, -1}), ContractError);
  CHECK_THROWS_AS(build({nullptr, 3, -1}), ContractError);
  CHECK_THROWS_AS(build({nullptr, 3, 0, -1}), ContractError);
}

TEST_CASE("one input buffer serves unless a row's weight and deltas read different inputs") {
  Loaded<List, float> engine(Shape::separate, 2);
  auto const& sites = engine.bank.sites();
  Site const down = sites.bind("layers.0.down_proj", ffn, width), q = sites.bind("layers.0.q_proj", width, width);
  SequenceState<B> scaled(engine.bank.resolve({{"i", 1}}), sites), delta(engine.bank.resolve({{"l3", 1}}), sites),
      both(engine.bank.resolve({{"l3", 1}, {"i", 1}}), sites);
  Plan<B> plan;
  RequestRows<B> const apart[] = {{&scaled, 1}, {&delta, 1}};
  plan.build(apart);
  CHECK(has_input_maps(down, plan));
  CHECK_FALSE(needs_two_inputs(down, plan));
  RequestRows<B> const together[] = {{&both, 1}};
  plan.build(together);
  CHECK(needs_two_inputs(down, plan));
  CHECK_FALSE(needs_two_inputs(q, plan));  // its IA3 is on the output
  CHECK_FALSE(has_input_maps(q, plan));

  // and the shorter call does the same where it serves
  plan.build(apart);
  Buffer<float> x(2, ffn), base(2, ffn);
  testing::fill_normal(x.view(), engine.random);
  base = x;
  Buffer<float> in_place = x;
  apply_input(engine.backend, down, plan, x.view(), base.view());
  apply_input(engine.backend, down, plan, in_place.view());
  CHECK(testing::same_bits(in_place.row(0), base.row(0), ffn));
  CHECK(testing::same_bits(in_place.row(1), x.row(1), ffn));
}

}  // namespace
