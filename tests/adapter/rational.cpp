// SPDX-License-Identifier: Apache-2.0
// Rational activations: the value against plain powers, and how well the starts approximate GELU.
#include <graft/adapter/rational.hpp>
#include <graft/testing/policies.hpp>
#include <graft/testing/random.hpp>
#include <tests/catch.hpp>

#include <cmath>

namespace {

using namespace graft;
using graft::testing::Vector;

TEST_CASE("rationals of both forms equal sums of powers") {
  Random random(1);
  for (int trial = 0; trial < 200; ++trial) {
    auto const m = testing::pick(random, 1, 7), n = testing::pick(random, 1, 6);
    Vector const a = testing::random_vector(m + 1, random), b = testing::random_vector(n, random);
    double const x = random.uniform(-4, 4);
    for (auto const& [form, letter] : {std::pair{RationalForm::a, 'a'}, {RationalForm::b, 'b'}}) {
      double const expected = testing::rational(letter, a, b, x);
      // Horner and powers differ by some roundings of terms up to 4^7, which a small denominator does not shrink
      CHECK(std::fabs(rational(form, a.data(), m, b.data(), n, x) - expected) <= 1e-11 * (1 + std::fabs(expected)));
    }
  }
}

TEST_CASE("rationals have no poles, whatever the coefficients") {
  Random random(2);
  for (int trial = 0; trial < 200; ++trial) {
    Vector const a = testing::random_vector(6, random, 0, 5), b = testing::random_vector(4, random, 0, 5);
    for (double x = -10; x <= 10; x += 0.125)
      for (RationalForm const form : {RationalForm::a, RationalForm::b}) {
        double const p = rational(form, a.data(), 5, b.data(), index_t{0}, x);  // denominator 1: the numerator
        REQUIRE(std::fabs(rational(form, a.data(), 5, b.data(), 4, x)) <= std::fabs(p));
      }
  }
}

TEST_CASE("the starts are within their stated errors of GELU on [-3, 3]") {
  // largest errors as measured when the coefficients were chosen, with 5 % for the grid
  struct Stated {
    RationalForm form;
    std::size_t numerator;
    double error;
  };
  for (auto const& [form, numerator, error] :
       {Stated{RationalForm::a, 6, 4.1e-3}, Stated{RationalForm::b, 6, 9.5e-4}, Stated{RationalForm::a, 7, 2.5e-4},
        Stated{RationalForm::b, 7, 1.1e-4}}) {
    int found = 0;
    for (auto const& fit : gelu_fits) {
      if (fit.form != form || fit.numerator.size() != numerator) continue;
      ++found;
      CHECK(fit.denominator.size() + 2 == numerator);
      double worst = 0;
      for (double x = -3; x <= 3; x += 1.0 / 1024)
        worst = std::max(
            worst, std::fabs(rational(fit.form, fit.numerator.data(), static_cast<index_t>(fit.numerator.size()) - 1,
                                      fit.denominator.data(), static_cast<index_t>(fit.denominator.size()), x) -
                             testing::gelu(x)));
      INFO("degrees " << numerator - 1 << ", " << fit.denominator.size());
      CHECK(worst <= 1.05 * error);
      CHECK(worst >= 0.5 * error);  // the statement is not idle
    }
    CHECK(found == 1);
  }
}

}  // namespace
