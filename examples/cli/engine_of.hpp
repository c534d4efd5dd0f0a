// SPDX-License-Identifier: Apache-2.0
// The engine of one architecture on one backend; engine_cpu.cpp and engine_cuda.cu say which.
#pragma once

#include <examples/cli/engine.hpp>

#include <graft/arch/pack_weights.hpp>
#include <graft/io/gguf_lora.hpp>

namespace graft::cli {

template <class Arch, class Owner>
class ArchitectureEngine final : public Engine {
 public:
  using B = std::remove_cvref_t<decltype(std::declval<Owner&>().backend())>;

  ArchitectureEngine(ModelFiles files, EngineOptions const& options)
      : owner_(options),
        model_(files.config, prepared(std::move(files.weights), files.config, options), options.adapters),
        context_(model_, owner_.backend(), {.kv_storage = options.kv}) {}

  ModelConfig const& config() const override { return model_.config(); }
  SiteTable const& sites() const override { return model_.sites(); }
  WeightMap const& weights() const override { return model_.weights(); }
  index_t output_width() const override { return model_.ends().output_width(); }

  void load(std::string const& name, std::filesystem::path const& path) override {
    auto const loaded = is_gguf(path) ? load_gguf_lora(owner_.backend(), model_.bank(), name, path, model_.config())
                                      : load_adapter(owner_.backend(), model_, name, path);
    for (auto const& warning : loaded.warnings) std::fprintf(stderr, "graft: warning: %s\n", warning.c_str());
  }

  std::shared_ptr<AdapterSet<CommandBackend> const> resolve(std::span<AdapterUse const> uses) override {
    if constexpr (std::same_as<B, CommandBackend>)
      return model_.bank().resolve(uses);
    else
      raise<ContractError>("graft: adapters are merged by the processor; use --device cpu");
  }

  std::vector<std::vector<float>> logits(std::span<LogitsRequest const> requests) override {
    bool const classifier = config().classifier;
    auto const all = logits_of(requests, [&](auto const& request, index_t first, std::vector<index_t>& wanted) {
      if (classifier) return wanted.push_back(first + context_.answer_row(request.tokens));
      for (std::size_t k = 0; k < request.tokens.size(); ++k) wanted.push_back(first + static_cast<index_t>(k));
    });
    std::vector<std::vector<float>> results;
    auto next = all.begin();
    for (auto const& request : requests) {
      auto const rows = classifier ? 1 : static_cast<index_t>(request.tokens.size());
      results.emplace_back(next, next + rows * output_width());
      next += rows * output_width();
    }
    return results;
  }

  std::vector<std::vector<double>> scores(std::span<ScoreRequest const> requests) override {
    check_language_model("gives no token probabilities");
    auto const all = logits_of(requests, [](auto const& request, index_t first, std::vector<index_t>& wanted) {
      auto const count = static_cast<index_t>(request.tokens.size());
      for (index_t k = request.first; k < count; ++k) wanted.push_back(first + k - 1);
    });
    index_t const width = output_width();
    std::vector<std::vector<double>> results;
    float const* values = all.data();
    for (auto const& request : requests) {
      auto& scores = results.emplace_back();
      for (auto k = static_cast<std::size_t>(request.first); k < request.tokens.size(); ++k, values += width) {
        double const highest = static_cast<double>(*std::max_element(values, values + width));
        double sum = 0;
        for (index_t j = 0; j < width; ++j) sum += std::exp(static_cast<double>(values[j]) - highest);
        scores.push_back(static_cast<double>(values[request.tokens[k]]) - highest - std::log(sum));
      }
    }
    return results;
  }

  std::vector<Generation> generate(std::span<GenerationRequest const> requests,
                                   std::function<void(std::size_t, std::int32_t)> on_token) override {
    check_language_model("cannot generate");
    if constexpr (Arch::causal)
      return graft::generate(context_, requests, on_token);
    else
      return {};
  }

 private:
  using CommandModel = Model<Arch, CommandAdapters, B>;

  WeightMap prepared(WeightMap weights, ModelConfig const& config, EngineOptions const& options) {
    if constexpr (std::same_as<B, CommandBackend>)
      if (options.pack_weights) pack_weights(owner_.backend(), CommandModel::sites_of(config), weights);
    return weights;
  }
  // [wanted, output width] of all requests as one batch; want(request, its first row, wanted) lists the rows.
  template <class Request>
  std::vector<float> logits_of(std::span<Request const> requests, auto&& want) {
    std::vector<Sequence<B>> sequences;
    sequences.reserve(requests.size());
    std::vector<SequenceInput<B>> inputs;
    std::vector<index_t> wanted;
    index_t row = 0;
    for (auto const& request : requests) {
      sequences.push_back(context_.start(request.adapters));
      inputs.push_back({&sequences.back(), request.tokens, request.prompt_tokens});
      if constexpr (requires { request.token_types; }) inputs.back().token_types = request.token_types;
      want(request, row, wanted);
      row += static_cast<index_t>(request.tokens.size());
    }
    std::vector<float> all(wanted.size() * static_cast<std::size_t>(output_width()));
    context_.forward(inputs, wanted, matrix_view(all.data(), static_cast<index_t>(wanted.size()), output_width()));
    return all;
  }

  void check_language_model(char const* what) const {
    expects(Arch::causal && config().language_model, "graft: ", config().name, " is ",
            Arch::causal ? "a classifier" : "an encoder", " and ", what);
  }

  Owner owner_;
  CommandModel model_;
  Context<CommandModel> context_;
};

template <class Arch, class Owner>
std::unique_ptr<Engine> make_engine_of(ModelFiles files, EngineOptions const& options) {
  return std::make_unique<ArchitectureEngine<Arch, Owner>>(std::move(files), options);
}

}  // namespace graft::cli
