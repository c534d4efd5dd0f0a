// SPDX-License-Identifier: Apache-2.0
#include <examples/cli/command.hpp>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

namespace graft::cli {

void ModelOptions::add_to(CLI::App& command, bool serves) {
  command.add_option("--model", model, "GGUF file, safetensors file or Hugging Face folder")->required();
  if (serves)
    command.add_option("--adapter", adapters, "NAME=PATH of a PEFT folder or GGUF LoRA; repeatable")->take_all();
  auto const add_storage = [&](char const* name, std::string& value, std::string const& of) {
    command
        .add_option(name, value,
                    "f32 or bf16, what " + of + " are kept in; by default f32 in exact, bf16 in native precision")
        ->check(CLI::IsMember({"f32", "bf16"}));
  };
  if (serves) add_storage("--adapter-storage", adapter_storage, "adapters");
  if (serves) add_storage("--kv-storage", kv_storage, "keys and values");
  if (serves)
    command
        .add_option("--weight-storage", weight_storage,
                    "file: weights where they lie in it; packed: the same numbers, those in bf16 in fewer bytes, as "
                    "the processor reads them sooner, where it has a way to; by default where generate makes 128 "
                    "tokens")
        ->check(CLI::IsMember({"file", "packed"}));
  command.add_option("--device", device, "cpu or cuda")->check(CLI::IsMember({"cpu", "cuda"}));
  command.add_option("--threads", threads, "threads to compute with; 0: one per core")->check(CLI::Range(0, 1024));
  command
      .add_option("--precision", precision,
                  "exact or native: activations as f32, or rounded to what the processor multiplies")
      ->check(CLI::IsMember({"exact", "native"}));
  command.add_flag("--json", json, "print JSON");
}

namespace {

/// A weight behind the path is for `merge`; here it would be read as a part of the name.
void check_adapter_path(std::string const& name, std::string const& path) {
  auto const equals = path.rfind('=');
  std::error_code ignored;
  if (equals == std::string::npos || std::filesystem::exists(path, ignored)) return;
  if (std::filesystem::exists(path.substr(0, equals), ignored))
    throw UsageError(text("--adapter ", name, '=', path, " ends in a weight; it is given where the adapter is used, ",
                          "with --use ", name, path.substr(equals), " or in the lines of --requests"));
}

}  // namespace

void ModelOptions::check() const {
  if (device == "cuda") raise<ContractError>("this part of graft runs on the processor only; use --device cpu");
}

CLI::Validator seed_number() {
  return CLI::Validator(
      [](std::string& value) {
        std::uint64_t seed = 0;
        char const* const last = value.data() + value.size();
        auto const [end, error] = std::from_chars(value.data(), last, seed);
        return end == last && error == std::errc{} ? std::string() : text("Value ", value, " is not a seed of 64 bits");
      },
      "");
}

CLI::Validator number(bool (*ok)(double), char const* which) {
  return CLI::Validator(
      [=](std::string& value) {
        double parsed = 0;
        char const* const last = value.data() + value.size();
        bool const whole = std::from_chars(value.data(), last, parsed).ptr == last;
        return whole && std::isfinite(parsed) && ok(parsed) ? std::string() : text("Value ", value, " is not ", which);
      },
      "");
}

CLI::Validator whole_number(std::int64_t least) { return CLI::Range(least, std::int64_t{1} << 40); }

std::vector<AdapterUse> ModelOptions::uses(std::vector<std::string> const& use) const {
  std::vector<AdapterUse> result;
  for (auto const& one : use) {
    auto const parsed = result.emplace_back(parse_use(one));
    if (std::none_of(adapters.begin(), adapters.end(), [&](auto const& a) { return a.starts_with(parsed.name + "="); }))
      throw UsageError(text("--use ", one, ": no --adapter is called ", parsed.name));
  }
  return result;
}

std::unique_ptr<Engine> ModelOptions::open() const {
  EngineOptions options = engine_options();
  bool const native = options.precision == Precision::native;
  options.device = device == "cuda" ? Device::cuda : Device::cpu;
  if (adapter_storage == "bf16" || (adapter_storage.empty() && native)) options.adapters = AdapterStorage::bf16;
  if (options.device == Device::cpu) {
    if (kv_storage == "bf16" || (kv_storage.empty() && native)) options.kv = KvStorage::bf16;
  } else if (kv_storage == "f32" ? native : kv_storage == "bf16" && !native) {
    raise<ContractError>("a GPU keeps keys and values as activations: f32 in exact, bf16 in native precision");
  }
  options.pack_weights = options.device == Device::cpu && weight_storage == "packed";
  auto engine = make_engine(open_model(model), options);
  std::vector<std::string> names;
  for (auto const& adapter : adapters) {
    auto const [name, path] = parse_named_path(adapter);
    if (std::find(names.begin(), names.end(), name) != names.end())
      throw UsageError(text("--adapter ", name, " is given twice"));
    names.push_back(name);
    check_adapter_path(name, path);
    engine->load(name, path);
  }
  return engine;
}

AdapterUse parse_use(std::string const& use) {
  auto const equals = use.rfind('=');
  if (equals == std::string::npos) return {use, 1};
  AdapterUse result{use.substr(0, equals), 0};
  char const *const first = use.data() + equals + 1, *const last = use.data() + use.size();
  auto const [end, error] = std::from_chars(first, last, result.weight);
  if (error != std::errc{} || end != last || !std::isfinite(result.weight) || result.name.empty())
    throw UsageError(text("expected NAME or NAME=WEIGHT, got ", use));
  return result;
}

std::pair<std::string, std::string> parse_named_path(std::string const& argument) {
  auto const equals = argument.find('=');
  if (equals == std::string::npos || equals == 0 || equals + 1 == argument.size())
    throw UsageError(text("expected NAME=PATH, got ", argument));
  return {argument.substr(0, equals), argument.substr(equals + 1)};
}

std::vector<AdapterUse> adapters_of(JsonLine const& line) {
  std::vector<AdapterUse> uses;
  if (!line.has("adapters")) return uses;
  auto const& list = line.value.at("adapters");
  if (!list.is_array()) line.fail("\"adapters\" should be a list");
  for (auto const& item : list) {
    bool const object = item.is_object() && item.contains("name") && item.at("name").is_string();
    if (!object && !item.is_string()) line.fail("an adapter should be {\"name\": ..., \"weight\": ...}");
    if (item.is_string()) {
      uses.push_back({item.get<std::string>(), 1});
      continue;
    }
    for (auto const& [key, member] : item.items())
      if (key != "name" && key != "weight") line.fail("unknown key \"", key, "\" of an adapter");
    if (item.contains("weight") && !item.at("weight").is_number()) line.fail("an adapter's weight should be a number");
    uses.push_back({item.at("name").get<std::string>(), item.value("weight", 1.0)});
  }
  return uses;
}

}  // namespace graft::cli
