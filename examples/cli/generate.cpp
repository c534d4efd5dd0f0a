// SPDX-License-Identifier: Apache-2.0
// graft generate: continuations, each request with its own adapters.
#include <examples/cli/command.hpp>

#include <graft/text/completion.hpp>
#include <graft/text/model_tokenizer.hpp>

#include <algorithm>
#include <cstdio>
#include <optional>

namespace graft::cli {
namespace generate_command {

struct Options {
  ModelOptions model;
  std::optional<std::string> prompt;
  std::string requests;
  std::vector<std::string> use;
  index_t max_tokens = 64;
  SamplingOptions sampling;
  bool chat = false;
};

constexpr index_t longest_continuation = 1 << 20;
/// Tokens after which weights have been worth packing: it takes about as long as they then save.
constexpr index_t worth_packing = 128;

struct Request {
  GenerationRequest generation;
  std::string prompt, adapters;
};

// Independent streams from (--seed, line), so that what one request samples does not depend on the others.
std::uint64_t seed_of(std::uint64_t seed, std::size_t line) {
  Random mixed(seed ^ (0x9e3779b97f4a7c15u * (static_cast<std::uint64_t>(line) + 1)));
  return mixed.next();
}

std::string shown(std::vector<AdapterUse> const& uses) {
  std::string result;
  for (auto const& use : uses)
    result += text(result.empty() ? "" : " + ", use.weight == 1 ? "" : text(use.weight, " "), use.name);
  return result.empty() ? "-" : result;
}

double per_second(std::size_t tokens, double seconds) {
  return tokens == 0 ? 0 : static_cast<double>(tokens) / seconds;
}

std::vector<Request> read_requests(Options const& options, Tokenizer const& tokenizer) {
  std::vector<Request> requests;
  auto const add = [&](std::string prompt, std::vector<AdapterUse> uses, index_t max_tokens, SamplingOptions sampling) {
    Request request;
    request.generation.prompt = prompt_tokens(tokenizer, prompt, options.chat);
    for (auto id : {tokenizer.eos(), tokenizer.end_of_turn()})
      if (id >= 0) request.generation.stop.push_back(id);
    request.generation.max_tokens = max_tokens;
    request.generation.sampling = sampling;
    request.adapters = shown(uses);
    request.generation.adapters = std::move(uses);
    request.prompt = std::move(prompt);
    requests.push_back(std::move(request));
  };
  if (options.requests.empty()) {
    auto sampling = options.sampling;
    sampling.seed = seed_of(sampling.seed, 0);
    add(*options.prompt, options.model.uses(options.use), options.max_tokens, sampling);
    return requests;
  }
  std::size_t number = 0;
  for (auto const& line : read_json_lines(options.requests, {"prompt", "adapters", "max_tokens", "temperature", "top_k",
                                                             "top_p", "min_p", "repeat_penalty", "seed"})) {
    SamplingOptions sampling = options.sampling;
    sampling.temperature = line.get("temperature", sampling.temperature);
    sampling.top_k = line.get("top_k", sampling.top_k);
    sampling.top_p = line.get("top_p", sampling.top_p);
    sampling.min_p = line.get("min_p", sampling.min_p);
    sampling.repeat_penalty = line.get("repeat_penalty", sampling.repeat_penalty);
    sampling.seed = line.get<std::uint64_t>("seed", seed_of(options.sampling.seed, number));
    index_t const max_tokens = line.get("max_tokens", options.max_tokens);
    if (max_tokens < 0 || max_tokens > longest_continuation)
      line.fail("max_tokens is ", max_tokens, ", expected from 0 to ", longest_continuation);
    line.checked([&] {
      Sampler const checked(sampling);
      add(line.get<std::string>("prompt"), adapters_of(line), max_tokens, sampling);
    });
    ++number;
  }
  return requests;
}

void run(Options const& options) {
  if (options.prompt.has_value() != options.requests.empty())
    throw UsageError("give --prompt or --requests, one of them");
  if (!options.requests.empty() && !options.use.empty())
    throw UsageError("--use is for --prompt; the lines of --requests name their own adapters");
  checked_use([&] { return Sampler(options.sampling); });
  Tokenizer const tokenizer(read_tokenizer(options.model.model));
  auto requests = read_requests(options, tokenizer);
  auto model = options.model;
  if (model.weight_storage.empty()) {
    bool const many = std::any_of(requests.begin(), requests.end(),
                                  [](auto const& request) { return request.generation.max_tokens >= worth_packing; });
    model.weight_storage = many ? "packed" : "file";
  }
  auto const engine = model.open();
  std::vector<GenerationRequest> generations;
  for (auto const& request : requests) {
    generations.push_back(request.generation);
    auto& stop = generations.back().stop;
    stop.insert(stop.end(), engine->config().end_tokens.begin(), engine->config().end_tokens.end());
  }

  bool const live = requests.size() == 1 && !options.model.json;  // several at once would interleave
  StreamDecoder stream(tokenizer);
  auto const on_token = [&](std::size_t, std::int32_t token) {
    if (!live) return;
    std::fputs(stream.push(token).c_str(), stdout);
    std::fflush(stdout);
  };
  auto const generate = [&] { return engine->generate(generations, on_token); };
  auto const results = options.requests.empty() ? generate() : checked_at(options.requests, generate);
  if (live) std::printf("%s\n", stream.finish().c_str());

  double longest = 0;
  std::size_t total = 0;
  for (std::size_t k = 0; k < results.size(); ++k) {
    auto const& result = results[k];
    longest = std::max(longest, result.seconds);
    total += result.tokens.size();
    auto const continuation = tokenizer.decode(result.tokens);
    if (options.model.json)
      std::printf("%s\n", nlohmann::json{{"request", k},
                                         {"adapters", requests[k].adapters},
                                         {"prompt", requests[k].prompt},
                                         {"text", continuation},
                                         {"tokens", result.tokens},
                                         {"stopped", result.stopped},
                                         {"seconds", result.seconds},
                                         {"tokens_per_second", per_second(result.tokens.size(), result.seconds)}}
                              .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
                              .c_str());
    else if (!live)
      std::printf("[%zu] %s\n%s%s\n\n", k, requests[k].adapters.c_str(), requests[k].prompt.c_str(),
                  continuation.c_str());
  }
  if (options.model.json) return;
  std::printf("\n%-8s %-40s %8s %10s\n", "request", "adapters", "tokens", "tokens/s");
  for (std::size_t k = 0; k < results.size(); ++k)
    std::printf("%-8zu %-40s %8zu %10.1f\n", k, requests[k].adapters.c_str(), results[k].tokens.size(),
                per_second(results[k].tokens.size(), results[k].seconds));
  std::printf("%-8s %-40s %8zu %10.1f\n", "all", "", total, per_second(total, longest));
}

}  // namespace generate_command

void add_generate(CLI::App& app) {
  using namespace generate_command;
  auto const options = std::make_shared<Options>();
  auto* const command = app.add_subcommand("generate", "continue prompts, each with its own adapters");
  options->model.precision = "native";
  options->model.add_to(*command);
  command->add_option("--prompt", options->prompt, "text to continue");
  command->add_option("--use", options->use, "NAME or NAME=WEIGHT of an adapter for --prompt; repeatable")->take_all();
  command->add_option("--requests", options->requests, "lines {\"prompt\", \"adapters\", \"max_tokens\", ...}");
  command->add_option("--max-tokens", options->max_tokens, "longest continuation")
      ->check(CLI::Range(index_t{0}, longest_continuation));
  command->add_option("--temperature", options->sampling.temperature, "0: most likely token");
  command->add_option("--top-k", options->sampling.top_k);
  command->add_option("--top-p", options->sampling.top_p);
  command->add_option("--min-p", options->sampling.min_p);
  command->add_option("--repeat-penalty", options->sampling.repeat_penalty);
  command->add_option("--seed", options->sampling.seed)->check(seed_number());
  command->add_flag("--chat", options->chat, "apply the model's chat template to the prompt");
  command->callback([options] { run(*options); });
}

}  // namespace graft::cli
