// SPDX-License-Identifier: Apache-2.0
// Row maps combined: sums within a policy, products between policies.
#pragma once

#include <graft/adapter/number_storage.hpp>
#include <graft/backend/row_map.hpp>
#include <graft/core/error.hpp>

#include <algorithm>
#include <memory>
#include <vector>

namespace graft {

/// out = I + sum_k w_k (M_k - I), linear in w. The maps' groups must agree (a map without d fits any); out's vectors
/// are given and zero.
template <class R>
void sum_maps(RowMapRow<R const> const* const* maps, R const* weights, index_t count, RowMapRow<R> const& out) {
  for (index_t k = 0; k < count; ++k)
    for (index_t j = 0; j < out.size; ++j) {
      if (maps[k]->c1 != nullptr) out.c1[j] += weights[k] * maps[k]->c1[j];
      if (maps[k]->d != nullptr) out.d[j] += weights[k] * maps[k]->d[j];
      if (maps[k]->e != nullptr) out.e[j] += weights[k] * maps[k]->e[j];
    }
}

/// The maps of one policy's modules at a site, gathered to be summed.
template <class R>
struct MapSum {
  std::vector<RowMapRow<R const> const*> maps;
  std::vector<R> weights;
  bool c = false, d = false, e = false;  ///< which vectors the sum has
  index_t group = 0;

  void add(RowMapRow<R const> const& map, R weight) {
    maps.push_back(&map);
    weights.push_back(weight);
    c = c || map.c1 != nullptr, d = d || map.d != nullptr, e = e || map.e != nullptr;
    group = std::max(group, map.group);
  }
  /// A lone map of weight 1 is its own sum.
  RowMapRow<R const> total(NumberStorage<R>& storage) const {
    if (maps.empty()) return {};
    if (maps.size() == 1 && weights[0] == 1) return *maps[0];
    return storage.keep_map(maps[0]->size, c, d, e, group, [&](RowMapRow<R> const& out) {
      sum_maps(maps.data(), weights.data(), static_cast<index_t>(maps.size()), out);
    });
  }
};

/// out = second after first, for groups that agree:
///     c'' = c2 c1 + d2 d1_p,   d'' = c2 d1 + d2 c1_p,   e'' = c2 e1 + d2 e1_p + e2       (_p: at the partner)
/// d and e of `out` are written when given.
template <class R>
void compose_maps(RowMapRow<R const> const& first, RowMapRow<R const> const& second, RowMapRow<R> const& out) {
  auto const at = [](Numbers<R> const& v, index_t j) { return v != nullptr ? v[j] : R{0}; };
  for (index_t j = 0; j < out.size; ++j) {
    index_t const p = out.group != 0 ? partner(j, out.group) : j;
    R const a = at(first.c1, j), b = at(second.c1, j), d2 = at(second.d, j);  // c = 1 + a, c2 = 1 + b
    out.c1[j] = a + b + a * b + d2 * at(first.d, p);
    if (out.d != nullptr) out.d[j] = (1 + b) * at(first.d, j) + d2 * (1 + at(first.c1, p));
    if (out.e != nullptr) out.e[j] = (1 + b) * at(first.e, j) + d2 * at(first.e, p) + at(second.e, j);
  }
}

/// second after first as an immutable map: closed form where the groups agree, else a short ordered list.
template <class R>
RowMapRow<R const> compose(RowMapRow<R const> const& first, RowMapRow<R const> const& second, NumberStorage<R>& storage,
                           std::vector<std::unique_ptr<RowMapRow<R const>[]>>& chains) {
  if (first.identity()) return second;
  if (second.identity()) return first;
  // walk to the end of the first chain; the second joins its last map when it can
  RowMapRow<R const> const* last = &first;
  while (last->next != nullptr) last = last->next;
  bool const fits = (last->group == 0 || second.group == 0 || last->group == second.group) && second.next == nullptr;
  RowMapRow<R const> joined = second;
  if (fits)
    joined = storage.keep_map(second.size, true, last->d != nullptr || second.d != nullptr,
                              last->e != nullptr || second.e != nullptr, std::max(last->group, second.group),
                              [&](RowMapRow<R> const& out) { compose_maps(*last, second, out); });
  if (last == &first && fits) return joined;
  // copy the first chain with its end replaced (or followed) by `joined`
  index_t length = 1;
  for (auto const* m = &first; m->next != nullptr; m = m->next) ++length;
  index_t const kept = fits ? length - 1 : length;
  chains.push_back(
      std::make_unique<RowMapRow<R const>[]>(static_cast<std::size_t>(kept)));  // kept - 1 successors + joined
  auto* const nodes = chains.back().get();
  RowMapRow<R const> head = first;
  RowMapRow<R const>* tail = &head;
  for (index_t k = 1; k < kept; ++k) {
    nodes[k - 1] = *tail->next;
    tail->next = &nodes[k - 1];
    tail = &nodes[k - 1];
  }
  nodes[kept - 1] = joined;
  tail->next = &nodes[kept - 1];
  return head;
}

}  // namespace graft
