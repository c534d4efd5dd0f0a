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
  Entries entries(index_t j) const { return entries(variant, group_size, j); }
  GRAFT_HOST_DEVICE static Entries entries(Variant variant, index_t group_size, index_t j) {
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

  /// One site's parameters, or their gradients; piece k is the k-th block.
  template <class R>
  struct Elements {
    R *theta, *alpha;
    index_t blocks, group_size;
    Variant variant;

    GRAFT_HOST_DEVICE index_t size() const { return blocks; }
    GRAFT_HOST_DEVICE void publish(index_t k, SiteNumbers<R> const& out) const {
      index_t const first = k / (group_size / 2) * (group_size / 2) + k;
      publish(first, true, out.map);
      publish(first + group_size / 2, false, out.map);
    }
    GRAFT_HOST_DEVICE void backward(index_t k, SiteNumbers<R const> const& grad, Elements const& g) const {
      index_t const first = k / (group_size / 2) * (group_size / 2) + k;
      backward(first, true, grad.map, g);
      backward(first + group_size / 2, false, grad.map, g);
    }

   private:
    /// Output j: c = alpha cos theta;  d = -alpha sin theta in a group's first half, +alpha sin theta in its second.
    GRAFT_HOST_DEVICE void publish(index_t j, bool first_half, RowMapRow<R> const& out) const {
      using std::sin;
      auto const [c, s] = entries(variant, group_size, j);
      // alpha cos t - 1 without cancellation near the identity: (alpha - 1) - 2 alpha sin^2(t/2)
      R const half = sin(theta[c] / 2);
      out.c1[j] = (alpha[c] - 1) - 2 * alpha[c] * half * half;
      R const sine = alpha[s] * sin(theta[s]);
      out.d[j] = first_half ? -sine : sine;
    }
    GRAFT_HOST_DEVICE void backward(index_t j, bool first_half, RowMapRow<R const> const& grad,
                                    Elements const& g) const {
      using std::cos, std::sin;
      auto const [c, s] = entries(variant, group_size, j);
      R const dc = grad.c1[j], ds = first_half ? -grad.d[j] : grad.d[j];
      g.alpha[c] += dc * cos(theta[c]);
      g.theta[c] -= dc * alpha[c] * sin(theta[c]);
      g.alpha[s] += ds * sin(theta[s]);
      g.theta[s] += ds * alpha[s] * cos(theta[s]);
    }
  };
  template <class B>
  Elements<Real<B>> elements(State<B> const& state) const {
    index_t const n = state.theta.size;
    return {state.theta.data, state.alpha.data,
            variant == Variant::road_1   ? n
            : variant == Variant::road_2 ? n / 2
                                         : n / 4,
            group_size, variant};
  }

  template <class B>
  void coefficients(B&, State<B> const& state, RowMapRow<Real<B>> const& out) const {
    publish_all(elements(state), SiteNumbers<Real<B>>{out});
  }
  template <class B>
  void backward(B&, State<B> const& state, RowMapRow<Real<B> const> const& grad, State<B>& g) const {
    backward_all(elements(state), SiteNumbers<Real<B> const>{grad}, elements(g));
  }
};

}  // namespace graft
