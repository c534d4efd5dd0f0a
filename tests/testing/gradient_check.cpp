// SPDX-License-Identifier: Apache-2.0
// The gradient check accepts right gradients of smooth functions and notices small mistakes.
#include <graft/testing/gradient_check.hpp>
#include <graft/testing/random.hpp>
#include <tests/catch.hpp>

#include <cmath>
#include <limits>

namespace {

using namespace graft;
using namespace graft::testing;

/// sum_k w_k exp(sin(x_k)) x_{k+1}, cyclic
struct Example {
  Matrix x, weight;
  explicit Example(Random& random) : x(random_matrix(3, 5, random)), weight(random_matrix(3, 5, random)) {}

  double at(index_t k) const { return x.values[static_cast<std::size_t>(k % 15)]; }
  double operator()() const {
    double sum = 0;
    for (index_t k = 0; k < 15; ++k)
      sum += weight.values[static_cast<std::size_t>(k)] * std::exp(std::sin(at(k))) * at(k + 1);
    return sum;
  }
  Matrix gradient() const {
    Matrix g(3, 5);
    for (index_t k = 0; k < 15; ++k) {
      double const w = weight.values[static_cast<std::size_t>(k)], e = std::exp(std::sin(at(k)));
      g.values[static_cast<std::size_t>(k)] += w * e * std::cos(at(k)) * at(k + 1);
      g.values[static_cast<std::size_t>((k + 1) % 15)] += w * e;
    }
    return g;
  }
};

TEST_CASE("right gradients pass, far below the bound, and the parameters are left as they were") {
  Random random(1);
  for (int trial = 0; trial < 20; ++trial) {
    Example f(random);
    Matrix const before = f.x, gradient = f.gradient();
    CHECK(gradient_error(f, f.x.view(), gradient.view()) <= 0.1);
    CHECK(f.x.values == before.values);
  }
}

TEST_CASE("a gradient that is wrong in the seventh digit is noticed") {
  Random random(2);
  for (int trial = 0; trial < 20; ++trial) {
    Example f(random);
    Matrix gradient = f.gradient();
    double size = 1;
    for (double const g : gradient.values) size = std::fmax(size, std::fabs(g));
    gradient(pick(random, 0, 2), pick(random, 0, 4)) += 1e-7 * std::fmax(size, std::fabs(f()));
    CHECK(gradient_error(f, f.x.view(), gradient.view()) > 5);
  }
}

TEST_CASE("large parameters get large steps") {
  Vector x{1e6};
  auto const f = [&] { return std::log(x[0]); };
  Vector const right{1e-6}, wrong{1.5e-6};
  VectorView<double> const at{x.data(), 1};
  double const unit = difference_bound * std::log(1e6);
  CHECK(gradient_error(f, at, VectorView<double const>{right.data(), 1}) <= 1e-3);
  CHECK(gradient_error(f, at, VectorView<double const>{wrong.data(), 1}) == Approx(5e-7 / unit).epsilon(1e-3));
}

TEST_CASE("a NaN fails, in the gradient and in the function") {
  Vector x{1.0, 2.0}, g{1.0, 1.0};
  VectorView<double> const at{x.data(), 2};
  VectorView<double const> const gradient{g.data(), 2};
  auto const sum = [&] { return x[0] + x[1]; };
  CHECK(gradient_error(sum, at, gradient) <= 1);
  CHECK_FALSE(gradient_error([&] { return sum() * std::numeric_limits<double>::quiet_NaN(); }, at, gradient) <= 1);
  g[0] = std::numeric_limits<double>::quiet_NaN();
  CHECK_FALSE(gradient_error(sum, at, gradient) <= 1);
  CHECK_THROWS_AS(gradient_error(sum, at, VectorView<double const>{g.data(), 1}), ContractError);
}

}  // namespace
