// SPDX-License-Identifier: Apache-2.0
// What the parts of the command share: options, adapters on the command line, requests files. Each command keeps its
// own names in a namespace, because several source files are compiled as one unit.
#pragma once

#include <examples/cli/engine.hpp>

#include <graft/io/json_lines.hpp>
#include <graft/text/tokenizer.hpp>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace graft::cli {

/// Wrong use of the command line: exit status 2.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// f(), whose ContractErrors are the command line's fault.
auto checked_use(auto&& f) {
  try {
    return f();
  } catch (ContractError const& error) {
    throw UsageError(std::string(reason_of(error)));
  }
}

/// What --seed must be: a whole number of 64 bits without a sign.
CLI::Validator seed_number();
/// A finite number for which `ok` holds; `which` says in words what it is, "a number above 0".
CLI::Validator number(bool (*ok)(double), char const* which);
/// A whole number from `least` up to more than any machine could count.
CLI::Validator whole_number(std::int64_t least);

/// Options of everything that runs a model.
struct ModelOptions {
  std::string model;
  std::vector<std::string> adapters;  ///< NAME=PATH
  std::string device = "cpu", precision = "exact", adapter_storage{}, kv_storage{}, weight_storage{};
  index_t threads = 0;
  bool json = false;

  /// What only commands that serve requests know: adapters, and what they and keys and values are kept in.
  void add_to(CLI::App& command, bool serves = true);
  /// Threads and precision; the rest is for who serves.
  EngineOptions engine_options() const {
    return {threads, precision == "native" ? Precision::native : Precision::exact};
  }
  /// ContractError where the device is not the processor; for what does not go through an Engine.
  void check() const;
  /// What --use says; UsageError where it is none of the adapters.
  std::vector<AdapterUse> uses(std::vector<std::string> const& use) const;
  /// Opens the model and loads the adapters.
  std::unique_ptr<Engine> open() const;
};

/// "name=0.7" -> {"name", 0.7}; a bare name weighs 1.
AdapterUse parse_use(std::string const& text);
/// "name=path"; UsageError otherwise.
std::pair<std::string, std::string> parse_named_path(std::string const& text);

/// The adapters a line of a requests file asks for: names, or objects with "name" and "weight".
std::vector<AdapterUse> adapters_of(JsonLine const& line);

/// Adds one subcommand to the command. What only that subcommand needs stands in a namespace of its own, so that the
/// sources can be compiled together, which takes half the time.
void add_info(CLI::App& app);
void add_logits(CLI::App& app);
void add_generate(CLI::App& app);
void add_eval(CLI::App& app);
void add_convert(CLI::App& app);
void add_train(CLI::App& app);
void add_combine(CLI::App& app);
void add_merge(CLI::App& app);
void add_unmerge(CLI::App& app);

}  // namespace graft::cli
