// SPDX-License-Identifier: Apache-2.0
// The sites an adapter folder speaks of, guessed from its tensors where no model is at hand to ask.
#pragma once

#include <graft/adapter/site.hpp>
#include <graft/arch/config.hpp>
#include <graft/core/types.hpp>
#include <graft/io/checked.hpp>
#include <graft/io/peft_config.hpp>
#include <graft/io/peft_names.hpp>
#include <graft/io/peft_reader.hpp>
#include <graft/io/tensor_file.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <utility>

namespace graft {

namespace detail {

/// What the tensors of a module say of it.
struct FoundModule {
  index_t in = 1, out = 1;
  SiteKind kind = SiteKind::linear;
};

/// The modules that a folder's tensors belong to, by path.
inline std::map<std::string, FoundModule> found_modules(PeftConfig const& config, TensorFile const& file) {
  std::map<std::string, FoundModule> found;
  std::string variant = "road_1";
  if (auto const* value = config.find("variant"); value != nullptr && value->is_string()) variant = *value;
  for (auto const& tensor : file.tensors()) {
    auto const name = without_peft_prefix(tensor.name);
    auto const& shape = tensor.shape;
    index_t const rows = shape.empty() ? 1 : shape.front(), cols = shape.empty() ? 1 : shape.back();
    auto const at = [&](std::string_view suffix) -> FoundModule* {
      if (!name.ends_with(suffix) || name.size() == suffix.size()) return nullptr;
      return &found[std::string(name.substr(0, name.size() - suffix.size()))];
    };
    if (rows <= 0 || cols <= 0) continue;
    if (auto* site = at(".lora_A.weight")) site->in = cols;
    if (auto* site = at(".lora_B.weight")) site->out = rows;
    if (auto* site = at(".lora_embedding_A")) *site = {cols, site->out, SiteKind::embedding};
    if (auto* site = at(".lora_embedding_B")) *site = {site->in, rows, SiteKind::embedding};
    if (auto* site = at(".road_theta")) {
      site->out = variant == "road_1" ? 2 * rows : variant == "road_2" ? rows : std::max<index_t>(1, rows / 2);
      auto const module = name.substr(0, name.rfind('.'));
      auto const last = module.substr(module.rfind('.') + 1);
      if (last.find_first_not_of("0123456789") == last.npos)
        *site = {site->out, site->out, SiteKind::hidden};  // a layer
    }
    if (auto* site = at(".ia3_l")) (rows == 1 ? site->in : site->out) = rows == 1 ? cols : rows;
    if (auto* site = at(".pedro_down.weight")) *site = {cols, cols, SiteKind::hidden};
  }
  return found;
}

/// The layer a path lies in, its first number; -1: none.
inline index_t layer_in(std::string const& path) {
  for (std::size_t k = 0; k < path.size(); ++k)
    if (path[k] >= '0' && path[k] <= '9' && (k == 0 || path[k - 1] == '.'))
      return std::strtoll(path.c_str() + k, nullptr, 10);
  return -1;
}

}  // namespace detail

/// A table with which the folder's LORA, ROAD, IA3 or PEDRO tensors can be read and checked against each other.
inline SiteTable peft_sites(std::filesystem::path const& folder) {
  auto const config = read_peft_config(folder);
  auto const file = detail::read_peft_tensors(config);
  SiteTable table;
  std::map<index_t, LayerSites> layers;
  for (auto const& [path, site] : detail::found_modules(config, file)) {
    index_t const layer = detail::layer_in(path);
    if (layer > ModelConfig::most_layers) config.fail("layer ", layer, " of ", in_quotes(path), " is not believable");
    auto const dot = path.rfind('.');
    std::string id = site.kind == SiteKind::hidden ? "block" : dot == std::string::npos ? path : path.substr(dot + 1);
    Site const added = table.add({layer, std::move(id), path, site.in, site.out, site.kind});
    if (site.kind != SiteKind::hidden || layer < 0) continue;
    index_t vectors = 1;
    for (auto const& tensor : file.tensors())
      if (without_peft_prefix(tensor.name) == path + ".pedro_up.weight" && !tensor.shape.empty())
        vectors = std::max<index_t>(1, tensor.shape.front());
    layers[layer] = {added.index, {added.index, 0, vectors}, {added.index, 0, 0}, {added.index, 0, 0}, {}};
  }
  for (index_t layer = 0; !layers.empty() && layer <= layers.rbegin()->first; ++layer)
    table.add_layer(layers.contains(layer) ? layers.at(layer) : LayerSites{});
  return table;
}

}  // namespace graft
