// SPDX-License-Identifier: Apache-2.0
// graft combine: one adapter out of several.
#include <examples/cli/combine_ops.hpp>
#include <examples/cli/command.hpp>
#include <examples/cli/model_output.hpp>

#include <graft/arithmetic/weight_search.hpp>
#include <graft/io/gguf_lora.hpp>
#include <graft/io/peft_sites.hpp>
#include <graft/text/completion.hpp>
#include <graft/text/model_tokenizer.hpp>

#include <algorithm>
#include <cstdio>
#include <map>

namespace graft::cli {
namespace combine_command {

namespace fs = std::filesystem;

struct Options {
  CombineOptions combine;
  std::string out, model, data, type;
  std::vector<std::string> operands;
  index_t evaluations = 40, threads = 0;
  bool json = false;
};

/// The sites several adapter folders speak of, where no model is at hand to ask.
SiteTable sites_of(std::vector<std::string> const& folders) {
  std::map<std::string, SiteInfo> by_path;
  std::map<index_t, std::pair<std::string, index_t>> vectors;  // of PEDRO, by layer
  for (auto const& folder : folders) {
    auto const found = peft_sites(folder);
    for (auto const& site : found.all()) {
      auto const [place, fresh] = by_path.try_emplace(site.path, site);
      place->second.in = std::max(place->second.in, site.in);
      place->second.out = std::max(place->second.out, site.out);
    }
    for (std::size_t l = 0; l < found.layers().size(); ++l)
      if (auto const& layer = found.layers()[l]; layer.block >= 0)
        vectors[static_cast<index_t>(l)] = {found[layer.block].path, layer.query.size};
  }
  SiteTable table;
  for (auto const& [path, site] : by_path) table.add(site);
  for (index_t l = 0; !vectors.empty() && l <= vectors.rbegin()->first; ++l) {
    auto const layer = vectors.find(l);
    if (layer == vectors.end()) {
      table.add_layer({});
      continue;
    }
    index_t const block = table.find(layer->second.first);
    table.add_layer({block, {block, 0, layer->second.second}, {block, 0, 0}, {block, 0, 0}, {}});
  }
  return table;
}

/// Mean loss of the completions in --data with a weighted list of adapters, as LoraHub's score.
class DataLoss {
 public:
  DataLoss(Options const& options, Engine& engine) : engine_(engine) {
    Tokenizer const tokenizer(read_tokenizer(options.model));
    for (auto const& line : read_json_lines(options.data, {"prompt", "completion", "choices"})) {
      auto joined = line.checked([&] {
        return join_completion(tokenizer, prompt_tokens(tokenizer, line.get<std::string>("prompt"), false),
                               tokenizer.encode(line.get<std::string>("completion"), false, false),
                               engine.config().positions);
      });
      ScoreRequest request;
      request.first = request.prompt_tokens = joined.prompt;
      request.tokens = std::move(joined.tokens);
      requests_.push_back(std::move(request));
    }
  }
  double operator()(std::vector<AdapterUse> const& uses) {
    for (auto& request : requests_) request.adapters = uses;
    double sum = 0, tokens = 0;
    for (std::size_t first = 0; first < requests_.size(); first += 8)
      for (auto const& scores :
           engine_.scores(std::span(requests_).subspan(first, std::min<std::size_t>(8, requests_.size() - first))))
        for (double const log_p : scores) sum -= log_p, ++tokens;
    return sum / std::max(tokens, 1.0);
  }

 private:
  Engine& engine_;
  std::vector<ScoreRequest> requests_;
};

std::vector<double> searched_weights(Options const& options, std::vector<Operand> const& operands) {
  auto const engine = make_engine(open_model(options.model), {options.threads});
  std::vector<AdapterUse> uses;
  for (std::size_t k = 0; k < operands.size(); ++k) {
    uses.push_back({text('m', k), 0});
    engine->load(uses.back().name, operands[k].path);
  }
  DataLoss loss(options, *engine);
  WeightSearch search;
  search.evaluations = options.evaluations;
  search.seed = options.combine.seed;
  auto const found = search_weights(
      static_cast<index_t>(operands.size()),
      [&](std::vector<double> const& weights) {
        for (std::size_t k = 0; k < uses.size(); ++k) uses[k].weight = weights[k];
        return loss(uses);
      },
      search);
  return found.weights;
}

Operand parse_operand(std::string const& argument, CombineOp const& op, std::size_t count) {
  Operand operand;
  operand.path = argument;
  operand.weight = op.weight > 0 ? op.weight : 1 / static_cast<double>(count);
  if (argument.find('=') == std::string::npos || fs::exists(argument)) return operand;
  auto const use = parse_use(argument);
  if (op.formula.find("no weights") != std::string_view::npos)
    throw UsageError(text(op.name, " takes its adapters without weights, not ", argument));
  operand.path = use.name;
  operand.weight = use.weight;
  return operand;
}

void report(Options const& options, std::vector<Operand> const& operands, CombineResult const& result) {
  double error = 0, norm = 0;
  for (auto const& site : result.errors) error += site.error * site.error, norm += site.norm * site.norm;
  double const relative = norm > 0 ? std::sqrt(error / norm) : 0;
  std::visit(
      [&]<class P>(Module<P, CommandBackend> const& module) {
        index_t least = 0, most = 0;
        if constexpr (std::same_as<P, LoRADelta> || std::same_as<P, PedroGenerator>)
          for (auto const& entry : module.entries) {
            least = least == 0 ? entry.policy.rank : std::min(least, entry.policy.rank);
            most = std::max(most, entry.policy.rank);
          }
        auto const parameters = module.parameters().size;
        if (options.json) {
          nlohmann::ordered_json from = nlohmann::ordered_json::array();
          for (auto const& operand : operands) from.push_back({{"path", operand.path}, {"weight", operand.weight}});
          nlohmann::ordered_json out = {
              {"out", options.out},   {"op", options.combine.op},       {"operands", from},
              {"kind", P::peft_type}, {"sites", module.entries.size()}, {"parameters", parameters}};
          if (most > 0) out["ranks"] = {least, most};
          if (!result.errors.empty()) out["relative_error"] = relative;
          std::printf("%s\n", out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
          return;
        }
        std::string line = text(options.out, ": ", P::peft_type, ", ", module.entries.size(), " sites, ");
        if (most > 0)
          line += text(least == most ? "rank " : "ranks ", least, least == most ? "" : text(" to ", most), ", ");
        line += text(parameters, " parameters");
        if (!result.errors.empty()) line += text(", relative error of compression ", relative);
        std::printf("%s\n", line.c_str());
        for (auto const& operand : operands)
          if (options.combine.op == "search") std::printf("  %s=%.6g\n", operand.path.c_str(), operand.weight);
      },
      result.module.module);
}

void run(Options const& options) {
  auto const* const op = std::find_if(combine_ops.begin(), combine_ops.end(),
                                      [&](auto const& one) { return one.name == options.combine.op; });
  if (op == combine_ops.end()) {
    std::string all;
    for (auto const& one : combine_ops) all += text(all.empty() ? "" : ", ", one.name);
    throw UsageError(text("--op ", options.combine.op, " is not known; there are ", all));
  }
  auto const count = static_cast<index_t>(options.operands.size());
  if (count < op->least || (op->most > 0 && count > op->most))
    throw UsageError(text(op->name, " takes ", op->least,
                          op->most == 0          ? " or more"
                          : op->most > op->least ? text(" to ", op->most)
                                                 : "",
                          op->most == 1 ? " adapter" : " adapters", ", not ", count));
  bool const needs_model = op->name == "search" || op->name == "to-lora";
  if (needs_model && options.model.empty()) throw UsageError(text(op->name, " needs --model"));
  if (op->name == "search" && options.data.empty()) throw UsageError("search needs --data");
  auto const type = parse_type(options.type).value_or(Format::f32);
  if (type != Format::f32 && type != Format::f16 && type != Format::bf16)
    throw UsageError("adapters are written as f32, f16 or bf16");

  std::vector<Operand> operands;
  std::vector<std::string> paths;
  for (auto const& argument : options.operands) {
    operands.push_back(parse_operand(argument, *op, options.operands.size()));
    paths.push_back(operands.back().path);
  }
  auto const engine = options.model.empty() ? nullptr : make_engine(open_model(options.model), {1});
  for (auto const& path : paths)
    if (is_gguf(path) && engine == nullptr) throw UsageError(text(path, " is a GGUF LoRA, which needs --model"));
  SiteTable const own = engine != nullptr ? SiteTable{} : sites_of(paths);
  SiteTable const& sites = engine != nullptr ? engine->sites() : own;
  for (auto& operand : operands) {
    auto const name = fs::path(operand.path).lexically_normal();
    auto const stem = (name.has_filename() ? name : name.parent_path()).stem().string();
    if (is_gguf(operand.path)) {
      auto lora = read_gguf_lora<CommandBackend>(operand.path, sites, stem, engine->config());
      operand.module.module = std::move(lora.module);
    } else {
      operand.module = read_any_peft<CommandAdapters, CommandBackend>(operand.path, sites, stem);
    }
    for (auto const& warning : operand.module.warnings) std::fprintf(stderr, "graft: warning: %s\n", warning.c_str());
  }
  if (op->name == "search") {
    auto const weights = searched_weights(options, operands);
    for (std::size_t k = 0; k < operands.size(); ++k) operands[k].weight = weights[k];
  }
  BaseWeights base;
  if (engine != nullptr) {
    auto const values = [&engine](std::string const& name) { return engine->weights().tensors.find(name); };
    base.weight = [&](index_t site) { return engine->weights().matrix(sites[site]); };
    base.bias = [&, values](index_t site) {
      auto const found = values(sites[site].path + ".bias");
      if (found == engine->weights().tensors.end()) return std::vector<float>{};
      std::vector<float> bias(static_cast<std::size_t>(found->second.cols));
      found->second.row(0, bias.data());
      return bias;
    };
  }
  auto result = combine(*op, options.combine, operands, sites, base);
  std::visit(
      [&](auto& module) {
        module.name = fs::path(options.out).stem().string();
        write_peft(options.out, module, sites, {type});
      },
      result.module.module);
  report(options, operands, result);
}

}  // namespace combine_command

void add_combine(CLI::App& app) {
  using namespace combine_command;
  auto const options = std::make_shared<Options>();
  auto& combine = options->combine;
  auto* const command = app.add_subcommand("combine", "one adapter out of several: sums, products, merging");
  command->add_option("--op", combine.op, "the operator, see below")->required();
  command->add_option("--out", options->out, "the adapter folder to write")->required();
  command->add_option("adapters", options->operands, "PATH or PATH=WEIGHT of PEFT folders, or GGUF LoRA with --model")
      ->required();
  command->add_option("--factor", combine.factor, "LoRA's factor that carries the sign: a or b (default b; detoxify a)")
      ->transform(CLI::IsMember({"a", "b"}, CLI::ignore_case));
  auto const any = number([](double) { return true; }, "a number"),
             share = number([](double x) { return x > 0 && x <= 1; }, "above 0 and up to 1"),
             below_one = number([](double x) { return x >= 0 && x < 1; }, "from 0 up and below 1");
  command->add_option("--lambda", combine.lambda, "of analogy and detoxify")->check(any)->capture_default_str();
  command->add_option("--t", combine.t, "of power, interpolate and slerp")->check(any)->capture_default_str();
  command->add_option("--rank", combine.rank, "rank to compress to (default: the largest of the adapters')")
      ->check(whole_number(1));
  command->add_option("--error", combine.error, "compress to this relative error instead")->check(below_one);
  command->add_option("--energy", combine.energy, "compress to this share of the squared norm instead")->check(share);
  command->add_option("--density", combine.density, "share of the entries that is kept")
      ->check(share)
      ->capture_default_str();
  command->add_option("--majority", combine.majority, "how signs are elected")
      ->check(CLI::IsMember({"total", "frequency"}))
      ->capture_default_str();
  command->add_flag("--as-peft", combine.as_peft, "PEFT's numbers: signs elected before weighing, IA3 as sum w l");
  command->add_option("--heads", combine.heads, "heads of several adapters: exact (weights must sum to 1) or first")
      ->check(CLI::IsMember({"exact", "first"}))
      ->capture_default_str();
  command->add_option("--group-size", combine.group_size, "of an IA3 adapter made RoAd")
      ->check(whole_number(2))
      ->capture_default_str();
  command->add_option("--part", combine.part, "of subspace: which part of the blocks, from 0 on")
      ->check(whole_number(0))
      ->capture_default_str();
  command->add_option("--parts", combine.parts, "of subspace: how many there are")
      ->check(whole_number(1))
      ->capture_default_str();
  command->add_option("--seed", combine.seed, "of what is drawn at random")
      ->check(seed_number())
      ->capture_default_str();
  command->add_option("--evaluations", options->evaluations, "of the loss, for search")
      ->check(whole_number(1))
      ->capture_default_str();
  command->add_option("--model", options->model, "the adapters' base model: checks them; needed by search and to-lora");
  command->add_option("--data", options->data, "lines of prompt and completion, for search");
  command->add_option("--type", options->type, "of the tensors written: f32 (default), f16 or bf16");
  command->add_option("--threads", options->threads, "threads to compute with; 0: one per core")
      ->check(CLI::Range(0, 1024));
  command->add_flag("--json", options->json, "print one JSON object");
  command->footer(combine_table());
  command->callback([options] { run(*options); });
}

}  // namespace graft::cli
