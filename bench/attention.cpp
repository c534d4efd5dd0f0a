// SPDX-License-Identifier: Apache-2.0
// Attention of one layer over paged keys and values: the last 512 rows of a prompt, and one row of each of several
// requests. Multiply-adds and bytes of keys and values stand next to the machine's limits, measured in turn; layers are
// rotated, so that no cache holds them.
#include <graft/backend/cpu/cpu.hpp>
#include <graft/model/kv_cache.hpp>
#include <graft/testing/random.hpp>

#include <benchmark/benchmark.h>

#include <bench/beside_limits.hpp>

namespace {

using namespace graft;
using B = CpuBackend<>;

struct Heads {
  char const* model;
  index_t heads, kv_heads, head_dim;
};
constexpr Heads every_heads[] = {{"SmolLM2-135M", 9, 3, 64}, {"Llama-3.2-1B", 32, 8, 64}, {"LLaMA-2-7B", 32, 32, 128}};

ThreadPool& pool() {
  static ThreadPool one(bench::threads());
  return one;
}

/// `rows` last rows of `requests` sequences of `tokens` tokens.
void run(benchmark::State& state, Heads const& of, index_t requests, index_t tokens, index_t rows, KvStorage storage) {
  B be(pool());
  index_t const width = of.heads * of.head_dim, kv_width = of.kv_heads * of.head_dim;
  index_t const bytes = requests * tokens * 2 * kv_width * (storage == KvStorage::bf16 ? 2 : 4);
  index_t const layers = (index_t{192} << 20) / bytes + 1;
  KvCache<B> cache(layers, kv_width, 32, storage);
  Random random(1);
  auto const numbers = [&](index_t count) {
    std::vector<float> all(static_cast<std::size_t>(count));
    for (auto& value : all) value = static_cast<float>(random.normal());
    return all;
  };
  auto const stored = numbers(tokens * kv_width), q = numbers(requests * rows * width);
  auto out = q;
  auto const matrix = [](auto& of_values, index_t n, index_t cols) { return matrix_view(of_values.data(), n, cols); };
  std::vector<KvSequence> sequences(static_cast<std::size_t>(requests));
  std::vector<AttentionSpan> spans;
  for (auto& sequence : sequences) {
    cache.extend(be, sequence, tokens);
    AttentionSpan const whole{sequence.pages.data(), 0, tokens, 0, tokens};
    for (index_t layer = 0; layer < layers; ++layer)
      store_kv(be, cache.view(layer), std::span(&whole, 1), matrix(stored, tokens, kv_width),
               matrix(stored, tokens, kv_width));
    auto const first_row = static_cast<index_t>(spans.size()) * rows;
    spans.push_back({sequence.pages.data(), first_row, rows, tokens - rows, tokens});
  }
  AttentionShape const shape{of.heads, of.kv_heads, of.head_dim, 0.125, true, 0};
  index_t layer = 0;
  auto const once = [&] {
    attention(be, cache.view(layer), shape, std::span<AttentionSpan const>(spans), matrix(q, requests * rows, width),
              matrix(out, requests * rows, width));
    layer = (layer + 1) % layers;
  };
  // a query's products with the keys it sees, and with their values
  double const seen = static_cast<double>(rows) * static_cast<double>(2 * tokens - rows + 1) / 2;
  double const operations = 4.0 * static_cast<double>(requests * width) * seen;
  static bench::ReadLimit read_limit(pool());
  bench::beside_limits(state, pool(), {static_cast<double>(bytes), operations, be.isa(), bench::Instruction::fma},
                       read_limit, once);
}

}  // namespace

int main(int argc, char** argv) {
  struct Case {
    index_t requests, tokens, rows;
  };
  for (auto const& heads : every_heads)
    for (Case const c : {Case{1, 512, 512}, Case{1, 4096, 512}, Case{8, 512, 1}, Case{1, 4096, 1}})
      for (KvStorage const storage : {KvStorage::full, KvStorage::bf16})
        benchmark::RegisterBenchmark(
            text("attention/", heads.model, "/", c.requests, "/", c.tokens, "/", c.rows, "/",
                 storage == KvStorage::bf16 ? "bf16" : "f32")
                .c_str(),
            [=](benchmark::State& state) { run(state, heads, c.requests, c.tokens, c.rows, storage); })
            ->UseManualTime()
            ->Iterations(c.rows > 1 ? 9 : 25)
            ->Unit(benchmark::kMicrosecond);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
