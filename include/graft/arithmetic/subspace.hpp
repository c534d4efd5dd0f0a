// SPDX-License-Identifier: Apache-2.0
// RoAd modules taken apart by blocks: each block of the rotation is a subspace of its own, which can hold a task.
#pragma once

#include <graft/arithmetic/road_blocks.hpp>

#include <cmath>
#include <span>
#include <vector>

namespace graft {

/// Blocks [first, first + count) of a site, counted along its outputs: block b pairs outputs k and k + g/2 with
/// k = b / (g/2) g + b mod g/2.
struct BlockRange {
  index_t first = 0, count = 0;
  bool contains(index_t block) const { return block >= first && block < first + count; }
};

/// Part `part` of the `parts` that a site's blocks are cut into, as equal as can be, to hold a task each: halves in
/// Liao and Monz 2024, section 4.3. ContractError where there is no such part.
inline BlockRange part_of_blocks(index_t outputs, index_t part, index_t parts) {
  expects(parts > 0 && part >= 0 && part < parts, "graft: of ", parts, " parts of a rotation's blocks none is number ",
          part, "; they count from 0");
  index_t const blocks = outputs / 2, first = part * blocks / parts;
  return {first, (part + 1) * blocks / parts - first};
}

/// Which of Module::parameters() belong to these blocks. `range_at(outputs)` gives the blocks of a site.
template <class B, class RangeAt>
std::vector<bool> parameters_of_blocks(Module<RoAdRotation, B> const& module, SiteTable const& sites,
                                       RangeAt const& range_at) {
  std::vector<bool> belongs(static_cast<std::size_t>(module.parameters().size));
  for (auto const& entry : module.entries) {
    index_t const g = entry.policy.group_size, outputs = sites[entry.site].out;
    BlockRange const range = range_at(outputs);
    expects(range.first >= 0 && range.count >= 0 && range.first + range.count <= outputs / 2, "graft: blocks ",
            range.first, " to ", range.first + range.count, " of ", sites[entry.site].path, ", which has ",
            outputs / 2);
    for (index_t j = 0; j < outputs; ++j) {
      if (!range.contains(j / g * (g / 2) + j % (g / 2))) continue;
      auto const [cosine, sine] = entry.policy.entries(j);
      for (auto const* tensor : {&entry.state.theta, &entry.state.alpha})
        for (index_t const at : {cosine, sine})
          belongs[static_cast<std::size_t>(tensor->data + at - module.parameters().data)] = true;
    }
  }
  return belongs;
}

/// The module with these blocks only; all others do nothing. Subspaces of a module that do not overlap commute, and
/// their product, and their sum in a request's list, is the module with all of their blocks.
template <class B, class RangeAt>
Module<RoAdRotation, B> subspace(Module<RoAdRotation, B> const& module, SiteTable const& sites,
                                 RangeAt const& range_at) {
  auto const belongs = parameters_of_blocks(module, sites, range_at);
  auto result = module.clone();
  result.init(0);  // the identity
  for (index_t k = 0; k < result.parameters().size; ++k)
    if (belongs[static_cast<std::size_t>(k)]) result.parameters()[k] = module.parameters()[k];
  return result;
}

/// Distributed interchange: DII(b, s, R) = b + R^T (R s - R b) with the given rows of a site's rotation as R, in
/// double. Rows of a rotation are orthonormal when alpha = 1; ContractError naming the block where they are not, for
/// then this is no interchange. b and s [o].
template <class B>
std::vector<double> distributed_interchange(Module<RoAdRotation, B> const& module, index_t site,
                                            std::span<index_t const> rows, std::span<double const> base,
                                            std::span<double const> source, SiteTable const& sites) {
  for (auto const& entry : module.entries) {
    if (entry.site != site) continue;
    auto const& info = sites[site];
    expects(static_cast<index_t>(base.size()) == info.out && source.size() == base.size(), "graft: ", info.path,
            " has ", info.out, " outputs; got ", base.size(), " and ", source.size());
    std::vector<double> result(base.begin(), base.end());
    index_t const half = entry.policy.group_size / 2;
    for (index_t const row : rows) {
      expects(row >= 0 && row < info.out, "graft: ", info.path, " has ", info.out, " rows, not a row ", row);
      index_t const p = partner(row, entry.policy.group_size), k = std::min(row, p);
      MapBlock const m = detail::read_block<B>(entry.policy, entry.state, k);
      double const own = std::hypot(m.a, m.b), other = std::hypot(m.c, m.d), inner = m.a * m.c + m.b * m.d;
      // (alpha, theta) in f32 give rows of unit length to 2^-23
      if (std::abs(own - 1) > 1e-6 || std::abs(other - 1) > 1e-6 || std::abs(inner) > 1e-6)
        BlockPlace{info.path, k, k + half}.refuse("has rows that are not orthonormal; an interchange needs alpha = 1");
      double const at_k = row == k ? m.a : m.c, at_p = row == k ? m.b : m.d;
      auto const first = static_cast<std::size_t>(k), second = static_cast<std::size_t>(k + half);
      double const change = at_k * (source[first] - base[first]) + at_p * (source[second] - base[second]);
      result[first] += at_k * change;
      result[second] += at_p * change;
    }
    return result;
  }
  raise<ContractError>("graft: module ", module.name, " does not act on ", sites[site].path);
}

}  // namespace graft
