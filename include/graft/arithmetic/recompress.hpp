// SPDX-License-Identifier: Apache-2.0
// LoRA modules brought to a smaller rank, with the error this leaves.
#pragma once

#include <graft/arithmetic/lora_sum.hpp>
#include <graft/backend/cpu/decompose.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

namespace graft {

/// How much of a delta to keep: the smallest rank that leaves at most `error`, but no more than `rank`.
struct Truncation {
  index_t rank = 0;   ///< at most this; 0: as many as it takes
  double error = 0;   ///< allowed, of the delta's Frobenius norm; 0: what rounding to f32 hides
  double energy = 0;  ///< another way to say error: this share of the squared norm is kept, 0.99 leaves an error of 0.1

  double allowed() const { return energy > 0 ? std::sqrt(std::max(0.0, 1 - energy)) : std::max(error, 1e-7); }
};

/// What compression left at a site.
struct SiteError {
  index_t site = 0, rank = 0;
  double norm = 0;   ///< of the delta, Frobenius
  double error = 0;  ///< of the compressed delta minus the delta, Frobenius
};

template <class B>
struct Compressed {
  Module<LoRADelta, B> module;
  std::vector<SiteError> errors;  ///< by site

  /// sqrt(sum error^2 / sum norm^2) over all sites.
  double relative_error() const {
    double error = 0, norm = 0;
    for (auto const& site : errors) error += site.error * site.error, norm += site.norm * site.norm;
    return norm > 0 ? std::sqrt(error / norm) : 0;
  }
};

namespace detail {

inline void check_truncation(Truncation const& t) {
  expects(t.rank >= 0 && t.error >= 0 && t.error < 1 && t.energy >= 0 && t.energy <= 1,
          "graft: compression takes a rank of at least 1, an error in [0, 1) or an energy in (0, 1]; got ", t.rank,
          ", ", t.error, " and ", t.energy);
}

/// The smallest rank, at least 1, that the truncation allows, and what it leaves.
inline SiteError choose_rank(std::vector<double> const& s, Truncation const& truncation) {
  SiteError result;
  for (double const value : s) result.norm += value * value;
  result.norm = std::sqrt(result.norm);
  double const allowed = truncation.allowed() * result.norm;
  auto rank = static_cast<index_t>(s.size());
  double dropped = 0;  // squares, the smallest first
  for (; rank > 1; --rank) {
    double const next = s[static_cast<std::size_t>(rank - 1)] * s[static_cast<std::size_t>(rank - 1)];
    bool const too_many = truncation.rank > 0 && rank > truncation.rank;
    if (!too_many && std::sqrt(dropped + next) > allowed) break;
    dropped += next;
  }
  result.rank = rank;
  result.error = std::sqrt(dropped);
  return result;
}

/// B = U sqrt(S), A = sqrt(S) V^T: both factors of equal size.
template <class B>
void write_factors(Svd const& svd, LoRADelta::State<B>& state) {
  for (index_t r = 0; r < state.a.rows; ++r) {
    double const root = std::sqrt(svd.s[static_cast<std::size_t>(r)]);
    for (index_t c = 0; c < state.a.cols; ++c) state.a(r, c) = static_cast<Real<B>>(root * svd.vt(r, c));
    for (index_t o = 0; o < state.b.rows; ++o) state.b(o, r) = static_cast<Real<B>>(root * svd.u(o, r));
  }
}

template <class R>
DenseMatrix in_double(MatrixView<R> m, double scale = 1) {
  DenseMatrix result(m.rows, m.cols);
  for (index_t r = 0; r < m.rows; ++r)
    for (index_t c = 0; c < m.cols; ++c) result(r, c) = scale * static_cast<double>(m(r, c));
  return result;
}

struct DenseFactors {
  DenseMatrix b, a;
};

/// [w_1 s_1 B_1, w_2 s_2 B_2, ...] and [A_1; A_2; ...] of one site, in double.
template <class B>
DenseFactors stacked_factors(std::vector<Part<LoRADelta, B>> const& parts) {
  index_t ranks = 0, first = 0;
  for (auto const& part : parts) ranks += part.entry->policy.rank;
  auto const& shape = parts.front().entry->state;
  DenseFactors stacked{{shape.b.rows, ranks}, {ranks, shape.a.cols}};
  for (auto const& part : parts) {
    auto const b = in_double(part.entry->state.b, part.weight * part.entry->policy.scale());
    auto const a = in_double(part.entry->state.a);
    std::copy(a.values.begin(), a.values.end(), stacked.a.row(first));
    for (index_t o = 0; o < b.rows; ++o) std::copy_n(b.row(o), b.cols, stacked.b.row(o) + first);
    first += b.cols;
  }
  return stacked;
}

}  // namespace detail

/// The module with every site's delta s B A replaced by its best approximation of a smaller rank. The delta itself is
/// never formed. Reported errors are those of exact arithmetic; factors are rounded to the parameters' type after.
template <class B>
Compressed<B> recompress(Module<LoRADelta, B> const& module, Truncation const& truncation, SiteTable const& sites) {
  detail::check_truncation(truncation);
  ModuleTerm<LoRADelta, B> const term{&module, 1};
  std::span<ModuleTerm<LoRADelta, B> const> const terms(&term, 1);
  detail::check_fits(module, sites);
  Compressed<B> result;
  result.module = detail::begin_result(terms);
  std::vector<Svd> decomposed;
  for (auto const& entry : module.entries) {
    decomposed.push_back(svd_of_product(detail::in_double(entry.state.b, entry.policy.scale()).view(),
                                        detail::in_double(entry.state.a).view()));
    auto chosen = detail::choose_rank(decomposed.back().s, truncation);
    chosen.site = entry.site;
    result.errors.push_back(chosen);
    result.module.add(sites, entry.site, detail::unit_lora(entry.policy, chosen.rank, !entry.state.b_bias.empty()));
  }
  result.module.allocate();
  for (std::size_t k = 0; k < module.entries.size(); ++k) {
    auto const& from = module.entries[k];
    auto& to = result.module.entries[k].state;
    detail::write_factors<B>(decomposed[k], to);
    for (index_t o = 0; o < to.b_bias.size; ++o)
      to.b_bias[o] = static_cast<Real<B>>(from.policy.scale() * static_cast<double>(from.state.b_bias[o]));
  }
  detail::state_common_rank(result.module);
  return result;
}

}  // namespace graft
