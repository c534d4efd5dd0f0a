// SPDX-License-Identifier: Apache-2.0
// A whole model: prefill and greedy decoding of 1 to 32 requests, without adapters and with different ones.
//     bench/model MODEL.gguf [--benchmark_...]
// Every figure stands next to the read limit measured in turn with it; a decoding step must at least read the weights.
#include <graft/adapter/lora.hpp>
#include <graft/adapter/road.hpp>
#include <graft/arch/llama.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/io/model_files.hpp>
#include <graft/model/context.hpp>
#include <graft/model/model.hpp>

#include <benchmark/benchmark.h>

#include <filesystem>

#include <bench/limits.hpp>

namespace {

using namespace graft;
using B = CpuBackend<>;
using SmallModel = Model<Llama, Adapters<RoAdRotation, LoRADelta>, B>;

enum class Kind { none, road, lora, mixed };
constexpr const char* kind_names[] = {"none", "road", "lora", "mixed"};

template <class P>
Module<P, B> random_module(std::string name, P const& policy, SiteTable const& sites) {
  std::vector<index_t> all;
  for (index_t k = 0; k < sites.size(); ++k)
    if (sites[k].kind == SiteKind::linear && sites[k].layer >= 0) all.push_back(k);
  auto module = make_module<P, B>(std::move(name), policy, sites, all);
  index_t k = static_cast<index_t>(module.name.size());
  for (auto& value : module.parameters()) value = static_cast<float>(k++ % 17 - 8) * 0.002f;
  return module;
}

/// The model with modules of its own, kept in f32 or bf16; the weights are the same mapped file.
struct Loaded {
  Loaded(ModelFiles const& files, B& backend, AdapterStorage adapters)
      : model(files.config, files.weights, adapters), context(model, backend) {
    for (int k = 0; k < 32; ++k) {
      model.bank().load(backend, random_module(text("road", k), RoAdRotation{}, model.sites()));
      model.bank().load(backend, random_module(text("lora", k), LoRADelta{.rank = 16}, model.sites()));
    }
  }
  SmallModel model;
  Context<SmallModel> context;
};

struct Bench {
  explicit Bench(std::string const& path)
      : pool(bench::threads()),
        backend(pool),
        read_limit(pool),
        files(open_model(path)),
        full(files, backend, AdapterStorage::full),
        narrow(files, backend, AdapterStorage::bf16) {
    for (auto const& [name, weight] : files.weights.tensors) bytes += static_cast<double>(weight.bytes());
  }
  Loaded& with(AdapterStorage adapters) { return adapters == AdapterStorage::full ? full : narrow; }

  ThreadPool pool;
  B backend;
  bench::ReadLimit read_limit;
  ModelFiles files;
  Loaded full, narrow;
  double bytes = 0;  ///< of all weights
};

/// `requests` sequences with a past, each with an adapter of its own.
class Requests {
 public:
  Requests(Loaded& loaded, index_t count, Kind kind, index_t past) : loaded_(loaded), past_(past), tokens_(512) {
    for (std::size_t k = 0; k < tokens_.size(); ++k) tokens_[k] = static_cast<std::int32_t>(17 * k % 1000 + 5);
    for (index_t k = 0; k < count; ++k) {
      bool const road = kind == Kind::road || (kind == Kind::mixed && k % 2 == 0);
      bool const lora = kind == Kind::lora || (kind == Kind::mixed && k % 2 == 1);
      std::vector<AdapterUse> uses;
      if (road || lora) uses.push_back({text(road ? "road" : "lora", k)});
      sequences_.push_back(loaded.context.start(uses));
    }
    logits_.resize(static_cast<std::size_t>(count * loaded.model.ends().output_width()));
    if (past > 0) run(past);
  }
  /// One forward with `count` new tokens each, which are forgotten again unless they are the past.
  void run(index_t count) {
    inputs_.clear();
    for (auto& sequence : sequences_)
      inputs_.push_back({&sequence, std::span(tokens_).subspan(0, static_cast<std::size_t>(count))});
    loaded_.context.forward_last(inputs_, matrix_view(logits_.data(), static_cast<index_t>(sequences_.size()),
                                                      loaded_.model.ends().output_width()));
    for (auto& sequence : sequences_) sequence.truncate(past_);
  }

 private:
  Loaded& loaded_;
  index_t past_;
  std::vector<std::int32_t> tokens_;
  std::vector<Sequence<B>> sequences_;
  std::vector<SequenceInput<B>> inputs_;
  std::vector<float> logits_;
};

void run(benchmark::State& state, Bench& bench, index_t count, index_t new_tokens, Kind kind, Precision precision,
         AdapterStorage adapters = AdapterStorage::full) {
  bench.backend.set_precision(precision);
  index_t const past = new_tokens > 1 ? 0 : 64;
  Requests adapted(bench.with(adapters), count, kind, past), plain(bench.full, count, Kind::none, past);
  adapted.run(new_tokens), plain.run(new_tokens);
  std::vector<double> seconds, without, of_read;
  for (auto _ : state) {  // in turn, so that all meet the same machine
    double const read = bench.read_limit();
    double const one = bench::seconds_of([&] { adapted.run(new_tokens); });
    state.SetIterationTime(one);
    seconds.push_back(one);
    without.push_back(bench::seconds_of([&] { plain.run(new_tokens); }));
    of_read.push_back(100 * bench.bytes / one / read);
  }
  double const typical = bench::median(seconds);
  state.counters["ms"] = 1e3 * typical;
  state.counters["tokens/s"] = static_cast<double>(count * new_tokens) / typical;
  state.counters["overhead_%"] = 100 * (typical / bench::median(without) - 1);
  state.counters["read_limit_%"] = bench::median(of_read);
}

}  // namespace

int main(int argc, char** argv) {
  std::string path = ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (argc > 1 && argv[1][0] != '-') path = argv[1], argv[1] = argv[0], ++argv, --argc;
  if (!std::filesystem::exists(path)) return std::printf("%s is not there\n", path.c_str()), 0;
  Bench bench(path);
  for (Precision precision : {Precision::exact, Precision::native}) {
    std::string const name = precision == Precision::exact ? "exact" : "native";
    for (index_t count : {1, 2, 4, 8, 16, 32})
      for (Kind kind : {Kind::none, Kind::road, Kind::lora, Kind::mixed})
        for (AdapterStorage adapters : {AdapterStorage::full, AdapterStorage::bf16}) {
          bool const narrow = adapters == AdapterStorage::bf16;
          if (narrow && (kind == Kind::none || precision == Precision::exact)) continue;
          benchmark::RegisterBenchmark(
              text("decode/", count, "/", kind_names[static_cast<int>(kind)], narrow ? " in bf16/" : "/", name).c_str(),
              [=, &bench](benchmark::State& state) { run(state, bench, count, 1, kind, precision, adapters); })
              ->UseManualTime()
              ->Iterations(15)
              ->Unit(benchmark::kMillisecond);
        }
    for (index_t tokens : {64, 512})
      benchmark::RegisterBenchmark(
          text("prefill/", tokens, "/none/", name).c_str(),
          [=, &bench](benchmark::State& state) { run(state, bench, 1, tokens, Kind::none, precision); })
          ->UseManualTime()
          ->Iterations(5)
          ->Unit(benchmark::kMillisecond);
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
