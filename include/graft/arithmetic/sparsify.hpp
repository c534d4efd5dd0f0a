// SPDX-License-Identifier: Apache-2.0
// Merging methods on plain vectors: what is dropped from each module's change, and how what is left is fused.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/random.hpp>
#include <graft/core/types.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

namespace graft {

/// What is dropped from a module's change.
enum class Prune : std::uint8_t {
  none,
  magnitude,    ///< all but the int(density n) largest. TIES: Yadav et al. 2023, arXiv:2306.01708
  random,       ///< each with probability 1 - density, the rest divided by density. DARE: Yu et al. 2024, 2311.03099
  della,        ///< as random, but smaller entries of a row are dropped more often. Deep et al. 2024, arXiv:2406.11617
  breadcrumbs,  ///< the smallest and the very largest. Davari and Belilovsky 2023, arXiv:2312.06795
};

/// How the changes that are left become one.
enum class Fuse : std::uint8_t {
  sum,   ///< sum w_k t_k
  ties,  ///< of each entry a sign is elected; the mean of w_k t_k over the modules that have it
};

/// How TIES elects: by the sum of the entries, or by the number of modules of each sign.
enum class MajoritySign : std::uint8_t { total, frequency };

struct PruneOptions {
  Prune prune = Prune::none;
  double density = 0.5;    ///< share that is kept
  double window = 0.1;     ///< della: drop probabilities spread from 1 - density - window / 2 to + window / 2
  double outliers = 0.01;  ///< breadcrumbs: share of the largest that is dropped too
};

namespace detail {

/// Places 0 ... n - 1 of the values, the largest magnitude first; of equal ones the first first.
inline std::vector<std::size_t> by_magnitude(std::span<double const> values) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](auto a, auto b) { return std::abs(values[a]) > std::abs(values[b]); });
  return order;
}

/// Drops entries of t in place; t holds rows of `cols` entries, which DELLA ranks row by row.
inline void prune(std::span<double> t, index_t cols, PruneOptions const& options, Random& random) {
  auto const n = t.size();
  auto const share = [&](double part) { return static_cast<std::size_t>(part * static_cast<double>(n)); };
  switch (options.prune) {
    case Prune::none:
      return;
    case Prune::magnitude: {
      auto const order = by_magnitude(t);
      for (std::size_t k = share(options.density); k < n; ++k) t[order[k]] = 0;
      return;
    }
    case Prune::random:
      for (double& value : t) value = random.uniform() < options.density ? value / options.density : 0;
      return;
    case Prune::della: {
      auto const width = static_cast<std::size_t>(cols);
      for (std::size_t first = 0; first < n; first += width) {
        auto const row = t.subspan(first, width);
        auto const order = by_magnitude(row);
        for (std::size_t rank = 0; rank < width; ++rank) {
          double const place = width > 1 ? static_cast<double>(rank) / static_cast<double>(width - 1) : 0.5;
          double const keep = std::clamp(options.density + options.window * (0.5 - place), 0.0, 1.0);
          double& value = row[order[rank]];
          value = random.uniform() < keep ? value / keep : 0;
        }
      }
      return;
    }
    case Prune::breadcrumbs: {
      auto const order = by_magnitude(t);
      std::size_t const top = share(options.outliers), end = std::min(n, top + share(options.density));
      for (std::size_t k = 0; k < n; ++k)
        if (k < top || k >= end) t[order[k]] = 0;
      return;
    }
  }
}

/// Fuses the changes of all modules, each [n], with their weights. TIES elects by w_k t_k, or as PEFT does by t_k.
inline std::vector<double> fuse(std::vector<std::vector<double>> const& t, std::span<double const> weights, Fuse how,
                                MajoritySign majority, bool elect_unweighted) {
  std::vector<double> result(t.front().size());
  for (std::size_t j = 0; j < result.size(); ++j) {
    double sum = 0;
    if (how == Fuse::sum) {
      for (std::size_t k = 0; k < t.size(); ++k) sum += weights[k] * t[k][j];
      result[j] = sum;
      continue;
    }
    auto const sign = [](double x) { return x > 0 ? 1 : x < 0 ? -1 : 0; };
    auto const vote = [&](std::size_t k) { return elect_unweighted ? t[k][j] : weights[k] * t[k][j]; };
    double votes = 0;
    for (std::size_t k = 0; k < t.size(); ++k) votes += majority == MajoritySign::total ? vote(k) : sign(vote(k));
    int const elected = votes >= 0 ? 1 : -1;
    double kept = 0;
    for (std::size_t k = 0; k < t.size(); ++k)
      if (sign(vote(k)) == elected) sum += weights[k] * t[k][j], kept += 1;
    result[j] = sum / std::max(kept, 1.0);
  }
  return result;
}

inline void check_prune(PruneOptions const& o) {
  expects(o.density > 0 && o.density <= 1, "graft: a density is the share that is kept, in (0, 1]; got ", o.density);
  expects(o.window >= 0 && o.window <= 1 && o.outliers >= 0 && o.outliers < 1,
          "graft: window and outliers are shares; got ", o.window, " and ", o.outliers);
}

}  // namespace detail
}  // namespace graft
