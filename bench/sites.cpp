// SPDX-License-Identifier: Apache-2.0
// All seven linear sites of a layer, as a Llama calls them, with the adapters of a batch: against the same without
// adapters, alternating in one run. There are as many layers as no cache holds. Beside the overhead stands the byte
// model's floor, what reading the modules costs where weights and modules are read at the same speed.
#include <graft/adapter/bank.hpp>
#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/road.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/layer/linear.hpp>

#include <benchmark/benchmark.h>

#include <array>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <tuple>

#include <bench/limits.hpp>
#include <bench/shapes.hpp>
#include <bench/some_module.hpp>

namespace {

using namespace graft;
using B = CpuBackend<>;
using bench::some_module;

/// The module of request k of a batch; none: adapters are enabled, and this request has none.
struct Kind {
  char const* name;
  std::array<char const*, 4> modules;  ///< of requests k, k + 4, ...
  index_t distinct = 32;               ///< at most
};
constexpr std::array kinds{Kind{"enabled, unused", {"", "", "", ""}},
                           Kind{"one RoAd", {"road", "road", "road", "road"}, 1},
                           Kind{"one LoRA r=16", {"lora16", "lora16", "lora16", "lora16"}, 1},
                           Kind{"RoAd", {"road", "road", "road", "road"}},
                           Kind{"IA3", {"ia3", "ia3", "ia3", "ia3"}},
                           Kind{"LoRA r=16", {"lora16", "lora16", "lora16", "lora16"}},
                           Kind{"LoRA r=8 to 64", {"lora8", "lora16", "lora32", "lora64"}},
                           Kind{"RoAd, IA3, LoRA, none", {"road", "ia3", "lora16", ""}}};

/// The layers of a model with random weights.
class Layers {
 public:
  Layers(bench::LayerShape const& shape, Format format) {
    auto const bytes_of = [&](index_t in, index_t out) { return out * row_bytes(format, in); };
    index_t const w = shape.width, kv = shape.kv_width, f = shape.ffn;
    bytes_ = 2 * bytes_of(w, w) + 2 * bytes_of(w, kv) + 2 * bytes_of(w, f) + bytes_of(f, w);
    index_t const count = std::clamp<index_t>((index_t{192} << 20) / bytes_, 1, 32);
    data_ = Storage<std::byte, HostSpace>(count * bytes_);
    std::byte* next = data_.data();
    Random random(1);
    for (index_t k = 0; k < count; ++k) {
      auto& layer = layers_.emplace_back();
      std::size_t at = 0;
      for (auto const& [name, in, out] :
           {std::tuple("q_proj", w, w), std::tuple("k_proj", w, kv), std::tuple("v_proj", w, kv),
            std::tuple("o_proj", w, w), std::tuple("gate_proj", w, f), std::tuple("up_proj", w, f),
            std::tuple("down_proj", f, w)}) {
        std::vector<float> row(static_cast<std::size_t>(in));
        for (auto& value : row) value = static_cast<float>(random.normal());
        for (index_t o = 0; o < out; ++o) encode_row(format, row.data(), in, next + o * row_bytes(format, in));
        layer[at++] = {
            {next, format, out, in, nullptr}, {}, sites_.add_linear(k, name, text("layers.", k, ".", name), in, out)};
        next += bytes_of(in, out);
      }
    }
  }
  SiteTable const& sites() const { return sites_; }
  index_t count() const { return static_cast<index_t>(layers_.size()); }
  double bytes_of_layer() const { return static_cast<double>(bytes_); }
  bench::ReadLimit::Memory memory() const { return {{data_.data(), static_cast<std::size_t>(data_.size())}}; }

  /// One layer after the other. x [n, width], hidden [n, ffn]
  void run(B& be, Plan<B> const& plan, MatrixView<float const> x, MatrixView<float const> hidden) {
    auto const& [q, k, v, o, gate, up, down] = layers_[next_++ % layers_.size()];
    ArenaScope scope(be.arena());
    benchmark::DoNotOptimize(linear_unmapped(be, std::array{&q, &k, &v}, plan, x));
    benchmark::DoNotOptimize(linear_unmapped(be, o, plan, x));
    benchmark::DoNotOptimize(linear_unmapped(be, std::array{&gate, &up}, plan, x));
    benchmark::DoNotOptimize(linear_unmapped(be, down, plan, hidden));
  }

 private:
  SiteTable sites_;
  Storage<std::byte, HostSpace> data_;
  std::deque<std::array<Linear<B>, 7>> layers_;
  index_t bytes_ = 0;
  std::size_t next_ = 0;
};

/// A batch with the adapters of a kind, and the same without.
struct Batch {
  Batch(B& be, SiteTable const& sites, index_t rows, Kind const& kind) : bank(sites) {
    for (index_t k = 0; k < std::min(rows, kind.distinct); ++k) {
      std::string const method = kind.modules[static_cast<std::size_t>(k % 4)], name = std::to_string(k);
      if (method == "road") bank.load(be, some_module(name, RoAdRotation{}, sites));
      if (method == "ia3") bank.load(be, some_module(name, IA3Scaling{}, sites));
      if (method.starts_with("lora"))
        bank.load(be, some_module(name, LoRADelta{.rank = std::stol(method.substr(4))}, sites));
    }
    for (index_t n = 0; n < rows; ++n) {
      auto const name = std::to_string(n % kind.distinct);
      std::vector<AdapterUse> uses;
      if (bank.find(name) != nullptr) uses.push_back({name});
      states.emplace_back(bank.resolve(uses), sites);
    }
    std::vector<RequestRows<B>> requests;
    for (auto& state : states) requests.push_back({&state, 1});
    adapted.build(requests);
    for (auto& request : requests) request.state = nullptr;
    plain.build(requests);
  }
  /// What the modules add to the bytes that the first layer reads.
  double bytes_of_layer() const {
    index_t values = 0;
    for (auto const& name : bank.names()) {
      auto const module = bank.find(name);
      for (std::size_t site = 0; site < 7; ++site) {
        for (auto const& maps : module->maps)
          if (!maps.empty())
            for (auto const& vector : {maps[site].c1, maps[site].d, maps[site].e})
              values += vector != nullptr ? maps[site].size : 0;
        auto const at = static_cast<index_t>(site);
        if (!module->factors.empty())
          values += module->factors[site].rank * (bank.sites()[at].in + bank.sites()[at].out);
      }
    }
    return sizeof(float) * static_cast<double>(values);
  }

  Bank<Adapters<IA3Scaling, RoAdRotation, LoRADelta>, B> bank;
  std::vector<SequenceState<B>> states;
  Plan<B> adapted, plain;
};

/// One model's layers at a time, because they are large.
Layers& layers_of(bench::LayerShape const& shape, Format format) {
  static std::unique_ptr<Layers> layers;
  static std::string made;
  auto const name = text(shape.name, format_info(format).name);
  if (made != name) layers.reset(), layers = std::make_unique<Layers>(shape, format), made = name;
  return *layers;
}

void run(benchmark::State& state, bench::LayerShape const& shape, Format format, index_t rows, Kind const& kind,
         Precision precision) {
  static ThreadPool pool(bench::threads());
  B be(pool);
  be.set_precision(precision);
  Layers& layers = layers_of(shape, format);
  bench::ReadLimit read_limit(pool, layers.memory());
  Batch const batch(be, layers.sites(), rows, kind);
  Random random(2);
  std::vector<float> values(static_cast<std::size_t>(rows * (shape.width + shape.ffn)));
  for (auto& value : values) value = static_cast<float>(random.normal());
  float const* const first = values.data();
  auto const x = matrix_view(first, rows, shape.width);
  auto const hidden = matrix_view(first + rows * shape.width, rows, shape.ffn);
  for (index_t k = 0; k < layers.count(); ++k) layers.run(be, batch.adapted, x, hidden);
  std::vector<double> with, ratio, of_read;
  bool adapted_first = true;  // every other time, because the first of two finds other things in the caches
  for (auto _ : state) {      // in turn, so that all meet the same machine
    double const read = read_limit();
    double adapted = 0, plain = 0;
    for (bool of_adapted : {adapted_first, !adapted_first})
      (of_adapted ? adapted : plain) =
          bench::seconds_of([&] { layers.run(be, of_adapted ? batch.adapted : batch.plain, x, hidden); });
    adapted_first = !adapted_first;
    state.SetIterationTime(adapted);
    with.push_back(adapted), ratio.push_back(adapted / plain);
    of_read.push_back(100 * layers.bytes_of_layer() / plain / read);
  }
  state.counters["us"] = 1e6 * bench::median(with);
  state.counters["overhead_%"] = 100 * (bench::median(ratio) - 1);
  state.counters["floor_%"] = 100 * batch.bytes_of_layer() / layers.bytes_of_layer();
  state.counters["plain_read_limit_%"] = bench::median(of_read);
}

}  // namespace

int main(int argc, char** argv) {
  for (auto const& shape : bench::layer_shapes)
    for (Format format : {Format::bf16, Format::q4_1})
      for (index_t rows : bench::layer_batches)
        for (Kind const& kind : kinds)
          for (Precision precision : {Precision::exact, Precision::native})
            benchmark::RegisterBenchmark(
                text("sites/", shape.name, "/", format_info(format).name, "/", rows, "/", kind.name, "/",
                     precision == Precision::native ? "native" : "exact")
                    .c_str(),
                [=, &shape, &kind](benchmark::State& state) { run(state, shape, format, rows, kind, precision); })
                ->UseManualTime()
                ->Iterations(rows > 32 ? 7 : 31)
                ->Unit(benchmark::kMicrosecond);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
