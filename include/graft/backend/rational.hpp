// SPDX-License-Identifier: Apache-2.0
// Learnable rational (Pade) activations.
#pragma once

#include <graft/config.hpp>
#include <graft/core/types.hpp>
#include <graft/core/view.hpp>

#include <array>
#include <span>

namespace graft {

/// F(x) = P(x) / Q(x),  P = sum_{k=0..m} a_k x^k,  and a Q without poles:
///     form A: Q = 1 + sum_{k=1..n} |b_k| |x|^k          form B: Q = 1 + |sum_{k=1..n} b_k x^k|
/// Molina et al. 2019, arXiv:1907.06732.
enum class RationalForm : std::uint8_t { a, b };

template <class R>
GRAFT_HOST_DEVICE R rational(RationalForm form, R const* a, index_t numerator, R const* b, index_t denominator, R x) {
  R p = a[numerator];
  for (index_t k = numerator; k-- > 0;) p = p * x + a[k];
  R q = 0;
  if (form == RationalForm::a) {
    R const magnitude = x < 0 ? -x : x;
    for (index_t k = denominator; k-- > 0;) q = (q + (b[k] < 0 ? -b[k] : b[k])) * magnitude;
  } else {
    for (index_t k = denominator; k-- > 0;) q = (q + b[k]) * x;
    q = q < 0 ? -q : q;
  }
  return p / (1 + q);
}

/// Given dy = dL/dF: returns dL/dx and adds dL/da_k to da [m+1] and dL/db_k to db [n], where they are not null. At 0,
/// |.| has slope 0.
template <class R>
GRAFT_HOST_DEVICE R rational_backward(RationalForm form, R const* a, index_t numerator, R const* b, index_t denominator,
                                      R x, R dy, R* da, R* db) {
  auto const sign = [](R v) { return v < 0 ? R(-1) : v > 0 ? R(1) : R(0); };
  bool const each = form == RationalForm::a;  // |.| around each term, or around their sum
  R p = 0, dp = 0, q = 0, dq = 0;             // values and slopes of P and of what |.| is taken of in Q - 1
  for (index_t k = numerator + 1; k-- > 0;) dp = dp * x + p, p = p * x + a[k];
  R const v = each ? sign(x) * x : x;
  for (index_t k = denominator; k-- > 0;) {
    R const coefficient = each ? sign(b[k]) * b[k] : b[k];
    dq = dq * v + q + coefficient;
    q = (q + coefficient) * v;
  }
  R const outer = each ? R(1) : sign(q);
  R const bottom = 1 + outer * q, value = p / bottom;
  R power = 1;
  for (index_t k = 0; da != nullptr && k <= numerator; ++k, power *= x) da[k] += dy * power / bottom;
  power = v;
  for (index_t k = 0; db != nullptr && k < denominator; ++k, power *= v)
    db[k] -= dy * value / bottom * power * (each ? sign(b[k]) : outer);
  return dy * (dp - value * dq * (each ? sign(x) : outer)) / bottom;
}

/// Coefficients that start a rational as GELU, fitted on [-3, 3].
struct RationalFit {
  RationalForm form;
  std::span<double const> numerator, denominator;
};

namespace detail {
// Forms A and B of degrees (5, 4): rationals_config.json of the authors' implementation. (6, 5): least-squares fits,
// largest error on [-3, 3] 2.5e-4 (A) and 1.1e-4 (B).
inline constexpr std::array gelu_a54_p{-0.0012423594, 0.5080497063, 0.4158636318,
                                       0.1302271869,  0.0243559001, 0.0029028395};
inline constexpr std::array gelu_a54_q{-0.0667501570, 0.1792764622, 0.0374668261, 1.66e-10};
inline constexpr std::array gelu_b54_p{-0.0004221071, 0.4999995552,  0.4027053546,
                                       0.0736697690,  -0.0129547881, -0.0037414003};
inline constexpr std::array gelu_b54_q{4.96e-5, 0.1472977408, 1.16e-5, -0.0074838715};
inline constexpr std::array gelu_a65_p{0.000152539057, 0.500995952,  0.397495555,  0.245079673,
                                       0.13360123,     0.0374507483, 0.00380250853};
inline constexpr std::array gelu_a65_q{-0.0066414881, 0.483074319, 0.00299899557, 0.0744642691, 3.17e-9};
inline constexpr std::array gelu_b65_p{2.81184561e-05, 0.5,          0.398500888,  0.162368603,
                                       0.0641083232,   0.0183319459, 0.00210175779};
inline constexpr std::array gelu_b65_q{3.0e-10, -0.324737206, 4.7e-11, -0.0366638917, -2.0e-12};
}  // namespace detail

// const, because g++ forms no span of an array in a constant where both UBSan and libstdc++'s checks are on (bug 71962)
inline std::array<RationalFit, 4> const gelu_fits{{
    {RationalForm::a, detail::gelu_a54_p, detail::gelu_a54_q},
    {RationalForm::b, detail::gelu_b54_p, detail::gelu_b54_q},
    {RationalForm::a, detail::gelu_a65_p, detail::gelu_a65_q},
    {RationalForm::b, detail::gelu_b65_p, detail::gelu_b65_q},
}};

}  // namespace graft
