// SPDX-License-Identifier: Apache-2.0
// One thread loads and unloads while others resolve, build plans and apply: every row is the work of one version of a
// module, never of parts of two. Built with the tsan preset this is also the data-race test of the bank.
#include <tests/adapter/engine.hpp>
#include <tests/catch.hpp>

#include <atomic>
#include <thread>
#include <vector>

namespace {

using namespace graft_test;
using B = CpuBackend<float>;
using List = Adapters<IA3Scaling, LoRADelta, PedroGenerator>;

/// Every parameter of the module is `version`, so that a row that met it says which version that was.
template <class P>
void load(Bank<List, B>& bank, B& be, std::string name, P const& policy, std::vector<index_t> const& at,
          float version) {
  auto module = make_module<P, B>(std::move(name), policy, bank.sites(), at);
  for (auto& entry : module.entries)
    entry.state.for_each([&](auto const*, auto& tensor) {
      if constexpr (requires { tensor.rows; })
        for (index_t k = 0; k < tensor.size(); ++k) tensor.data[k] = version;
      else
        std::fill(tensor.begin(), tensor.end(), version);
    });
  bank.load(be, std::move(module));
}

TEST_CASE("rows are consistent while modules are loaded and unloaded") {
  Bank<List, B> bank(make_sites(Shape::separate));
  auto const linear = sites_of_kind(bank.sites(), SiteKind::linear),
             hidden = sites_of_kind(bank.sites(), SiteKind::hidden);
  auto const load_all = [&](B& be, float version) {
    load(bank, be, "scale", IA3Scaling{.feedforward_modules = {}}, linear, version);
    load(bank, be, "delta", LoRADelta{.rank = 1, .alpha = 1}, linear, version);
    load(bank, be, "prompt", PedroGenerator{.rank = 1, .activation = PedroGenerator::Activation::relu}, hidden,
         version);
  };
  {
    B be;
    load_all(be, 1);
  }
  constexpr int readers = 3, steps = 2000;
  std::atomic<int> reading{readers}, mixed{0}, unknown{0}, applied{0};
  std::vector<std::thread> threads;
  for (int r = 0; r < readers; ++r)
    threads.emplace_back([&, r] {
      B be;
      Plan<B> plan;
      Site const q = bank.sites().bind("layers.0.q_proj", width, width);
      Buffer<float> x(3, width), y(3, width), prompt(3, width);
      for (index_t n = 0; n < 3; ++n)
        for (index_t k = 0; k < width; ++k) prompt.row(n)[k] = x.row(n)[k] = k == 0;  // sums see one 1
      for (int step = 0; step < steps; ++step) {
        std::vector<SequenceState<B>> states;
        try {
          states.emplace_back(bank.resolve({{"scale", 1}}), bank.sites());
          states.emplace_back(bank.resolve({{"delta", 1}}), bank.sites());
          states.emplace_back(bank.resolve({{r % 2 == 0 ? "prompt" : "scale", 1}}), bank.sites());
        } catch (ContractError const&) {
          ++unknown;  // it was unloaded just then
          continue;
        }
        std::vector<RequestRows<B>> rows;
        for (auto& state : states) rows.push_back({&state, 1, 1});
        plan.build(rows);
        observe_prompt(be, 0, plan, std::as_const(prompt).view(), std::as_const(prompt).view());
        for (index_t n = 0; n < 3; ++n) std::fill_n(y.row(n), width, n == 1 ? 0.0f : 1.0f);
        apply_output(be, q, plan, x.view(), y.view());
        // version v: l = v; s x A^T B^T = v v; 1 + W_up relu(W_down h) = 1 + v v
        for (index_t n = 0; n < 3; ++n)
          for (index_t k = 1; k < width; ++k) mixed += y.row(n)[k] != y.row(n)[0];
        ++applied;
      }
      --reading;
    });
  threads.emplace_back([&] {
    B be;
    for (int version = 2; reading > 0; version = version % 1000 + 1) {
      load_all(be, static_cast<float>(version));
      if (version % 3 == 0) bank.unload(version % 2 == 0 ? "scale" : "delta");
      (void)bank.names();
      (void)bank.find("prompt");
    }
  });
  for (auto& thread : threads) thread.join();
  CHECK(mixed == 0);
  CHECK(applied + unknown == readers * steps);
  CHECK(applied > 0);
}

}  // namespace
