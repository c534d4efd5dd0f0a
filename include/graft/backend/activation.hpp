// SPDX-License-Identifier: Apache-2.0
// Element functions of feed-forward networks, shared by all backends.
#pragma once

#include <graft/config.hpp>
#include <graft/core/scalar.hpp>

#include <cmath>

namespace graft {

enum class Activation : std::uint8_t { silu, gelu, gelu_tanh, relu, tanh };

/// exp(x) in f32, within 2 ulp; one formula for vector bodies and tails, so that a value does not depend on where it
/// stands. Results below 2^-126 are 0.
GRAFT_HOST_DEVICE inline float exp_of(float x) {
  float const clamped = x < -87.f ? -87.f : x > 88.f ? 88.f : x;
  // n = round(x / ln 2): adding 1.5 * 2^23 leaves the integer in the low bits
  float const shifted = clamped * 1.44269504088896341f + 12582912.f;
  float const n = shifted - 12582912.f;
  float const r = (clamped - n * 0.693145751953125f) - n * 1.428606765330187e-6f;
  float p = 1.9875691500e-4f;  // Cephes' polynomial of (e^r - 1 - r) / r^2
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  float const power = std::bit_cast<float>((std::bit_cast<std::int32_t>(shifted) << 23) + 0x3f800000);
  return x < -87.f ? 0.f : p * power;
}
GRAFT_HOST_DEVICE inline double exp_of(double x) {
  using std::exp;
  return exp(x);
}

template <class R>
GRAFT_HOST_DEVICE R activate(Activation f, R x) {
  using std::erf, std::tanh;
  switch (f) {
    case Activation::silu:
      return x / (1 + exp_of(-x));
    case Activation::gelu:
      return x / 2 * (1 + erf(x * R(0.70710678118654752440)));
    case Activation::gelu_tanh: {  // 0.5 x (1 + tanh u) = x / (1 + e^-2u)
      R const u = R(0.79788456080286535588) * (x + R(0.044715) * x * x * x);
      return x / (1 + exp_of(-2 * u));
    }
    case Activation::relu:
      return x > 0 ? x : R(0);
    case Activation::tanh:
      return tanh(x);
  }
  return x;
}

/// df/dx; 0 at the kink of relu.
template <class R>
GRAFT_HOST_DEVICE R activation_derivative(Activation f, R x) {
  using std::erf, std::tanh;
  switch (f) {
    case Activation::silu: {
      R const s = 1 / (1 + exp_of(-x));
      return s + x * s * (1 - s);
    }
    case Activation::gelu:  // the normal distribution function + x times its density
      return (1 + erf(x * R(0.70710678118654752440))) / 2 + x * R(0.39894228040143267794) * exp_of(-x * x / 2);
    case Activation::gelu_tanh: {  // x s(2u) with the logistic s
      R const u = R(0.79788456080286535588) * (x + R(0.044715) * x * x * x);
      R const slope = R(0.79788456080286535588) * (1 + 3 * R(0.044715) * x * x);
      R const s = 1 / (1 + exp_of(-2 * u));
      return s + x * s * (1 - s) * 2 * slope;
    }
    case Activation::relu:
      return x > 0 ? R(1) : R(0);
    case Activation::tanh: {
      R const t = tanh(x);
      return 1 - t * t;
    }
  }
  return R(1);
}

}  // namespace graft
