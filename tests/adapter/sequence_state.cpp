// SPDX-License-Identifier: Apache-2.0
// What a request keeps: vectors made from its prompt serve later tokens, are made anew on request, and go along with a
// fork.
#include <tests/adapter/loaded.hpp>
#include <tests/catch.hpp>

#include <utility>

namespace {

using namespace graft_test;
using List = Adapters<IA3Scaling, RoAdRotation, LoRADelta, PedroGenerator>;
using B = CpuBackend<float>;

/// An engine and one token's activations at a site.
struct Fixture : Loaded<List, float> {
  Fixture() : Loaded<List, float>(Shape::fused, 1), x(1, width), y(1, width + 2 * kv) {
    testing::fill_normal(x.view(), random);
    testing::fill_normal(y.view(), random);
  }
  SequenceState<B> start() { return {bank.resolve({{"r2", 1}, {"p", 1}, {"q", 0.5}, {"l3", 1}}), bank.sites()}; }

  /// Shows the state a prompt of random rows from `seed`, in all layers.
  void see(SequenceState<B>& state, std::uint64_t seed) {
    Random numbers(seed);
    Buffer<float> prompt(4, width);
    testing::fill_normal(prompt.view(), numbers);
    RequestRows<B> const rows[] = {{&state, 4, 4}};
    Plan<B> plan;
    plan.build(rows);
    for (index_t l = 0; l < layer_count; ++l)
      observe_prompt(backend, l, plan, std::as_const(prompt).view(), std::as_const(prompt).view());
    state.set_ready(true);
  }
  /// What a decoded token gets at layer 1's c_attn.
  std::vector<float> decode(SequenceState<B>& state) {
    RequestRows<B> const rows[] = {{&state, 1}};
    Plan<B> plan;
    plan.build(rows);
    Buffer<float> out = y;
    apply_output(backend, bank.sites().bind("layers.1.c_attn", width, width + 2 * kv), plan, x.view(), out.view());
    return std::vector<float>(out.row(0), out.row(0) + out.view().cols);
  }
  Buffer<float> x, y;
};

TEST_CASE("vectors are made from the prompt, kept for later tokens, and made anew from another") {
  Fixture f;
  auto state = f.start();
  CHECK(state.generates());
  CHECK_FALSE(state.ready());
  auto const bare = f.decode(state);
  f.see(state, 1);
  CHECK(state.ready());
  auto const first = f.decode(state);
  CHECK(first != bare);
  CHECK(f.decode(state) == first);
  f.see(state, 2);
  CHECK(f.decode(state) != first);
  f.see(state, 1);
  CHECK(f.decode(state) == first);
}

TEST_CASE("a fork takes the vectors along and lives on without the original") {
  Fixture f;
  auto fork = f.start();
  std::vector<float> expected;
  {
    auto state = f.start();
    f.see(state, 1);
    expected = f.decode(state);
    fork.copy_vectors(state);
    f.see(state, 2);
  }
  CHECK(fork.ready());
  CHECK(f.decode(fork) == expected);
  SequenceState<B> other(f.bank.resolve({{"p", 1}}), f.bank.sites());
  CHECK_THROWS_WITH(other.copy_vectors(fork),
                    Catch::Contains("only requests with the same adapters can share vectors"));
}

TEST_CASE("a state may be moved") {
  Fixture f;
  auto state = f.start();
  f.see(state, 1);
  auto const expected = f.decode(state);
  SequenceState<B> moved = std::move(state);
  CHECK(f.decode(moved) == expected);
  f.see(moved, 2);
  CHECK(f.decode(moved) != expected);
}

TEST_CASE("requests of the same adapters have vectors of their own") {
  Fixture f;
  auto one = f.start(), two = f.start();
  CHECK(one.adapters() == two.adapters());
  f.see(one, 1);
  f.see(two, 2);
  auto const first = f.decode(one), second = f.decode(two);
  CHECK(first != second);
  f.see(two, 1);
  CHECK(f.decode(two) == first);
}

}  // namespace
