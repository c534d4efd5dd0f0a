// SPDX-License-Identifier: Apache-2.0
// Rotary positions: what they must do whatever the frequencies, and the frequencies of every extension.
#include <tests/catch.hpp>

#include <graft/backend/cpu/cpu.hpp>
#include <graft/layer/rope.hpp>
#include <graft/testing/random.hpp>

#include <algorithm>
#include <cmath>
#include <numbers>

using namespace graft;

namespace {

RopeConfig config(index_t dimensions, double theta = 10000) {
  RopeConfig rope;
  rope.dimensions = dimensions;
  rope.theta = theta;
  return rope;
}

/// x rotated as position `position`.
std::vector<double> rotated(std::vector<double> x, index_t position, RopeConfig const& rope, index_t head_dim) {
  CpuBackend<double> be;
  auto const f = rope_frequencies(rope);
  auto const half = static_cast<index_t>(f.size());
  std::vector<double> cosine(f.size()), sine(f.size());
  std::vector<index_t> const positions{position};
  auto const c = matrix_view(cosine.data(), 1, half), s = matrix_view(sine.data(), 1, half);
  rope_angles<double>(f, rope_magnitude(rope), positions, c, s);
  rotate(be, MatrixView<double const>(c), MatrixView<double const>(s), head_dim,
         matrix_view(x.data(), 1, static_cast<index_t>(x.size())));
  return x;
}

double dot(std::vector<double> const& a, std::vector<double> const& b) {
  double sum = 0;
  for (std::size_t k = 0; k < a.size(); ++k) sum += a[k] * b[k];
  return sum;
}

}  // namespace

TEST_CASE("the product of a rotated query and key depends on their distance") {
  Random random(3);
  auto const rope = config(8);
  for (int round = 0; round < 10; ++round) {
    auto const q = graft::testing::random_vector(24, random), k = graft::testing::random_vector(24, random);
    double const near = dot(rotated(q, 5, rope, 8), rotated(k, 2, rope, 8));
    double const far = dot(rotated(q, 905, rope, 8), rotated(k, 902, rope, 8));
    CHECK(near == Approx(far).epsilon(1e-9).margin(1e-9));  // f64 and angles up to 905
    CHECK(dot(rotated(q, 700, rope, 8), rotated(q, 700, rope, 8)) == Approx(dot(q, q)));
    CHECK(rotated(q, 0, rope, 8) == q);
  }
}

TEST_CASE("pairs are k and k + half; columns beyond the rotated ones stay") {
  auto const rope = config(4, 100);  // frequencies 1 and 0.1
  std::vector<double> const x{1, 2, 3, 4, 5, 6};
  auto const y = rotated(x, 2, rope, 6);
  CHECK(y[0] == Approx(1 * std::cos(2.0) - 3 * std::sin(2.0)));
  CHECK(y[2] == Approx(3 * std::cos(2.0) + 1 * std::sin(2.0)));
  CHECK(y[1] == Approx(2 * std::cos(0.2) - 4 * std::sin(0.2)));
  CHECK(y[3] == Approx(4 * std::cos(0.2) + 2 * std::sin(0.2)));
  CHECK(y[4] == 5);
  CHECK(y[5] == 6);
}

TEST_CASE("linear scaling and divisors stretch positions") {
  auto rope = config(16), divided = config(16);
  auto const plain = rope_frequencies(rope);
  rope.scaling = RopeConfig::Scaling::linear;
  rope.factor = 4;
  divided.divisors.assign(8, 4);
  auto const a = rope_frequencies(rope), b = rope_frequencies(divided);
  for (std::size_t k = 0; k < plain.size(); ++k) {
    CHECK(plain[k] == Approx(std::pow(10000.0, -static_cast<double>(k) / 8)));
    CHECK(a[k] == plain[k] / 4);
    CHECK(b[k] == plain[k] / 4);
  }
  CHECK(rope_magnitude(rope) == 1);
  divided.divisors.pop_back();
  CHECK_THROWS_WITH(rope_frequencies(divided), "graft: RoPE has 8 frequencies but 7 divisors");
}

TEST_CASE("llama3 scaling keeps short waves, divides long ones and blends between") {
  auto rope = config(64, 500000);
  auto const plain = rope_frequencies(rope);
  rope.scaling = RopeConfig::Scaling::llama3;
  rope.factor = 8, rope.original_positions = 8192, rope.low_frequency_factor = 1, rope.high_frequency_factor = 4;
  auto const scaled = rope_frequencies(rope);
  int kept = 0, divided = 0, blended = 0;
  for (std::size_t k = 0; k < plain.size(); ++k) {
    double const wavelength = 2 * std::numbers::pi / plain[k], ratio = scaled[k] / plain[k];
    if (wavelength < 2048) {
      CHECK(ratio == 1);
      ++kept;
    } else if (wavelength > 8192) {
      CHECK(ratio == Approx(0.125));
      ++divided;
    } else {
      CHECK(ratio == Approx(0.125 + 0.875 * (8192 / wavelength - 1) / 3));
      ++blended;
    }
    if (k > 0) CHECK(scaled[k] < scaled[k - 1]);
  }
  CHECK(kept > 0);
  CHECK(divided > 0);
  CHECK(blended > 0);
}

TEST_CASE("YaRN keeps short waves, divides long ones and grows the attention") {
  auto rope = config(64);
  auto const plain = rope_frequencies(rope);
  rope.scaling = RopeConfig::Scaling::yarn;
  rope.factor = 4, rope.original_positions = 2048;
  auto const scaled = rope_frequencies(rope);
  // the ramp runs from 32 rotations within the original context to 1: frequencies 8.06 and 20.1 of 32,
  // rounded outwards to 8 and 21
  for (std::size_t k = 0; k < plain.size(); ++k) {
    double const share = std::clamp((static_cast<double>(k) - 8) / 13, 0.0, 1.0);
    CHECK(scaled[k] == Approx(plain[k] * (1 - share) + plain[k] / 4 * share));
  }
  CHECK(rope_magnitude(rope) == Approx(0.1 * std::log(4.0) + 1));
  rope.attention_factor = 1.5;
  CHECK(rope_magnitude(rope) == 1.5);
  rope.attention_factor = 0, rope.factor = 1;
  CHECK(rope_magnitude(rope) == 1);
}
