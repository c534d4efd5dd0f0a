// SPDX-License-Identifier: Apache-2.0
// Row maps computed with: sums of deltas, products, inverses, powers and ways between two, of RoAd and (IA)3 modules.
//
// A RoAd module is one 2x2 block for each pair of outputs, an (IA)3 module one number for each element. Blocks of equal
// groups are closed under all of this: road_1, which is one complex number for each pair, stays road_1, everything else
// becomes road_2, exact up to the rounding of (alpha, theta) to the parameters' type.
#pragma once

#include <graft/arithmetic/ia3_scales.hpp>
#include <graft/arithmetic/road_blocks.hpp>

#include <cmath>
#include <span>
#include <vector>

namespace graft {

/// I + sum_k w_k (R_k - I), block by block. alpha < 0 becomes (|alpha|, theta + pi); ContractError naming the block
/// where a row of it would be zero.
template <class B>
Module<RoAdRotation, B> weighted_sum(std::span<ModuleTerm<RoAdRotation, B> const> terms, SiteTable const& sites,
                                     Heads heads = Heads::exact) {
  return detail::map_blocks<B>(terms, sites, heads, [&](std::span<MapBlock const> m, BlockPlace const&) {
    MapBlock sum;
    for (std::size_t k = 0; k < m.size(); ++k) {
      double const w = terms[k].weight;
      sum.a += w * (m[k].a - 1), sum.b += w * m[k].b, sum.c += w * m[k].c, sum.d += w * (m[k].d - 1);
    }
    return sum;
  });
}

/// 1 + sum_k w_k (l_k - 1).
template <class B>
Module<IA3Scaling, B> weighted_sum(std::span<ModuleTerm<IA3Scaling, B> const> terms, SiteTable const& sites,
                                   Heads heads = Heads::exact) {
  return detail::map_scales<B>(terms, sites, heads, [&](std::span<double const> l, ScalePlace const&) {
    double sum = 1;
    for (std::size_t k = 0; k < l.size(); ++k) sum += terms[k].weight * (l[k] - 1);
    return sum;
  });
}

/// `second` after `first`: what HF PEFT does with several active adapters. R = R_second R_first.
template <class B>
Module<RoAdRotation, B> compose(Module<RoAdRotation, B> const& second, Module<RoAdRotation, B> const& first,
                                SiteTable const& sites) {
  auto const terms = detail::unweighted({&second, &first});
  return detail::map_blocks<B>(terms, sites, Heads::exact,
                               [](std::span<MapBlock const> m, BlockPlace const&) { return m[0] * m[1]; });
}
template <class B>
Module<IA3Scaling, B> compose(Module<IA3Scaling, B> const& second, Module<IA3Scaling, B> const& first,
                              SiteTable const& sites) {
  auto const terms = detail::unweighted({&second, &first});
  return detail::map_scales<B>(terms, sites, Heads::exact,
                               [](std::span<double const> l, ScalePlace const&) { return l[0] * l[1]; });
}

/// The module that undoes `module`. ContractError naming the block or element that has no inverse.
template <class B>
Module<RoAdRotation, B> inverse(Module<RoAdRotation, B> const& module, SiteTable const& sites) {
  auto const terms = detail::unweighted({&module});
  return detail::map_blocks<B>(terms, sites, Heads::exact, [](std::span<MapBlock const> m, BlockPlace const& place) {
    return inverse(m[0], place);
  });
}
template <class B>
Module<IA3Scaling, B> inverse(Module<IA3Scaling, B> const& module, SiteTable const& sites) {
  auto const terms = detail::unweighted({&module});
  return detail::map_scales<B>(terms, sites, Heads::exact, [](std::span<double const> l, ScalePlace const& place) {
    if (l[0] == 0) place.refuse("is 0 and has no inverse");
    return 1 / l[0];
  });
}

/// R^t: the module applied t times, t any number. road_1: alpha^t and t theta, for alpha > 0 and theta reduced to
/// (-pi, pi]; ContractError naming the block without a real logarithm.
template <class B>
Module<RoAdRotation, B> power(Module<RoAdRotation, B> const& module, double t, SiteTable const& sites) {
  for (auto const& entry : module.entries)
    for (index_t k = 0; entry.policy.variant == RoAdRotation::Variant::road_1 && k < entry.state.alpha.size; ++k) {
      index_t const half = entry.policy.group_size / 2, output = k / half * 2 * half + k % half;
      if (!(entry.state.alpha[k] > 0))
        BlockPlace{sites[entry.site].path, output, output + half}.refuse(
            "has alpha = ", entry.state.alpha[k], "; a rotation has powers where alpha is positive");
    }
  auto const terms = detail::unweighted({&module});
  return detail::map_blocks<B>(terms, sites, Heads::exact, [&](std::span<MapBlock const> m, BlockPlace const& place) {
    return power(m[0], t, place);
  });
}
template <class B>
Module<IA3Scaling, B> power(Module<IA3Scaling, B> const& module, double t, SiteTable const& sites) {
  auto const terms = detail::unweighted({&module});
  return detail::map_scales<B>(terms, sites, Heads::exact, [&](std::span<double const> l, ScalePlace const& place) {
    if (!(l[0] > 0)) place.refuse("is ", l[0], "; only positive numbers have every power");
    return std::pow(l[0], t);
  });
}

/// The way from a (t = 0) to b (t = 1) along a straight line: I + (1 - t) (A - I) + t (B - I).
template <class P, class B>
Module<P, B> interpolate(Module<P, B> const& a, Module<P, B> const& b, double t, SiteTable const& sites) {
  std::vector<ModuleTerm<P, B>> const terms = {{&a, 1 - t}, {&b, t}};
  return weighted_sum(std::span<ModuleTerm<P, B> const>(terms), sites);
}

/// The way from a to b at constant speed: (B A^-1)^t A. Rotations stay rotations, which on a straight line they do not.
/// (IA)3: a^(1-t) b^t.
template <class B>
Module<RoAdRotation, B> slerp(Module<RoAdRotation, B> const& a, Module<RoAdRotation, B> const& b, double t,
                              SiteTable const& sites) {
  auto const terms = detail::unweighted({&a, &b});
  return detail::map_blocks<B>(terms, sites, Heads::first, [&](std::span<MapBlock const> m, BlockPlace const& place) {
    return power(m[1] * inverse(m[0], place), t, place) * m[0];
  });
}
template <class B>
Module<IA3Scaling, B> slerp(Module<IA3Scaling, B> const& a, Module<IA3Scaling, B> const& b, double t,
                            SiteTable const& sites) {
  auto const terms = detail::unweighted({&a, &b});
  return detail::map_scales<B>(terms, sites, Heads::first, [&](std::span<double const> l, ScalePlace const& place) {
    if (!(l[1] / l[0] > 0)) place.refuse("goes from ", l[0], " to ", l[1], "; there is no such way past zero");
    return std::pow(l[1] / l[0], t) * l[0];
  });
}

}  // namespace graft
