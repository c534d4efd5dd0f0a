// SPDX-License-Identifier: Apache-2.0
// A linear layer with the adapters of a batch, every row its own module, against the same product without adapters.
// The column overhead is the median time over that of the plain product measured in the same run; beside it stands the
// byte model's floor, what reading the modules costs where weights and modules are read at the same speed.
#include <graft/adapter/bank.hpp>
#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/road.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/layer/linear.hpp>

#include <benchmark/benchmark.h>

#include <bench/limits.hpp>
#include <bench/shapes.hpp>
#include <bench/some_module.hpp>

namespace {

using namespace graft;
using B = CpuBackend<>;
using List = Adapters<IA3Scaling, RoAdRotation, LoRADelta>;

enum class Kind { none, road, ia3, lora, mixed };
constexpr std::array kind_names{"no adapter", "RoAd", "IA3", "LoRA r=16", "RoAd and LoRA"};

/// Everything one case needs; built outside the timed loop. Layers are several, so that no cache holds what one needs.
struct Case {
  Case(bench::Shape const& shape, index_t rows, Format format, Kind kind, Precision precision, AdapterStorage adapters)
      : pool(bench::threads()),
        backend(pool),
        layer_bytes(shape.out * row_bytes(format, shape.in)),
        copies(std::clamp<index_t>((index_t{192} << 20) / layer_bytes, 2, 32)),
        bank(table(shape, copies), adapters),
        bytes(copies * layer_bytes),
        x(static_cast<std::size_t>(rows * shape.in)),
        y(static_cast<std::size_t>(rows * shape.out)) {
    backend.set_precision(precision);
    Random random(1);
    std::vector<float> row(static_cast<std::size_t>(shape.in));
    for (index_t o = 0; o < shape.out; ++o) {
      for (auto& value : row) value = static_cast<float>(random.normal());
      encode_row(format, row.data(), shape.in, bytes.data() + o * row_bytes(format, shape.in));
    }
    for (index_t k = 0; k < copies; ++k) {
      auto* const data = bytes.data() + k * layer_bytes;
      if (k > 0) std::memcpy(data, bytes.data(), static_cast<std::size_t>(layer_bytes));
      layers.push_back(
          {{data, format, shape.out, shape.in, nullptr}, {}, bank.sites().bind(text("layer", k), shape.in, shape.out)});
    }
    for (auto& value : x) value = static_cast<float>(random.normal());
    for (index_t n = 0; n < rows; ++n) {
      auto const name = std::to_string(n);
      std::vector<AdapterUse> uses;
      bool const road = kind == Kind::road || (kind == Kind::mixed && n % 2 == 0);
      bool const lora = kind == Kind::lora || (kind == Kind::mixed && n % 2 == 1);
      if (road) bank.load(backend, bench::some_module(name, RoAdRotation{}, bank.sites()));
      if (lora) bank.load(backend, bench::some_module(name, LoRADelta{.rank = 16}, bank.sites()));
      if (kind == Kind::ia3) bank.load(backend, bench::some_module(name, IA3Scaling{}, bank.sites()));
      if (kind != Kind::none) uses.push_back({name});
      states.emplace_back(bank.resolve(uses), bank.sites());
    }
    std::vector<RequestRows<B>> requests;
    for (auto& state : states) requests.push_back({&state, 1});
    adapted.build(requests);
    for (auto& request : requests) request.state = nullptr;
    plain.build(requests);
  }
  static SiteTable table(bench::Shape const& shape, index_t copies) {
    SiteTable sites;
    for (index_t k = 0; k < copies; ++k) sites.add_linear(k, "layer", text("layer", k), shape.in, shape.out);
    return sites;
  }
  /// The next layer.
  void run(Plan<B> const& plan) {
    auto const rows = static_cast<index_t>(states.size());
    auto const& layer = layers[static_cast<std::size_t>(next++ % copies)];
    linear(backend, layer, plan, matrix_view(static_cast<float const*>(x.data()), rows, layer.site.in),
           matrix_view(y.data(), rows, layer.site.out));
  }

  ThreadPool pool;
  B backend;
  index_t layer_bytes, copies, next = 0;
  Bank<List, B> bank;
  Storage<std::byte, HostSpace> bytes;
  std::vector<float> x, y;
  std::vector<Linear<B>> layers;
  std::vector<SequenceState<B>> states;
  Plan<B> adapted, plain;
};

/// What the modules of a batch add to the bytes that are read: vectors c and d, c, or A and B.
double module_bytes(bench::Shape const& shape, index_t rows, Kind kind, AdapterStorage adapters) {
  index_t const road = 2 * shape.out, lora = 16 * (shape.in + shape.out);
  index_t values = 0;
  for (index_t n = 0; n < rows; ++n) {
    if (kind == Kind::road || (kind == Kind::mixed && n % 2 == 0)) values += road;
    if (kind == Kind::lora || (kind == Kind::mixed && n % 2 == 1)) values += lora;
    if (kind == Kind::ia3) values += shape.out;
  }
  return (adapters == AdapterStorage::full ? 4 : 2) * static_cast<double>(values);
}

void run(benchmark::State& state, bench::Shape const& shape, index_t rows, Format format, Kind kind,
         Precision precision, AdapterStorage adapters) {
  Case one(shape, rows, format, kind, precision, adapters);
  for (index_t k = 0; k < one.copies; ++k) one.run(one.adapted);
  std::vector<double> with, without;
  for (auto _ : state) {  // alternating, so that both meet the same machine
    double const seconds = bench::seconds_of([&] { one.run(one.adapted); });
    state.SetIterationTime(seconds);
    with.push_back(seconds);
    without.push_back(bench::seconds_of([&] { one.run(one.plain); }));
  }
  double const median_with = bench::median(with);
  state.counters["overhead_%"] = 100 * (median_with / bench::median(without) - 1);
  state.counters["floor_%"] = 100 * module_bytes(shape, rows, kind, adapters) / static_cast<double>(one.layer_bytes);
  state.counters["us"] = 1e6 * median_with;
  state.counters["GFLOP/s"] = 2e-9 * static_cast<double>(rows * shape.in * shape.out) / median_with;
  state.counters["weights_GB/s"] = 1e-9 * static_cast<double>(one.layer_bytes) / median_with;
}

}  // namespace

int main(int argc, char** argv) {
  for (auto const& shape : bench::shapes)
    for (Format format : {Format::bf16, Format::q4_1})
      for (index_t rows : bench::batches)
        for (Kind kind : {Kind::none, Kind::road, Kind::ia3, Kind::lora, Kind::mixed})
          for (Precision precision : {Precision::exact, Precision::native})
            for (AdapterStorage adapters : {AdapterStorage::full, AdapterStorage::bf16}) {
              if (kind == Kind::none && adapters != AdapterStorage::full) continue;
              benchmark::RegisterBenchmark(
                  text("layer/", shape.name, "/", format_info(format).name, "/", rows, "/",
                       kind_names[static_cast<std::size_t>(kind)], adapters == AdapterStorage::full ? "" : " in bf16",
                       "/", precision == Precision::native ? "native" : "exact")
                      .c_str(),
                  [=](benchmark::State& state) { run(state, shape, rows, format, kind, precision, adapters); })
                  ->UseManualTime()
                  ->Iterations(rows > 32 ? 5 : 51)
                  ->Unit(benchmark::kMicrosecond);
            }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
