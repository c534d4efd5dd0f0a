// SPDX-License-Identifier: Apache-2.0
// graft's side of bench/peers/run.py: lines of JSON on standard input say what to do, a line on standard output says
// how long it took. worker.py lists the calls; llama_cpp.py and torch_peft.py answer the same ones.
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
#include <graft/text/model_tokenizer.hpp>
#include <graft/text/tokenizer.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>

#include <bench/limits.hpp>
#include <bench/memory.hpp>
#include <bench/training.hpp>

namespace {

using namespace graft;
using nlohmann::json;
using B = CpuBackend<>;
using PeerModel = Model<Llama, Adapters<RoAdRotation, LoRADelta>, B>;
using Tokens = std::vector<std::int32_t>;

json memory() {
  auto const megabytes = [](char const* key) { return bench::process_bytes(key) / (1 << 20); };
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
    if (call.value("packed", true))  // as `graft generate`
      pack_weights(backend_, PeerModel::sites_of(files.config), files.weights);
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
    auto const start = [&]<class P>(P const& policy) {
      auto const steps = std::make_shared<bench::TrainingSteps<P, PeerModel>>(
          *model_, backend_, policy, SiteKind::linear, call.at("sequences").get<std::vector<Tokens>>(),
          call.at("recompute").get<bool>());
      one_step_ = [steps] { return (*steps)(); };
    };
    call.at("method") == "lora" ? start(LoRADelta{.rank = 16, .alpha = 32}) : start(RoAdRotation{});
    return json::object();
  }
  json step(json const&) {
    double loss = 0;
    double const seconds = bench::seconds_of([&] { loss = one_step_(); });
    return {{"seconds", seconds}, {"loss", loss}, {"memory", memory()}};
  }

 private:
  ThreadPool pool_;
  B backend_;
  std::optional<Tokenizer> tokenizer_;
  std::unique_ptr<PeerModel> model_;
  std::unique_ptr<Context<PeerModel>> context_;
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
