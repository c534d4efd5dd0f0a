// SPDX-License-Identifier: Apache-2.0
// graft logits: one mixed batch of requests, all logits into a safetensors file.
#include <examples/cli/command.hpp>

#include <graft/io/safetensors.hpp>

#include <cstdio>

namespace graft::cli {
namespace logits_command {

struct Options {
  ModelOptions model;
  std::string requests, out;
};

std::vector<LogitsRequest> read_requests(std::string const& path) {
  std::vector<LogitsRequest> requests;
  for (auto const& line : read_json_lines(path, {"tokens", "adapters", "prompt_tokens", "token_type_ids"})) {
    LogitsRequest request;
    request.tokens = line.get<std::vector<std::int32_t>>("tokens", {});
    if (request.tokens.empty()) line.fail("needs a non-empty list \"tokens\"");
    request.token_types = line.get<std::vector<std::int32_t>>("token_type_ids", {});
    request.prompt_tokens = line.get<index_t>("prompt_tokens", -1);
    request.adapters = adapters_of(line);
    if (!request.token_types.empty() && request.token_types.size() != request.tokens.size())
      line.fail("has ", request.tokens.size(), " tokens but ", request.token_types.size(), " token_type_ids");
    if (line.has("prompt_tokens") &&
        (request.prompt_tokens < 1 || request.prompt_tokens > static_cast<index_t>(request.tokens.size())))
      line.fail("prompt_tokens is ", request.prompt_tokens, " for ", request.tokens.size(), " tokens");
    requests.push_back(std::move(request));
  }
  return requests;
}

void run(Options const& options) {
  auto const requests = read_requests(options.requests);
  auto const engine = options.model.open();
  auto const results = checked_at(options.requests, [&] { return engine->logits(requests); });
  std::vector<TensorInfo> tensors;
  index_t const width = engine->output_width();
  for (std::size_t k = 0; k < results.size(); ++k) {
    auto const rows = static_cast<index_t>(results[k].size()) / width;
    auto const shape = engine->config().classifier ? std::vector<index_t>{width} : std::vector<index_t>{rows, width};
    tensors.push_back({std::to_string(k), Format::f32, shape, reinterpret_cast<std::byte const*>(results[k].data()),
                       results[k].size() * sizeof(float)});
  }
  write_safetensors(options.out, std::move(tensors));
  if (options.model.json)
    std::printf("%s\n",
                nlohmann::json{{"requests", requests.size()}, {"columns", width}, {"out", options.out}}.dump().c_str());
  else
    std::printf("%zu requests, %lld columns -> %s\n", requests.size(), static_cast<long long>(width),
                options.out.c_str());
}

}  // namespace logits_command

void add_logits(CLI::App& app) {
  using namespace logits_command;
  auto const options = std::make_shared<Options>();
  auto* const command = app.add_subcommand("logits", "logits of a mixed batch of requests");
  options->model.add_to(*command);
  command
      ->add_option(
          "--requests", options->requests,
          "lines {\"tokens\":[...], \"adapters\":[{\"name\",\"weight\"}], \"prompt_tokens\", \"token_type_ids\"}")
      ->required();
  command->add_option("--out", options->out, "safetensors file to write, tensors \"0\", \"1\", ...")->required();
  command->callback([options] { run(*options); });
}

}  // namespace graft::cli
