// SPDX-License-Identifier: Apache-2.0
// One backbone, many tenants: every line of examples/data/demo.jsonl becomes one request of a single batch, each with
// its own adapters, and is afterwards computed alone. Exit status 1 when a request in the batch differs from itself
// alone by more than the bound.      01_many_tenants [MODEL.gguf [DATA_FOLDER [TOKENS]]]
#include <graft/graft.hpp>
#include <graft/io/json_object.hpp>
#include <graft/io/model_files.hpp>
#include <graft/io/peft.hpp>
#include <graft/text/model_tokenizer.hpp>
#include <graft/text/tokenizer.hpp>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>

using namespace graft;

namespace {

using Backend = CpuBackend<>;
using DemoModel = Model<Llama, Adapters<IA3Scaling, RoAdRotation, LoRADelta, PedroGenerator>, Backend>;

// Another batch is another shape, so sums run in another order; f32 keeps seven digits through 30 layers.
constexpr double bound = 1e-5;  // relative L2 of the logits

struct Tenant {
  std::string label, prompt;
  std::vector<AdapterUse> adapters;
  std::vector<std::int32_t> tokens;  // prompt, then continuation
  index_t prompt_tokens = 0;
  std::vector<std::vector<float>> logits;  // of every step, in the batch
  double seconds = 0, worst = 0;
};

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

std::vector<Tenant> read_tenants(std::string const& path, Tokenizer const& tokenizer) {
  std::ifstream file(path);
  if (!file) raise<FormatError>(text(path, ": cannot be opened"));
  std::vector<Tenant> tenants;
  for (std::string line; std::getline(file, line);) {
    if (line.empty()) continue;
    JsonObject const object(path, nlohmann::json::parse(line, nullptr, false));
    Tenant tenant{object.get<std::string>("label"), object.get<std::string>("prompt"), {}, {}, 0, {}, 0, 0};
    for (auto const& name : object.get<std::vector<std::string>>("adapters")) tenant.adapters.push_back({name});
    tenant.tokens = tokenizer.encode(tenant.prompt);
    tenant.prompt_tokens = static_cast<index_t>(tenant.tokens.size());
    tenants.push_back(std::move(tenant));
  }
  return tenants;
}

// All tenants at once: one prefill, then `count` tokens each, greedily.
void decode_together(Context<DemoModel>& context, std::vector<Tenant>& tenants, index_t count) {
  index_t const vocabulary = context.model().ends().output_width();
  std::vector<Sequence<Backend>> sequences;
  for (auto const& tenant : tenants) sequences.push_back(context.start(tenant.adapters));
  std::vector<float> logits(tenants.size() * static_cast<std::size_t>(vocabulary));
  auto const out = matrix_view(logits.data(), static_cast<index_t>(tenants.size()), vocabulary);
  double const start = now();
  for (index_t step = 0; step < count; ++step) {
    std::vector<SequenceInput<Backend>> inputs;
    for (std::size_t k = 0; k < tenants.size(); ++k) {
      std::span<std::int32_t const> const all(tenants[k].tokens);
      inputs.push_back({&sequences[k], step == 0 ? all : all.last(1)});
    }
    context.forward_last(inputs, out);
    for (std::size_t k = 0; k < tenants.size(); ++k) {
      float const* const row = out.row(static_cast<index_t>(k));
      tenants[k].logits.emplace_back(row, row + vocabulary);
      tenants[k].tokens.push_back(static_cast<std::int32_t>(std::max_element(row, row + vocabulary) - row));
      tenants[k].seconds = now() - start;
    }
  }
}

// One tenant alone, fed the same tokens; the largest difference of a step's logits goes to tenant.worst.
void decode_alone(Context<DemoModel>& context, Tenant& tenant) {
  index_t const vocabulary = context.model().ends().output_width();
  auto sequence = context.start(tenant.adapters);
  std::vector<float> logits(static_cast<std::size_t>(vocabulary));
  std::span<std::int32_t const> const all(tenant.tokens);
  auto const prompt = static_cast<std::size_t>(tenant.prompt_tokens);
  for (std::size_t step = 0; step < tenant.logits.size(); ++step) {
    SequenceInput<Backend> const input{&sequence, step == 0 ? all.first(prompt) : all.subspan(prompt + step - 1, 1)};
    context.forward_last({&input, 1}, matrix_view(logits.data(), 1, vocabulary));
    double difference = 0, size = 0;
    for (std::size_t j = 0; j < logits.size(); ++j) {
      double const d = static_cast<double>(logits[j]) - static_cast<double>(tenant.logits[step][j]);
      difference += d * d;
      size += static_cast<double>(logits[j]) * static_cast<double>(logits[j]);
    }
    tenant.worst = std::max(tenant.worst, std::sqrt(difference / size));
  }
}

int run(std::string const& path, std::string const& data, index_t count) {
  double const opened = now();
  ThreadPool pool;
  Backend backend(pool);
  ModelFiles files = open_model(path);
  DemoModel model(files.config, files.weights);
  Tokenizer const tokenizer(read_tokenizer(path));
  auto tenants = read_tenants(data + "/demo.jsonl", tokenizer);
  for (auto const& tenant : tenants)
    for (auto const& use : tenant.adapters)
      if (model.bank().find(use.name) == nullptr)
        load_adapter(backend, model.bank(), use.name, data + "/adapters/" + use.name);
  std::printf("%s with %zu adapters, ready in %.2f s; %zu requests in one batch\n\n", model.config().name.c_str(),
              model.bank().names().size(), now() - opened, tenants.size());

  Context context(model, backend);
  decode_together(context, tenants, count);
  double const together = tenants.back().seconds, begun = now();
  for (auto& tenant : tenants) decode_alone(context, tenant);
  double const apart = now() - begun;

  bool good = true;
  for (auto const& tenant : tenants) {
    auto const begin = tenant.tokens.begin() + tenant.prompt_tokens;  // what comes after the end is not shown
    auto const end = std::find(begin, tenant.tokens.end(), tokenizer.eos());
    std::printf("[%s]\n%s|%s\n\n", tenant.label.c_str(), tenant.prompt.c_str(), tokenizer.decode({begin, end}).c_str());
  }
  std::printf("%-32s %7s %9s %22s %8s\n", "request", "tokens", "tokens/s", "difference to alone", "bound");
  for (auto const& tenant : tenants) {
    bool const inside = tenant.worst <= bound;  // false for NaN
    good = good && inside;
    std::printf("%-32s %7lld %9.1f %22.1e %8.0e%s\n", tenant.label.c_str(), static_cast<long long>(count),
                static_cast<double>(count) / tenant.seconds, tenant.worst, bound, inside ? "" : "  TOO LARGE");
  }
  double const all = static_cast<double>(count) * static_cast<double>(tenants.size());
  std::printf("\ntogether %.1f tokens/s, one after the other %.1f tokens/s\n", all / together, all / apart);
  std::printf("%s\n",
              good ? "every request in the batch equals itself alone within the bound" : "FAILED: a request differs");
  return good ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  std::string const path = argc > 1 ? argv[1] : ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf";
  std::string const data = argc > 2 ? argv[2] : "examples/data";
  if (!std::filesystem::exists(path)) return std::printf("-- skipped: %s is not there\n", path.c_str()), 0;
  try {
    return run(path, data, argc > 3 ? std::stoll(argv[3]) : 28);
  } catch (std::exception const& e) {
    std::fprintf(stderr, "01_many_tenants: %s\n", e.what());
    return 1;
  }
}
