// SPDX-License-Identifier: Apache-2.0
// One backbone, many tenants: every line of FOLDER/demo.jsonl becomes one request of a single batch, each with its own
// adapters of FOLDER/adapters, and is afterwards computed alone. Exit status 1 when a request in the batch differs from
// itself alone by more than the bound. Where FOLDER/domains has held-out text, every adapter is measured on all of it.
//     01_many_tenants [FOLDER [MODEL [TOKENS]]]
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
  if (!file) raise<FormatError>(path, ": cannot be opened");
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

// -log2 p of each passage's completion, in bits per byte, under every list of adapters: all of them in one batch.
// Returns [adapters][passages].
std::vector<std::vector<double>> bits_per_byte(Context<DemoModel>& context, Tokenizer const& tokenizer,
                                               std::string const& path, std::vector<std::string> const& adapters) {
  std::ifstream file(path);
  if (!file) raise<FormatError>(path, ": cannot be opened");
  std::vector<std::vector<double>> bits(adapters.size());
  index_t const vocabulary = context.model().ends().output_width();
  for (std::string line; std::getline(file, line);) {
    JsonObject const object(path, nlohmann::json::parse(line, nullptr, false));
    auto tokens = tokenizer.encode(object.get<std::string>("prompt"));
    auto const prompt = static_cast<index_t>(tokens.size());
    auto const completion = object.get<std::string>("completion");
    for (auto token : tokenizer.encode(completion)) tokens.push_back(token);
    auto const count = static_cast<index_t>(tokens.size());
    std::vector<Sequence<Backend>> sequences;
    std::vector<SequenceInput<Backend>> inputs;
    std::vector<index_t> wanted;  // the row before each token of the completion
    sequences.reserve(adapters.size());
    for (std::size_t a = 0; a < adapters.size(); ++a) {
      std::vector<AdapterUse> uses;
      if (!adapters[a].empty()) uses.push_back({adapters[a]});
      sequences.push_back(context.start(uses));
      inputs.push_back({&sequences.back(), tokens, prompt});
      for (index_t t = prompt; t < count; ++t) wanted.push_back(static_cast<index_t>(a) * count + t - 1);
    }
    std::vector<float> logits(wanted.size() * static_cast<std::size_t>(vocabulary));
    auto const out = matrix_view(logits.data(), static_cast<index_t>(wanted.size()), vocabulary);
    context.forward(inputs, wanted, out);
    index_t row = 0;
    for (auto& of_adapter : bits) {
      double sum = 0;
      for (index_t t = prompt; t < count; ++t, ++row) {
        float const* const y = out.row(row);
        double const highest = *std::max_element(y, y + vocabulary);
        double all = 0;
        for (index_t v = 0; v < vocabulary; ++v) all += std::exp(static_cast<double>(y[v]) - highest);
        sum += std::log(all) + highest - static_cast<double>(y[tokens[static_cast<std::size_t>(t)]]);
      }
      of_adapter.push_back(sum / std::log(2.0) / static_cast<double>(completion.size()));
    }
  }
  return bits;
}

double mean(std::vector<double> const& values) {
  double sum = 0;
  for (double const v : values) sum += v;
  return sum / static_cast<double>(values.size());
}

// Adapters against domains; a star where an adapter beats the bare model by more than three standard errors of the
// difference.
void print_domains(Context<DemoModel>& context, Tokenizer const& tokenizer, std::filesystem::path const& folder) {
  std::vector<std::string> adapters = {""}, domains;
  for (auto const& name : context.model().bank().names()) adapters.push_back(name);
  for (auto const& file : std::filesystem::directory_iterator(folder)) domains.push_back(file.path().stem().string());
  std::sort(domains.begin(), domains.end());
  std::vector<std::vector<std::vector<double>>> bits;
  for (auto const& domain : domains)
    bits.push_back(bits_per_byte(context, tokenizer, (folder / (domain + ".jsonl")).string(), adapters));
  std::printf("held-out text, bits per byte (* better than the bare model by more than 3 standard errors)\n%-16s", "");
  for (auto const& domain : domains) std::printf("%10s", domain.c_str());
  for (std::size_t a = 0; a < adapters.size(); ++a) {
    std::printf("\n%-16s", a == 0 ? "no adapter" : adapters[a].c_str());
    for (auto const& of_domain : bits) {
      std::vector<double> gain, square;
      for (std::size_t k = 0; k < of_domain[a].size(); ++k) gain.push_back(of_domain[0][k] - of_domain[a][k]);
      double const gained = mean(gain);
      for (double const g : gain) square.push_back((g - gained) * (g - gained));
      double const error = std::sqrt(mean(square) / static_cast<double>(gain.size() - 1));
      std::printf("%9.3f%c", mean(of_domain[a]), a > 0 && gained > 3 * error ? '*' : ' ');
    }
  }
  std::printf("\n\n");
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

int run(std::string const& data, std::string const& path, index_t count) {
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
        load_adapter(backend, model, use.name, data + "/adapters/" + use.name);
  std::printf("%s with %zu adapters, ready in %.2f s; %zu requests in one batch\n\n", model.config().name.c_str(),
              model.bank().names().size(), now() - opened, tenants.size());

  Context context(model, backend);
  if (std::filesystem::exists(data + "/domains")) print_domains(context, tokenizer, data + "/domains");
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
  std::string const data = argc > 1 ? argv[1] : "examples/data/small";
  std::string const path = argc > 2 ? argv[2] : data + "/model";
  if (!std::filesystem::exists(path)) return std::printf("-- skipped: %s is not there\n", path.c_str()), 0;
  try {
    return run(data, path, argc > 3 ? std::stoll(argv[3]) : 28);
  } catch (std::exception const& e) {
    std::fprintf(stderr, "01_many_tenants: %s\n", e.what());
    return 1;
  }
}
