// SPDX-License-Identifier: Apache-2.0
// How a user describes a new module: the sites it sits on, as PEFT's target_modules, and a policy's options as text.
#pragma once

#include <graft/adapter/site.hpp>
#include <graft/core/error.hpp>
#include <graft/io/checked.hpp>
#include <graft/io/peft_config.hpp>
#include <graft/io/peft_names.hpp>
#include <graft/io/peft_options.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <memory>
#include <optional>
#include <regex>
#include <string>
#include <vector>

namespace graft {

/// The sites inside the layers that `targets` pick for this policy, ascending. "all-linear": every linear layer; a
/// name: every module that is called so or whose path ends so; one target with any of *+?|()[]{}^$\ in it: a regular
/// expression for whole paths. No targets: "all-linear", or every site of a policy that takes no linear layers.
/// ContractError when a target picks nothing.
template <class P>
std::vector<index_t> target_sites(SiteTable const& sites, P const& policy, std::vector<std::string> const& targets) {
  std::vector<bool> chosen(static_cast<std::size_t>(sites.size()));
  auto const choose = [&](auto&& is_meant) {
    bool any = false;
    for (index_t s = 0; s < sites.size(); ++s) {
      auto const& site = sites[s];
      if (site.layer < 0 || site.kind == SiteKind::rotated_q || !policy.accepts(site) || !is_meant(site)) continue;
      any = chosen[static_cast<std::size_t>(s)] = true;
    }
    return any;
  };
  auto const linear = [](SiteInfo const& site) { return site.kind == SiteKind::linear; };
  auto const demand = [](bool any, std::string const& target) {
    expects(any, "graft: target ", in_quotes(target), " names no module that a ", P::peft_type, " adapter can sit on");
  };
  bool const takes_linear = std::any_of(sites.all().begin(), sites.all().end(),
                                        [&](auto const& site) { return linear(site) && policy.accepts(site); });
  if (targets.empty()) {
    demand(choose([&](SiteInfo const& site) { return linear(site) == takes_linear; }), "all-linear");
  } else if (targets.size() == 1 && targets[0].find_first_of("*+?|()[]{}^$\\") != std::string::npos) {
    std::optional<std::regex> pattern;
    try {
      pattern.emplace(targets[0]);
    } catch (std::regex_error const&) {
      raise<ContractError>("graft: target ", in_quotes(targets[0]), " is not a regular expression");
    }
    demand(choose([&](SiteInfo const& site) { return std::regex_match(site.path, *pattern); }), targets[0]);
  } else {
    for (auto const& target : targets)
      demand(choose([&](SiteInfo const& site) {
               return target == "all-linear" ? linear(site) : is_module(site.path, target) || site.id == target;
             }),
             target);
  }
  std::vector<index_t> result;
  for (index_t s = 0; s < sites.size(); ++s)
    if (chosen[static_cast<std::size_t>(s)]) result.push_back(s);
  return result;
}

/// Sets the option with this key of adapter_config.json from text: "16", "true", "road_2", "q_proj,v_proj" for a list,
/// JSON for an object or for a list of numbers, "[0,-1]". ContractError naming the known keys, or what the value should
/// be.
template <class P>
void set_policy_option(P& policy, std::string const& key, std::string const& value) {
  auto const known = PeftOptionWriter<P>(P{}).values();
  auto const found = known.find(key);
  if (found == known.end()) {
    std::string all;
    for (auto const& [name, old] : known) all += text(all.empty() ? "" : ", ", name);
    raise<ContractError>("graft: a ", P::peft_type, " adapter has no option ", in_quotes(key), "; its options are ",
                         all.empty() ? "none" : all);
  }
  PeftConfig config;
  config.path = "graft";
  config.document = std::make_shared<nlohmann::ordered_json>();
  auto& member = (*config.document)[key] = nlohmann::ordered_json();
  if (auto const list = nlohmann::ordered_json::parse(value, nullptr, false);
      value.starts_with('[') && list.is_array()) {
    member = list;
  } else if (found->second.is_string()) {
    member = value;
  } else if (found->second.is_array()) {
    member = nlohmann::ordered_json::array();
    for (std::size_t begin = 0; begin < value.size();) {
      std::size_t const end = std::min(value.find(',', begin), value.size());
      member.push_back(value.substr(begin, end - begin));
      begin = end + 1;
    }
  } else {
    member = nlohmann::ordered_json::parse(value, nullptr, false);
    if (member.is_discarded() || member.is_null()) member = value;  // and is refused as what it is not
  }
  PeftOptionReader<P> reader(config);
  try {
    policy.options(reader);
  } catch (FormatError const& error) {
    raise<ContractError>(error.what());
  }
}

}  // namespace graft
