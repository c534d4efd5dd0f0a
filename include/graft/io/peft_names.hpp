// SPDX-License-Identifier: Apache-2.0
// Names in adapter folders: from a tensor's name to its site, and from a module's sites to target_modules.
#pragma once

#include <graft/adapter/site.hpp>
#include <graft/core/types.hpp>

#include <algorithm>
#include <cstddef>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace graft {

inline constexpr std::string_view peft_prefix = "base_model.model.";

/// The name without PEFT's prefix and what torch.compile adds; both are optional in files.
inline std::string_view without_peft_prefix(std::string_view name) {
  for (std::string_view const prefix : {std::string_view("_orig_mod."), peft_prefix, std::string_view("_orig_mod.")})
    if (name.starts_with(prefix)) name.remove_prefix(prefix.size());
  return name;
}

/// Whether `path` lies in a module whose path ends with `name`, or is one: what PEFT replaces for modules_to_save.
/// These need not be whole components: "head" is lm_head too.
inline bool is_saved_module(std::string_view path, std::string_view name) {
  if (name.empty()) return false;
  for (std::size_t at = path.find(name); at != path.npos; at = path.find(name, at + 1)) {
    std::size_t const end = at + name.size();
    if (end == path.size() || path[end] == '.') return true;
  }
  return false;
}

/// The number of the site with this path, or -1. One leading component more or fewer is accepted where that is
/// unambiguous: adapters of a bare model say "layers.0..." where those of the same model with a head say
/// "model.layers.0...".
inline index_t find_site(SiteTable const& sites, std::string_view path) {
  if (index_t const exact = sites.find(path); exact >= 0) return exact;
  index_t found = -1;
  if (auto const dot = path.find('.'); dot != path.npos) found = sites.find(path.substr(dot + 1));
  for (index_t s = 0; s < sites.size(); ++s) {
    auto const& site = sites[s];
    if (site.kind == SiteKind::rotated_q || !is_module(site.path, path)) continue;
    if (site.path.find('.') + 1 != site.path.size() - path.size()) continue;  // more than one component more
    if (found >= 0) return -1;
    found = s;
  }
  return found;
}

/// The shape of a state's tensor; one with a size of 0 is absent.
std::vector<index_t> tensor_shape(auto const& view) {
  if constexpr (requires { view.rows; })
    return {view.rows, view.cols};
  else
    return {view.size};
}
bool is_present(auto const& view) {
  auto const shape = tensor_shape(view);
  return std::find(shape.begin(), shape.end(), 0) == shape.end();
}

/// Where a tensor belongs: site < 0 when no leading part of its name is a site the policy accepts.
struct PeftTensorPlace {
  index_t site = -1;
  std::string_view path;    ///< the site's path as the file spells it
  std::string_view suffix;  ///< "lora_A.weight"
};
template <class P>
PeftTensorPlace place_of_tensor(SiteTable const& sites, P const& policy, std::string_view name) {
  if (name.size() > 1000) return {};  // no module lies that deep, and each dot costs a search
  for (auto dot = name.rfind('.'); dot != name.npos && dot > 0; dot = name.rfind('.', dot - 1)) {
    index_t const site = find_site(sites, name.substr(0, dot));
    if (site >= 0 && policy.accepts(sites[site])) return {site, name.substr(0, dot), name.substr(dot + 1)};
  }
  return {};
}

/// Short names for target_modules that pick exactly the chosen sites among all sites: for each the fewest last
/// components, though not fewer than its id has, because the model may have modules that are no sites.
inline std::vector<std::string> target_modules_of(SiteTable const& sites, std::vector<index_t> const& chosen) {
  std::vector<bool> is_chosen(static_cast<std::size_t>(sites.size()));
  for (index_t const site : chosen) is_chosen[static_cast<std::size_t>(site)] = true;
  auto const picks_others = [&](std::string_view name) {
    for (index_t s = 0; s < sites.size(); ++s)
      if (!is_chosen[static_cast<std::size_t>(s)] && sites[s].kind != SiteKind::rotated_q &&
          is_module(sites[s].path, name))
        return true;
    return false;
  };
  std::set<std::string> names, refused;
  for (index_t const index : chosen) {
    auto const& site = sites[index];
    std::string_view const path = site.path;
    std::size_t start = path.rfind('.') + 1;  // 0 where there is no dot
    if (is_module(path, site.id)) start = path.size() - site.id.size();
    if (site.kind == SiteKind::hidden) start = 0;  // a bare layer number says too little
    while (start > 0) {
      std::string const name(path.substr(start));
      if (names.contains(name)) break;
      if (!refused.contains(name)) {
        if (!picks_others(name)) break;
        refused.insert(name);
      }
      start = start < 2 ? 0 : path.rfind('.', start - 2) + 1;
    }
    names.emplace(path.substr(start));
  }
  return {names.begin(), names.end()};
}

/// Whether the names pick exactly the chosen sites (ascending) among those with parameters of their own.
inline bool targets_are(SiteTable const& sites, std::vector<index_t> const& chosen,
                        std::vector<std::string> const& names) {
  for (index_t s = 0; s < sites.size(); ++s) {
    if (sites[s].kind == SiteKind::rotated_q) continue;
    bool const picked =
        std::any_of(names.begin(), names.end(), [&](auto const& name) { return is_module(sites[s].path, name); });
    if (picked != std::binary_search(chosen.begin(), chosen.end(), s)) return false;
  }
  return true;
}

}  // namespace graft
