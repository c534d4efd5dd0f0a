// SPDX-License-Identifier: Apache-2.0
// RoAd: two-dimensional rotary adaptation.
#pragma once

#include <graft/adapter/policy.hpp>
#include <graft/adapter/positions.hpp>

#include <array>
#include <cmath>

namespace graft {

/// Two-dimensional rotary adaptation of a linear layer's output:  y' = R (W x + b),  R block-diagonal in 2x2 blocks
///
///     [ a11 cos t11   -a12 sin t12 ]       road_1: one (alpha, theta) per block           o parameters
///     [ a21 sin t21    a22 cos t22 ]       road_2: one per row of a block                2o parameters
///                                          road_4: four per block                        4o parameters
///
/// alpha = 1, theta = 0 at the start. Liao and Monz 2024, arXiv:2409.00119, eq. (2)-(4).
/// The paper pairs neighbours; here, as in HF PEFT, k pairs with k + g/2 in groups of g = group_size (2: neighbours).
/// Several RoAd modules of one request: I + sum w (R - I), linear in w; HF PEFT multiplies them instead.
/// On a block's output (SiteKind::hidden) it is an intervention on the residual stream at `positions`.
/// In road_4, t11 and t22 start with gradient zero and stay at 0 for ever (dead_parameters).
struct RoAdRotation {
  static constexpr std::string_view peft_type = "ROAD";

  enum class Variant : std::uint8_t { road_1, road_2, road_4 };
  static constexpr std::array<std::string_view, 3> names(Variant) { return {"road_1", "road_2", "road_4"}; }

  Variant variant = Variant::road_1;
  index_t group_size = 64;
  Positions positions = {};  ///< of SiteKind::hidden sites only

  template <class B>
  struct State {
    Parameters<B> theta;  ///< [o/2], [o] or [2o] by variant
    Parameters<B> alpha;  ///< the same
    void for_each(auto&& f) {
      f("road_theta", theta);
      f("road_alpha", alpha);
    }
  };

  static constexpr std::array<std::string_view, 1> own_keys = {"positions"};

  void options(auto&& v) {
    v.option("variant", variant);
    v.option("group_size", group_size);
    v.option("positions", positions);
  }

  bool accepts(SiteInfo const& site) const { return site.kind == SiteKind::linear || site.kind == SiteKind::hidden; }

  template <class B>
  void shape(SiteInfo const& site, LayerSites const*, State<B>& state) const {
    expects(group_size > 0 && group_size % 2 == 0 && site.out % group_size == 0, "graft: RoAd's group_size ",
            group_size, " must be even and divide the ", site.out, " outputs of ", site.path);
    state.theta.size = variant == Variant::road_1 ? site.out / 2 : variant == Variant::road_2 ? site.out : 2 * site.out;
    state.alpha.size = state.theta.size;
  }

  template <class B>
  void init(State<B>& state, auto&) const {
    for (index_t k = 0; k < state.alpha.size; ++k) state.alpha[k] = 1;
  }

  /// Parameters that never learn: the angles of road_4's cosines, whose gradient -alpha sin(theta) is 0 where they
  /// start.
  template <class B>
  index_t dead_parameters(State<B> const& state) const {
    return variant == Variant::road_4 ? state.theta.size / 2 : 0;
  }

  template <class B>
  RowMapForm form(SiteInfo const&, State<B> const&) const {
    return {.present = true, .d = true, .group = group_size};
  }

  /// Where output j finds its cosine's and its sine's (alpha, theta) among the parameters.
  struct Entries {
    index_t cosine, sine;
  };
  Entries entries(index_t j) const {
    index_t const g = group_size, start = j / g * g, k = j % g;
    switch (variant) {
      case Variant::road_1:
        return {start / 2 + k % (g / 2), start / 2 + k % (g / 2)};
      case Variant::road_2:
        return {j, j};
      default:
        return {2 * start + k, 2 * start + g + k};
    }
  }

  /// c = alpha cos theta;  d = -alpha sin theta in a group's first half, +alpha sin theta in its second.
  template <class B>
  void coefficients(B&, State<B> const& state, RowMapRow<Real<B>> const& out) const {
    using std::cos, std::sin;
    for (index_t j = 0; j < out.size; ++j) {
      auto const [c, s] = entries(j);
      // alpha cos t - 1 without cancellation near the identity: (alpha - 1) - 2 alpha sin^2(t/2)
      Real<B> const half = sin(state.theta[c] / 2);
      out.c1[j] = (state.alpha[c] - 1) - 2 * state.alpha[c] * half * half;
      Real<B> const sine = state.alpha[s] * sin(state.theta[s]);
      out.d[j] = j % group_size < group_size / 2 ? -sine : sine;
    }
  }

  template <class B>
  void backward(B&, State<B> const& state, RowMapRow<Real<B> const> const& grad, State<B>& g) const {
    using std::cos, std::sin;
    for (index_t j = 0; j < grad.size; ++j) {
      auto const [c, s] = entries(j);
      Real<B> const dc = grad.c1[j], ds = j % group_size < group_size / 2 ? -grad.d[j] : grad.d[j];
      g.alpha[c] += dc * cos(state.theta[c]);
      g.theta[c] -= dc * state.alpha[c] * sin(state.theta[c]);
      g.alpha[s] += ds * sin(state.theta[s]);
      g.theta[s] += ds * state.alpha[s] * cos(state.theta[s]);
    }
  }
};

}  // namespace graft
