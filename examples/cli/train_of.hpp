// SPDX-License-Identifier: Apache-2.0
// graft train, the work: data, module, trainer, checkpoints, and the folder that comes out of it. On the backend that
// train_run.cpp and train_cuda.cu name.
#pragma once

#include <examples/cli/train.hpp>

#include <graft/io/peft_config.hpp>
#include <graft/text/model_tokenizer.hpp>
#include <graft/train/examples.hpp>
#include <graft/train/trainer.hpp>
#include <graft/train/training_log.hpp>
#include <graft/version.hpp>

#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>

namespace graft::cli {
namespace train_run_parts {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

inline std::atomic<bool> interrupted = false;
static_assert(std::atomic<bool>::is_always_lock_free);  // so that a signal handler may set it

// The first Ctrl-C ends the training behind the current step, a second one the program.
inline void stop_on_signals() {
  struct sigaction action = {};
  action.sa_handler = [](int) { interrupted = true; };
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  for (int const signal : {SIGINT, SIGTERM}) ::sigaction(signal, &action, nullptr);
}

class Hash {  // FNV-1a: names files in messages, keeps nobody out
 public:
  Hash& add(void const* data, std::size_t bytes) {
    for (std::size_t k = 0; k < bytes; ++k)
      value_ = (value_ ^ static_cast<unsigned char const*>(data)[k]) * 0x100000001b3u;
    return *this;
  }
  Hash& add(std::string const& characters) { return add(characters.data(), characters.size()); }
  std::string hex() const {
    char digits[17];
    std::snprintf(digits, sizeof digits, "%016llx", static_cast<unsigned long long>(value_));
    return digits;
  }

 private:
  std::uint64_t value_ = 0xcbf29ce484222325u;
};

inline std::string hash_of_file(std::string const& path) {
  auto const file = MappedFile::open(path);
  return Hash().add(file->characters().data(), file->size()).hex();
}

/// Names, shapes and the first bytes of all tensors.
inline std::string hash_of_model(ModelFiles const& files) {
  std::vector<std::string> names;
  for (auto const& [name, weight] : files.weights.tensors) names.push_back(name);
  std::sort(names.begin(), names.end());
  Hash hash;
  for (auto const& name : names) {
    Weight const& weight = files.weights.tensors.at(name);
    auto const row = static_cast<std::size_t>(row_bytes(weight.format, weight.cols));
    hash.add(text(name, ' ', weight.rows, ' ', weight.cols)).add(weight.data, std::min<std::size_t>(row, 64));
  }
  return hash.hex();
}

/// All that decides the result, by the names of the command line.
template <class P>
Json described(TrainCommand const& c, P const& policy, ModelFiles const& files, double rate) {
  TrainerOptions const& t = c.trainer;
  Json options{{"model", hash_of_model(files)}, {"method", c.method}};
  PeftOptionWriter<P> const settings(policy);
  for (auto const& [key, value] : settings.values()) options[key] = value;
  options["targets"] = c.targets;
  options["data"] = hash_of_file(c.data);
  options["val"] = c.val.empty() ? Json() : Json(hash_of_file(c.val));
  options.update(Json{{"val-fraction", c.val_fraction},
                      {"bilevel", c.bilevel},
                      {"chat", c.chat},
                      {"loss", c.loss},
                      {"max-length", c.max_length},
                      {"epochs", t.epochs},
                      {"steps", t.steps},
                      {"batch", t.batch},
                      {"accumulate", t.accumulate},
                      {"optimizer", c.optimizer},
                      {"lr", rate},
                      {"schedule", c.schedule},
                      {"warmup", t.warmup},
                      {"weight-decay", t.adamw.weight_decay},
                      {"beta1", t.adamw.beta1},
                      {"beta2", t.adamw.beta2},
                      {"epsilon", t.adamw.epsilon},
                      {"momentum", t.sgd.momentum},
                      {"lora-plus", t.expansion_ratio},
                      {"activation-lr", t.activation_ratio},
                      {"clip", t.clip},
                      {"label-smoothing", t.loss.label_smoothing},
                      {"z-loss", t.loss.z_loss},
                      {"dropout", t.dropout},
                      {"parts", t.parts},
                      {"validate-every", t.validate_every},
                      {"seed", t.seed},
                      {"type", c.type}});
  if (c.model.device != "cpu" || c.model.precision != "exact")
    options["device"] = c.model.device + ", " + c.model.precision;  // other bits
  return options;
}

inline TrainingData read_data(TrainCommand const& c, ModelFiles const& files) {
  auto const& config = files.config;
  Tokenizer const tokenizer(read_tokenizer(c.model.model));
  index_t const longest = config.positions - config.position_offset;
  if (c.max_length > longest)
    throw UsageError(text("--max-length is ", c.max_length, ", the model has ", longest, " positions"));
  ExampleOptions const options{c.max_length > 0 ? c.max_length : longest, c.chat, c.loss == "all", c.trainer.parts};
  auto const read = [&](std::string const& path) {
    return config.classifier ? read_classified(path, tokenizer, config.labels, options)
                             : read_completions(path, tokenizer, options);
  };
  TrainingData data{read(c.data), {}, {}};
  if (!c.val.empty()) data.validation = read(c.val);
  if (c.val_fraction > 0) data.validation = split_off(data.train, c.val_fraction, c.trainer.seed);
  if (c.bilevel > 0) data.second = split_off(data.train, c.bilevel, c.trainer.seed + 1);
  return data;
}

/// A classifier's own layers, trained with the adapter and saved beside it.
template <class P, class B>
void add_heads(Module<P, B>& trained, SiteTable const& sites, WeightMap const& weights) {
  for (auto const& site : sites.all()) {
    std::string const first = site.path.substr(0, site.path.find('.'));
    if (site.layer >= 0 || site.kind != SiteKind::linear || (first != "classifier" && first != "score")) continue;
    for (auto const& tensor : {site.path + ".weight", site.path + ".bias"}) {
      auto const found = weights.tensors.find(tensor);
      if (found == weights.tensors.end()) continue;
      Weight const& weight = found->second;
      bool const matrix = tensor.ends_with(".weight");
      SavedTensor saved{matrix ? std::vector{weight.rows, weight.cols} : std::vector{weight.cols}, {}};
      saved.values.resize(static_cast<std::size_t>(weight.rows * weight.cols));
      for (index_t r = 0; r < weight.rows; ++r) weight.row(r, saved.values.data() + r * weight.cols);
      trained.saved[tensor] = std::move(saved);
    }
    trained.modules_to_save = {first};
  }
}

/// What would have no effect is refused.
template <class P, class B>
void check_use(TrainCommand const& c, Module<P, B> const& module) {
  auto const ranges = parameter_ranges(module);
  auto const has = [&](ParameterGroup group) {
    return std::any_of(ranges.begin(), ranges.end(), [&](auto const& range) { return range.group == group; });
  };
  auto const demand = [&](bool used, bool has_effect, std::string const& flag, std::string const& why) {
    if (used && !has_effect) throw UsageError(text(flag, " has no effect on ", c.method, ": ", why));
  };
  bool const rational = has(ParameterGroup::activation);
  demand(c.bilevel > 0, rational, "--bilevel", "it has no learnable activation");
  demand(c.trainer.activation_ratio != 1, rational, "--activation-lr", "it has no learnable activation");
  demand(c.trainer.expansion_ratio != 1, has(ParameterGroup::expansion), "--lora-plus", "it has no B");
  demand(c.trainer.dropout > 0, LowRankPolicy<P, B>, "--dropout", "it has no low-rank delta");
  demand(c.trainer.parts > 0, std::same_as<P, RoAdRotation>, "--parts", "it has no blocks");
}

/// Refuses, before memory is asked for, what the machine could not hold, and says what a rank does not give.
template <class P, class B>
void check_size(TrainCommand const& c, P const& policy, SiteTable const& sites, std::vector<index_t> const& at,
                PeftPatterns const& patterns) {
  Module<P, B> planned;
  for (index_t const site : at)
    planned.add(sites, site,
                policy_at(policy, [&](auto const& pattern) { return patterns(pattern, sites[site].path); }));
  double parameters = 0;  // more than an index_t counts, perhaps
  planned.for_each([&](index_t, auto, auto const& tensor) {
    double elements = 1;
    for (index_t const size : tensor_shape(tensor)) elements *= static_cast<double>(size);
    parameters += elements;
  });
  // the parameters, their gradient, and AdamW's two moments
  double const bytes = parameters * sizeof(Real<B>) * (c.optimizer == "adamw" ? 4 : 2),
               there = static_cast<double>(::sysconf(_SC_PHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGESIZE));
  constexpr bool has_rank = requires { policy.rank; };
  if (bytes > there)
    throw UsageError(text("an adapter of ", parameters, " parameters needs ", std::ceil(bytes / 1e9),
                          " GB to be trained, and this machine has ", std::floor(there / 1e9), " GB",
                          has_rank ? "; give a smaller --rank" : ""));
  if constexpr (LowRankPolicy<P, B>) {
    index_t useful = 0;
    for (index_t const site : at) useful = std::max(useful, std::min(sites[site].in, sites[site].out));
    if (policy.rank > useful)
      std::fprintf(stderr, "graft: warning: rank %lld is more than any of the modules can use, which is %lld\n",
                   static_cast<long long>(policy.rank), static_cast<long long>(useful));
  }
}

/// One line that is written over and over, on a terminal only.
class ProgressLine {
 public:
  void show(TrainingProgress const& p, index_t first_step) {
    if (!terminal_) return;
    auto const done = static_cast<double>(p.step - first_step), left = static_cast<double>(p.steps - p.step);
    auto const seconds = static_cast<index_t>(p.seconds / done * left);
    std::fprintf(stderr, "\r\033[Kstep %lld/%lld  epoch %.2f  loss %.4f  lr %.2e  %.0f tokens/s  %lldm%02llds left",
                 static_cast<long long>(p.step), static_cast<long long>(p.steps), p.epoch, p.loss, p.rate,
                 static_cast<double>(p.tokens) / p.seconds, static_cast<long long>(seconds / 60),
                 static_cast<long long>(seconds % 60));
    if (p.validation_loss) {
      std::fprintf(stderr, "\r\033[Kstep %lld  validation loss %.4f", static_cast<long long>(p.step),
                   *p.validation_loss);
      if (p.validation_accuracy) std::fprintf(stderr, "  accuracy %.4f", *p.validation_accuracy);
      std::fprintf(stderr, "\n");
    }
    shown_ = !p.validation_loss.has_value();
  }
  ~ProgressLine() {
    if (shown_) std::fprintf(stderr, "\n");
  }

 private:
  bool terminal_ = ::isatty(STDERR_FILENO) != 0, shown_ = false;
};

inline void write_summary(fs::path const& path, Json const& summary) {
  OutputFile file(path);
  file.write(summary.dump(2) + "\n");
  file.commit();
}

template <class P, class M>
Module<P, typename M::B> new_module(TrainCommand const& c, P const& policy, M const& model) {
  auto const& config = model.config();
  auto const at =
      target_sites(model.sites(), policy, c.targets.empty() ? MethodDefaults<P>::targets(config) : c.targets);
  PeftPatterns const patterns("graft");
  check_size<P, typename M::B>(c, policy, model.sites(), at, patterns);
  auto trained = make_module<P, typename M::B>("adapter", policy, model.sites(), at, c.trainer.seed, patterns);
  trained.base_model = c.model.model;
  trained.task_type = config.classifier ? "SEQ_CLS" : "CAUSAL_LM";
  trained.target_modules = c.targets;
  if (config.classifier) add_heads(trained, model.sites(), model.weights());
  check_use(c, trained);
  return trained;
}

template <class T, class P, class B>
Json summary_of(TrainCommand const& c, Json const& options, Json const& counts, T const& trainer,
                Module<P, B> const& trained, TrainingResult const& result) {
  index_t const dead = trained.parameters().size - trained.live_parameters();
  Json summary{
      {"method", c.method}, {"parameters", trainer.parameters()}, {"live_parameters", trainer.parameters() - dead}};
  summary.update(counts);
  summary["steps"] = result.steps;
  summary["loss"] = result.loss;
  summary["validation_loss"] = result.best_loss ? Json(*result.best_loss) : Json();
  summary["best_step"] = result.best_loss ? Json(result.best_step) : Json();
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  summary.update(
      Json{{"tokens", result.tokens},
           {"seconds", result.seconds},
           {"tokens_per_second", result.seconds > 0 ? static_cast<double>(result.tokens) / result.seconds : 0},
           {"peak_memory_bytes", static_cast<std::int64_t>(usage.ru_maxrss) * 1024},
           {"config", Hash().add(options.dump()).hex()},
           {"graft", version_string},
           {"options", options},
           {"out", c.out}});
  return summary;
}

template <class Owner, class Arch, class P>
Json run(TrainCommand const& c, ModelFiles const& files) {
  using B = std::remove_cvref_t<decltype(std::declval<Owner&>().backend())>;
  using M = Model<Arch, CommandAdapters, B>;
  P const policy = policy_of<P>(c, files.config);
  double const rate = c.rate.value_or(MethodDefaults<P>::rate);
  Json const options = described(c, policy, files, rate);
  fs::path const out = c.out, summary_path = out / "training.json";
  CheckpointFolder checkpoints(out);
  index_t const begun = checkpoints.newest();
  if (begun >= 0 && !c.resume)
    raise<FormatError>(c.out, ": holds a training that stopped behind step ", begun,
                       "; --resume goes on with it, or remove its checkpoint");
  if (begun < 0 && c.resume && fs::exists(summary_path)) {
    Json const summary = read_json<Json>(summary_path);
    check_same_options(summary_path, summary.value("options", Json::object()), options);
    return summary;  // nothing is left to do
  }

  expects(files.config.classifier || (files.config.language_model && Arch::causal), "graft: ", c.model.model,
          " is no classifier and does not predict the next token; there is nothing to learn");
  auto data = read_data(c, files);
  Owner owner(c.model.engine_options());
  B& be = owner.backend();
  M model(files.config, files.weights);
  auto trained = new_module(c, policy, model);

  TrainerOptions trainer_options = c.trainer;
  trainer_options.rate = rate;
  Json const counts{{"examples", data.train.size() + data.second.size()},
                    {"validation_examples", data.validation.size()}};
  Trainer<M, P> trainer(model, be, trained, std::move(data), trainer_options);
  if (begun >= 0) {
    auto const checkpoint = checkpoints.read();
    check_same_options(checkpoint.folder, checkpoint.state.value("options", Json::object()), options);
    trainer.read(checkpoint);
  }
  std::error_code error;
  fs::create_directories(out, error);
  if (error) raise<FormatError>(c.out, ": cannot be created: ", error.message());
  index_t const first_step = trainer.step();
  TrainingLog log(out / "log.csv", first_step);

  PeftWriteOptions const write_options{c.type == "bf16" ? Format::bf16 : c.type == "f16" ? Format::f16 : Format::f32};
  TrainingResult result;
  {
    stop_on_signals();
    ProgressLine line;
    TrainerHooks hooks;
    hooks.stop = &interrupted;
    hooks.progress = [&](TrainingProgress const& progress) {
      log.write(progress);
      line.show(progress, first_step);
    };
    hooks.save = [&] {
      trainer.write(checkpoints, options,
                    [&](fs::path const& folder) { write_peft(folder, trained, model.sites(), write_options); });
    };
    result = trainer.run(hooks);
  }
  if (!result.finished)
    raise<Error>("stopped behind step ", result.step, " of ", result.steps, "; --resume goes on with ", c.out);

  Json const summary = summary_of(c, options, counts, trainer, trained, result);
  write_peft(out, trained, model.sites(), write_options);
  write_summary(summary_path, summary);
  checkpoints.clear();
  return summary;
}

template <class Owner, class Arch, class... Ps>
Json run_method(TrainCommand const& c, ModelFiles const& files, Adapters<Ps...>) {
  Json result;
  ((c.method == MethodDefaults<Ps>::name ? void(result = run<Owner, Arch, Ps>(c, files)) : void()), ...);
  return result;
}

}  // namespace train_run_parts

template <class Arch, class Owner>
nlohmann::ordered_json train_of(TrainCommand const& command, ModelFiles const& files) {
  return train_run_parts::run_method<Owner, Arch>(command, files, CommandAdapters{});
}

}  // namespace graft::cli
