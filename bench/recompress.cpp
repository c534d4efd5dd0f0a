// SPDX-License-Identifier: Apache-2.0
// Three rank-16 LoRA modules at 2048 x 2048, added and brought back to rank 16, on one thread. The peer
// (recompress_peer.py) decomposes the dense sum.
#include <graft/arithmetic/materialize.hpp>
#include <graft/arithmetic/recompress.hpp>
#include <graft/backend/cpu/cpu_backend.hpp>
#include <graft/testing/random.hpp>

#include <benchmark/benchmark.h>

namespace {

using namespace graft;
using B = CpuBackend<>;

void recompress_sum(benchmark::State& state) {
  SiteTable sites;
  sites.add_linear(0, "q_proj", "q_proj", 2048, 2048);
  Random random(1);
  auto const module = [&](char const* name) {
    auto made = make_module<LoRADelta, B>(name, {.rank = 16, .alpha = 16}, sites, {0});
    testing::fill_normal(made.entries[0].state.a, random);
    testing::fill_normal(made.entries[0].state.b, random);
    return made;
  };
  auto const a = module("a"), b = module("b"), c = module("c");
  double error = 0;
  for (auto _ : state) {
    auto const small = recompress(materialize(a + 0.5 * b - 0.3 * c, sites, "sum"), {.rank = 16}, sites);
    error = small.relative_error();
  }
  state.counters["relative_error"] = error;
}
BENCHMARK(recompress_sum)->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();
