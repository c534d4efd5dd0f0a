// SPDX-License-Identifier: Apache-2.0
// Adapter folders of HF PEFT (adapter_config.json and adapter_model.safetensors) read into a module.
#pragma once

#include <graft/adapter/module.hpp>
#include <graft/adapter/policy.hpp>
#include <graft/adapter/site.hpp>
#include <graft/core/error.hpp>
#include <graft/core/format.hpp>
#include <graft/io/adapter_tensors.hpp>
#include <graft/io/checked.hpp>
#include <graft/io/compiled.hpp>
#include <graft/io/peft_config.hpp>
#include <graft/io/peft_names.hpp>
#include <graft/io/peft_options.hpp>
#include <graft/io/tensor_file.hpp>

#if GRAFT_FILES_ARE_HERE
#include <graft/arch/weights.hpp>
#include <graft/io/safetensors.hpp>
#endif

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace graft {

class WeightMap;

/// A module as read, with one line for everything in the files that was ignored.
template <class P, class B>
struct ReadModule {
  Module<P, B> module;
  std::vector<std::string> warnings;
};

namespace detail {

/// adapter_model.safetensors beside the configuration.
GRAFT_FILES TensorFile read_peft_tensors(PeftConfig const& config);
/// Whether a tensor of an adapter holds the numbers of the model's own of this name.
GRAFT_FILES bool is_copy(TensorFile const& file, TensorInfo const& tensor, WeightMap const& base,
                         std::string const& name);

#if GRAFT_FILES_ARE_HERE
GRAFT_FILES TensorFile read_peft_tensors(PeftConfig const& config) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  fs::path const path = config.folder / "adapter_model.safetensors";
  if (!fs::exists(path, ignored) && fs::exists(config.folder / "adapter_model.bin", ignored))
    raise<FormatError>((config.folder / "adapter_model.bin").string(),
                       ": is a Python pickle, which can run any code and is not read; load it with PEFT and save "
                       "it again, which writes adapter_model.safetensors");
  TensorFile file = read_safetensors(path);
  for (auto const& tensor : file.tensors())
    if (!format_info(tensor.format).weight)
      raise<FormatError>(file.path(), ": tensor ", in_quotes(tensor.name), " is ", format_info(tensor.format).name,
                         "; adapters hold F32, F16, BF16 or F64");
  return file;
}

GRAFT_FILES bool is_copy(TensorFile const& file, TensorInfo const& tensor, WeightMap const& base,
                         std::string const& name) {
  auto const own = base.tensors.find(name);
  return own != base.tensors.end() && same_values(as_weight(file.path(), tensor), own->second);
}
#endif

/// One adapter folder on its way to a Module<P, B>: first everything is named and checked, then memory is taken.
template <class P, class B>
class PeftReader {
 public:
  PeftReader(PeftConfig const& config, SiteTable const& sites, WeightMap const* base)
      : config_(config),
        sites_(sites),
        base_(base),
        options_(config),
        file_(read_peft_tensors(config)),
        patterns_(config.path) {
    module_.policy.options(options_);
  }

  ReadModule<P, B> read(std::string name) {
    module_.name = std::move(name);
    module_.target_modules = config_.target_modules;
    module_.modules_to_save = config_.modules_to_save;
    module_.base_model = config_.base_model;
    module_.task_type = config_.task_type;
    for (auto const& tensor : file_.tensors()) sort_in(tensor);
    share_tied();
    if (base_ != nullptr) drop_copies(*base_);
    if (found_.empty()) fail("has no tensor of a ", P::peft_type, " adapter");
    for (auto const& [site, at] : found_) add(site, at);
    module_.allocate();
    for (auto& entry : module_.entries)
      each_tensor(entry.state, [&](std::string_view suffix, auto& view) {
        decode_finite(file_.path(), *found_.at(entry.site).tensors.at(suffix), view.data);
      });
    for (auto const& [path, tensor] : saved_) {
      SavedTensor& saved = module_.saved[path];
      saved.shape = tensor->shape;
      saved.of_base = of_base_.contains(path);
      saved.values.resize(static_cast<std::size_t>(tensor->elements()));
      decode_finite(file_.path(), *tensor, saved.values.data());
    }
    return {std::move(module_), warnings()};
  }

 private:
  struct AtSite {
    std::string_view path;  // as the file spells it, which is what patterns are meant for
    std::map<std::string_view, TensorInfo const*> tensors;
  };

  template <class... Parts>
  [[noreturn]] void fail(Parts const&... parts) const {
    raise<FormatError>(file_.path(), ": ", parts...);
  }
  static void each_tensor(auto& state, auto&& f) {
    state.for_each([&](char const* suffix, auto& view) {
      if (is_present(view)) f(std::string_view(suffix), view);
    });
  }

  void sort_in(TensorInfo const& tensor) {
    std::string_view const name = without_peft_prefix(tensor.name);
    if (auto const path = saved_path(name, tensor); !path.empty()) {
      if (!saved_.emplace(path, &tensor).second) fail("tensor ", in_quotes(tensor.name), " occurs under two names");
      if (!is_listed(name.substr(0, name.rfind('.')))) of_base_.insert(path);
      return;
    }
    auto const place = place_of_tensor(sites_, module_.policy, name);
    if (place.site < 0)
      fail("tensor ", in_quotes(tensor.name), " belongs to no module of the model that ", P::peft_type,
           " can adapt, nor to one of modules_to_save");
    AtSite& at = found_[place.site];
    at.path = place.path;
    if (!at.tensors.emplace(place.suffix, &tensor).second)
      fail("tensor ", in_quotes(tensor.name), " occurs under two names");
  }

  bool is_listed(std::string_view module) const {
    auto const& names = config_.modules_to_save;
    return std::any_of(names.begin(), names.end(), [&](auto const& name) { return is_saved_module(module, name); });
  }

  // modules_to_save are copies beside the model's own modules. What PEFT saves of those themselves is, where head and
  // embedding are one tensor, both; loading meets the head last.
  void share_tied() {
    for (auto const& site : sites_.all()) {
      if (site.tied_to.empty()) continue;
      std::string const head = site.path + ".weight", embedding = site.tied_to + ".weight";
      if (of_base_.contains(head) && (of_base_.contains(embedding) || !saved_.contains(embedding))) {
        saved_[embedding] = saved_[head];
        of_base_.insert(embedding);
      } else if (of_base_.contains(embedding) && !saved_.contains(head)) {
        saved_[head] = saved_[embedding];
        of_base_.insert(head);
      }
    }
  }

  // What PEFT saves of the base's own is unchanged more often than not, and then replaces nothing.
  void drop_copies(WeightMap const& base) {
    for (auto const& path : of_base_) {
      SiteInfo const& site = sites_[sites_.find(std::string_view(path).substr(0, path.rfind('.')))];
      TensorInfo const& tensor = *saved_.at(path);
      if (is_copy(file_, tensor, base, path) ||
          (path.ends_with(".weight") && is_copy(file_, tensor, base, site.tied_to + ".weight")))
        saved_.erase(path);
    }
  }

  // The path of a tensor that replaces one of the model's own, or nothing when it is another.
  std::string saved_path(std::string_view name, TensorInfo const& tensor) const {
    auto const dot = name.rfind('.');
    if (dot == name.npos) return {};
    std::string_view module = name.substr(0, dot), parameter = name.substr(dot);
    bool const listed = is_listed(module);
    // PEFT also saves the embedding and the head where the vocabulary was resized or where they are adapted
    constexpr std::string_view base = ".base_layer";
    if (!listed && module.ends_with(base)) module.remove_suffix(base.size());
    index_t const site = find_site(sites_, module);
    if (site < 0) return listed ? std::string(name) : "";
    SiteInfo const& info = sites_[site];
    bool const weight = parameter == ".weight", bias = parameter == ".bias",
               embedding = info.kind == SiteKind::embedding;
    if (!listed && (info.layer >= 0 || (!weight && !bias))) return {};
    if (info.layer >= 0 || (!weight && !bias))
      fail("tensor ", in_quotes(tensor.name), " replaces a part of the model that is neither a head nor an embedding, ",
           "which is not supported");
    std::vector<index_t> const expected = !weight     ? std::vector{info.out}
                                          : embedding ? std::vector{info.in, info.out}
                                                      : std::vector{info.out, info.in};
    if (tensor.shape != expected)
      fail("tensor ", in_quotes(tensor.name), " has shape ", shape_text(tensor.shape), ", expected ",
           shape_text(expected), "; a vocabulary or head of another size than the model's is not supported");
    return text(info.path, parameter);
  }

  void add(index_t site, AtSite const& at) {
    auto const& info = sites_[site];
    std::string const path(at.path);
    P here = checked_at(config_.path, [&] {
      return policy_at(module_.policy, [&](std::string const& pattern) { return patterns_(pattern, path); });
    });
    auto const shape_of = [&](std::string_view suffix) {
      auto const found = at.tensors.find(suffix);
      return found == at.tensors.end() ? std::vector<index_t>{} : found->second->shape;
    };
    if constexpr (requires { here.as_stored(info, shape_of); }) here = here.as_stored(info, shape_of);
    checked_at(config_.path, [&] { module_.add(sites_, site, here); });
    std::size_t taken = 0;
    each_tensor(module_.entries.back().state, [&](std::string_view suffix, auto const& view) {
      auto const found = at.tensors.find(suffix);
      if (found == at.tensors.end()) fail("tensor ", in_quotes(text(at.path, '.', suffix)), " is missing");
      ++taken;
      auto const expected = tensor_shape(view);
      if (found->second->shape == expected) return;
      auto const settings = PeftOptionWriter<P>(here).scalars();
      fail("tensor ", in_quotes(found->second->name), " has shape ", shape_text(found->second->shape), ", expected ",
           shape_text(expected), " at a site of ", info.in, " inputs and ", info.out, " outputs",
           settings.empty() ? "" : " with ", settings);
    });
    if (taken == at.tensors.size()) return;
    for (auto const& [suffix, tensor] : at.tensors) {
      bool known = false;
      each_tensor(module_.entries.back().state,
                  [&, found = suffix](std::string_view one, auto const&) { known = known || one == found; });
      if (!known)
        fail("tensor ", in_quotes(tensor->name), " is not one that a ", P::peft_type,
             " adapter with this configuration", " has at ", info.path);
    }
  }

  std::vector<std::string> warnings() const {
    auto result = options_.warnings();
    for (auto const& [path, tensor] : saved_)
      if (find_site(sites_, std::string_view(path).substr(0, path.rfind('.'))) < 0)
        result.push_back(text(file_.path(), ": tensor ", in_quotes(tensor->name), " replaces one of the model's own ",
                              "that is no site; it has no effect unless the caller gives it one"));
    if (config_.find("layers_to_transform") != nullptr || config_.find("exclude_modules") != nullptr) return result;
    index_t missing = 0;
    std::string example;
    for (index_t s = 0; s < sites_.size(); ++s) {
      auto const& info = sites_[s];
      auto const is_this = [&](auto const& name) { return is_module(info.path, name); };
      auto const lists = [&](auto const& names) { return std::any_of(names.begin(), names.end(), is_this); };
      if (info.kind == SiteKind::rotated_q || found_.contains(s) || !lists(config_.target_modules)) continue;
      auto const& saved = config_.modules_to_save;  // what is replaced as a whole is not adapted
      if (std::any_of(saved.begin(), saved.end(), [&](auto const& one) { return is_saved_module(info.path, one); }))
        continue;
      if (++missing == 1) example = info.path;
    }
    if (missing > 0)
      result.push_back(text(file_.path(), ": ", missing, " of the model's modules are in target_modules but have no ",
                            "tensors, ", example, missing > 1 ? " for example" : ""));
    return result;
  }

  PeftConfig const& config_;
  SiteTable const& sites_;
  WeightMap const* base_;
  PeftOptionReader<P> options_;
  TensorFile file_;
  PeftPatterns patterns_;
  Module<P, B> module_;
  std::map<index_t, AtSite> found_;
  std::map<std::string, TensorInfo const*> saved_;
  std::set<std::string> of_base_;  // those of saved_ that modules_to_save do not list
};

/// The module in the folder of a configuration that is P's.
template <class P, class B>
ReadModule<P, B> read_module(PeftConfig const& config, SiteTable const& sites, std::string name,
                             WeightMap const* base) {
  return PeftReader<P, B>(config, sites, base).read(std::move(name));
}

}  // namespace detail

/// Reads an adapter folder of P's peft_type for the model with these sites. FormatError names the file and the tensor
/// or key that is wrong, missing, unknown or not supported; unknown keys that may not matter become warnings. With
/// `base`, the model's own tensors, the module goes without the copies of those that PEFT saves beside adapted
/// embeddings.
template <class P, class B>
ReadModule<P, B> read_peft(std::filesystem::path const& folder, SiteTable const& sites, std::string name,
                           WeightMap const* base = nullptr) {
  auto const config = read_peft_config(folder);
  if (config.peft_type != P::peft_type)
    config.fail("is of peft_type ", in_quotes(config.peft_type), ", expected ", in_quotes(P::peft_type));
  return detail::read_module<P, B>(config, sites, std::move(name), base);
}

}  // namespace graft
