// SPDX-License-Identifier: Apache-2.0
// The methods as their papers and PEFT define them, in double and with plain loops, written apart from the policies.
#pragma once

#include <graft/testing/matrix.hpp>
#include <graft/testing/reference.hpp>

#include <algorithm>
#include <cmath>
#include <string_view>

namespace graft::testing {

/// RoAd's R [o, o] from theta and alpha as stored by HF PEFT; variant is 1, 2 or 4. In every group of g outputs, k
/// pairs with k + g/2:
///     R[k, k] = c_k   R[k, k + g/2] = -s_k   R[k + g/2, k] = s_{k + g/2}   R[k + g/2, k + g/2] = c_{k + g/2}
inline Matrix road_matrix(int variant, index_t g, Vector const& theta, Vector const& alpha, index_t o) {
  index_t const h = g / 2;
  Matrix result(o, o);
  auto const cosine = [&](index_t at) {
    return alpha[static_cast<std::size_t>(at)] * std::cos(theta[static_cast<std::size_t>(at)]);
  };
  auto const sine = [&](index_t at) {
    return alpha[static_cast<std::size_t>(at)] * std::sin(theta[static_cast<std::size_t>(at)]);
  };
  for (index_t group = 0; group < o / g; ++group)
    for (index_t k = 0; k < h; ++k) {
      index_t const first = group * g + k, second = first + h;
      index_t c1, s1, c2, s2;  // where each entry's (alpha, theta) is
      if (variant == 1) {
        c1 = s1 = c2 = s2 = group * h + k;
      } else if (variant == 2) {
        c1 = s1 = first;
        c2 = s2 = second;
      } else {
        index_t const block = group * 2 * g;
        c1 = block + k, s1 = block + g + k;
        c2 = block + k + h, s2 = block + g + k + h;
      }
      result(first, first) = cosine(c1);
      result(first, second) = -sine(s1);
      result(second, first) = sine(s2);
      result(second, second) = cosine(c2);
    }
  return result;
}

/// diag(l)
inline Matrix diagonal(Vector const& l) {
  Matrix result = identity(static_cast<index_t>(l.size()));
  for (index_t k = 0; k < result.rows; ++k) result(k, k) = l[static_cast<std::size_t>(k)];
  return result;
}

inline double gelu(double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }

/// sum_k a_k x^k / (1 + sum_k |b_k| |x|^k) for form 'a', ... / (1 + |sum_k b_k x^k|) for form 'b'.
inline double rational(char form, Vector const& a, Vector const& b, double x) {
  double p = 0, q = 0;
  for (std::size_t k = 0; k < a.size(); ++k) p += a[k] * std::pow(x, static_cast<double>(k));
  for (std::size_t k = 0; k < b.size(); ++k) {
    double const power = std::pow(x, static_cast<double>(k + 1));
    q += form == 'a' ? std::fabs(b[k] * power) : b[k] * power;
  }
  return p / (1 + std::fabs(q));
}

/// Parameters and choices of one PEDRO generator.
struct PedroReference {
  Matrix down, up;                ///< [r, d], [q+v+u, r]
  Vector up_bias;                 ///< [q+v+u] or empty
  Vector numerator, denominator;  ///< of a rational activation
  Vector pool;                    ///< [d], attention pooling
  std::string_view pooling = "last", activation = "rational_a";
  double offset = 1;  ///< 0 where the bias carries it

  double activate(double x) const {
    if (activation == "rational_a") return rational('a', numerator, denominator, x);
    if (activation == "rational_b") return rational('b', numerator, denominator, x);
    if (activation == "gelu") return gelu(x);
    if (activation == "silu") return x / (1 + std::exp(-x));
    return std::max(x, 0.0);  // relu
  }

  /// h [d] from the prompt's rows [p, d].
  Vector pooled(Matrix const& prompt) const {
    Vector h(static_cast<std::size_t>(prompt.cols), 0.0);
    Vector share(static_cast<std::size_t>(prompt.rows), 0.0);
    if (pooling == "last") share.back() = 1;
    if (pooling == "mean") std::fill(share.begin(), share.end(), 1 / static_cast<double>(prompt.rows));
    if (pooling == "attention") {
      share = prompt * pool;
      double const highest = *std::max_element(share.begin(), share.end());
      double sum = 0;
      for (double& s : share) sum += s = std::exp(s - highest);
      for (double& s : share) s /= sum;
    }
    if (pooling == "max") {
      h = prompt.row(0);
      for (index_t t = 1; t < prompt.rows; ++t)
        for (std::size_t k = 0; k < h.size(); ++k) h[k] = std::max(h[k], prompt.row(t)[k]);
      return h;
    }
    for (index_t t = 0; t < prompt.rows; ++t) add_scaled(h, share[static_cast<std::size_t>(t)], prompt.row(t));
    return h;
  }

  /// l = offset + W_up f(W_down h) + b   [q+v+u]
  Vector vectors(Matrix const& prompt) const {
    Vector z = down * pooled(prompt);
    for (double& value : z) value = activate(value);
    Vector l = up * z;
    for (double& value : l) value += offset;
    if (!up_bias.empty()) add_scaled(l, 1, up_bias);
    return l;
  }
};

}  // namespace graft::testing
