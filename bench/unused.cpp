// SPDX-License-Identifier: Apache-2.0
// What adapters cost requests that do not use them: decode steps of one model, compiled without a list of adapters,
// with all of them in its list, and with modules loaded.
//     bench/unused MODEL.gguf [--benchmark_...]              times, over the model without a list, in turns
//     bench/unused MODEL.gguf --count CASE ROWS PRECISION    one step on one thread, for bench/unused.py to count
#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/pedro.hpp>
#include <graft/adapter/road.hpp>
#include <graft/arch/llama.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/io/model_files.hpp>
#include <graft/model/context.hpp>
#include <graft/model/model.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <functional>
#include <memory>

#include <bench/limits.hpp>
#include <bench/some_model.hpp>
#include <bench/some_module.hpp>

/// What callgrind counts, by its name.
extern "C" [[gnu::noinline]] void counted_step(std::function<void()> const& step) {
  step();
  asm volatile("");
}

namespace {

using namespace graft;
using B = CpuBackend<>;
using bench::some_module;
using All = Adapters<IA3Scaling, RoAdRotation, LoRADelta, PedroGenerator>;

/// Which models there are, and which rows use adapters.
enum class Case { without_list, compiled_in, loaded, half_use_them, all_use_them };
constexpr std::array case_names{"without a list", "compiled in", "loaded", "half use them", "all use them"};

void load_all(Model<Llama, All, B>& model, B& be, index_t rows) {
  auto& bank = model.bank();
  auto const& sites = model.sites();
  bank.load(be, some_module("ia3", IA3Scaling{}, sites));
  bank.load(be, some_module("pedro", PedroGenerator{}, sites));
  for (index_t k = 0; k < rows; ++k) {
    bank.load(be, some_module(text("road", k), RoAdRotation{}, sites));
    bank.load(be, some_module(text("lora", k), LoRADelta{.rank = 16}, sites));
  }
}

/// Decode steps of `rows` requests behind a short past: the shorter, the larger what comes beside it.
template <class List>
class Steps {
 public:
  Steps(ModelFiles const& files, B& be, Case which, index_t rows)
      : model_(files.config, files.weights), context_(model_, be) {
    if constexpr (List::size > 0)
      if (which != Case::compiled_in) load_all(model_, be, rows);
    for (index_t k = 0; k < rows; ++k) {
      std::vector<AdapterUse> uses;
      if (which == Case::all_use_them || (which == Case::half_use_them && k % 2 == 1))
        uses.push_back({text(k % 4 < 2 ? "road" : "lora", which == Case::all_use_them ? k : k / 2)});
      sequences_.push_back(context_.start(uses));
    }
    for (auto& sequence : sequences_) inputs_.push_back({&sequence, tokens_});
    logits_.resize(static_cast<std::size_t>(rows * model_.ends().output_width()));
    for (index_t k = 0; k < past; ++k) step();
  }
  /// One token of each, forgotten again behind the past.
  void operator()() {
    step();
    for (auto& sequence : sequences_) sequence.truncate(past);
  }

 private:
  static constexpr index_t past = 1;
  void step() {
    context_.forward_last(
        inputs_, matrix_view(logits_.data(), static_cast<index_t>(sequences_.size()), model_.ends().output_width()));
  }
  Model<Llama, List, B> model_;
  Context<Model<Llama, List, B>> context_;
  std::vector<std::int32_t> tokens_{17};
  std::vector<Sequence<B>> sequences_;
  std::vector<SequenceInput<B>> inputs_;
  std::vector<float> logits_;
};

std::function<void()> steps(ModelFiles const& files, B& be, Case which, index_t rows) {
  if (which == Case::without_list)
    return [made = std::make_shared<Steps<Adapters<>>>(files, be, which, rows)] { (*made)(); };
  return [made = std::make_shared<Steps<All>>(files, be, which, rows)] { (*made)(); };
}

void count(ModelFiles const& files, std::string const& name, index_t rows, Precision precision) {
  B be;
  be.set_precision(precision);
  auto const found = std::find(case_names.begin(), case_names.end(), name);
  expects(found != case_names.end(), "bench: there is no case ", name);
  auto const step = steps(files, be, static_cast<Case>(found - case_names.begin()), rows);
  step();
  counted_step(step);
}

void run(benchmark::State& state, ModelFiles const& files, Case which, index_t rows, Precision precision) {
  static ThreadPool pool(bench::threads());
  B be(pool), be_without(pool);
  be.set_precision(precision), be_without.set_precision(precision);
  auto const step = steps(files, be, which, rows);
  auto const without = steps(files, be_without, Case::without_list, rows);
  std::vector<double> seconds, ratio;
  bool first = true;
  for (auto _ : state) {  // each goes first every other time
    double one = 0, other = 0;
    if (first) one = bench::seconds_of(step);
    other = bench::seconds_of(without);
    if (!first) one = bench::seconds_of(step);
    first = !first;
    state.SetIterationTime(one);
    seconds.push_back(one), ratio.push_back(one / other);
  }
  state.counters["ms"] = 1e3 * bench::median(seconds);
  state.counters["overhead_%"] = 100 * (bench::median(ratio) - 1);
}

}  // namespace

int main(int argc, char** argv) {
  std::string const path = bench::model_argument(argc, argv);
  if (!std::filesystem::exists(path)) return std::printf("%s is not there\n", path.c_str()), 0;
  ModelFiles const files = open_model(path);
  std::array const precisions{std::pair("exact", Precision::exact), std::pair("native", Precision::native)};
  if (argc == 5 && std::string(argv[1]) == "--count") {
    for (auto const& [name, precision] : precisions)
      if (std::string(argv[4]) == name) count(files, argv[2], std::stol(argv[3]), precision);
    return 0;
  }
  for (auto const& [name, precision] : precisions)
    for (index_t rows : {1, 32})
      for (Case which : {Case::without_list, Case::compiled_in, Case::loaded})
        benchmark::RegisterBenchmark(
            text("unused/", rows, "/", case_names[static_cast<std::size_t>(which)], "/", name).c_str(),
            [=, &files, how = precision](benchmark::State& state) { run(state, files, which, rows, how); })
            ->UseManualTime()
            ->Iterations(rows > 1 ? 100 : 600)
            ->Unit(benchmark::kMillisecond);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
