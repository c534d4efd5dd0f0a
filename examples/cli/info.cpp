// SPDX-License-Identifier: Apache-2.0
// graft info: what a model, adapter or tensor file holds. Everything is checked as it would be for use.
#include <examples/cli/command.hpp>

#include <graft/io/gguf_lora.hpp>
#include <graft/io/peft_sites.hpp>

#include <cstdio>
#include <map>
#include <set>

namespace graft::cli {
namespace info_command {

using Json = nlohmann::ordered_json;

struct Options {
  std::string path, model;
  bool json = false;
};

Json describe_formats(std::map<std::string, index_t> const& formats) {
  Json result = Json::object();
  for (auto const& [name, count] : formats) result[name] = count;
  return result;
}

Json describe_model(std::string const& path) {
  auto files = open_model(path);
  bool const gguf = files.gguf.has_value();
  auto const engine = make_engine(std::move(files), {1});  // every tensor the architecture needs, of the right shape
  auto const& c = engine->config();
  std::map<std::string, index_t> formats;
  index_t parameters = 0, bytes = 0;
  std::set<std::byte const*> counted;  // tied weights count once
  for (auto const& [name, weight] : engine->weights().tensors) {
    if (!counted.insert(weight.data).second) continue;
    ++formats[format_info(weight.format).name];
    parameters += weight.rows * weight.cols;
    bytes += weight.bytes();
  }
  Json out;
  out["kind"] = "model";
  out["file"] = gguf ? "gguf" : "safetensors";
  out["architecture"] = c.architecture;
  out["name"] = c.name;
  out["parameters"] = parameters;
  out["bytes"] = bytes;
  out["layers"] = c.layers;
  out["width"] = c.width;
  out["heads"] = c.heads;
  out["kv_heads"] = c.kv_heads;
  out["head_dim"] = c.head_dim;
  out["ffn"] = c.ffn;
  out["vocabulary"] = c.vocabulary;
  out["positions"] = c.positions;
  if (c.window != 0) out["window"] = c.window;
  out["tied"] = c.tied;
  if (c.classifier) out["labels"] = c.labels;
  out["tensor_formats"] = describe_formats(formats);
  out["sites"] = engine->sites().size();
  return out;
}

template <class P>
Json describe_module(Module<P, CommandBackend>& module, SiteTable const& sites) {
  Json out;
  out["kind"] = "adapter";
  out["method"] = P::peft_type;
  std::map<std::string, index_t> at;
  for (auto const& entry : module.entries) ++at[sites[entry.site].id];
  out["sites"] = Json::object();
  for (auto const& [id, count] : at) out["sites"][id] = count;
  if constexpr (requires { module.policy.rank; }) {
    std::set<index_t> ranks;
    for (auto const& entry : module.entries) ranks.insert(entry.policy.rank);
    out["ranks"] = ranks;
  }
  if constexpr (requires { module.policy.alpha; }) {
    out["alpha"] = module.policy.alpha;
    out["rank_stabilized"] = module.policy.rank_stabilized;
  }
  if constexpr (requires { module.policy.variant; }) {
    out["variant"] = module.policy.names(module.policy.variant)[static_cast<std::size_t>(module.policy.variant)];
    out["group_size"] = module.policy.group_size;
  }
  index_t parameters = module.parameters().size;
  for (auto const& [name, tensor] : module.saved) parameters += static_cast<index_t>(tensor.values.size());
  out["parameters"] = parameters;
  if (index_t const dead = module.parameters().size - module.live_parameters(); dead != 0)
    out["live_parameters"] = parameters - dead;
  if (!module.saved.empty()) {
    out["saved_tensors"] = Json::array();
    for (auto const& [name, tensor] : module.saved) out["saved_tensors"].push_back(name);
  }
  return out;
}

Json describe_adapter(Options const& options) {
  bool const gguf = is_gguf(options.path);
  SiteTable sites;
  std::unique_ptr<Engine> engine;
  if (!options.model.empty()) {
    engine = make_engine(open_model(options.model), {1});
    sites = engine->sites();
  } else {
    sites = gguf ? gguf_lora_sites(options.path) : peft_sites(options.path);
  }
  Json out;
  std::vector<std::string> warnings;
  if (gguf) {
    auto read = engine != nullptr ? read_gguf_lora<CommandBackend>(options.path, sites, "adapter", engine->config())
                                  : read_gguf_lora<CommandBackend>(options.path, sites, "adapter");
    warnings = read.warnings;
    out = describe_module(read.module, sites);
  } else {
    auto read = read_any_peft<CommandAdapters, CommandBackend>(options.path, sites, "adapter");
    warnings = read.warnings;
    out = std::visit([&](auto& module) { return describe_module(module, sites); }, read.module);
  }
  out["file"] = gguf ? "gguf" : "peft";
  if (engine != nullptr) {
    index_t base = 0;
    std::set<std::byte const*> counted;
    for (auto const& [name, weight] : engine->weights().tensors)
      if (counted.insert(weight.data).second) base += weight.rows * weight.cols;
    out["share_of_base"] = static_cast<double>(out["parameters"].get<index_t>()) / static_cast<double>(base);
  }
  if (!warnings.empty()) out["warnings"] = warnings;
  return out;
}

Json describe_tensors(TensorFile const& file) {
  Json out;
  out["kind"] = "tensors";
  out["file"] = "safetensors";
  out["tensors"] = Json::object();
  for (auto const& tensor : file.tensors())
    out["tensors"][tensor.name] = Json{{"format", format_info(tensor.format).name}, {"shape", tensor.shape}};
  return out;
}

bool is_adapter(std::string const& path) {
  namespace fs = std::filesystem;
  if (fs::is_directory(path)) return !fs::exists(fs::path(path) / "config.json");
  if (!is_gguf(path)) return false;
  auto const file = read_gguf(path);
  return file.metadata.contains("general.type") && file.metadata.get<std::string_view>("general.type") == "adapter";
}

void run(Options const& options) {
  namespace fs = std::filesystem;
  if (!fs::exists(options.path)) raise<FormatError>(options.path, ": does not exist");
  Json out;
  if (is_adapter(options.path))
    out = describe_adapter(options);
  else if (fs::path(options.path).extension() == ".safetensors" &&
           !fs::exists(fs::path(options.path).parent_path() / "config.json"))
    out = describe_tensors(read_safetensors(options.path));
  else
    out = describe_model(options.path);
  if (options.json) {
    std::printf("%s\n", out.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
    return;
  }
  for (auto const& [key, value] : out.items()) {
    auto const shown =
        value.is_string() ? value.get<std::string>() : value.dump(-1, ' ', false, Json::error_handler_t::replace);
    std::printf("%-16s %s\n", key.c_str(), shown.c_str());
  }
}

}  // namespace info_command

void add_info(CLI::App& app) {
  using namespace info_command;
  auto const options = std::make_shared<Options>();
  auto* const command = app.add_subcommand("info", "what a model, adapter or tensor file holds");
  command->add_option("path", options->path, "GGUF file, safetensors file, model folder or adapter folder")->required();
  command->add_option("--model", options->model, "the adapter's base model, to check it against");
  command->add_flag("--json", options->json, "print one JSON object");
  command->callback([options] { run(*options); });
}

}  // namespace graft::cli
