// SPDX-License-Identifier: Apache-2.0
// Adapters folded into the weight and bias of a layer, and taken out again, in f32.
//
//     x1 = input_outer(x);  x2 = input_inner(x1);  y = output_outer(output_inner(W x2 + b) + sum w s B A x1)
//
// is one linear layer again:  W' = Mo (Mi W Ni + sum w s B A) No,  and its bias moves along.
#pragma once

#include <graft/adapter/adapter_set.hpp>
#include <graft/adapter/site.hpp>
#include <graft/arithmetic/map_block.hpp>
#include <graft/core/executor.hpp>

#include <algorithm>
#include <string>
#include <vector>

namespace graft {

/// A linear layer's W [o, i], row-major, and b [o] or nothing; or an embedding's W [V, d].
struct DenseLayer {
  index_t rows = 0, cols = 0;
  std::vector<float> weight, bias;
  float* row(index_t r) { return weight.data() + r * cols; }
};

namespace detail {

/// Which way a map is folded: by itself, or out again by its inverse.
enum class Fold { in, out };

/// A chain of maps, the first to be applied first.
template <class R>
std::vector<RowMapRow<R const>> chain_of(RowMapRow<R const> const* map) {
  std::vector<RowMapRow<R const>> chain;
  for (; map != nullptr && !map->identity(); map = map->next) chain.push_back(*map);
  return chain;
}
template <class B>
std::vector<RowMapRow<Real<B> const>> chain_at(AdapterSet<B> const& set, Stage stage, index_t site) {
  auto const* const table = set.table(stage);
  return table == nullptr ? std::vector<RowMapRow<Real<B> const>>{} : chain_of(table + site);
}

/// The block of element k and its partner, which is k itself where the map has no d.
template <class R>
MapBlock block_of(RowMapRow<R const> const& map, index_t k, index_t p) {
  auto const at = [](Numbers<R> const& v, index_t j) { return v != nullptr ? static_cast<double>(v[j]) : 0.0; };
  if (p == k) return {1 + at(map.c1, k), 0, 0, 1};
  return {1 + at(map.c1, k), at(map.d, k), at(map.d, p), 1 + at(map.c1, p)};
}
/// The map's blocks, or their inverses: f(k, p, block) for every pair, p == k for elements alone.
template <class R, class F>
void each_block(RowMapRow<R const> const& map, Fold fold, std::string const& path, F const& f) {
  for (index_t k = 0; k < map.size; ++k) {
    index_t const p = map.d != nullptr ? partner(k, map.group) : k;
    if (p < k) continue;
    auto const block = block_of(map, k, p);
    f(k, p, fold == Fold::out ? inverse(block, BlockPlace{path, k, p}) : block);
  }
}

/// W <- M W and b <- M b + e; out: W <- M^-1 W and b <- M^-1 (b - e). A layer without bias gets one where the map has
/// an e.
template <class R>
void map_rows(RowMapRow<R const> const& map, Fold fold, std::string const& path, DenseLayer& layer) {
  if (map.e != nullptr && layer.bias.empty()) layer.bias.resize(static_cast<std::size_t>(layer.rows));
  auto const shift = [&](double sign) {
    for (index_t k = 0; map.e != nullptr && k < map.size; ++k) {
      auto& b = layer.bias[static_cast<std::size_t>(k)];
      b = static_cast<float>(static_cast<double>(b) + sign * static_cast<double>(map.e[k]));
    }
  };
  if (fold == Fold::out) shift(-1);
  each_block(map, fold, path, [&](index_t k, index_t p, MapBlock const& m) {
    auto const a = static_cast<float>(m.a), b = static_cast<float>(m.b), c = static_cast<float>(m.c),
               d = static_cast<float>(m.d);
    auto const mix = [&](float& x, float& y) {
      float const first = a * x + b * y;
      y = c * x + d * y;
      x = first;
    };
    float *const x = layer.row(k), *const y = layer.row(p);
    for (index_t j = 0; j < layer.cols; ++j) p == k ? void(x[j] *= a) : mix(x[j], y[j]);
    if (layer.bias.empty()) return;
    auto &u = layer.bias[static_cast<std::size_t>(k)], &v = layer.bias[static_cast<std::size_t>(p)];
    p == k ? void(u *= a) : mix(u, v);
  });
  if (fold == Fold::in) shift(1);
}

/// W <- W M and b <- b + W e, with the W before; out: W <- W M^-1, then b <- b - W e.
template <class R>
void map_columns(RowMapRow<R const> const& map, Fold fold, std::string const& path, DenseLayer& layer,
                 Executor& executor) {
  auto const shift = [&](double sign) {
    if (map.e == nullptr) return;
    if (layer.bias.empty()) layer.bias.resize(static_cast<std::size_t>(layer.rows));
    for (index_t r = 0; r < layer.rows; ++r) {
      double sum = 0;
      for (index_t j = 0; j < layer.cols; ++j)
        sum += static_cast<double>(layer.row(r)[j]) * static_cast<double>(map.e[j]);
      auto& b = layer.bias[static_cast<std::size_t>(r)];
      b = static_cast<float>(static_cast<double>(b) + sign * sum);
    }
  };
  struct Column {
    index_t k, p;
    float a, b, c, d;
  };
  std::vector<Column> columns;
  each_block(map, fold, path, [&](index_t k, index_t p, MapBlock const& m) {
    columns.push_back(
        {k, p, static_cast<float>(m.a), static_cast<float>(m.b), static_cast<float>(m.c), static_cast<float>(m.d)});
  });
  if (fold == Fold::in) shift(1);
  executor.run(layer.rows, [&](index_t r) {
    float* const w = layer.row(r);
    for (auto const& column : columns) {
      if (column.p == column.k) {
        w[column.k] *= column.a;
        continue;
      }
      float const x = w[column.k], y = w[column.p];
      w[column.k] = x * column.a + y * column.c;
      w[column.p] = x * column.b + y * column.d;
    }
  });
  if (fold == Fold::out) shift(-1);
}

/// W <- W + sign sum w s B A; of an embedding, its transpose.
template <class B>
void add_deltas(AdapterSet<B> const& set, index_t site, bool embedding, double sign, DenseLayer& layer,
                Executor& executor) {
  for (auto const& term : set.low_rank) {
    auto const& f = term.table[site];
    if (f.rank == 0) continue;
    index_t const from = embedding ? layer.rows : layer.cols, to = embedding ? layer.cols : layer.rows;
    auto const scale = static_cast<float>(sign * static_cast<double>(term.weight) * static_cast<double>(f.scale));
    executor.run(layer.rows, [&](index_t row) {
      float* const w = layer.row(row);
      for (index_t r = 0; r < f.rank; ++r) {
        auto const a = f.a + r * from, b = f.b_transposed + r * to;
        float const here = scale * static_cast<float>(embedding ? a[row] : b[row]);
        auto const along = embedding ? b : a;
        for (index_t j = 0; j < layer.cols; ++j) w[j] += here * static_cast<float>(along[j]);
      }
    });
  }
}

}  // namespace detail

/// Whether the request's adapters change this site's layer.
template <class B>
bool changes(AdapterSet<B> const& set, index_t site) {
  for (index_t stage = 0; stage < stage_count; ++stage)
    if (!detail::chain_at(set, static_cast<Stage>(stage), site).empty()) return true;
  return std::any_of(set.low_rank.begin(), set.low_rank.end(),
                     [&](auto const& term) { return term.table[site].rank != 0; });
}

/// Folds a request's adapters at a site into the layer. It gets a bias where it had none and an adapter brings one.
template <class B>
void fold_in(AdapterSet<B> const& set, SiteTable const& sites, index_t site, DenseLayer& layer, Executor& executor) {
  auto const& info = sites[site];
  auto const maps = [&](Stage stage) { return detail::chain_at(set, stage, site); };
  auto const right = [&](Stage stage) {  // W (M2 M1) = (W M2) M1: the last of the chain first
    auto chain = maps(stage);
    std::reverse(chain.begin(), chain.end());
    for (auto const& map : chain) detail::map_columns(map, detail::Fold::in, info.path, layer, executor);
  };
  auto const left = [&](Stage stage) {
    for (auto const& map : maps(stage)) detail::map_rows(map, detail::Fold::in, info.path, layer);
  };
  right(Stage::input_inner);
  left(Stage::output_inner);
  detail::add_deltas(set, site, info.kind == SiteKind::embedding, 1, layer, executor);
  right(Stage::input_outer);
  left(Stage::output_outer);
}

/// Takes the same adapters out again by the inverse formula. Only exact up to the rounding of the merged weights, and
/// times what the maps' inverses make of it. ContractError naming the block without an inverse.
template <class B>
void fold_out(AdapterSet<B> const& set, SiteTable const& sites, index_t site, DenseLayer& layer, Executor& executor) {
  auto const& info = sites[site];
  auto const right = [&](Stage stage) {
    for (auto const& map : detail::chain_at(set, stage, site))
      detail::map_columns(map, detail::Fold::out, info.path, layer, executor);
  };
  auto const left = [&](Stage stage) {
    auto chain = detail::chain_at(set, stage, site);
    std::reverse(chain.begin(), chain.end());
    for (auto const& map : chain) detail::map_rows(map, detail::Fold::out, info.path, layer);
  };
  left(Stage::output_outer);
  right(Stage::input_outer);
  detail::add_deltas(set, site, info.kind == SiteKind::embedding, -1, layer, executor);
  left(Stage::output_inner);
  right(Stage::input_inner);
}

/// ContractError unless all that these adapters do can be done by other weights.
template <class B>
void check_mergeable(AdapterSet<B> const& set, SiteTable const& sites) {
  expects(!set.generates(),
          "graft: PEDRO makes its vectors from each prompt; no weights do the same for all prompts, so ",
          set.generating.empty() ? "" : set.generating.front().module->name, " cannot be merged");
  for (index_t s = 0; s < sites.size(); ++s) {
    auto const& info = sites[s];
    if (!changes(set, s)) continue;
    expects(info.kind == SiteKind::linear || info.kind == SiteKind::embedding, "graft: an adapter acts on ", info.path,
            " itself, behind its layers; no weight there can do the same, so it cannot be merged");
  }
}

}  // namespace graft
