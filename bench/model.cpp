// SPDX-License-Identifier: Apache-2.0
// A whole model: prefill and greedy decoding of 1 to 32 requests, without adapters and with different ones, in exact
// precision and as the command serves in native precision, with adapters, keys and values in bf16, from the weights and
// from their compact forms where they have them.
//     bench/model MODEL.gguf | FORMAT:LAYERS [--benchmark_...]
// FORMAT:LAYERS, say Q8_0:4: so many layers in LLaMA-2-7B's shapes, with its vocabulary and made-up weights. Every
// figure stands next to the limits measured in turn with it: of reading, since a step must at least read the weights,
// and of the instruction that multiplies them.
#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/pedro.hpp>
#include <graft/adapter/road.hpp>
#include <graft/arch/compact_weights.hpp>
#include <graft/arch/llama.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/io/model_files.hpp>
#include <graft/model/context.hpp>
#include <graft/model/model.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <optional>
#include <string>

#include <bench/limits.hpp>
#include <bench/made_up.hpp>
#include <bench/some_module.hpp>

namespace {

using namespace graft;
using B = CpuBackend<>;
using bench::some_module;
using SmallModel = Model<Llama, Adapters<IA3Scaling, RoAdRotation, LoRADelta, PedroGenerator>, B>;

/// What requests have: of `mixed`, one RoAd, the next LoRA, and so on.
enum class Kind { none, ia3, road, lora, pedro, mixed };
constexpr const char* kind_names[] = {"none", "ia3", "road", "lora", "pedro", "mixed"};
constexpr std::array all_kinds{Kind::none, Kind::ia3, Kind::road, Kind::lora, Kind::pedro, Kind::mixed};

/// The model as it computes in one precision; the weights are the same.
struct Loaded {
  Loaded(ModelConfig const& config, WeightMap const& weights, B& backend, bool narrow)
      : model(config, weights, narrow ? AdapterStorage::bf16 : AdapterStorage::full),
        context(model, backend, ContextOptions{.kv_storage = narrow ? KvStorage::bf16 : KvStorage::full}) {
    for (int k = 0; k < 32; ++k) {
      auto const load = [&](auto const& kind, auto const& policy) {
        model.bank().load(backend, some_module(text(kind, k), policy, model.sites()));
      };
      load("ia3", IA3Scaling{}), load("road", RoAdRotation{});
      load("lora", LoRADelta{.rank = 16}), load("pedro", PedroGenerator{});
    }
  }
  SmallModel model;
  Context<SmallModel> context;
};

/// How the model computes; all have the same weights.
enum class Mode { exact, native, compact };
constexpr const char* mode_names[] = {"exact", "native", "native, compact"};
constexpr Precision precision_of(Mode mode) { return mode == Mode::exact ? Precision::exact : Precision::native; }

struct Bench {
  Bench(std::string weights_name, ModelConfig const& config, WeightMap const& weights)
      : name(std::move(weights_name)), pool(bench::threads()), backend(pool) {
    auto const& head = weights.tensors.at(config.tied ? config.prefix + "embed_tokens.weight" : "lm_head.weight");
    double bytes = static_cast<double>(head.bytes());
    for (auto const& [path, weight] : weights.tensors)
      if (path.find("layers.") != std::string::npos) {
        bytes += static_cast<double>(weight.bytes());
        if (weight.rows > 1) of_layers += 2.0 * static_cast<double>(weight.rows * weight.cols), format = weight.format;
      }
    of_head = 2.0 * static_cast<double>(head.rows * head.cols);
    auto const memory = memory_of(weights);
    with[0].emplace(config, weights, backend, false, memory, bytes);
    with[1].emplace(config, weights, backend, true, memory, bytes);
    auto made_compact = weights;
    backend.set_precision(Precision::native);
    if (index_t const forms = compact_weights(backend, SmallModel::sites_of(config), made_compact)) {
      std::byte const* first = nullptr;  // where the forms lie, in one piece
      for (auto const& [path, weight] : made_compact.tensors)
        if (!weight.compact.empty() && (first == nullptr || weight.compact.data < first)) first = weight.compact.data;
      with[2].emplace(config, made_compact, backend, true,
                      bench::ReadLimit::Memory{{first, static_cast<std::size_t>(forms)}}, static_cast<double>(forms));
    }
  }
  static bench::ReadLimit::Memory memory_of(WeightMap const& weights) {
    bench::ReadLimit::Memory all;
    for (auto const& [path, weight] : weights.tensors)
      all.emplace_back(weight.data, static_cast<std::size_t>(weight.bytes()));
    std::ranges::sort(all, {}, [](auto const& tensor) { return tensor.data(); });
    bench::ReadLimit::Memory joined;  // tensors of a file follow each other
    for (auto const& tensor : all)
      if (joined.empty() || tensor.data() > joined.back().data() + joined.back().size() + 64)
        joined.push_back(tensor);
      else
        joined.back() = {joined.back().data(), tensor.data() + tensor.size()};
    return joined;
  }
  bench::Instruction instruction(Precision precision) const {
    if (precision == Precision::native && format == Format::bf16) return bench::Instruction::bf16;
    if (precision == Precision::native && cpu::in_integers(format)) return bench::Instruction::integers;
    return bench::Instruction::fma;
  }

  /// A model in one mode, and what a step of it reads.
  struct InMode {
    InMode(ModelConfig const& config, WeightMap const& weights, B& be, bool narrow,
           bench::ReadLimit::Memory const& memory, double read)
        : loaded(config, weights, be, narrow), read_limit(be.executor(), memory), bytes(read) {}
    Loaded loaded;
    bench::ReadLimit read_limit;
    double bytes;  ///< of the weights a step reads
  };

  std::string name;
  ThreadPool pool;
  B backend;
  std::array<std::optional<InMode>, 3> with;  ///< by Mode; compact where there are forms
  double of_layers = 0, of_head = 0;          ///< operations of the products, per token and per row of logits
  Format format = Format::f32;                ///< of the layers' weights
};

/// `requests` sequences with a past, each with an adapter of its own.
class Requests {
 public:
  Requests(Loaded& loaded, index_t count, Kind kind, index_t past) : loaded_(loaded), past_(past), tokens_(512) {
    for (std::size_t k = 0; k < tokens_.size(); ++k) tokens_[k] = static_cast<std::int32_t>(17 * k % 1000 + 5);
    for (index_t k = 0; k < count; ++k) {
      Kind const its = kind != Kind::mixed ? kind : k % 2 == 0 ? Kind::road : Kind::lora;
      std::vector<AdapterUse> uses;
      if (its != Kind::none) uses.push_back({text(kind_names[static_cast<int>(its)], k)});
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

void run(benchmark::State& state, Bench& bench, index_t count, index_t new_tokens, Kind kind, Mode mode) {
  Precision const precision = precision_of(mode);
  bench.backend.set_precision(precision);
  auto& with = *bench.with[static_cast<std::size_t>(mode)];
  index_t const past = new_tokens > 1 ? 0 : 64;
  Requests adapted(with.loaded, count, kind, past), plain(with.loaded, count, Kind::none, past);
  adapted.run(new_tokens), plain.run(new_tokens);
  double const operations =
      static_cast<double>(count * new_tokens) * bench.of_layers + static_cast<double>(count) * bench.of_head;
  std::vector<double> seconds, without, of_read, of_instruction;
  for (auto _ : state) {  // in turn, so that all meet the same machine
    double const read = with.read_limit();
    double const compute = bench::operation_limit(bench.pool, bench.backend.isa(), bench.instruction(precision));
    double const one = bench::seconds_of([&] { adapted.run(new_tokens); });
    state.SetIterationTime(one);
    seconds.push_back(one);
    without.push_back(bench::seconds_of([&] { plain.run(new_tokens); }));
    of_read.push_back(100 * with.bytes / one / read);
    of_instruction.push_back(compute > 0 ? 100 * operations / one / compute : 0);
  }
  double const typical = bench::median(seconds);
  state.counters["ms"] = 1e3 * typical;
  state.counters["tokens/s"] = static_cast<double>(count * new_tokens) / typical;
  state.counters["overhead_%"] = 100 * (typical / bench::median(without) - 1);
  state.counters["read_limit_%"] = bench::median(of_read);
  state.counters["instruction_limit_%"] = bench::median(of_instruction);
}

void add_cases(Bench& bench) {
  for (Mode const mode : {Mode::exact, Mode::native, Mode::compact}) {
    std::string const name = mode_names[static_cast<std::size_t>(mode)];
    if (mode != Mode::exact && bench.instruction(Precision::native) == bench::Instruction::fma) continue;
    if (!bench.with[static_cast<std::size_t>(mode)]) continue;
    for (index_t count : {1, 2, 4, 8, 16, 32})
      for (Kind kind : all_kinds)
        benchmark::RegisterBenchmark(
            text("decode/", bench.name, '/', count, '/', kind_names[static_cast<int>(kind)], '/', name).c_str(),
            [=, &bench](benchmark::State& state) { run(state, bench, count, 1, kind, mode); })
            ->UseManualTime()
            ->Iterations(15)
            ->Unit(benchmark::kMillisecond);
    auto const prefill = [&](std::string const& prompts, index_t count, index_t tokens, Kind kind) {
      benchmark::RegisterBenchmark(
          text("prefill/", bench.name, '/', prompts, '/', kind_names[static_cast<int>(kind)], '/', name).c_str(),
          [=, &bench](benchmark::State& state) { run(state, bench, count, tokens, kind, mode); })
          ->UseManualTime()
          ->Iterations(5)
          ->Unit(benchmark::kMillisecond);
    };
    prefill("64", 1, 64, Kind::none);
    prefill("512", 1, 512, Kind::none);
    for (Kind kind : all_kinds) prefill("8 x 64", 8, 64, kind);
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::string path = ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (argc > 1 && argv[1][0] != '-') path = argv[1], argv[1] = argv[0], ++argv, --argc;
  std::optional<Bench> bench;
  if (auto const colon = path.find(':'); colon != std::string::npos) {
    auto sizes = bench::llama_2_7b();
    sizes.layers = std::stol(path.substr(colon + 1));
    for (Format format : {Format::f32, Format::bf16, Format::q8_0, Format::q4_0, Format::q4_1})
      if (path.substr(0, colon) == format_info(format).name)
        bench.emplace(text(sizes.layers, sizes.layers == 1 ? " layer" : " layers", " of LLaMA-2-7B in ",
                           format_info(format).name),
                      bench::config_of(sizes), bench::weights_of(sizes, format, bench::MadeUp::apart));
    if (!bench) return std::printf("%s: no such format; F32, BF16, Q8_0, Q4_0 or Q4_1\n", path.c_str()), 1;
  } else if (std::filesystem::exists(path)) {
    auto const files = open_model(path);
    bench.emplace(std::filesystem::path(path).stem().string(), files.config, files.weights);
  } else {
    return std::printf("%s is not there\n", path.c_str()), 0;
  }
  add_cases(*bench);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
