// SPDX-License-Identifier: Apache-2.0
// A linear layer with the adapters of a batch, every row its own module, against the same product without adapters.
// The column overhead is the median time over that of the plain product measured in the same run.
#include <graft/adapter/bank.hpp>
#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/road.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/layer/linear.hpp>

#include <benchmark/benchmark.h>

#include <bench/shapes.hpp>

namespace {

using namespace graft;
using B = CpuBackend<>;
using List = Adapters<IA3Scaling, RoAdRotation, LoRADelta>;

enum class Kind { none, road, ia3, lora, mixed };
constexpr std::array kind_names{"no adapter", "RoAd", "IA3", "LoRA r=16", "RoAd and LoRA"};

template <class P>
Module<P, B> random_module(std::string name, P const& policy, SiteTable const& sites) {
  auto module = make_module<P, B>(std::move(name), policy, sites, {0});
  Random random(static_cast<std::uint64_t>(std::hash<std::string>{}(module.name)));
  for (auto& value : module.parameters()) value = static_cast<float>(random.normal());
  return module;
}

/// Everything one case needs; built outside the timed loop.
struct Case {
  Case(bench::Shape const& shape, index_t rows, Format format, Kind kind)
      : backend(pool),
        bank(table(shape)),
        bytes(static_cast<std::size_t>(shape.out * row_bytes(format, shape.in))),
        x(static_cast<std::size_t>(rows * shape.in)),
        y(static_cast<std::size_t>(rows * shape.out)) {
    Random random(1);
    std::vector<float> row(static_cast<std::size_t>(shape.in));
    for (index_t o = 0; o < shape.out; ++o) {
      for (auto& value : row) value = static_cast<float>(random.normal());
      encode_row(format, row.data(), shape.in, bytes.data() + o * row_bytes(format, shape.in));
    }
    for (auto& value : x) value = static_cast<float>(random.normal());
    layer = {{bytes.data(), format, shape.out, shape.in, nullptr}, {}, bank.sites().bind("layer", shape.in, shape.out)};
    for (index_t n = 0; n < rows; ++n) {
      auto const name = std::to_string(n);
      std::vector<AdapterUse> uses;
      bool const road = kind == Kind::road || (kind == Kind::mixed && n % 2 == 0);
      bool const lora = kind == Kind::lora || (kind == Kind::mixed && n % 2 == 1);
      if (road) bank.load(backend, random_module(name, RoAdRotation{}, bank.sites()));
      if (lora) bank.load(backend, random_module(name, LoRADelta{.rank = 16}, bank.sites()));
      if (kind == Kind::ia3) bank.load(backend, random_module(name, IA3Scaling{}, bank.sites()));
      if (kind != Kind::none) uses.push_back({name});
      states.emplace_back(bank.resolve(uses), bank.sites());
    }
    for (auto& state : states) requests.push_back({&state, 1});
    plan.build(requests);
  }
  static SiteTable table(bench::Shape const& shape) {
    SiteTable sites;
    sites.add_linear(0, "layer", "layer", shape.in, shape.out);
    return sites;
  }
  void run() {
    auto const rows = static_cast<index_t>(states.size());
    linear(backend, layer, plan, matrix_view(static_cast<float const*>(x.data()), rows, layer.site.in),
           matrix_view(y.data(), rows, layer.site.out));
  }

  ThreadPool pool;
  B backend;
  Bank<List, B> bank;
  std::vector<std::byte> bytes;
  std::vector<float> x, y;
  Linear<B> layer;
  std::vector<SequenceState<B>> states;
  std::vector<RequestRows<B>> requests;
  Plan<B> plan;
};

void run(benchmark::State& state, bench::Shape const& shape, index_t rows, Format format, Kind kind) {
  Case adapted(shape, rows, format, kind), plain(shape, rows, format, Kind::none);
  auto const seconds_of = [](Case& one) {
    auto const start = std::chrono::steady_clock::now();
    one.run();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  adapted.run(), plain.run();
  std::vector<double> with, without;
  for (auto _ : state) {  // alternating, so that both meet the same machine
    double const seconds = seconds_of(adapted);
    state.SetIterationTime(seconds);
    with.push_back(seconds);
    without.push_back(seconds_of(plain));
  }
  auto const median = [](std::vector<double>& v) {
    std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2), v.end());
    return v[v.size() / 2];
  };
  double const median_with = median(with);
  state.counters["overhead_%"] = 100 * (median_with / median(without) - 1);
  state.counters["GFLOP/s"] = 2e-9 * static_cast<double>(rows * shape.in * shape.out) / median_with;
  state.counters["weights_GB/s"] = 1e-9 * static_cast<double>(adapted.bytes.size()) / median_with;
}

}  // namespace

int main(int argc, char** argv) {
  for (auto const& shape : bench::shapes)
    for (Format format : {Format::bf16, Format::q4_1})
      for (index_t rows : bench::batches)
        for (Kind kind : {Kind::none, Kind::road, Kind::ia3, Kind::lora, Kind::mixed})
          benchmark::RegisterBenchmark(text(shape.name, "/", format_info(format).name, "/", rows, " rows/",
                                            kind_names[static_cast<std::size_t>(kind)])
                                           .c_str(),
                                       [=](benchmark::State& state) { run(state, shape, rows, format, kind); })
              ->UseManualTime()
              ->Unit(benchmark::kMicrosecond);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
