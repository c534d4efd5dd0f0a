// SPDX-License-Identifier: Apache-2.0
// Rotary position embedding: frequencies with the published context extensions, and the angles of a batch.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/scalar.hpp>
#include <graft/core/types.hpp>
#include <graft/core/view.hpp>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <span>
#include <vector>

namespace graft {

/// Su et al. 2021, arXiv:2104.09864, in Hugging Face's half-split pairing.
struct RopeConfig {
  enum class Scaling : std::uint8_t { none, linear, llama3, yarn };
  index_t dimensions = 0;  ///< rotated columns of each head; even
  double theta = 10000;
  Scaling scaling = Scaling::none;
  double factor = 1;
  double original_positions = 0;
  double low_frequency_factor = 1, high_frequency_factor = 4;  ///< llama3
  double beta_fast = 32, beta_slow = 1;                        ///< yarn; Peng et al. 2023, arXiv:2309.00071
  double attention_factor = 0;   ///< yarn: cos and sin are multiplied by it; 0: 0.1 ln(factor) + 1
  bool truncate = true;          ///< yarn: round the ends of the ramp
  std::vector<double> divisors;  ///< [dimensions/2] or empty: as GGUF's rope_freqs, angle = position * f / divisor
};

/// Angles per position, [dimensions/2].
inline std::vector<double> rope_frequencies(RopeConfig const& rope) {
  using std::numbers::pi;
  auto const half = static_cast<std::size_t>(rope.dimensions / 2);
  auto const dim = static_cast<double>(rope.dimensions);
  std::vector<double> f(half);
  for (std::size_t k = 0; k < half; ++k) f[k] = std::pow(rope.theta, -2 * static_cast<double>(k) / dim);
  switch (rope.scaling) {
    case RopeConfig::Scaling::none:
      break;
    case RopeConfig::Scaling::linear:
      for (auto& v : f) v /= rope.factor;
      break;
    case RopeConfig::Scaling::llama3:
      for (auto& v : f) {
        double const wavelength = 2 * pi / v;
        if (wavelength > rope.original_positions / rope.low_frequency_factor) {
          v /= rope.factor;
        } else if (wavelength >= rope.original_positions / rope.high_frequency_factor) {
          double const smooth = (rope.original_positions / wavelength - rope.low_frequency_factor) /
                                (rope.high_frequency_factor - rope.low_frequency_factor);
          v = (1 - smooth) * v / rope.factor + smooth * v;
        }
      }
      break;
    case RopeConfig::Scaling::yarn: {
      auto const correction = [&](double rotations) {
        return dim * std::log(rope.original_positions / (rotations * 2 * pi)) / (2 * std::log(rope.theta));
      };
      double low = correction(rope.beta_fast), high = correction(rope.beta_slow);
      if (rope.truncate) low = std::floor(low), high = std::ceil(high);
      low = std::max(low, 0.0), high = std::min(high, dim - 1);
      if (low == high) high += 0.001;
      for (std::size_t k = 0; k < half; ++k) {
        double const ramp = std::clamp((static_cast<double>(k) - low) / (high - low), 0.0, 1.0);
        f[k] = f[k] / rope.factor * ramp + f[k] * (1 - ramp);
      }
    }
  }
  if (!rope.divisors.empty()) {
    expects(rope.divisors.size() == half, "graft: RoPE has ", half, " frequencies but ", rope.divisors.size(),
            " divisors");
    for (std::size_t k = 0; k < half; ++k) f[k] /= rope.divisors[k];
  }
  return f;
}

/// What cos and sin are multiplied by.
inline double rope_magnitude(RopeConfig const& rope) {
  if (rope.scaling != RopeConfig::Scaling::yarn) return 1;
  if (rope.attention_factor != 0) return rope.attention_factor;
  return rope.factor <= 1 ? 1 : 0.1 * std::log(rope.factor) + 1;
}

/// cosine, sine [n, frequencies] of the rows' positions.
template <class Act>
void rope_angles(std::span<double const> frequencies, double magnitude, std::span<index_t const> positions,
                 MatrixView<Act> cosine, MatrixView<Act> sine) {
  for (index_t n = 0; n < cosine.rows; ++n)
    for (index_t k = 0; k < cosine.cols; ++k) {
      double const angle =
          static_cast<double>(positions[static_cast<std::size_t>(n)]) * frequencies[static_cast<std::size_t>(k)];
      cosine(n, k) = static_cast<Act>(static_cast<real_of<Act>>(std::cos(angle) * magnitude));
      sine(n, k) = static_cast<Act>(static_cast<real_of<Act>>(std::sin(angle) * magnitude));
    }
}

}  // namespace graft
