// SPDX-License-Identifier: Apache-2.0
// graft merge and graft unmerge: adapters folded into a model's weights, and taken out again.
#include <examples/cli/command.hpp>
#include <examples/cli/model_output.hpp>

#include <graft/io/checked.hpp>
#include <graft/io/merge_files.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>

namespace graft::cli {
namespace merge_command {

namespace fs = std::filesystem;

struct Options {
  std::string model, out, undo, base, type;
  std::vector<std::string> adapters;
  index_t threads = 0;
  bool json = false;
};

struct NamedAdapter {
  std::string name, path;
  double weight = 1;
};

/// "name=path" or "name=path=0.7"; a path that is there may have a '=' of its own.
NamedAdapter parse_adapter(std::string const& argument) {
  auto [name, path] = parse_named_path(argument);
  auto const equals = path.rfind('=');
  std::error_code ignored;
  if (equals == std::string::npos || fs::exists(path, ignored)) return {name, path};
  auto const use = parse_use("w" + path.substr(equals));  // UsageError for what is no number
  return {name, path.substr(0, equals), use.weight};
}

/// The model file that is read, in the form that its tensors are copied from.
struct ModelSource {
  std::optional<Gguf> gguf;
  TensorFile folder_tensors;
  nlohmann::ordered_json config;
  fs::path home;

  explicit ModelSource(fs::path const& path) {
    if (!fs::exists(path)) raise<FormatError>(path.string(), ": does not exist");
    if (is_gguf(path)) {
      gguf = read_gguf(path);
      return;
    }
    bool const folder = fs::is_directory(path);
    home = folder ? path : path.parent_path();
    folder_tensors = folder || path.extension() == ".json" ? read_sharded_safetensors(path) : read_safetensors(path);
    config = read_json<nlohmann::ordered_json>(home / "config.json");
  }
  TensorFile const& tensors() const { return gguf ? gguf->tensors : folder_tensors; }
  /// The record of the merge the model came from, or nothing.
  std::string record() const {
    if (gguf) return std::string(gguf->metadata.get_or<std::string_view>(merge_key, ""));
    auto const found = folder_tensors.metadata().find(merge_key);
    return found == folder_tensors.metadata().end() ? "" : found->second;
  }
};

void check_out(Options const& options, bool gguf) {
  bool const out_gguf = fs::path(options.out).extension() == ".gguf";
  if (gguf && !out_gguf) throw UsageError(text("the model is a GGUF file, so --out ends in .gguf, not ", options.out));
  if (!gguf && (out_gguf || fs::path(options.out).extension() == ".safetensors"))
    throw UsageError(text("the model is a folder, so --out is one, not ", options.out));
  if (auto const type = parse_type(options.type); !gguf && type && format_info(*type).block > 1)
    throw UsageError(text("a folder's safetensors cannot hold ", options.type, "; f32, f16 and bf16 they can"));
}

void write_companions(fs::path const& home, OutputFolder const& folder) {
  for (auto const& [name, content] : other_files(home)) {
    OutputFile file(folder / name);
    file.write(content);
    file.commit();
  }
}

/// The tensor whose `value` is largest.
MergedTensor const& worst(std::vector<MergedTensor> const& tensors, auto const& value) {
  return *std::max_element(tensors.begin(), tensors.end(),
                           [&](auto const& a, auto const& b) { return value(a) < value(b); });
}

void print_json(nlohmann::ordered_json const& object) {
  std::printf("%s\n", object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

/// Folds in or out and writes. What is a wrong call of the library is a wrong adapter for this model here.
MergeOutcome write_merged(Options const& options, ModelSource const& source, Engine& engine,
                          AdapterSet<CommandBackend> const& set, MergeRecord record, bool inward) {
  ThreadPool pool(options.threads);
  Progress progress(source.tensors().tensors().size());
  MergeRequest<CommandBackend> const request{
      set,    engine.sites(),           engine.config(),   engine.weights(),           pool,
      inward, parse_type(options.type), std::move(record), inward ? options.undo : "", std::ref(progress)};
  return checked_at(options.model, [&] {
    if (source.gguf) return merge_gguf(request, *source.gguf, options.out);
    OutputFolder folder(options.out);
    auto outcome = merge_hf(request, source.config, source.folder_tensors, folder);
    write_companions(source.home, folder);
    folder.commit();
    return outcome;
  });
}

struct Loaded {
  std::unique_ptr<Engine> engine;
  std::shared_ptr<AdapterSet<CommandBackend> const> set;
  std::vector<MergeRecord::Adapter> adapters;
};

Loaded load(Options const& options) {
  Loaded loaded;
  std::vector<NamedAdapter> adapters;
  for (auto const& argument : options.adapters) {
    auto const adapter = parse_adapter(argument);
    if (std::any_of(adapters.begin(), adapters.end(), [&](auto const& a) { return a.name == adapter.name; }))
      throw UsageError(text("--adapter ", adapter.name, " is given twice"));
    adapters.push_back(adapter);
  }
  loaded.engine = make_engine(open_model(options.model), {1});
  std::vector<AdapterUse> uses;
  for (auto const& [name, path, weight] : adapters) {
    loaded.engine->load(name, path);
    loaded.adapters.push_back({name, content_sha256(path), weight});
    uses.push_back({name, weight});
  }
  loaded.set = loaded.engine->resolve(uses);
  return loaded;
}

void merge(Options const& options) {
  ModelSource const source(options.model);
  check_out(options, source.gguf.has_value());
  auto const loaded = load(options);
  MergeRecord record{content_sha256(options.model), loaded.adapters, source.record()};
  auto const outcome = write_merged(options, source, *loaded.engine, *loaded.set, record, true);

  for (auto const& note : outcome.notes) std::fprintf(stderr, "graft: note: %s\n", note.c_str());
  auto const share = [](MergedTensor const& t) { return t.share(); };
  auto const swallowed = std::count_if(outcome.tensors.begin(), outcome.tensors.end(),
                                       [](MergedTensor const& t) { return t.share() > 0.5; });
  double change = 0, lost = 0;
  for (auto const& t : outcome.tensors) change += t.change * t.change, lost += t.requantisation * t.requantisation;
  double const overall = change > 0 ? std::sqrt(lost / change) : 0;
  bool const any = !outcome.tensors.empty();
  if (swallowed > 0)
    std::fprintf(stderr,
                 "graft: warning: in %td of %zu tensors, rounding to the stored format is more than half as large as "
                 "what the adapters change (%s: %.2f); --type f16 or larger keeps it\n",
                 swallowed, outcome.tensors.size(), worst(outcome.tensors, share).name.c_str(),
                 worst(outcome.tensors, share).share());
  if (options.json) {
    nlohmann::ordered_json adapters = nlohmann::ordered_json::array();
    for (auto const& a : record.adapters)
      adapters.push_back({{"name", a.name}, {"weight", a.weight}, {"sha256", a.sha256}});
    print_json({{"out", options.out},
                {"tensors_changed", outcome.tensors.size()},
                {"adapters", adapters},
                {"base_sha256", record.base_sha256},
                {"undo", options.undo},
                {"undo_bytes", outcome.undo_bytes},
                {"requantisation_over_change", overall},
                {"worst_tensor", any ? worst(outcome.tensors, share).name : ""},
                {"worst_requantisation_over_change", any ? worst(outcome.tensors, share).share() : 0}});
    return;
  }
  std::printf("%s: %zu tensors changed; rounding to the stored format is %.2g of the change (worst %.2g)\n",
              options.out.c_str(), outcome.tensors.size(), overall, any ? worst(outcome.tensors, share).share() : 0);
  if (!options.undo.empty())
    std::printf("%s: undo file, %.1f MB\n", options.undo.c_str(), static_cast<double>(outcome.undo_bytes) * 1e-6);
}

/// Writes the tensors that an undo file or the original gives back; `original`: its metadata, where it is at hand.
void unmerge_exactly(Options const& options, ModelSource const& source, Undo const& undo,
                     GgufMetadata const* original = nullptr) {
  auto const tensors = unmerged_tensors(source.tensors(), undo);
  if (source.gguf) {
    write_gguf(options.out, original != nullptr ? *original : unmerged_metadata(source.gguf->metadata, undo), tensors);
  } else {
    OutputFolder folder(options.out);
    write_safetensors(folder / "model.safetensors", tensors,
                      detail::with_record(source.folder_tensors.metadata(), undo.previous));
    OutputFile config(folder / "config.json");
    config.write(undo.config.empty() ? source.config.dump(2) + "\n" : undo.config);
    config.commit();
    write_companions(source.home, folder);
    folder.commit();
  }
  if (options.json)
    print_json({{"out", options.out}, {"exact", true}, {"tensors_restored", undo.originals.size()}});
  else
    std::printf("%s: the model before the merge, bit for bit\n", options.out.c_str());
}

void unmerge_by_formula(Options const& options, ModelSource const& source, MergeRecord const& record) {
  auto const loaded = load(options);
  auto const key = [](MergeRecord::Adapter const& a) { return text(a.sha256, ' ', a.weight); };
  std::vector<std::string> given, merged;
  for (auto const& a : loaded.adapters) given.push_back(key(a));
  for (auto const& a : record.adapters) merged.push_back(key(a));
  std::sort(given.begin(), given.end());
  std::sort(merged.begin(), merged.end());
  if (given != merged) {
    std::string names;
    for (auto const& a : record.adapters) names += text(names.empty() ? "" : ", ", a.name, "=", a.weight);
    raise<FormatError>(options.model, ": was merged with other adapters or weights, ", names);
  }
  auto const outcome = write_merged(options, source, *loaded.engine, *loaded.set, record, false);
  auto const mismatch = [](MergedTensor const& t) { return t.size > 0 ? t.mismatch / t.size : 0; };
  double const error = outcome.tensors.empty() ? 0 : mismatch(worst(outcome.tensors, mismatch));
  if (options.json)
    print_json({{"out", options.out},
                {"exact", false},
                {"tensors_changed", outcome.tensors.size()},
                {"worst_relative_mismatch", error}});
  else
    std::printf(
        "%s: approximate, by the inverse formula; merging it again misses the merged weights by %.2g of their "
        "size in the worst tensor\n",
        options.out.c_str(), error);
}

void unmerge(Options const& options) {
  int const ways = !options.undo.empty() + !options.base.empty() + !options.adapters.empty();
  if (ways != 1)
    throw UsageError(
        "unmerge needs one of --undo FILE, --base ORIGINAL (both exact) or --adapter NAME=PATH[=W] (approximate)");
  ModelSource const source(options.model);
  check_out(options, source.gguf.has_value());
  auto const written = source.record();
  if (written.empty()) raise<FormatError>(options.model, ": is not a merged model; it has no ", merge_key);
  auto const record = parse_merge_record(options.model, written);
  if (!options.adapters.empty()) return unmerge_by_formula(options, source, record);
  if (!options.undo.empty()) {
    auto const undo = read_undo(options.undo);
    if (undo.record_sha256 != sha256(written))
      raise<FormatError>(options.undo, ": belongs to another merge than ", options.model);
    return unmerge_exactly(options, source, undo);
  }
  if (content_sha256(options.base) != record.base_sha256)
    raise<FormatError>(options.base, ": is not what ", options.model, " was merged from; its SHA-256 should be ",
                       record.base_sha256);
  ModelSource const original(options.base);
  if (original.gguf.has_value() != source.gguf.has_value())
    raise<FormatError>(options.base, ": is another kind of file than ", options.model);
  auto undo = undo_from_original(source.tensors(), original.tensors(), record);
  if (!original.gguf) undo.config = original.config.dump(2) + "\n";
  unmerge_exactly(options, source, undo, original.gguf ? &original.gguf->metadata : nullptr);
}

}  // namespace merge_command

void add_merge(CLI::App& app) {
  using namespace merge_command;
  auto const options = std::make_shared<Options>();
  auto* const command = app.add_subcommand("merge", "fold adapters into a model's weights");
  command->add_option("--model", options->model, "GGUF file, safetensors file or Hugging Face folder")->required();
  command->add_option("--adapter", options->adapters, "NAME=PATH or NAME=PATH=WEIGHT; repeatable")
      ->take_all()
      ->required();
  command->add_option("--out", options->out, "a .gguf file for a GGUF model, else a folder")->required();
  command->add_option("--undo", options->undo, "also write what makes unmerge exact: the stored tensors that change");
  command->add_option("--type", options->type, "format of the matrices; without it as they are");
  command->add_option("--threads", options->threads, "threads to compute with; 0: one per core")
      ->check(CLI::Range(0, 1024));
  command->add_flag("--json", options->json, "print one JSON object");
  command->callback([options] { merge(*options); });
}

void add_unmerge(CLI::App& app) {
  using namespace merge_command;
  auto const options = std::make_shared<Options>();
  auto* const command = app.add_subcommand("unmerge", "take merged adapters out of a model's weights");
  command->add_option("--model", options->model, "a model that graft merge wrote")->required();
  command->add_option("--undo", options->undo, "the undo file of that merge: bit for bit");
  command->add_option("--base", options->base, "the model it was merged from: bit for bit");
  command->add_option("--adapter", options->adapters, "NAME=PATH[=WEIGHT] as merged: approximate; repeatable")
      ->take_all();
  command->add_option("--out", options->out, "a .gguf file for a GGUF model, else a folder")->required();
  command->add_option("--threads", options->threads, "threads to compute with; 0: one per core")
      ->check(CLI::Range(0, 1024));
  command->add_flag("--json", options->json, "print one JSON object");
  command->callback([options] { unmerge(*options); });
}

}  // namespace graft::cli
