// SPDX-License-Identifier: Apache-2.0
// Loading, with the files in the page cache (where graft's first turn put them): from opening a model to its first
// token, as the command serves in native precision, from the weights as they are and from their packed forms where
// they have them; and from an adapter's PEFT folder to its place in a bank that keeps f32 or bf16.
//     bench/load MODEL.gguf... [--benchmark_...]
// Each time everything is made anew: threads, mapping, model, context. Beside the bytes of the file per second stands
// the read limit, measured in turn: a model must at least be read once, and so must an adapter. Resident is what the
// process has more afterwards, mapped files included.
#include <graft/adapter/bank.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/road.hpp>
#include <graft/arch/llama.hpp>
#include <graft/arch/pack_weights.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/io/model_files.hpp>
#include <graft/io/peft.hpp>
#include <graft/model/context.hpp>
#include <graft/model/model.hpp>
#include <graft/model/sampling.hpp>

#include <benchmark/benchmark.h>

#include <fcntl.h>
#include <unistd.h>

#include <deque>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <bench/limits.hpp>
#include <bench/memory.hpp>
#include <bench/some_model.hpp>
#include <bench/some_module.hpp>

namespace {

namespace fs = std::filesystem;
using namespace graft;
using B = CpuBackend<>;
using List = Adapters<RoAdRotation, LoRADelta>;
using LoadedModel = Model<Llama, List, B>;

/// A model that has made the first token behind a prompt of eight.
class Opened {
 public:
  Opened(std::string const& path, bool packed) : pool_(bench::threads()), backend_(pool_) {
    backend_.set_precision(Precision::native);
    auto files = open_model(path);
    if (packed) pack_weights(backend_, LoadedModel::sites_of(files.config), files.weights);
    model_.emplace(std::move(files.config), std::move(files.weights), AdapterStorage::bf16);
    context_.emplace(*model_, backend_, ContextOptions{.kv_storage = KvStorage::bf16});
    auto sequence = context_->start({});
    std::vector<std::int32_t> const prompt{5, 22, 39, 56, 73, 90, 107, 124};
    std::vector<float> logits(static_cast<std::size_t>(model_->ends().output_width()));
    std::vector<SequenceInput<B>> const inputs{{&sequence, prompt}};
    context_->forward_last(inputs, matrix_view(logits.data(), 1, model_->ends().output_width()));
    benchmark::DoNotOptimize(Sampler().sample(logits, {}));
  }

 private:
  ThreadPool pool_;
  B backend_;
  std::optional<LoadedModel> model_;
  std::optional<Context<LoadedModel>> context_;
};

/// Times `load`, which gives something to hold, beside the read limit of `memory`.
void run(benchmark::State& state, double bytes, bench::ReadLimit::Memory const& memory, auto&& load) {
  ThreadPool pool(bench::threads());
  bench::ReadLimit read_limit(pool, memory);
  load();
  std::vector<double> seconds, of_read, resident, of_files;
  for (auto _ : state) {  // in turn, so that both meet the same machine
    double const read = read_limit();
    bench::forget_freed_memory();
    double const resident_before = bench::process_bytes("VmRSS"), files_before = bench::process_bytes("RssFile");
    double const start = bench::now();
    auto const loaded = load();
    double const one = bench::now() - start;
    state.SetIterationTime(one);
    seconds.push_back(one);
    of_read.push_back(100 * bytes / one / read);
    bench::forget_freed_memory();
    resident.push_back(bench::process_bytes("VmRSS") - resident_before);
    of_files.push_back(bench::process_bytes("RssFile") - files_before);
  }
  double const typical = bench::median(seconds);
  state.counters["ms"] = 1e3 * typical;
  state.counters["MB"] = 1e-6 * bytes;
  state.counters["MB/s"] = 1e-6 * bytes / typical;
  state.counters["read_limit_%"] = bench::median(of_read);
  state.counters["resident_MB"] = 1e-6 * bench::median(resident);
  state.counters["of_files_MB"] = 1e-6 * bench::median(of_files);
}

void add(std::string const& name, auto&& f) {
  benchmark::RegisterBenchmark(("load/" + name).c_str(), std::forward<decltype(f)>(f))
      ->UseManualTime()
      ->Iterations(15)
      ->Unit(benchmark::kMillisecond);
}

/// Linux reads a file into pages as large as whoever reads it first asks for; drops those that others left, so that it
/// is read through a mapping of graft's.
void forget_file([[maybe_unused]] std::string const& path) {
#if defined(POSIX_FADV_DONTNEED)
  int const file = ::open(path.c_str(), O_RDONLY);
  if (file < 0) return;
  ::posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
  ::close(file);
#endif
}

void add_model(std::string const& path, bench::SomeModel const& some) {
  auto const work = bench::work_of(some.config, some.weights);
  B be;
  be.set_precision(Precision::native);
  bool const has_forms = cpu::pack_kernels<float>(be.isa(), be.precision(), work.format).form != PackedForm::none;
  for (bool const packed : has_forms ? std::vector{false, true} : std::vector{false})
    add(some.name + (packed ? "/packed" : "/as stored"), [=, &some](benchmark::State& state) {
      run(state, work.bytes, bench::memory_of(some.weights), [&] { return std::make_unique<Opened>(path, packed); });
    });
}

void add_adapter(char const* name, auto const& policy, SiteTable const& sites, fs::path const& folder) {
  write_peft(folder, bench::some_module(name, policy, sites), sites);
  for (auto const storage : {AdapterStorage::full, AdapterStorage::bf16})
    add(text(name, storage == AdapterStorage::full ? "/kept in f32" : "/kept in bf16"),
        [=, &sites](benchmark::State& state) {
          B be;
          run(state, static_cast<double>(fs::file_size(folder / "adapter_model.safetensors")), {}, [&] {
            auto bank = std::make_unique<Bank<List, B>>(sites, storage);
            load_adapter(be, *bank, name, folder);
            return bank;
          });
        });
}

}  // namespace

int main(int argc, char** argv) {
  std::deque<bench::SomeModel> models;
  do {
    auto const path = bench::model_argument(argc, argv);
    forget_file(path);
    add_model(path, models.emplace_back(bench::some_model(path)));
  } while (argc > 1 && argv[1][0] != '-');
  auto const sites = LoadedModel::sites_of(models[0].config);
  auto const folder = fs::temp_directory_path() / text("graft_bench_load_", ::getpid());
  add_adapter("LoRA r=16", LoRADelta{.rank = 16}, sites, folder / "lora");
  add_adapter("RoAd", RoAdRotation{}, sites, folder / "road");
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  fs::remove_all(folder);
}
