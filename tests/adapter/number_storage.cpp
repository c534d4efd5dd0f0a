// SPDX-License-Identifier: Apache-2.0
// Banks that keep their modules in bf16: numbers that are bf16 already are exact, others rounded once where they are
// published, summed or composed; what is made from a prompt is not, and nothing kept so can be trained.
#include <graft/backend/cpu/cpu.hpp>
#include <tests/adapter/loaded.hpp>
#include <tests/catch.hpp>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace {

using namespace graft_test;
using List = Adapters<IA3Scaling, RoAdRotation, LoRADelta, PedroGenerator>;
using B = CpuBackend<float>;

TEST_CASE("numbers are kept as they are, or as bf16, nearest even") {
  std::vector<float> const values{1.f, -0.f, 1 + 0x1p-8f, 1 + 3 * 0x1p-8f, 3.1415927f, 1e-30f};
  std::vector<float> const rounded{1.f, -0.f, 1.f, 1 + 0x1p-6f, 3.140625f, static_cast<float>(bf16(1e-30f))};
  for (auto const& [as, expected] : {std::pair(AdapterStorage::full, values), {AdapterStorage::bf16, rounded}}) {
    NumberStorage<float> storage(as);
    auto const kept = storage.keep(6, [&](float* to) { std::copy(values.begin(), values.end(), to); });
    CHECK(kept.narrow() == (as == AdapterStorage::bf16));
    CHECK(kept.bytes(6) == (kept.narrow() ? 12 : 24));
    for (std::size_t k = 0; k < 6; ++k) {
      float const value = kept[static_cast<index_t>(k)], behind = (kept + static_cast<index_t>(k))[0];
      CHECK(testing::same_bits(&value, &expected[k], 1));
      CHECK(testing::same_bits(&behind, &expected[k], 1));
    }
    // a second one leaves the first where it is
    void const* const at = kept.data();
    auto const zeros = storage.keep(3, [](float*) {});
    CHECK((kept.data() == at && zeros[0] == 0 && zeros[2] == 0));

    auto const map = storage.keep_map(6, false, true, true, 2, [&](RowMapRow<float> const& to) {
      std::copy(values.begin(), values.end(), to.d), std::fill_n(to.e, 6, 0.25f), std::fill_n(to.c1, 6, 9.f);
    });
    CHECK((map.c1 == nullptr && map.group == 2 && map.size == 6 && map.narrow() == kept.narrow()));
    CHECK((map.d[4] == expected[4] && map.e[0] == 0.25f && map.e[5] == 0.25f));
  }
}

TEST_CASE("numbers of any sizes are aligned, apart from each other, and stay where they are") {
  for (auto const as : {AdapterStorage::full, AdapterStorage::bf16}) {
    NumberStorage<float> storage(as);
    std::vector<Numbers<float>> kept;
    auto const size = [](index_t k) { return k % 40 == 39 ? 60'000 : 1 + 37 * k % 900; };  // some larger than a block
    for (index_t k = 0; k < 400; ++k)
      kept.push_back(storage.keep(size(k), [&](float* to) { std::fill_n(to, size(k), static_cast<float>(k % 200)); }));
    for (index_t k = 0; k < 400; ++k) {
      auto const& numbers = kept[static_cast<std::size_t>(k)];
      REQUIRE(reinterpret_cast<std::uintptr_t>(numbers.data()) % 64 == 0);
      for (index_t j : {index_t{0}, size(k) / 2, size(k) - 1}) REQUIRE(numbers[j] == static_cast<float>(k % 200));
    }
  }
}

/// One row of every site of two engines, given the same requests.
template <class E>
double difference(E& one, E& other, std::vector<AdapterUse> const& uses, index_t rows) {
  auto const request = one.request(uses, rows, rows);
  auto const a = one.template run<float>({&one.backend}, {&request}),
             b = other.template run<float>({&other.backend}, {&request});
  double worst = 0;
  for (std::size_t s = 0; s < a[0].size(); ++s)
    worst = testing::worse(worst, testing::worst_row(a[0][s].view(), b[0][s].view()));
  return worst;
}

TEST_CASE("LoRA factors that are bf16 lose nothing, alone and in weighted lists") {
  Engine<List> full(Shape::separate, 1), narrow(Shape::separate, 1, AdapterStorage::bf16);
  auto const linear = sites_of_kind(full.bank.sites(), SiteKind::linear);
  for (auto* engine : {&full, &narrow})
    for (index_t const rank : {3, 16}) {
      auto module =
          make_module<LoRADelta, B>(text("l", rank), {.rank = rank, .alpha = 5}, engine->bank.sites(), linear);
      Random random(static_cast<std::uint64_t>(rank));
      for (auto& value : module.parameters())
        value = static_cast<float>(bf16(static_cast<float>(random.uniform(-0.3, 0.3))));
      engine->bank.load(engine->backend, std::move(module));
    }
  auto const module = narrow.bank.find("l16");
  auto const& factors = module->factors[static_cast<std::size_t>(linear[0])];
  CHECK((factors.a.narrow() && factors.b_transposed.narrow()));
  CHECK_FALSE(full.bank.find("l16")->factors[static_cast<std::size_t>(linear[0])].a.narrow());
  CHECK(difference(full, narrow, {{"l16", 1}}, 5) == 0);
  CHECK(difference(full, narrow, {{"l16", 0.3}, {"l3", -2}}, 9) == 0);
}

TEST_CASE("every method and order of methods in bf16 is as far from its definition as its rounding") {
  auto const check = []<class Policies>(Policies) {
    for (Shape const shape : {Shape::separate, Shape::fused}) {
      Loaded<Policies, float> engine(shape, 7, AdapterStorage::bf16);
      double largest = 0;
      for (int trial = 0; trial < 6; ++trial) {
        std::vector<Request<float>> requests;
        for (int q = 0; q < 5; ++q) requests.push_back(engine.random_request(0.35, testing::pick(engine.random, 1, 4)));
        largest = testing::worse(largest, worst(engine, requests));
      }
      // published, summed with weights up to 1.5, composed: some four roundings on the way of each number, of
      // departures from the identity about as large as it. Four of them at their largest, though they are many and
      // independent, leave room for departures beyond it
      CHECK(largest <= 4 * testing::unit_roundoff<bf16>());
      CHECK(largest > 0.05 * testing::unit_roundoff<bf16>());  // they are rounded
    }
  };
  check(Adapters<IA3Scaling, RoAdRotation, LoRADelta, PedroGenerator>{});
  check(Adapters<LoRADelta, PedroGenerator, RoAdRotation, IA3Scaling>{});
}

TEST_CASE("vectors made from a prompt are not rounded, also beside maps that are") {
  Engine<List> full(Shape::separate, 3), narrow(Shape::separate, 3, AdapterStorage::bf16);
  for (auto* engine : {&full, &narrow})
    engine->load("p", PedroGenerator{.rank = 4}, sites_of_kind(engine->bank.sites(), SiteKind::hidden));
  CHECK(difference(full, narrow, {{"p", 1}}, 5) == 0);
  // composed with a map of numbers that are bf16 it is the same too
  for (auto* engine : {&full, &narrow}) {
    auto const sites = sites_of_kind(engine->bank.sites(), SiteKind::linear);
    auto module = make_module<IA3Scaling, B>("i", {}, engine->bank.sites(), sites);
    Random random(5);
    for (auto& value : module.parameters()) value = 1 + 0x1p-6f * static_cast<float>(random.next() % 64);
    engine->bank.load(engine->backend, std::move(module));
  }
  CHECK(difference(full, narrow, {{"p", 0.5}, {"i", 1}}, 5) == 0);
}

TEST_CASE("what is kept in bf16 cannot be trained, and says so") {
  Engine<List> engine(Shape::separate, 4, AdapterStorage::bf16);
  engine.load("a", LoRADelta{.rank = 2}, sites_of_kind(engine.bank.sites(), SiteKind::linear));
  SequenceState<B> state(engine.bank.resolve({{"a", 1}}), engine.bank.sites());
  std::vector<RequestRows<B>> const rows{{&state, 3}};
  Plan<B> plan;
  plan.build(rows);
  CHECK_THROWS_WITH(plan.build(engine.backend, rows, PlanUse::training), Catch::Contains("adapter a is kept in bf16"));
}

}  // namespace
