// SPDX-License-Identifier: Apache-2.0
// Sites: the places of a model an adapter can act on. Engines and architectures list theirs once.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/types.hpp>

#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace graft {

enum class SiteKind : std::uint8_t {
  linear,     ///< y = x W^T + b
  embedding,  ///< y = W[token]; in is the vocabulary
  hidden,     ///< the residual stream behind a layer (a block's output), in = out = d
  rotated_q,  ///< the query behind RoPE, where PEDRO may scale it instead of at q_proj
};

/// One place. `path` is the module's path in Hugging Face's naming, which adapter files use.
struct SiteInfo {
  index_t layer = -1;  ///< -1: outside the layers (embed_tokens, lm_head)
  std::string id;      ///< the architecture's own name: "q_proj", "c_attn", "attention.output.dense", ...
  std::string path;    ///< "model.layers.0.self_attn.q_proj"
  index_t in = 0, out = 0;
  SiteKind kind = SiteKind::linear;
  std::string tied_to{};  ///< path of the site whose weight this one shares, as a head its embedding's
};

/// A site's number in its table, with the shapes that were checked when it was bound.
struct Site {
  index_t index = -1;
  index_t in = 0, out = 0;
};

/// Where one of PEDRO's vectors acts: `size` outputs of a site from `offset` on.
struct SiteSlice {
  index_t site = -1, offset = 0, size = 0;
};

/// What a layer offers to policies that make vectors from the prompt.
struct LayerSites {
  index_t block = -1;          ///< the layer's own entry, SiteKind::hidden; its parameters live under its path
  SiteSlice query, value, up;  ///< l_q, l_v, l_u
  SiteSlice rotated_query;     ///< l_q behind RoPE; site -1 where the architecture has no RoPE
};

/// All sites of a model, in a fixed order; built once, shared by its bank, plans and layers.
class SiteTable {
 public:
  /// Adds a site and returns its binding; a path may appear once.
  Site add(SiteInfo info) {
    expects(info.in > 0 && info.out > 0, "graft: site ", info.path, " needs positive sizes, got in=", info.in,
            " out=", info.out);
    auto const index = static_cast<index_t>(sites_.size());
    bool const fresh = info.kind == SiteKind::rotated_q || by_path_.emplace(info.path, index).second;
    expects(fresh, "graft: site ", info.path, " is listed twice");
    Site const site{index, info.in, info.out};
    sites_.push_back(std::move(info));
    return site;
  }
  Site add_linear(index_t layer, std::string id, std::string path, index_t in, index_t out) {
    return add({layer, std::move(id), std::move(path), in, out, SiteKind::linear});
  }
  void add_layer(LayerSites const& layer) { layers_.push_back(layer); }

  index_t size() const { return static_cast<index_t>(sites_.size()); }
  SiteInfo const& operator[](index_t index) const { return sites_[static_cast<std::size_t>(index)]; }
  std::vector<SiteInfo> const& all() const { return sites_; }
  std::vector<LayerSites> const& layers() const { return layers_; }

  /// The number of the site with this path, or -1.
  index_t find(std::string_view path) const {
    auto const found = by_path_.find(std::string(path));
    return found == by_path_.end() ? -1 : found->second;
  }
  /// The binding of a site an engine is about to use, with its shapes checked.
  Site bind(std::string_view path, index_t in, index_t out) const {
    index_t const index = find(path);
    expects(index >= 0, "graft: no site is called ", path);
    auto const& info = (*this)[index];
    expects(info.in == in && info.out == out, "graft: site ", path, " is ", info.in, " -> ", info.out,
            ", it cannot be bound as ", in, " -> ", out);
    return {index, in, out};
  }

 private:
  std::vector<SiteInfo> sites_;
  std::vector<LayerSites> layers_;
  std::unordered_map<std::string, index_t> by_path_;
};

/// Whether `path` is the module `name` or ends with its components, as PEFT decides for target_modules.
inline bool is_module(std::string_view path, std::string_view name) {
  return path == name || (path.size() > name.size() && path.ends_with(name) &&
                          path[path.size() - name.size() - 1] == '.' && !name.empty());
}

}  // namespace graft
