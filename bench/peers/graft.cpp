// SPDX-License-Identifier: Apache-2.0
// graft's side of bench/peers/run.py: lines of JSON on standard input say what to do, a line on standard output says
// how long it took. worker.py lists the calls; llama_cpp.py and torch_peft.py answer the same ones.
#include <graft/adapter/lora.hpp>
#include <graft/adapter/road.hpp>
#include <graft/arch/compact_weights.hpp>
#include <graft/arch/llama.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/io/model_files.hpp>
#include <graft/io/peft.hpp>
#include <graft/model/context.hpp>
#include <graft/model/model.hpp>
#include <graft/model/sampling.hpp>
#include <graft/text/model_tokenizer.hpp>
#include <graft/text/tokenizer.hpp>
#include <graft/train/loss.hpp>
#include <graft/train/module_optimizer.hpp>
#include <graft/train/training_pass.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <fstream>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>

#include <bench/limits.hpp>

namespace {

using namespace graft;
using nlohmann::json;
using B = CpuBackend<>;
using PeerModel = Model<Llama, Adapters<RoAdRotation, LoRADelta>, B>;
using Tokens = std::vector<std::int32_t>;

/// Kilobytes of a line of /proc/self/status, as megabytes.
double megabytes(std::string const& key) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with(key + ":")) return std::stod(line.substr(key.size() + 1)) / 1024;
  return 0;
}
json memory() {
  return {{"resident_mb", megabytes("VmRSS")}, {"of_files_mb", megabytes("RssFile")}, {"peak_mb", megabytes("VmHWM")}};
}

class Worker {
 public:
  explicit Worker(int threads) : pool_(threads), backend_(pool_) {}

  json open(json const& call) {
    bool const native = call.at("precision") == "native";
    backend_.set_precision(native ? Precision::native : Precision::exact);
    // as the command has them; what is trained is f32
    bool const narrow = native && !call.at("adapters").empty();
    auto const path = call.at("model").get<std::string>();
    tokenizer_.emplace(read_tokenizer(path));
    auto files = open_model(path);
    if (call.value("compact", true))  // as `graft generate`
      compact_weights(backend_, PeerModel::sites_of(files.config), files.weights);
    model_ = std::make_unique<PeerModel>(std::move(files.config), std::move(files.weights),
                                         narrow ? AdapterStorage::bf16 : AdapterStorage::full);
    context_ = std::make_unique<Context<PeerModel>>(
        *model_, backend_, ContextOptions{.kv_storage = native ? KvStorage::bf16 : KvStorage::full});
    for (auto const& [name, folder] : call.at("adapters").items())
      load_adapter(backend_, *model_, name, folder.get<std::string>());
    return {{"isa", isa_name(backend_.isa())}};
  }
  json tokens(json const& call) { return {{"tokens", tokenizer_->encode(call.at("text").get<std::string>())}}; }

  /// All requests in one batch, greedily.
  json generate(json const& call) {
    auto next = call.at("prompts").get<std::vector<Tokens>>();
    auto const new_tokens = call.at("new").get<index_t>();
    std::vector<Sequence<B>> sequences;
    for (auto const& name : call.at("use")) {
      std::vector<AdapterUse> uses;
      if (!name.is_null()) uses.push_back({name.get<std::string>()});
      sequences.push_back(context_->start(uses));
    }
    auto const count = static_cast<index_t>(sequences.size()), width = model_->ends().output_width();
    logits_.resize(static_cast<std::size_t>(count * width));
    auto const logits = matrix_view(logits_.data(), count, width);
    std::vector<Tokens> made(next.size());
    auto const step = [&] {
      std::vector<SequenceInput<B>> inputs;
      for (std::size_t k = 0; k < next.size(); ++k) inputs.push_back({&sequences[k], next[k]});
      context_->forward_last(inputs, logits);
      backend_.executor().run(count, [&](index_t n) {
        auto const k = static_cast<std::size_t>(n);
        next[k] = {Sampler().sample({logits.row(n), static_cast<std::size_t>(width)}, {})};
        made[k].push_back(next[k][0]);
      });
    };
    double const prefill = bench::seconds_of(step);
    double const decode = bench::seconds_of([&] {
      for (index_t k = 1; k < new_tokens; ++k) step();
    });
    return {{"prefill", prefill}, {"decode", decode}, {"tokens", made}};
  }

  /// From opening the file to the first token.
  json load(json const& call) {
    json answer;
    double const seconds = bench::seconds_of([&] {
      open(call);
      auto const prompt = tokenizer_->encode(call.at("text").get<std::string>());
      answer = generate({{"prompts", {prompt}}, {"use", {nullptr}}, {"new", 1}});
    });
    return {{"seconds", seconds}, {"tokens", answer["tokens"]}, {"memory", memory()}};
  }

  /// A new module at all linear layers and its AdamW, for `step`.
  json train(json const& call) {
    sequences_ = call.at("sequences").get<std::vector<Tokens>>();
    pass_ = std::make_unique<TrainingPass<PeerModel>>(*model_, backend_,
                                                      TrainingOptions{.recompute = {call.at("recompute").get<bool>()}});
    if (call.at("method") == "lora")
      start_training(LoRADelta{.rank = 16, .alpha = 32});
    else
      start_training(RoAdRotation{});
    return json::object();
  }
  json step(json const&) {
    double loss = 0;
    double const seconds = bench::seconds_of([&] { loss = one_step_(); });
    return {{"seconds", seconds}, {"loss", loss}, {"memory", memory()}};
  }

 private:
  template <class P>
  void start_training(P const& policy) {
    std::vector<index_t> at;
    for (index_t s = 0; s < model_->sites().size(); ++s)
      if (model_->sites()[s].kind == SiteKind::linear && model_->sites()[s].layer >= 0) at.push_back(s);
    auto const module = std::make_shared<Module<P, B>>(make_module<P, B>("trained", policy, model_->sites(), at));
    auto const optimizer = std::make_shared<ModuleOptimizer<P, B>>(
        *module, [](auto ranges) { return std::make_unique<AdamW<float>>(std::move(ranges)); });
    one_step_ = [this, module, optimizer] {
      Gradients<B> gradients;
      optimizer->publish(backend_, model_->bank(), gradients);
      std::vector<TrainingSequence<B>> batch;
      std::vector<index_t> wanted;
      std::vector<LossRow> rows;
      index_t row = 0;
      for (auto const& tokens : sequences_) {
        batch.push_back({tokens, model_->bank().resolve({AdapterUse{"trained"}})});
        for (std::size_t t = 0; t + 1 < tokens.size(); ++t) {
          wanted.push_back(row + static_cast<index_t>(t));
          rows.push_back({tokens[t + 1], 1.0 / static_cast<double>(sequences_.size() * (tokens.size() - 1))});
        }
        row += static_cast<index_t>(tokens.size());
      }
      pass_->forward(batch, gradients);
      CrossEntropy<B> loss(backend_, rows);
      pass_->head(wanted, loss);
      pass_->backward();
      optimizer->step(backend_, gradients, group_rates(1e-3), 1.0);
      return loss.sums().mean();
    };
  }

  ThreadPool pool_;
  B backend_;
  std::optional<Tokenizer> tokenizer_;
  std::unique_ptr<PeerModel> model_;
  std::unique_ptr<Context<PeerModel>> context_;
  std::unique_ptr<TrainingPass<PeerModel>> pass_;
  std::vector<Tokens> sequences_;
  std::function<double()> one_step_;
  std::vector<float> logits_;
};

}  // namespace

int main() {
  Worker worker(bench::threads());
  std::map<std::string, json (Worker::*)(json const&)> const calls{
      {"open", &Worker::open}, {"tokens", &Worker::tokens}, {"generate", &Worker::generate},
      {"load", &Worker::load}, {"train", &Worker::train},   {"step", &Worker::step}};
  for (std::string line; std::getline(std::cin, line);) {
    auto const call = json::parse(line);
    std::cout << (worker.*calls.at(call.at("do").get<std::string>()))(call).dump() << std::endl;
  }
}
