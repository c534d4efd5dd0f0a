// SPDX-License-Identifier: Apache-2.0
// Gradients against differences of the function itself: what every backward, yours included, can be tested with.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/view.hpp>
#include <graft/testing/close.hpp>

#include <cmath>

namespace graft::testing {

/// Step of the difference quotient, relative to max(1, |x|).
inline constexpr double difference_step = 0x1p-12;

/// Relative error that `gradient_error` counts as 1.
///
/// The quotient [8 (f(x + h) - f(x - h)) - (f(x + 2h) - f(x - 2h))] / 12h is wrong by h^4/30 f^(5) = 1.2e-16 f^(5), the
/// fifth derivative, and by at most 1.5/h = 6144 times the rounding error of f, which for sums of N terms of total size
/// S is below N 2^-53 S: 6.8e-10 S for N = 1000. 1e-8 leaves f^(5) room to be 8e7 times as large as f, and shows any
/// wrong term.
inline constexpr double difference_bound = 1e-8;

/// Largest distance between a given gradient and difference quotients, in units of what the quotients are good for:
/// a gradient is right when the result is at most 1. f() computes the function, a double, from the numbers at x, which
/// are changed one by one and put back. It must be smooth within 2 h of x. The unit is difference_bound times the
/// largest of 1, |f| and the gradient's entries; scale your function so that its terms are of about that size.
template <class F>
double gradient_error(F&& f, MatrixView<double> x, MatrixView<double const> gradient) {
  expects(x.rows == gradient.rows && x.cols == gradient.cols, "graft: a gradient of ", gradient.rows, " x ",
          gradient.cols, " for parameters of ", x.rows, " x ", x.cols);
  double size = std::fmax(1, std::fabs(f())), worst = 0;
  Matrix quotient(x.rows, x.cols);
  for (index_t r = 0; r < x.rows; ++r)
    for (index_t c = 0; c < x.cols; ++c) {
      double const start = x(r, c), h = difference_step * std::fmax(1, std::fabs(start));
      auto const difference = [&](double step) {
        x(r, c) = start + step;
        double const after = f();
        x(r, c) = start - step;
        double const before = f();
        x(r, c) = start;
        return after - before;
      };
      quotient(r, c) = (8 * difference(h) - difference(2 * h)) / (12 * h);
      size = std::fmax(size, std::fabs(quotient(r, c)));
    }
  for (index_t r = 0; r < x.rows; ++r)
    for (index_t c = 0; c < x.cols; ++c) worst = worse(worst, std::fabs(quotient(r, c) - gradient(r, c)));
  return worst / (difference_bound * size);
}
template <class F>
double gradient_error(F&& f, VectorView<double> x, VectorView<double const> gradient) {
  return gradient_error(f, MatrixView<double>{x.data, 1, x.size, x.size},
                        MatrixView<double const>{gradient.data, 1, gradient.size, gradient.size});
}

}  // namespace graft::testing
