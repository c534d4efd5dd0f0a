// SPDX-License-Identifier: Apache-2.0
// A training step: 8 sequences of 64 tokens, forward, loss, the way back, clipping and AdamW, with LoRA of rank 16,
// RoAd and (IA)³ at all linear layers or PEDRO at its own sites, in exact and, over weights in bf16, native precision;
// all activations kept, or layers run again on the way back.
//     bench/train MODEL.gguf | FORMAT:LAYERS [--benchmark_...]
// Two limits stand beside a step. Of the instruction that multiplies the weights, measured in turn with it: the share
// counts the products with the model's own weights, once forward (twice where layers are run again) and once back for
// the gradients of activations; weights are frozen and get none. And of memory: the highest the process had during the
// case, and which share of that the weights, four numbers for each parameter and one copy of the layers' activations
// would be.
#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/pedro.hpp>
#include <graft/adapter/road.hpp>
#include <graft/arch/llama.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/model/model.hpp>

#include <benchmark/benchmark.h>

#include <string>
#include <vector>

#include <bench/limits.hpp>
#include <bench/memory.hpp>
#include <bench/some_model.hpp>
#include <bench/training.hpp>

namespace {

using namespace graft;
using B = CpuBackend<>;
using TrainedModel = Model<Llama, Adapters<IA3Scaling, RoAdRotation, LoRADelta, PedroGenerator>, B>;

constexpr index_t count = 8, length = 64;

/// Bytes of what the layers compute, once each, for all tokens: the residual stream before both norms and what these
/// give, q, k, v, what attention gives, gate, up and their product. Of layers that are run again, the stream before
/// them, and one layer's.
double activation_bytes(ModelConfig const& c, bool recompute) {
  index_t const q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  index_t const of_layer = 4 * c.width + 2 * q + 2 * kv + 3 * c.ffn;
  index_t const numbers = recompute ? c.layers * c.width + of_layer : c.layers * of_layer;
  return static_cast<double>(count * length * numbers) * sizeof(float);
}

template <class P>
void run(benchmark::State& state, bench::SomeModel const& some, P const& policy, SiteKind kind, Precision precision,
         bool recompute) {
  static ThreadPool pool(bench::threads());
  bench::forget_freed_memory();
  B be(pool);
  be.set_precision(precision);
  TrainedModel model(some.config, some.weights);
  std::vector<std::vector<std::int32_t>> sequences(count, std::vector<std::int32_t>(length));
  for (std::size_t k = 0; k < count * length; ++k)
    sequences[k / length][k % length] = static_cast<std::int32_t>(17 * k % 1000 + 5);
  bench::TrainingSteps step(model, be, policy, kind, sequences, recompute);
  auto const work = bench::work_of(some.config, some.weights);
  double const operations = static_cast<double>(count * length) * work.of_layers * (recompute ? 3 : 2) +
                            static_cast<double>(count * (length - 1)) * work.of_head * 2;
  double weights = 0;
  for (auto const& [path, weight] : some.weights.tensors) weights += static_cast<double>(weight.bytes());
  double const floor =
      weights + 4.0 * sizeof(float) * static_cast<double>(step.parameters()) + activation_bytes(some.config, recompute);
  step();
  std::vector<double> seconds, of_instruction;
  for (auto _ : state) {  // in turn, so that both meet the same machine
    double const compute = bench::operation_limit(pool, be.isa(), work.instruction(precision));
    double const one = bench::seconds_of(step);
    state.SetIterationTime(one);
    seconds.push_back(one);
    of_instruction.push_back(compute > 0 ? 100 * operations / one / compute : 0);
  }
  double const typical = bench::median(seconds), peak = bench::process_bytes("VmHWM");
  state.counters["ms"] = 1e3 * typical;
  state.counters["tokens/s"] = static_cast<double>(count * length) / typical;
  state.counters["instruction_limit_%"] = bench::median(of_instruction);
  state.counters["peak_MB"] = 1e-6 * peak;
  state.counters["memory_floor_%"] = peak > 0 ? 100 * floor / peak : 0;
}

void add_cases(bench::SomeModel const& some) {
  bool const bf16 = bench::work_of(some.config, some.weights).format == Format::bf16;
  for (Precision const precision : {Precision::exact, Precision::native})
    for (bool const recompute : {false, true}) {
      if (precision == Precision::native && !bf16) continue;
      auto const add = [&](char const* name, auto const& policy, SiteKind kind) {
        benchmark::RegisterBenchmark(
            text("train/", some.name, '/', name, recompute ? "/layers run again/" : "/all kept/",
                 precision == Precision::native ? "native" : "exact")
                .c_str(),
            [=, &some](benchmark::State& state) { run(state, some, policy, kind, precision, recompute); })
            ->UseManualTime()
            ->Iterations(5)
            ->Unit(benchmark::kMillisecond);
      };
      add("LoRA r=16", LoRADelta{.rank = 16, .alpha = 32}, SiteKind::linear);
      add("RoAd", RoAdRotation{}, SiteKind::linear);
      add("IA3", IA3Scaling{}, SiteKind::linear);
      add("PEDRO", PedroGenerator{}, SiteKind::hidden);
    }
}

}  // namespace

int main(int argc, char** argv) {
  auto const some = bench::some_model(bench::model_argument(argc, argv));
  add_cases(some);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
