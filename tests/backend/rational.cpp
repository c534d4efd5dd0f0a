// SPDX-License-Identifier: Apache-2.0
// Rational activations: the value against plain powers, and how well the starts approximate GELU.
#include <graft/backend/rational.hpp>
#include <graft/testing/gradient_check.hpp>
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

TEST_CASE("gradients of rationals equal differences, and are what is added") {
  Random random(3);
  for (int trial = 0; trial < 100; ++trial) {
    auto const m = testing::pick(random, 0, 6), n = testing::pick(random, 0, 5);
    for (RationalForm const form : {RationalForm::a, RationalForm::b}) {
      Vector a = testing::random_vector(m + 1, random), b = testing::random_vector(n, random), at{0};
      // |.| around x, each b and their sum must not bend within the check's steps
      auto const bends = [&] {
        double q = 0;
        bool near = std::fabs(at[0]) < 0.05;
        for (index_t k = 0; k < n; ++k) {
          q += b[static_cast<std::size_t>(k)] * std::pow(at[0], static_cast<double>(k + 1));
          near = near || std::fabs(b[static_cast<std::size_t>(k)]) < 0.05;
        }
        return near || (form == RationalForm::b && n > 0 && std::fabs(q) < 0.05);
      };
      do {
        b = testing::random_vector(n, random), at[0] = random.uniform(-1.5, 1.5);
      } while (bends());
      double const dy = random.uniform(-2, 2);
      Vector da(a.size(), 0.5), db(b.size(), 0.5);
      Vector const dx{rational_backward(form, a.data(), m, b.data(), n, at[0], dy, da.data(), db.data())};
      for (double& g : da) g -= 0.5;
      for (double& g : db) g -= 0.5;
      auto const f = [&] { return dy * rational(form, a.data(), m, b.data(), n, at[0]); };
      auto const error = [&](Vector& x, Vector const& g) {
        return testing::gradient_error(f, VectorView<double>{x.data(), static_cast<index_t>(x.size())},
                                       VectorView<double const>{g.data(), static_cast<index_t>(g.size())});
      };
      CHECK(error(at, dx) <= 1);
      CHECK(error(a, da) <= 1);
      CHECK(error(b, db) <= 1);
    }
  }
}

TEST_CASE("where |.| bends, its slope counts as 0") {
  double const a[] = {2.0, 3.0}, b[] = {0.0, 1.0};
  double da[] = {0, 0}, db[] = {0, 0};
  // x = 0: F = P there, Q = 1 has no slope
  for (RationalForm const form : {RationalForm::a, RationalForm::b})
    CHECK(rational_backward(form, a, index_t{1}, b, index_t{2}, 0.0, 1.0, da, db) == 3);
  CHECK((db[0] == 0 && db[1] == 0));
  CHECK((da[0] == 2 && da[1] == 0));
  // form A at b_1 = 0
  rational_backward(RationalForm::a, a, index_t{1}, b, index_t{2}, 1.0, 1.0, da, db);
  CHECK(db[0] == 0);
  CHECK(db[1] == Approx(-5.0 / 4));  // -P / Q^2
  // form B where the sum is 0: b = (1, -1) at x = 1
  double const balanced[] = {1.0, -1.0};
  db[0] = db[1] = 0;
  CHECK(rational_backward(RationalForm::b, a, index_t{1}, balanced, index_t{2}, 1.0, 1.0, da, db) == 3);
  CHECK((db[0] == 0 && db[1] == 0));
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
