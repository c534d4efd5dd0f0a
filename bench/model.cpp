// SPDX-License-Identifier: Apache-2.0
// A whole model: prefill and greedy decoding of 1 to 32 requests, without adapters, with different ones, and with one
// that all use, as a module and merged into the weights; in exact precision and as the command serves in native
// precision, with adapters, keys and values in bf16, from the weights and from their packed forms where they have
// them.
//     bench/model MODEL.gguf | FORMAT:LAYERS [--benchmark_...]
// FORMAT:LAYERS, say Q8_0:4: so many layers in LLaMA-2-7B's shapes, with its vocabulary and made-up weights. Every
// figure stands next to the limits measured in turn with it: of reading, since a step must at least read the weights,
// and of the instruction that multiplies them.
#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/pedro.hpp>
#include <graft/adapter/road.hpp>
#include <graft/arch/llama.hpp>
#include <graft/arch/pack_weights.hpp>
#include <graft/arithmetic/fold.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/model/context.hpp>
#include <graft/model/model.hpp>

#include <benchmark/benchmark.h>

#include <array>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <bench/limits.hpp>
#include <bench/some_model.hpp>
#include <bench/some_module.hpp>

namespace {

using namespace graft;
using B = CpuBackend<>;
using bench::some_module;
using SmallModel = Model<Llama, Adapters<IA3Scaling, RoAdRotation, LoRADelta, PedroGenerator>, B>;

/// What requests have, each a module of its own: of `mixed`, one RoAd, the next LoRA, and so on; of `one_lora` all the
/// same one, which for `merged_lora` is merged into the weights.
enum class Kind { none, ia3, road, lora, pedro, mixed, one_lora, merged_lora };
constexpr const char* kind_names[] = {"none", "ia3", "road", "lora", "pedro", "mixed", "one lora", "merged lora"};
constexpr std::array all_kinds{Kind::none,  Kind::ia3,   Kind::road,     Kind::lora,
                               Kind::pedro, Kind::mixed, Kind::one_lora, Kind::merged_lora};

/// How the model computes; all have the same weights.
enum class Mode { exact, native, packed };
constexpr const char* mode_names[] = {"exact", "native", "native, packed"};
constexpr Precision precision_of(Mode mode) { return mode == Mode::exact ? Precision::exact : Precision::native; }

/// The weights with adapters merged into them, each tensor in the format it has; what is new lies in one piece.
WeightMap merge(WeightMap weights, AdapterSet<B> const& set, SiteTable const& sites, Executor& executor) {
  std::vector<std::pair<index_t, Weight*>> changed;
  index_t bytes = 0;
  for (index_t s = 0; s < sites.size(); ++s)
    if (changes(set, s))
      bytes += changed.emplace_back(s, &weights.tensors.at(sites[s].path + ".weight")).second->bytes();
  auto const merged = std::make_shared<Storage<std::byte, HostSpace>>(bytes);
  weights.keep.push_back(merged);
  std::byte* next = merged->data();
  for (auto const& [site, weight] : changed) {
    DenseLayer layer{weight->rows, weight->cols, {}, {}};
    layer.weight.resize(static_cast<std::size_t>(weight->rows * weight->cols));
    for (index_t r = 0; r < weight->rows; ++r) weight->row(r, layer.row(r));
    fold_in(set, sites, site, layer, executor);
    for (index_t r = 0; r < weight->rows; ++r)
      encode_row(weight->format, layer.row(r), weight->cols, next + (weight->row_data(r) - weight->data));
    weight->data = next;
    next += weight->bytes();
  }
  return weights;
}

/// The model in one mode, with 32 modules of each kind, and what a step of it reads.
struct Loaded {
  Loaded(ModelConfig const& config, WeightMap const& weights, B& be, Mode mode, bool with_modules,
         bench::ReadLimit::Memory const& memory, double read)
      : model(config, weights, mode == Mode::exact ? AdapterStorage::full : AdapterStorage::bf16),
        context(model, be, {.kv_storage = mode == Mode::exact ? KvStorage::full : KvStorage::bf16}),
        read_limit(be.executor(), memory),
        bytes(read) {
    for (int k = 0; with_modules && k < 32; ++k) {
      auto const load = [&](auto const& kind, auto const& policy) {
        model.bank().load(be, some_module(text(kind, k), policy, model.sites()));
      };
      load("ia3", IA3Scaling{}), load("road", RoAdRotation{});
      load("lora", LoRADelta{.rank = 16}), load("pedro", PedroGenerator{});
    }
  }
  SmallModel model;
  Context<SmallModel> context;
  bench::ReadLimit read_limit;
  double bytes;  ///< of the weights a step reads
};

struct Bench {
  explicit Bench(bench::SomeModel from)
      : name(std::move(from.name)),
        config(std::move(from.config)),
        weights(std::move(from.weights)),
        work(bench::work_of(config, weights)),
        pool(bench::threads()),
        backend(pool) {
    for (Mode const mode : {Mode::exact, Mode::native, Mode::packed}) with[mode] = load(mode, weights, true);
  }
  Loaded& merged_in(Mode mode) {
    auto& made = merged[mode];
    if (made == nullptr) {
      auto& model = with[Mode::exact]->model;
      if (merged_weights.tensors.empty())
        merged_weights = merge(weights, *model.bank().resolve({AdapterUse{"lora0"}}), model.sites(), pool);
      made = load(mode, merged_weights, false);
    }
    return *made;
  }
  /// Steps of more rows read the weights.
  index_t most_packed_rows() const {
    return cpu::pack_kernels<float>(backend.isa(), Precision::native, work.format).most_rows;
  }
  /// Null where the weights have no packed forms.
  std::unique_ptr<Loaded> load(Mode mode, WeightMap from, bool with_modules) {
    auto memory = bench::memory_of(from);
    double bytes = work.bytes;
    if (mode == Mode::packed) {
      backend.set_precision(Precision::native);
      index_t const forms = pack_weights(backend, SmallModel::sites_of(config), from);
      if (forms == 0) return nullptr;
      std::byte const* first = nullptr;  // where the forms lie, in one piece
      for (auto const& [path, weight] : from.tensors)
        if (!weight.packed.empty() && (first == nullptr || weight.packed.data < first)) first = weight.packed.data;
      memory = {{first, static_cast<std::size_t>(forms)}};
      bytes = static_cast<double>(forms);
    }
    return std::make_unique<Loaded>(config, from, backend, mode, with_modules, memory, bytes);
  }

  std::string name;
  ModelConfig config;
  WeightMap weights, merged_weights;
  bench::StepWork work;
  ThreadPool pool;
  B backend;
  std::map<Mode, std::unique_ptr<Loaded>> with;
  std::map<Mode, std::unique_ptr<Loaded>> merged;  ///< the first LoRA module is in the weights; made when asked for
};

/// `requests` sequences with a past, each with an adapter of its own.
class Requests {
 public:
  Requests(Loaded& loaded, index_t count, Kind kind, index_t past) : loaded_(loaded), past_(past), tokens_(512) {
    for (std::size_t k = 0; k < tokens_.size(); ++k) tokens_[k] = static_cast<std::int32_t>(17 * k % 1000 + 5);
    for (index_t k = 0; k < count; ++k) {
      Kind const its = kind != Kind::mixed ? kind : k % 2 == 0 ? Kind::road : Kind::lora;
      std::vector<AdapterUse> uses;
      if (its == Kind::one_lora)
        uses.push_back({"lora0"});
      else if (its != Kind::none && its != Kind::merged_lora)
        uses.push_back({text(kind_names[static_cast<int>(its)], k)});
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
  auto& base = *bench.with[mode];
  auto& with = kind == Kind::merged_lora ? bench.merged_in(mode) : base;
  index_t const past = new_tokens > 1 ? 0 : 64;
  Requests adapted(with, count, kind, past), plain(base, count, Kind::none, past);
  adapted.run(new_tokens), plain.run(new_tokens);
  double const operations =
      static_cast<double>(count * new_tokens) * bench.work.of_layers + static_cast<double>(count) * bench.work.of_head;
  std::vector<double> seconds, without, of_read, of_instruction;
  for (auto _ : state) {  // in turn, so that all meet the same machine
    double const read = with.read_limit();
    double const compute = bench::operation_limit(bench.pool, bench.backend.isa(), bench.work.instruction(precision));
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
  for (Mode const mode : {Mode::exact, Mode::native, Mode::packed}) {
    std::string const name = mode_names[static_cast<std::size_t>(mode)];
    if (mode != Mode::exact && bench.work.instruction(Precision::native) == bench::Instruction::fma) continue;
    if (bench.with[mode] == nullptr) continue;
    index_t const most_rows = mode == Mode::packed ? bench.most_packed_rows() : std::numeric_limits<index_t>::max();
    for (index_t count : {1, 2, 4, 8, 16, 32})
      for (Kind kind : all_kinds)
        if (count <= most_rows)
          benchmark::RegisterBenchmark(
              text("decode/", bench.name, '/', count, '/', kind_names[static_cast<int>(kind)], '/', name).c_str(),
              [=, &bench](benchmark::State& state) { run(state, bench, count, 1, kind, mode); })
              ->UseManualTime()
              ->Iterations(15)
              ->Unit(benchmark::kMillisecond);
    auto const prefill = [&](std::string const& prompts, index_t count, index_t tokens, Kind kind) {
      if (count * tokens > most_rows) return;
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
  Bench bench(bench::some_model(bench::model_argument(argc, argv)));
  add_cases(bench);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
