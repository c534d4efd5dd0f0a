// SPDX-License-Identifier: Apache-2.0
// A module written as an adapter folder of HF PEFT.
#pragma once

#include <graft/adapter/module.hpp>
#include <graft/adapter/policy.hpp>
#include <graft/adapter/site.hpp>
#include <graft/core/error.hpp>
#include <graft/core/format.hpp>
#include <graft/io/adapter_tensors.hpp>
#include <graft/io/compiled.hpp>
#include <graft/io/output_file.hpp>
#include <graft/io/peft_config.hpp>
#include <graft/io/peft_names.hpp>
#include <graft/io/peft_options.hpp>
#include <graft/io/safetensors.hpp>
#include <graft/io/tensor_file.hpp>

#if GRAFT_FILES_ARE_HERE
#include <nlohmann/json.hpp>
#endif

#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace graft {

struct PeftWriteOptions {
  Format dtype = Format::f32;  ///< of all tensors: f32, bf16 or f16
};

namespace detail {

/// What adapter_config.json says beside the policy's options.
struct PeftKeysOfModule {
  std::vector<std::string> target_modules, modules_to_save;
  std::string_view peft_type;
  std::string task_type, base_model;
  std::vector<std::string_view> own;  ///< options that PEFT does not know, written where they are no default
};

/// adapter_config.json as PEFT writes it: keys ascending, patterns in their order.
GRAFT_FILES std::string peft_config_text(PeftKeysOfModule const& keys, PeftOptions const& options,
                                         PeftOptions const& defaults);

#if GRAFT_FILES_ARE_HERE
GRAFT_FILES std::string peft_config_text(PeftKeysOfModule const& keys, PeftOptions const& options,
                                         PeftOptions const& defaults) {
  using Json = nlohmann::ordered_json;
  auto const or_null = [](std::string const& value) { return value.empty() ? Json() : Json(value); };
  std::map<std::string, Json> values = options.values();
  auto const unchanged = defaults.values();
  for (auto const& key : keys.own)
    if (auto const at = values.find(std::string(key)); at != values.end() && at->second == unchanged.at(at->first))
      values.erase(at);
  values["target_modules"] = keys.target_modules;
  values["modules_to_save"] = keys.modules_to_save.empty() ? Json() : Json(keys.modules_to_save);
  values["peft_type"] = std::string(keys.peft_type);
  values["task_type"] = or_null(keys.task_type);
  values["base_model_name_or_path"] = or_null(keys.base_model);
  values["auto_mapping"] = Json();
  values["revision"] = Json();
  values["inference_mode"] = true;
  Json document = Json::object();
  for (auto& [key, value] : values) document[key] = std::move(value);
  return document.dump(2);
}
#endif

/// One module on its way to an adapter folder.
template <class P, class B>
class PeftWriter {
 public:
  PeftWriter(Module<P, B> const& module, SiteTable const& sites, PeftWriteOptions const& options)
      : module_(module), sites_(sites), dtype_(options.dtype) {
    expects(!module.entries.empty(), "graft: module ", module.name, " has no sites, there is nothing to write");
    describe();
    for (auto const& entry : module_.entries) {
      auto state = entry.state;  // its views; for_each is not const
      state.for_each([&](char const* suffix, auto& view) {
        if (is_present(view)) add(text(sites_[entry.site].path, '.', suffix), tensor_shape(view), view.data);
      });
    }
    for (auto const& [path, saved] : module_.saved) add(saved_name(path), saved.shape, saved.values.data());
  }

  void write(std::filesystem::path const& folder) const {
    namespace fs = std::filesystem;
    std::error_code error;
    fs::create_directories(folder, error);
    if (error) raise<FormatError>(folder.string(), ": cannot be created: ", error.message());
    // Both files are complete before either gets its name, and the old configuration goes first: whenever this is
    // interrupted, no folder holds the tensors of one adapter and the configuration of another.
    OutputFile config(folder / "adapter_config.json");
    config.write(configuration());
    struct Temporary {
      fs::path path;
      ~Temporary() {
        std::error_code ignored;
        fs::remove(path, ignored);
      }
    } const tensors{folder / text("adapter_model.safetensors.new", ::getpid())};
    write_safetensors(tensors.path, tensors_, {{"format", "pt"}});
    fs::remove(folder / "adapter_config.json", error);
    if (!error) fs::rename(tensors.path, folder / "adapter_model.safetensors", error);
    if (error) raise<FormatError>(folder.string(), ": cannot be written: ", error.message());
    config.commit();
  }

 private:
  // Finds the one configuration from which the policy of every site follows.
  void describe() {
    std::vector<std::pair<SiteInfo const*, P>> at_sites;
    for (auto const& entry : module_.entries) at_sites.emplace_back(&sites_[entry.site], entry.policy);
    PeftPatterns const patterns(text("the configuration of module ", module_.name));
    policy_ = module_.policy;
    if constexpr (requires { policy_.describe(at_sites, patterns); }) policy_.describe(at_sites, patterns);
    targets_ = target_modules();
    if constexpr (requires { policy_.describe_targets(at_sites, targets_); })
      policy_.describe_targets(at_sites, targets_);

    for (auto const& entry : module_.entries) {
      auto const& site = sites_[entry.site];
      Module<P, B> said;
      said.add(sites_, entry.site,
               policy_at(policy_, [&](std::string const& pattern) { return patterns(pattern, site.path); }));
      auto const have = PeftOptionWriter<P>(entry.policy).scalars(),
                 follows = PeftOptionWriter<P>(said.entries[0].policy).scalars();
      expects(have == follows && shapes(entry.state) == shapes(said.entries[0].state), "graft: module ", module_.name,
              " has ", have, " at ", site.path, ", where its configuration says ", follows,
              "; one file cannot say both");
    }
  }
  static std::vector<std::pair<std::string, std::vector<index_t>>> shapes(typename P::template State<B> state) {
    std::vector<std::pair<std::string, std::vector<index_t>>> result;
    state.for_each([&](char const* suffix, auto& view) {
      if (is_present(view)) result.emplace_back(suffix, tensor_shape(view));
    });
    return result;
  }

  template <class T>
  void add(std::string const& path, std::vector<index_t> shape, T const* values) {
    TensorInfo tensor{text(peft_prefix, path), dtype_, std::move(shape), nullptr, 0};
    auto bytes = encode_finite(path, values, tensor.elements(), dtype_);
    tensor.data = bytes.data();
    tensor.bytes = bytes.size();
    tensors_.push_back(std::move(tensor));
    storage_.push_back(std::move(bytes));
  }

  bool has_entry(std::string_view path) const {
    index_t const site = sites_.find(path);
    return std::any_of(module_.entries.begin(), module_.entries.end(), [&](auto const& e) { return e.site == site; });
  }
  // A replacement of a weight that is adapted too stands under PEFT's wrapper.
  std::string saved_name(std::string const& path) const {
    auto const dot = path.rfind('.');
    if (dot == path.npos || !has_entry(path.substr(0, dot))) return path;
    return text(path.substr(0, dot), ".base_layer", path.substr(dot));
  }
  std::vector<std::string> modules_to_save() const {
    std::set<std::string> names(module_.modules_to_save.begin(), module_.modules_to_save.end());
    for (auto const& [path, tensor] : module_.saved) {
      auto const owner = path.substr(0, std::min(path.rfind('.'), path.size()));
      bool const listed =
          std::any_of(names.begin(), names.end(), [&](auto const& name) { return is_saved_module(owner, name); });
      if (!listed && !has_entry(owner)) names.insert(owner);
    }
    return {names.begin(), names.end()};
  }
  std::set<std::string> target_modules() const {
    std::vector<index_t> chosen;
    for (auto const& entry : module_.entries) chosen.push_back(entry.site);
    std::sort(chosen.begin(), chosen.end());
    auto const names = targets_are(sites_, chosen, module_.target_modules) ? module_.target_modules
                                                                           : target_modules_of(sites_, chosen);
    return {names.begin(), names.end()};
  }

  std::string configuration() const {
    PeftOptionWriter<P> const options(policy_);
    PeftKeysOfModule keys;
    keys.target_modules = {targets_.begin(), targets_.end()};
    keys.modules_to_save = modules_to_save();
    keys.peft_type = P::peft_type;
    keys.task_type = module_.task_type;
    keys.base_model = module_.base_model;
    if constexpr (requires { P::own_keys; }) keys.own = {std::begin(P::own_keys), std::end(P::own_keys)};
    return peft_config_text(keys, options, PeftOptionWriter<P>(P{}));
  }

  Module<P, B> const& module_;
  SiteTable const& sites_;
  Format dtype_;
  P policy_;
  std::set<std::string> targets_;
  std::vector<TensorInfo> tensors_;
  std::vector<std::vector<std::byte>> storage_;  // what tensors_ point into
};

}  // namespace detail

/// Writes the module as PEFT itself would: adapter_config.json and adapter_model.safetensors in `folder`, which is made
/// when it is not there. Equal modules give equal bytes. target_modules are found from the sites where the module's own
/// do not pick exactly those. ContractError before anything is written when one configuration cannot say what holds at
/// all sites, or a value is not finite in `dtype`; FormatError when a file cannot be written.
template <class P, class B>
void write_peft(std::filesystem::path const& folder, Module<P, B> const& module, SiteTable const& sites,
                PeftWriteOptions const& options = {}) {
  detail::PeftWriter<P, B>(module, sites, options).write(folder);
}

}  // namespace graft
