// SPDX-License-Identifier: Apache-2.0
// One block of a row map: a real 2x2 matrix, in double. Products, inverses, powers.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/types.hpp>

#include <algorithm>
#include <cmath>
#include <string>

namespace graft {

/// [ a b ; c d ], acting on outputs (k, k + g/2) of a group.
struct MapBlock {
  double a = 1, b = 0, c = 0, d = 1;

  friend MapBlock operator*(MapBlock const& l, MapBlock const& r) {
    return {l.a * r.a + l.b * r.c, l.a * r.b + l.b * r.d, l.c * r.a + l.d * r.c, l.c * r.b + l.d * r.d};
  }
  double determinant() const { return a * d - b * c; }
  /// The largest absolute value.
  double size() const { return std::max({std::abs(a), std::abs(b), std::abs(c), std::abs(d)}); }
};

/// Where a block is, for messages.
struct BlockPlace {
  std::string const& path;
  index_t k, partner;

  template <class... Parts>
  [[noreturn]] void refuse(Parts const&... parts) const {
    raise<ContractError>("graft: the block of outputs ", k, " and ", partner, " of ", path, " ", parts...);
  }
};

inline MapBlock inverse(MapBlock const& m, BlockPlace const& place) {
  double const determinant = m.determinant();
  // below this the inverse would hold nothing but rounding errors of parameters stored in f32
  if (!(std::abs(determinant) > 1e-12 * m.size() * m.size()))
    place.refuse("has no inverse; its determinant is ", determinant);
  return {m.d / determinant, -m.b / determinant, -m.c / determinant, m.a / determinant};
}

/// M^t = exp(t log M) with the principal logarithm, which is real unless an eigenvalue is zero, or negative and not one
/// of two equal ones of a multiple of I. Then it is refused.
///     M = h I + N, h = tr M / 2, rho = sqrt(det M):   M^t = rho^t cos(t f) I + rho^(t-1) sin(t f) / sin(f) N
/// for eigenvalues rho e^(+-if); with cosh and sinh for real eigenvalues rho e^(+-f).
inline MapBlock power(MapBlock const& m, double t, BlockPlace const& place) {
  double const half = (m.a + m.d) / 2, determinant = m.determinant();
  MapBlock const n{(m.a - m.d) / 2, m.b, m.c, (m.d - m.a) / 2};
  double const discriminant = n.a * n.a + n.b * n.c;  // half^2 - determinant without its cancellation
  bool const multiple = n.size() == 0;                // of I
  if (!(determinant > 0) || (discriminant >= 0 && half < 0 && !multiple))
    place.refuse("has no real logarithm, so no power ", t, "; its determinant is ", determinant, ", its trace ",
                 2 * half);
  double const rho = std::sqrt(determinant), scale = std::pow(rho, t);
  if (multiple && half < 0) {  // a turn by pi, either way round
    double const turn = 3.14159265358979323846 * t;
    return {scale * std::cos(turn), -scale * std::sin(turn), scale * std::sin(turn), scale * std::cos(turn)};
  }
  double even = 1, odd = t;  // of I and of N
  if (discriminant < 0) {
    double const angle = std::atan2(std::sqrt(-discriminant), half);
    even = std::cos(t * angle);
    odd = std::sin(t * angle) / std::sin(angle);
  } else if (double const angle = std::atanh(std::sqrt(discriminant) / half); angle > 1e-8) {
    even = std::cosh(t * angle);
    odd = std::sinh(t * angle) / std::sinh(angle);
  }
  double const rest = scale / rho * odd;
  return {scale * even + rest * n.a, rest * n.b, rest * n.c, scale * even + rest * n.d};
}

}  // namespace graft
