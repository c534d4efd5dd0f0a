// SPDX-License-Identifier: Apache-2.0
// The bank: names and versions, replacing and unloading under requests that go on, sharing of composed adapters, and
// lists that are refused.
#include <tests/adapter/loaded.hpp>
#include <tests/catch.hpp>

#include <limits>

namespace {

using namespace graft_test;
using List = Adapters<IA3Scaling, RoAdRotation, LoRADelta, PedroGenerator>;
using Variant = RoAdRotation::Variant;
using B = CpuBackend<float>;

/// An engine with only what a test loads.
struct Fixture : Engine<List> {
  Fixture() : Engine<List>(Shape::separate, 1), linear(sites_of_kind(bank.sites(), SiteKind::linear)) {}
  std::vector<index_t> linear;

  /// The batch row of a state at site 0, for a plan of that one request.
  std::vector<float> row(SequenceState<B>& state, Buffer<float> const& x) {
    RequestRows<B> const rows[] = {{&state, 1}};
    Plan<B> plan;
    plan.build(rows);
    Buffer<float> in = x, y(1, bank.sites()[0].out);
    Site const site = bank.sites().bind("layers.0.q_proj", width, width);
    apply_input(backend, site, plan, in.view());
    apply_output(backend, site, plan, in.view(), y.view());
    return std::vector<float>(y.row(0), y.row(0) + y.view().cols);
  }
};

TEST_CASE("names and versions") {
  Fixture f;
  CHECK(f.bank.names().empty());
  CHECK(f.bank.find("a") == nullptr);
  f.load("b", IA3Scaling{}, f.linear);
  f.load("a", LoRADelta{.rank = 2}, f.linear);
  CHECK(f.bank.names() == std::vector<std::string>{"a", "b"});
  auto const first = f.bank.find("a");
  CHECK(first->version > f.bank.find("b")->version);
  f.load("a", RoAdRotation{Variant::road_1, 2}, f.linear);  // another kind under the same name
  CHECK(f.bank.find("a")->version > first->version);
  CHECK(f.bank.names().size() == 2);
  CHECK(f.bank.unload("a"));
  CHECK_FALSE(f.bank.unload("a"));
  CHECK(f.bank.names() == std::vector<std::string>{"b"});
  CHECK(first->name == "a");  // whoever holds a module keeps it
}

TEST_CASE("requests keep what they were resolved with while names are replaced and unloaded") {
  Fixture f;
  f.load("a", RoAdRotation{Variant::road_2, 6}, f.linear);
  f.load("l", LoRADelta{.rank = 4}, f.linear);
  Buffer<float> x(1, width);
  testing::fill_normal(x.view(), f.random);
  std::vector<AdapterUse> const uses{{"a", 1}, {"l", 0.5}};

  SequenceState<B> old(f.bank.resolve(uses), f.bank.sites());
  auto const before = f.row(old, x);
  f.load("a", RoAdRotation{Variant::road_2, 6}, f.linear);  // other numbers
  CHECK(f.row(old, x) == before);
  SequenceState<B> renewed(f.bank.resolve(uses), f.bank.sites());
  CHECK(f.row(renewed, x) != before);
  CHECK(renewed.adapters()->fingerprint != old.adapters()->fingerprint);
  auto const after = f.row(renewed, x);
  f.bank.unload("a");
  f.bank.unload("l");
  CHECK(f.row(old, x) == before);
  CHECK(f.row(renewed, x) == after);
  CHECK_THROWS_WITH(f.bank.resolve(uses), "graft: no adapter is called a");
}

TEST_CASE("a plan keeps adapters alive until it is built anew") {
  Fixture f;
  f.load("l", LoRADelta{.rank = 4}, f.linear);
  std::weak_ptr<AdapterSet<B> const> watched;
  Plan<B> plan;
  {
    SequenceState<B> state(f.bank.resolve({{"l", 1}}), f.bank.sites());
    watched = state.adapters();
    RequestRows<B> const rows[] = {{&state, 2}};
    plan.build(rows);
  }
  f.bank.unload("l");
  CHECK_FALSE(watched.expired());
  plan.build({});
  CHECK(watched.expired());
}

TEST_CASE("the same list is the same object while anyone holds it") {
  Fixture f;
  f.load("a", RoAdRotation{Variant::road_2, 6}, f.linear);
  f.load("l", LoRADelta{.rank = 4}, f.linear);
  f.load("m", LoRADelta{.rank = 3}, f.linear);
  auto const set = f.bank.resolve({{"a", 1}, {"m", 2}, {"l", 0.5}});
  CHECK(f.bank.resolve({{"l", 0.5}, {"a", 1}, {"m", 2}}) == set);
  CHECK(f.bank.resolve({{"m", 1.5}, {"l", 0.5}, {"m", 0.5}, {"a", 1}}) == set);  // repeated names add up
  CHECK(f.bank.resolve({{"a", 1}, {"m", 2}, {"l", 0.25}}) != set);
  CHECK(f.bank.resolve({{"a", 1}, {"m", 2}}) != set);
  CHECK(f.bank.resolve({{"a", 1}, {"m", 2}, {"l", 0.25}})->fingerprint != set->fingerprint);
  CHECK(set->max_rank == 7);
  CHECK(f.bank.resolve(std::span<AdapterUse const>{}) == nullptr);
  // requests share the composed coefficients, too
  SequenceState<B> one(set, f.bank.sites()), two(set, f.bank.sites());
  for (Stage const stage : {Stage::input_outer, Stage::input_inner, Stage::output_inner, Stage::output_outer})
    CHECK(one.table(stage) == two.table(stage));
  // the same fingerprint after all holders are gone
  auto const fingerprint = f.bank.resolve({{"m", 1}})->fingerprint;
  CHECK(f.bank.resolve({{"m", 1}})->fingerprint == fingerprint);
}

TEST_CASE("many lists come and go") {
  Fixture f;
  f.load("a", IA3Scaling{}, f.linear);
  f.load("l", LoRADelta{.rank = 2}, f.linear);
  auto const kept = f.bank.resolve({{"a", 0.25}});
  for (int k = 0; k < 1000; ++k) {
    auto const set = f.bank.resolve({{"a", 1.0 / (k + 2)}, {"l", 1}});
    REQUIRE(set->members.size() == 2);
  }
  CHECK(f.bank.resolve({{"a", 0.25}}) == kept);
}

TEST_CASE("lists that mean nothing are refused, and the bank goes on") {
  Fixture f;
  f.load("r6", RoAdRotation{Variant::road_1, 6}, f.linear);
  f.load("r4", RoAdRotation{Variant::road_1, 4}, {f.linear[1]});
  f.load("i", IA3Scaling{}, f.linear);
  CHECK_THROWS_WITH(f.bank.resolve({{"i", 1}, {"nobody", 1}}), "graft: no adapter is called nobody");
  for (double const weight : {std::nan(""), std::numeric_limits<double>::infinity(), -1e300})  // 1e300 is no f32
    CHECK_THROWS_WITH(f.bank.resolve({{"i", weight}}), "graft: the weight of adapter i is not finite");
  CHECK_THROWS_WITH(f.bank.resolve({{"i", 3e38}, {"i", 3e38}}), "graft: the weight of adapter i is not finite");
  CHECK_THROWS_WITH(
      f.bank.resolve({{"r6", 1}, {"r4", 1}}),
      "graft: adapter r6 has groups of 6 at layers.0.k_proj, another of its kind has groups of 4; such maps "
      "cannot be summed");
  CHECK_THROWS_AS(f.bank.resolve({{"r4", 1}, {"r6", 1}}), ContractError);
  CHECK(f.bank.resolve({{"r4", 1}, {"i", 1}}) != nullptr);
  CHECK(f.bank.resolve({{"r6", 1}, {"i", 1}}) != nullptr);
}

TEST_CASE("a module of another model is refused, and the bank keeps what it had") {
  Fixture f;
  f.load("a", LoRADelta{.rank = 2}, {0});
  auto const kept = f.bank.find("a");
  SiteTable wider;
  wider.add_linear(0, "q_proj", "layers.0.q_proj", width + 2, width);
  CHECK_THROWS_WITH(f.bank.load(f.backend, make_module<LoRADelta, B>("a", {.rank = 2}, wider, {0})),
                    text("graft: module a has a lora_A.weight of [2, ", width + 2,
                         "] at layers.0.q_proj, in this model it would be [2, ", width, "]"));
  SiteTable longer = f.bank.sites();
  Site const last = longer.add_linear(-1, "lm_head", "one_more", width, width);
  CHECK_THROWS_WITH(f.bank.load(f.backend, make_module<LoRADelta, B>("a", {.rank = 2}, longer, {last.index})),
                    text("graft: module a has a site ", last.index, ", this model has ", last.index));
  CHECK(f.bank.find("a") == kept);
}

TEST_CASE("interventions at different positions do not share a request") {
  Fixture f;
  auto const blocks = sites_of_kind(f.bank.sites(), SiteKind::hidden);
  f.load("last", RoAdRotation{.group_size = 6, .positions = Positions::last_prompt()}, blocks);
  f.load("all", RoAdRotation{.group_size = 6}, blocks);
  f.load("linear", RoAdRotation{.group_size = 6}, f.linear);
  CHECK_THROWS_WITH(f.bank.resolve({{"last", 1}, {"all", 1}}),
                    "graft: adapters all and last of the request act on the residual stream at different positions; "
                    "they cannot share a request");
  auto const set = f.bank.resolve({{"last", 1}, {"linear", 1}});

  // the stream is touched at one row, linear layers at all
  SequenceState<B> state(set, f.bank.sites());
  RequestRows<B> const rows[] = {{nullptr, 2, 0, 0, 2}, {&state, 4, 4, 0, 3}};
  Plan<B> plan;
  plan.build(rows);
  Buffer<float> h(6, width);
  testing::fill_normal(h.view(), f.random);
  Buffer<float> const before = h;
  apply_block_output(f.backend, {blocks[0], width, width}, plan, h.view());
  for (index_t n = 0; n < 6; ++n) CHECK(testing::same_bits(h.row(n), before.row(n), width) == (n != 4));
  Request<float> one{{{"last", 1}}, 1, 1, {}, {}, {}};
  for (index_t s = 0; s < f.bank.sites().size(); ++s) one.inputs.emplace_back(1, f.bank.sites()[s].in);
  std::copy_n(before.row(4), width, one.inputs[static_cast<std::size_t>(blocks[0])].row(0));
  for (index_t l = 0; l < layer_count; ++l) one.normalized.emplace_back(1, width), one.raw.emplace_back(1, width);
  CHECK(testing::worst_row(h.view().row_range(4, 1), f.expected(one, blocks[0])) <= 1e-6);  // a 2x2 block: 4 roundings
}

TEST_CASE("listed positions count from the sequence's start and from the prompt's end, whatever steps they fall into") {
  Fixture f;
  index_t const block = sites_of_kind(f.bank.sites(), SiteKind::hidden)[0];
  f.load("some", RoAdRotation{.group_size = 6, .positions = {{1, 6, -1, -3, -9, 40}}}, {block});
  SequenceState<B> state(f.bank.resolve({{"some", 1}}), f.bank.sites());
  // a prompt of 5 tokens: 1, 6 (the second token behind it), 4 and 2
  std::vector<bool> const expected{false, true, true, false, true, false, true, false};
  for (index_t const cut : {0, 1, 3, 5, 7}) {
    Plan<B> plan;
    for (auto const& [first, end] : {std::pair{index_t{0}, cut}, std::pair{cut, index_t{8}}}) {
      RequestRows<B> const rows[] = {{&state, end - first, 0, first, 5}};
      plan.build(rows);
      Buffer<float> h(end - first, width);
      testing::fill_normal(h.view(), f.random);
      Buffer<float> const before = h;
      apply_block_output(f.backend, {block, width, width}, plan, h.view());
      for (index_t n = first; n < end; ++n)
        CHECK(testing::same_bits(h.row(n - first), before.row(n - first), width) !=
              expected[static_cast<std::size_t>(n)]);
    }
  }
  RequestRows<B> const unknown[] = {{&state, 8}};  // where the prompt ended: only 1 and 6
  Plan<B> plan;
  plan.build(unknown, PlanUse::training);
  CHECK(plan.groups()[0].positioned == std::vector<std::int32_t>{1, 6});
}

TEST_CASE("weights are linear: what two requests do adds up") {
  Fixture f;
  f.load("p", PedroGenerator{.rank = 3}, sites_of_kind(f.bank.sites(), SiteKind::hidden));
  f.load("a", IA3Scaling{}, f.linear);
  f.load("l", LoRADelta{.rank = 3, .bias = true}, f.linear);
  for (std::string const name : {"p", "a", "l"}) {
    auto once = f.request({{name, 1}}, 3, 3);
    auto twice = once, none = once;
    twice.uses[0].weight = 2;
    none.uses[0].weight = 0;
    auto bare = once;
    bare.uses.clear();
    auto const results = f.run({&f.backend}, std::vector<Request<float> const*>{&once, &twice, &none, &bare});
    for (std::size_t s = 0; s < results[0].size(); ++s) {
      Matrix const y1(results[0][s].view()), y2(results[1][s].view()), y0(results[2][s].view());
      Matrix const base(results[3][s].view());
      CHECK(testing::relative_l2(y0, base) <= 1e-6);  // weight 0 is no adapter
      bool const input_sided = f.bank.sites()[static_cast<index_t>(s)].id == "down_proj" && name == "a";
      INFO(name << " at " << f.bank.sites()[static_cast<index_t>(s)].path << (input_sided ? ", input" : ""));
      CHECK(testing::relative_l2(y2 - base, 2.0 * (y1 - base)) <= 1e-5);  // differences of f32 sums of about 100 terms
    }
  }
}

}  // namespace
