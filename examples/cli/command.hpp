// SPDX-License-Identifier: Apache-2.0
// What the parts of the command share: options, adapters on the command line, requests files.
#pragma once

#include <examples/cli/engine.hpp>

#include <graft/text/tokenizer.hpp>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace graft::cli {

/// Wrong use of the command line: exit status 2.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Options of everything that runs a model.
struct ModelOptions {
  std::string model;
  std::vector<std::string> adapters;  ///< NAME=PATH
  std::string device = "cpu", precision;
  index_t threads = 0;
  bool json = false;

  void add_to(CLI::App& command, bool adapters_too = true);
  /// Opens the model and loads the adapters.
  std::unique_ptr<Engine> open() const;
};

/// "name=0.7" -> {"name", 0.7}; a bare name weighs 1.
AdapterUse parse_use(std::string const& text);
/// "name=path"; UsageError otherwise.
std::pair<std::string, std::string> parse_named_path(std::string const& text);

/// A line of a JSON-lines file.
struct JsonLine {
  std::string place;  ///< "file:3"
  nlohmann::json value;

  template <class... Parts>
  [[noreturn]] void fail(Parts const&... parts) const {
    raise<FormatError>(text(place, ": ", parts...));
  }
  /// The member, or `fallback` where it is missing; FormatError when it has another type.
  template <class T>
  T get(std::string const& key, T fallback) const {
    if (!value.contains(key) || value.at(key).is_null()) return fallback;
    auto const& member = value.at(key);
    bool const fits = std::is_same_v<T, std::string> ? member.is_string()
                      : std::is_same_v<T, bool>      ? member.is_boolean()
                      : std::is_integral_v<T>        ? member.is_number_integer()
                      : std::is_floating_point_v<T>  ? member.is_number()
                                                     : member.is_array();
    if (!fits) fail("key \"", key, "\" has the unexpected value ", member.dump(-1, ' ', true).substr(0, 80));
    try {
      return member.get<T>();
    } catch (nlohmann::json::exception const&) {
      fail("key \"", key, "\" has the unexpected value ", member.dump(-1, ' ', true).substr(0, 80));
    }
  }
  std::vector<AdapterUse> adapters() const;
};

/// All non-empty lines, each a JSON object, whose keys are among `known`.
std::vector<JsonLine> read_json_lines(std::string const& path, std::vector<std::string> const& known);

/// Adds one subcommand to the command.
void add_info(CLI::App& app);
void add_logits(CLI::App& app);
void add_generate(CLI::App& app);
void add_eval(CLI::App& app);
void add_convert(CLI::App& app);

}  // namespace graft::cli
