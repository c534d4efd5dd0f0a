// SPDX-License-Identifier: Apache-2.0
// Gradients of norms, activations and rotary embedding against differences of the forward in double; f32 against
// double; any executor.
#include <graft/backend/cpu/elementwise_backward.hpp>
#include <graft/testing/buffer.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/gradient_check.hpp>
#include <graft/testing/random.hpp>
#include <tests/backend/poison.hpp>
#include <tests/catch.hpp>

#include <cmath>
#include <functional>
#include <limits>
#include <vector>

namespace {

using namespace graft;
using namespace graft::testing;
using D = CpuBackend<double>;

template <class R>
VectorView<R const> row_of(Buffer<R> const& buffer) {
  return {buffer.row(0), buffer.view().cols};
}
template <class R>
VectorView<R> row_of(Buffer<R>& buffer) {
  return {buffer.row(0), buffer.view().cols};
}
template <class R>
void set(MatrixView<R> to, R value) {
  for (index_t r = 0; r < to.rows; ++r) std::fill_n(to.row(r), to.cols, value);
}
/// sum of w * y
double weighed(Buffer<double> const& w, Buffer<double> const& y) {
  double sum = 0;
  for (index_t r = 0; r < w.view().rows; ++r)
    for (index_t c = 0; c < w.view().cols; ++c) sum += w.row(r)[c] * y.row(r)[c];
  return sum;
}
/// Adding to what is there: after - before.
template <class R>
Matrix added(Buffer<R> const& after, Buffer<R> const& before) {
  return Matrix(after.view()) - Matrix(before.view());
}

TEST_CASE("gradients of norms equal differences of the norms") {
  Random random(1);
  D be;
  for (index_t const d : {1, 7, 33, 100}) {
    index_t const n = 19;
    Buffer<double> x(n, d, 3), y(n, d), w(n, d, 1), weight(1, d), bias(1, d);
    fill_normal(x.view(), random, 0.3, 1.5);
    fill_normal(w.view(), random);
    fill_normal(weight.view(), random, 1, 0.5);
    fill_normal(bias.view(), random);
    bool const rms_only = d == 1;  // a layer norm over one number is constant
    for (bool const rms : {true, false}) {
      if (!rms && rms_only) continue;
      INFO((rms ? "rms" : "layer") << " norm, d " << d);
      auto const f = [&] {
        if (rms)
          rms_norm(be, std::as_const(x).view(), row_of(std::as_const(weight)), 1e-5, y.view());
        else
          layer_norm(be, std::as_const(x).view(), row_of(std::as_const(weight)), row_of(std::as_const(bias)), 1e-5,
                     y.view());
        return weighed(w, y);
      };
      auto const backward = [&](Buffer<double>& dy, Buffer<double>& dx, VectorView<double> dweight,
                                VectorView<double> dbias) {
        graft_test::poison(be);
        auto const weights = row_of(std::as_const(weight));
        if (rms)
          rms_norm_backward(be, std::as_const(x).view(), weights, 1e-5, std::as_const(dy).view(), dx.view(), dweight);
        else
          layer_norm_backward(be, std::as_const(x).view(), weights, 1e-5, std::as_const(dy).view(), dx.view(), dweight,
                              dbias);
      };
      Buffer<double> dx(n, d, 2), dweight(1, d), dbias(1, d);
      fill_normal(dx.view(), random);
      fill_normal(dweight.view(), random);
      fill_normal(dbias.view(), random);
      Buffer<double> const before = dx, weight_before = dweight, bias_before = dbias;
      backward(w, dx, row_of(dweight), row_of(dbias));
      REQUIRE(dx.gaps_untouched());
      CHECK(gradient_error(f, x.view(), added(dx, before).view()) <= 1);
      CHECK(gradient_error(f, weight.view(), added(dweight, weight_before).view()) <= 1);
      if (!rms) CHECK(gradient_error(f, bias.view(), added(dbias, bias_before).view()) <= 1);

      // without the parameters' gradients, and in place: the same dx
      Buffer<double> other = before;
      backward(w, other, {}, {});
      CHECK(same_bits(other.view(), dx.view()));
      Buffer<double> in_place = w;
      backward(in_place, in_place, {}, {});
      CHECK(gradient_error(f, x.view(), Matrix(in_place.view()).view()) <= 1);
    }
  }
}

TEST_CASE("the gradient of a norm of heads equals differences, and sums over heads") {
  Random random(2);
  D be;
  Buffer<double> x(11, 3 * 20, 1), y(11, 60), w(11, 60), weight(1, 20);
  fill_normal(x.view(), random);
  fill_normal(w.view(), random);
  fill_normal(weight.view(), random, 1, 0.2);
  auto const f = [&] {
    for (index_t n = 0; n < 11; ++n) std::copy_n(x.row(n), 60, y.row(n));
    rms_norm_heads(be, y.view(), row_of(std::as_const(weight)), 1e-6);
    return weighed(w, y);
  };
  Buffer<double> dx = w, dweight(1, 20);
  set(dweight.view(), 0.0);
  graft_test::poison(be);
  rms_norm_heads_backward(be, std::as_const(x).view(), row_of(std::as_const(weight)), 1e-6, dx.view(), row_of(dweight));
  CHECK(gradient_error(f, x.view(), Matrix(dx.view()).view()) <= 1);
  CHECK(gradient_error(f, weight.view(), Matrix(dweight.view()).view()) <= 1);
  Buffer<double> alone = w;
  rms_norm_heads_backward(be, std::as_const(x).view(), row_of(std::as_const(weight)), 1e-6, alone.view(), {});
  CHECK(same_bits(alone.view(), dx.view()));
}

constexpr Activation activations[] = {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu,
                                      Activation::tanh};

TEST_CASE("slopes of activations equal differences, plain and gated") {
  Random random(3);
  D be;
  for (Activation const f : activations) {
    Buffer<double> x(9, 13, 3), up(9, 13, 1), w(9, 13), y(9, 13);
    fill_normal(x.view(), random, 0, 2);
    fill_normal(up.view(), random);
    fill_normal(w.view(), random);
    for (index_t n = 0; n < 9; ++n)
      for (index_t k = 0; k < 13; ++k)  // away from relu's kink
        if (std::fabs(x.row(n)[k]) < 0.05) x.row(n)[k] = 0.05;
    INFO("activation " << int(f));
    auto const copy = [&] {
      for (index_t n = 0; n < 9; ++n) std::copy_n(x.row(n), 13, y.row(n));
    };
    auto const plain = [&] {
      copy();
      activate(be, f, y.view());
      return weighed(w, y);
    };
    Buffer<double> dx = w;
    activate_backward(be, f, std::as_const(x).view(), dx.view());
    CHECK(gradient_error(plain, x.view(), Matrix(dx.view()).view()) <= 1);

    auto const gated = [&] {
      copy();
      activate_gated(be, f, y.view(), std::as_const(up).view());
      return weighed(w, y);
    };
    Buffer<double> dgate = w, dup(9, 13, 2);
    fill_normal(dup.view(), random);
    Buffer<double> const before = dup;
    activate_gated_backward(be, f, std::as_const(x).view(), std::as_const(up).view(), dgate.view(), dup.view());
    CHECK(gradient_error(gated, x.view(), Matrix(dgate.view()).view()) <= 1);
    CHECK(gradient_error(gated, up.view(), added(dup, before).view()) <= 1);
    REQUIRE(dup.gaps_untouched());
  }
}

TEMPLATE_TEST_CASE("slopes are finite and right far out and at the kink", "", float, double) {
  using R = TestType;
  for (Activation const f : activations) {
    INFO("activation " << int(f));
    double const far = f == Activation::tanh ? 0 : 1;
    for (R const x : {R(40), R(300), R(1000)}) {
      CHECK(to_double(activation_derivative(f, x)) == Approx(far));
      CHECK(to_double(activation_derivative(f, -x)) == Approx(0).margin(1e-15));
    }
  }
  CHECK(activation_derivative(Activation::relu, R(0)) == 0);
  CHECK(activation_derivative(Activation::silu, R(0)) == R(0.5));
  CHECK(activation_derivative(Activation::tanh, R(0)) == 1);
}

TEST_CASE("the backward of a rotation is its transpose, with and without a magnitude") {
  Random random(4);
  D be;
  for (double const magnitude : {1.0, 1.7})
    for (index_t const angles : {3, 5}) {
      index_t const head_dim = 10, n = 9;  // 3: the last four columns of a head do not turn
      Buffer<double> x(n, 3 * head_dim, 2), y(n, 3 * head_dim), w(n, 3 * head_dim, 1), cosine(n, angles),
          sine(n, angles);
      fill_normal(x.view(), random);
      fill_normal(w.view(), random);
      for (index_t r = 0; r < n; ++r)
        for (index_t k = 0; k < angles; ++k) {
          double const angle = random.uniform(-3, 3);
          cosine.row(r)[k] = magnitude * std::cos(angle), sine.row(r)[k] = magnitude * std::sin(angle);
        }
      auto const f = [&] {
        for (index_t r = 0; r < n; ++r) std::copy_n(x.row(r), 3 * head_dim, y.row(r));
        rotate(be, std::as_const(cosine).view(), std::as_const(sine).view(), head_dim, y.view());
        return weighed(w, y);
      };
      Buffer<double> dx = w;
      rotate_backward(be, std::as_const(cosine).view(), std::as_const(sine).view(), head_dim, dx.view());
      REQUIRE(dx.gaps_untouched());
      CHECK(gradient_error(f, x.view(), Matrix(dx.view()).view()) <= 1);
    }
}

/// What all operations of this file make of the same numbers, in R.
template <class R>
std::vector<Buffer<R>> everything(CpuBackend<R>& be, std::uint64_t seed) {
  Random random(seed);
  index_t const n = 37, d = 100;
  auto const make = [&](index_t rows, index_t cols) {
    Buffer<float> from(rows, cols);
    fill_normal(from.view(), random);
    Buffer<R> to(rows, cols);
    for (index_t r = 0; r < rows; ++r)
      for (index_t c = 0; c < cols; ++c) to.row(r)[c] = static_cast<R>(from.row(r)[c]);
    return to;
  };
  auto const x = make(n, d), up = make(n, d), dy = make(n, d), weight = make(1, d), head = make(1, 20);
  auto const cosine = make(n, 10), sine = make(n, 10);
  std::vector<Buffer<R>> out;
  auto const start = [&](index_t rows, index_t cols) -> Buffer<R>& {
    out.push_back(make(rows, cols));
    return out.back();
  };
  out.reserve(32);
  {
    auto &dx = start(n, d), &dw = start(1, d);
    rms_norm_backward(be, x.view(), row_of(weight), 1e-5, dy.view(), dx.view(), row_of(dw));
  }
  {
    auto &dx = start(n, d), &dw = start(1, 20);
    rms_norm_heads_backward(be, x.view(), row_of(head), 1e-5, dx.view(), row_of(dw));
  }
  {
    auto &dx = start(n, d), &dw = start(1, d), &db = start(1, d);
    layer_norm_backward(be, x.view(), row_of(weight), 1e-5, dy.view(), dx.view(), row_of(dw), row_of(db));
  }
  for (Activation const f : activations) {
    activate_backward(be, f, x.view(), start(n, d).view());
    auto &dgate = start(n, d), &dup = start(n, d);
    activate_gated_backward(be, f, x.view(), up.view(), dgate.view(), dup.view());
  }
  rotate_backward(be, cosine.view(), sine.view(), 20, start(n, d).view());
  return out;
}

TEST_CASE("f32 gradients agree with double", "[isa]") {
  CpuBackend<float> single;
  D be;
  auto const a = everything(single, 5);
  auto const b = everything(be, 5);
  for (std::size_t k = 0; k < a.size(); ++k) {
    INFO("result " << k);
    // sums of 100 and 37 terms in lanes and blocks of 8, an exponential of 2 ulp, some products
    CHECK(relative_l2(a[k].view(), b[k].view()) <= 60 * unit_roundoff<float>());
  }
}

TEST_CASE("the bits of elementwise gradients do not depend on the number of threads", "[many_threads]") {
  CpuBackend<float> serial;
  auto const expected = everything(serial, 6);
  for (index_t const threads : {2, 3}) {
    ThreadPool pool(threads);
    CpuBackend<float> be(pool);
    auto const actual = everything(be, 6);
    for (std::size_t k = 0; k < actual.size(); ++k) CHECK(same_bits(actual[k].view(), expected[k].view()));
  }
}

}  // namespace
