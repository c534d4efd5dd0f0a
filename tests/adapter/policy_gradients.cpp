// SPDX-License-Identifier: Apache-2.0
// backward of every policy against differences of what the policy gives: coefficients, factors, vectors from prompts;
// at the start and away from it.
#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/module.hpp>
#include <graft/adapter/pedro.hpp>
#include <graft/adapter/road.hpp>
#include <graft/backend/cpu/cpu_backend.hpp>
#include <graft/testing/buffer.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/gradient_check.hpp>
#include <graft/testing/policies.hpp>
#include <graft/testing/random.hpp>
#include <tests/adapter/pedro_layer.hpp>
#include <tests/catch.hpp>

#include <cmath>
#include <vector>

namespace {

using namespace graft;
using namespace graft::testing;
using D = CpuBackend<double>;
using Pedro = PedroGenerator;

// what can be trained, and what cannot
struct Frozen : IA3Scaling {
  template <class B>
  void backward(B&, State<B> const&) const;  // hides the one that trains
};
static_assert(TrainableRowMap<RoAdRotation, D> && TrainableRowMap<IA3Scaling, D> && TrainableRowMap<LoRADelta, D>);
static_assert(TrainableLowRank<LoRADelta, D> && TrainableGenerated<Pedro, D> &&
              TrainableGenerated<Pedro, CpuBackend<>>);
static_assert(RowMapPolicy<Frozen, D> && !TrainableRowMap<Frozen, D>);
static_assert(!TrainableLowRank<RoAdRotation, D> && !TrainableGenerated<IA3Scaling, D>);

/// A module at site 0 of one layer and a second one that holds its gradient, started with numbers that must stay.
template <class P, class B = D>
struct Pair {
  Pair(P const& policy, SiteTable const& sites, index_t site = 0)
      : module(make_module<P, B>("m", policy, sites, {site}, 3)),
        gradient(make_module<P, B>("g", policy, sites, {site})) {
    for (auto& value : gradient.parameters()) value = start;
  }
  auto& state() { return module.entries[0].state; }
  auto& gradients() { return gradient.entries[0].state; }
  P const& policy() const { return module.entries[0].policy; }
  VectorView<Real<B>> parameters() { return module.parameters(); }
  /// What backward added.
  Vector added() const {
    Vector result;
    for (auto const value : gradient.parameters()) result.push_back(to_double(value) - start);
    return result;
  }
  static constexpr double start = 0.25;
  Module<P, B> module, gradient;
};
VectorView<double const> as_view(Vector const& v) { return {v.data(), static_cast<index_t>(v.size())}; }

/// Random dL/dc, dL/dd, dL/de, and the L they are the gradient of.
struct MapLoss {
  MapLoss(RowMapForm const& which, index_t outputs, Random& random)
      : form(which),
        size(outputs),
        c1(random_vector(outputs, random)),
        d(random_vector(outputs, random)),
        e(random_vector(outputs, random)) {}
  RowMapRow<double const> grad() const {
    return {form.c ? c1.data() : nullptr,
            form.d ? d.data() : nullptr,
            form.e ? e.data() : nullptr,
            size,
            form.group,
            nullptr};
  }
  template <class P>
  double operator()(Pair<P>& pair) const {
    D be;
    Vector x(c1.size()), y(c1.size()), z(c1.size());
    pair.policy().coefficients(be, pair.state(),
                               RowMapRow<double>{form.c ? x.data() : nullptr, form.d ? y.data() : nullptr,
                                                 form.e ? z.data() : nullptr, size, form.group, nullptr});
    double sum = 0;
    for (std::size_t k = 0; k < c1.size(); ++k) sum += c1[k] * x[k] + d[k] * y[k] + e[k] * z[k];
    return sum;
  }
  RowMapForm form;
  index_t size;
  Vector c1, d, e;
};

/// Checks at the start and twice away from it.
template <class P>
void check_map(P const& policy, SiteTable const& sites, index_t size, double mean, Random& random) {
  D be;
  for (int trial = 0; trial < 3; ++trial) {
    Pair<P> pair(policy, sites);
    if (trial > 0) fill_normal(pair.parameters(), random, mean, 0.7);
    MapLoss const loss(pair.policy().template form<D>(sites[0], pair.state()), size, random);
    pair.policy().backward(be, pair.state(), loss.grad(), pair.gradients());
    CHECK(gradient_error([&] { return loss(pair); }, pair.parameters(), as_view(pair.added())) <= 1);
  }
}

SiteTable one_linear(index_t in, index_t out) {
  SiteTable sites;
  sites.add_linear(0, "q_proj", "layers.0.q_proj", in, out);
  return sites;
}

TEST_CASE("gradients of RoAd equal differences, all variants and group sizes") {
  Random random(1);
  for (auto const variant :
       {RoAdRotation::Variant::road_1, RoAdRotation::Variant::road_2, RoAdRotation::Variant::road_4})
    for (index_t const g : {2, 6, 12}) {
      INFO("road " << int(variant) << ", g " << g);
      check_map(RoAdRotation{variant, g}, one_linear(5, 24), 24, 0.5, random);
    }
}

TEST_CASE("road_4's t11 and t22 have gradient exactly 0 at theta = 0; t12 and t21 wake up, then a12 and a21") {
  Random random(2);
  D be;
  index_t const o = 24, g = 6;
  Pair<RoAdRotation> pair(RoAdRotation{RoAdRotation::Variant::road_4, g}, one_linear(5, o));
  auto const backward = [&] {
    std::fill(pair.gradient.parameters().begin(), pair.gradient.parameters().end(), 0.0);
    MapLoss const loss({.present = true, .d = true, .group = g}, o, random);
    pair.policy().backward(be, pair.state(), loss.grad(), pair.gradients());
  };
  fill_normal(pair.state().alpha, random, 1, 0.5);  // at any alpha
  backward();
  auto& grad = pair.gradients();
  for (index_t j = 0; j < o; ++j) {
    auto const [cosine, sine] = pair.policy().entries(j);  // of output j: t11 or t22, and t12 or t21
    CHECK(grad.theta[cosine] == 0);
    CHECK(grad.theta[sine] != 0);
    CHECK(grad.alpha[cosine] != 0);
    CHECK(grad.alpha[sine] == 0);
  }
  for (index_t j = 0; j < o; ++j) {  // after a step
    auto const sine = pair.policy().entries(j).sine;
    pair.state().theta[sine] -= 0.1 * grad.theta[sine];
  }
  backward();
  for (index_t j = 0; j < o; ++j) {
    auto const [cosine, sine] = pair.policy().entries(j);
    CHECK(grad.theta[cosine] == 0);
    CHECK(grad.alpha[sine] != 0);
  }
  CHECK(pair.parameters().size == 4 * o);
  CHECK(pair.module.live_parameters() == 3 * o);
  CHECK(
      make_module<RoAdRotation, D>("m", {RoAdRotation::Variant::road_2, g}, one_linear(5, o), {0}).live_parameters() ==
      2 * o);
}

TEST_CASE("gradients of (IA)3 equal differences on both sides") {
  Random random(3);
  check_map(IA3Scaling{}, one_linear(5, 24), 24, 1, random);
  check_map(IA3Scaling{.feedforward_modules = {"q_proj"}}, one_linear(5, 24), 5, 1, random);
}

TEST_CASE("gradients of LoRA's bias and factors equal differences") {
  Random random(4);
  D be;
  for (bool const rs : {false, true}) {
    LoRADelta const policy{.rank = 3, .alpha = 8, .rank_stabilized = rs, .bias = true};
    auto const sites = one_linear(7, 24);
    check_map(policy, sites, 24, 0, random);
    // L = sum of random numbers times A and B
    Pair<LoRADelta> pair(policy, sites);
    fill_normal(pair.parameters(), random);
    Matrix a = random_matrix(3, 7, random), b = random_matrix(24, 3, random);
    LowRankViews<D> const grad{a.view(), b.view(), 0};
    pair.policy().backward(be, pair.state(), grad, pair.gradients());
    auto const loss = [&] {
      auto const factors = pair.policy().factors(be, pair.state());
      double sum = 0;
      for (index_t r = 0; r < 3; ++r) {
        for (index_t k = 0; k < 7; ++k) sum += a(r, k) * factors.a(r, k);
        for (index_t k = 0; k < 24; ++k) sum += b(k, r) * factors.b(k, r);
      }
      return sum;
    };
    CHECK(gradient_error(loss, pair.parameters(), as_view(pair.added())) <= 1);
  }
}

constexpr index_t width = 10, vectors = 8 + 4 + 14;

SiteTable pedro_layer() { return graft_test::pedro_layer(width, 8, 4, 14); }

/// L = sum of dl (l - 1) of a prompt.
template <class R>
struct PromptLoss {
  using B = CpuBackend<R>;
  Buffer<R> normalized, raw, dnormalized, draw;
  std::vector<R> dl;

  PromptLoss(index_t rows, Random& random)
      : normalized(rows, width, 3),
        raw(rows, width, 1),
        dnormalized(rows, width, 2),
        draw(rows, width),
        dl(static_cast<std::size_t>(vectors)) {
    Buffer<float> numbers(4 * rows + 3, width);
    fill_normal(numbers.view(), random, 0, 0.5);
    index_t row = 0;
    for (auto* buffer : {&normalized, &raw, &dnormalized, &draw})
      for (index_t n = 0; n < rows; ++n, ++row)
        for (index_t k = 0; k < width; ++k) buffer->row(n)[k] = static_cast<R>(numbers.row(row)[k]);
    for (std::size_t k = 0; k < dl.size(); ++k) dl[k] = static_cast<R>(numbers.row(row)[k]);
  }
  double operator()(Pair<Pedro, B>& pair) const {
    B be;
    auto const size = pair.policy().scratch_size(pair.state(), raw.view().rows);
    std::vector<R> scratch(static_cast<std::size_t>(size)), out(dl.size());
    pair.policy().generate(be, pair.state(), normalized.view(), raw.view(), VectorView<R>{scratch.data(), size},
                           VectorView<R>{out.data(), vectors});
    double sum = 0;
    for (std::size_t k = 0; k < dl.size(); ++k) sum += to_double(dl[k]) * to_double(out[k]);
    return sum;
  }
  void backward(Pair<Pedro, B>& pair) {
    B be;
    auto const size = pair.policy().backward_scratch_size(pair.state(), raw.view().rows);
    std::vector<R> scratch(static_cast<std::size_t>(size + 1), R(NAN));
    scratch.back() = 7;  // behind the scratch
    pair.policy().backward(be, pair.state(), std::as_const(normalized).view(), std::as_const(raw).view(),
                           VectorView<R>{scratch.data(), size}, VectorView<R const>{dl.data(), vectors},
                           pair.gradients(), dnormalized.view(), draw.view());
    REQUIRE(scratch.back() == 7);
  }
};

/// Whether nothing bends within the reach of the check's steps: relu, form B's |.|, |b| of form A, the largest of
/// `max`.
template <class R>
bool smooth(Pair<Pedro, CpuBackend<R>>& pair, PromptLoss<R> const& loss) {
  auto const& policy = pair.policy();
  auto const& state = pair.state();
  Matrix const x(policy.pooler_input == Pedro::PoolerInput::normalized ? loss.normalized.view() : loss.raw.view());
  PedroReference reference;
  reference.pool = Vector(state.pool.begin(), state.pool.end());
  reference.pooling = Pedro::names(policy.pooling)[static_cast<std::size_t>(policy.pooling)];
  for (double const z : Matrix(state.down) * reference.pooled(x)) {
    double q = 0;
    for (index_t k = 0; k < state.denominator.size; ++k)
      q += to_double(state.denominator[k]) * std::pow(z, static_cast<double>(k + 1));
    if (std::fabs(z) < 0.05 || (policy.activation == Pedro::Activation::rational_b && std::fabs(q) < 0.05))
      return false;
  }
  for (auto const b : state.denominator)
    if (std::fabs(b) < 0.01) return false;
  for (index_t k = 0; k < width && policy.pooling == Pedro::Pooling::max; ++k)
    for (index_t t = 0; t < x.rows; ++t)
      for (index_t s = 0; s < t; ++s)
        if (std::fabs(x(t, k) - x(s, k)) < 0.02) return false;
  return true;
}

TEST_CASE("gradients of PEDRO equal differences for every option, at the start and away from it") {
  Random random(5);
  auto const sites = pedro_layer();
  for (auto const& policy : graft_test::every_pedro_option(5, {5}))
    for (int trial = 0; trial < 2; ++trial) {
      Pair<Pedro> pair(policy, sites, sites.find("layers.0"));
      PromptLoss<double> loss(trial == 0 ? 4 : 3, random);
      while (trial > 0) {  // at the start W_up is 0, and what bends behind it does not matter
        fill_normal(pair.parameters(), random, 0.1, 0.3);
        fill_normal(pair.state().denominator, random, 0.1, 0.2);
        loss = PromptLoss<double>(3, random);
        if (smooth(pair, loss)) break;
      }
      auto const before = loss;
      loss.backward(pair);
      INFO("pooling " << int(policy.pooling) << ", activation " << int(policy.activation) << ", input "
                      << int(policy.pooler_input) << ", trial " << trial);
      auto const f = [&] { return loss(pair); };
      CHECK(gradient_error(f, pair.parameters(), as_view(pair.added())) <= 1);
      auto const check_input = [&](Buffer<double>& x, Buffer<double> const& dx, Buffer<double> const& dx_before) {
        REQUIRE(dx.gaps_untouched());
        Matrix const added = Matrix(dx.view()) - Matrix(dx_before.view());
        CHECK(gradient_error(f, x.view(), added.view()) <= 1);
      };
      check_input(loss.normalized, loss.dnormalized, before.dnormalized);
      check_input(loss.raw, loss.draw, before.draw);
    }
}

TEST_CASE("PEDRO starts with a gradient for W_up alone") {
  Random random(6);
  auto const sites = pedro_layer();
  Pair<Pedro> pair({.rank = 5}, sites, sites.find("layers.0"));
  for (auto& value : pair.gradient.parameters()) value = 0;
  PromptLoss<double> loss(4, random);
  loss.backward(pair);
  auto const& g = pair.gradients();
  for (index_t k = 0; k < g.down.size(); ++k) CHECK(g.down.data[k] == 0);
  double size = 0;
  for (index_t k = 0; k < g.up.size(); ++k) size += std::fabs(g.up.data[k]);
  CHECK(size > 1);
}

TEST_CASE("the first of several largest rows gets max pooling's gradient, as it gives the value") {
  Random random(7);
  auto const sites = pedro_layer();
  Pair<Pedro> pair({.rank = 5, .pooling = Pedro::Pooling::max}, sites, sites.find("layers.0"));
  fill_normal(pair.parameters(), random, 0.1, 0.4);
  PromptLoss<double> loss(3, random);
  for (index_t n = 0; n < 3; ++n)
    for (index_t k = 0; k < width; ++k) loss.normalized.row(n)[k] = 1;
  auto const before = loss;
  loss.backward(pair);
  CHECK_FALSE(same_bits(loss.dnormalized.row(0), before.dnormalized.row(0), width));
  for (index_t n : {1, 2}) CHECK(same_bits(loss.dnormalized.row(n), before.dnormalized.row(n), width));
}

TEST_CASE("PEDRO's f32 gradients agree with double") {
  auto const sites = pedro_layer();
  for (auto const& policy : graft_test::every_pedro_option(5, {5})) {
    Pair<Pedro, CpuBackend<float>> single(policy, sites, sites.find("layers.0"));
    Pair<Pedro> exact(policy, sites, sites.find("layers.0"));
    Random random(8);
    fill_normal(single.parameters(), random, 0.1, 0.4);
    std::copy(single.parameters().begin(), single.parameters().end(), exact.parameters().begin());
    Random same(9), other(9);
    PromptLoss<float> a(6, same);
    PromptLoss<double> b(6, other);
    a.backward(single), b.backward(exact);
    Matrix x(1, single.parameters().size), y = x;
    x.values = single.added(), y.values = exact.added();
    INFO("pooling " << int(policy.pooling) << ", activation " << int(policy.activation));
    // sums of 10, 26 and 6 terms and a rational of degree 5 that may steepen an error, on top of a start of 0.25
    CHECK(relative_l2(x, y) <= 1000 * unit_roundoff<float>());
    CHECK(relative_l2(a.dnormalized.view(), b.dnormalized.view()) <= 1000 * unit_roundoff<float>());
    CHECK(relative_l2(a.draw.view(), b.draw.view()) <= 1000 * unit_roundoff<float>());
  }
}

}  // namespace
