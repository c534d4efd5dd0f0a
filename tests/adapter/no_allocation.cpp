// SPDX-License-Identifier: Apache-2.0
// After warm-up neither building a plan nor the host-engine calls allocate, whatever the mix.
#include <graft/testing/counting_allocator.hpp>

#include <tests/adapter/loaded.hpp>
#include <tests/catch.hpp>

namespace {

using namespace graft_test;
using List = Adapters<IA3Scaling, RoAdRotation, LoRADelta, PedroGenerator>;

/// The calls of one step of an engine on buffers that exist, at every site of every layer.
template <class E, class B, class T, class H>
void calls(E& engine, B& be, Plan<B> const& plan, std::deque<Buffer<T>>& x, std::deque<Buffer<T>>& base,
           std::deque<Buffer<T>>& y, Buffer<H>& hidden) noexcept {
  index_t const n = plan.rows();
  for (index_t l = 0; l < layer_count; ++l)
    observe_prompt(be, l, plan, std::as_const(hidden).view().row_range(0, n),
                   std::as_const(hidden).view().row_range(0, n));
  for (index_t s = 0; s < engine.bank.sites().size(); ++s) {
    SiteInfo const& info = engine.bank.sites()[s];
    Site const site{s, info.in, info.out};
    auto const k = static_cast<std::size_t>(s);
    auto const in = x[k].view().row_range(0, n);
    if (info.kind == SiteKind::hidden) {
      apply_block_output(be, site, plan, in);
    } else if (info.kind == SiteKind::rotated_q) {
      apply_rotated(be, site, plan, in);
    } else {
      if (has_input_maps(site, plan)) apply_input(be, site, plan, in, base[k].view().row_range(0, n));
      apply_output(be, site, plan, in, y[k].view().row_range(0, n));
    }
  }
}

template <class T, class B = CpuBackend<float>>
constexpr bool promises(B& be, Site site, Plan<B> const& plan, MatrixView<T> m) {
  return noexcept(apply_input(be, site, plan, m))&& noexcept(apply_input(be, site, plan, m, m))&& noexcept(apply_output(
      be, site, plan, m,
      m))&& noexcept(observe_prompt(be, 0, plan, m,
                                    m))&& noexcept(apply_block_output(be, site, plan,
                                                                      m))&& noexcept(apply_rotated(be, site, plan, m));
}

template <class E, class B, class T>
void step(E& engine, B& be, Plan<B>& plan, std::vector<RequestRows<B>> const& rows, std::deque<Buffer<T>>& x,
          std::deque<Buffer<T>>& base, std::deque<Buffer<T>>& y, Buffer<typename B::Act>& hidden) {
  plan.build(rows);
  calls(engine, be, plan, x, base, y, hidden);
}

/// With the reserved workspace not even the first calls of a fresh backend allocate.
template <class E, class B, class T>
void check_reserved(Executor& executor, E& engine, std::vector<RequestRows<B>> const& rows, std::deque<Buffer<T>>& x,
                    std::deque<Buffer<T>>& base, std::deque<Buffer<T>>& y) {
  Plan<B> plan;
  plan.build(rows);
  Buffer<T> hidden(plan.rows(), width, 2);  // prompt rows of the engine's own type
  testing::fill_normal(hidden.view(), engine.random);
  B be(executor);
  std::size_t const bytes = workspace_size<T>(be, engine.bank.sites(), plan);
  auto const cold = testing::allocation_count();
  be.arena().reserve(bytes);
  auto const before = testing::allocation_count();
  calls(engine, be, plan, x, base, y, hidden);
  auto const during = testing::allocation_count() - before;
  CHECK(before - cold > 0);
  CHECK(during == 0);
  CHECK(promises(be, Site{}, plan, hidden.view()));
}

template <class T>
void check(Executor& executor) {
  using B = CpuBackend<float>;
  Loaded<List, float> engine(Shape::fused, 1);
  auto const& sites = engine.bank.sites();
  constexpr index_t most = 40;
  std::deque<Buffer<T>> x, base, y;
  for (auto const& site : sites.all()) {
    testing::fill_normal(x.emplace_back(most, site.in, 1).view(), engine.random, 0, 1e-3);
    testing::fill_normal(base.emplace_back(most, site.in).view(), engine.random, 0, 1e-3);
    testing::fill_normal(y.emplace_back(most, site.out).view(), engine.random, 0, 1e-3);
  }
  Buffer<float> hidden(most, width, 2);
  testing::fill_normal(hidden.view(), engine.random);

  std::deque<SequenceState<B>> states;
  for (auto const& uses : {std::vector<AdapterUse>{{"r2", 1}, {"l40", 0.5}},
                           {{"p", 1}, {"q", 0.5}, {"l3", 1}},
                           {{"i", 1}},
                           {{"lb", 1}, {"j", 1}, {"r4", 0.3}}})
    states.emplace_back(engine.bank.resolve(uses), sites);
  std::vector<RequestRows<B>> prefill{{nullptr, 3, 3}}, decode{{nullptr, 1}};
  for (auto& state : states) {
    prefill.push_back({&state, 9, 9});
    decode.push_back({&state, 1});
  }
  check_reserved(executor, engine, prefill, x, base, y);
  B be(executor);
  Plan<B> plan;
  auto const cold = testing::allocation_count();
  step(engine, be, plan, prefill, x, base, y, hidden);
  auto const before = testing::allocation_count();
  for (int k = 0; k < 3; ++k) {
    step(engine, be, plan, decode, x, base, y, hidden);
    step(engine, be, plan, prefill, x, base, y, hidden);
    std::rotate(decode.begin(), decode.begin() + 1, decode.end());
  }
  auto const during = testing::allocation_count() - before;
  CHECK(before - cold > 0);  // the counter counts
  CHECK(during == 0);
}

TEST_CASE("plans and host-engine calls do not allocate after warm-up") {
  SerialExecutor serial;
  ThreadPool pool(2);
  SliceExecutor slice(0, 2);
  check<float>(serial);
  check<bf16>(serial);
  check<float>(pool);
  check<bf16>(slice);
  check<double>(serial);  // of an engine in double, whose backend computes in float
}

}  // namespace
