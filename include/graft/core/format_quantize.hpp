// SPDX-License-Identifier: Apache-2.0
// The quantisers of the block formats: from floats to stored bytes, on the host.
//
// The 32-value formats follow ggml's reference quantisers to the bit. The K formats minimise the weighted squared error
// of each sub-block over trial scales, then quantise against the scales as stored.
// No value, however wild, is undefined behaviour: what is not finite quantises to something in range.
#pragma once

#include <graft/core/format_blocks.hpp>
#include <graft/core/scalar.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>

namespace graft {

namespace detail {

/// The integer in [low, high] that x truncates to; NaN gives low.
inline int truncate_to(float x, int low, int high) {
  return x >= static_cast<float>(low) ? (x < static_cast<float>(high) ? static_cast<int>(x) : high) : low;
}
/// The integer in [low, high] nearest to x, halves away from zero.
inline int round_to(float x, int low, int high) { return truncate_to(std::round(x), low, high); }
inline float reciprocal(float x) { return x != 0 ? 1 / x : 0; }
inline void store_half(std::byte* to, float value) { store(to, f16(value)); }

struct Range {
  float min, max;
};
inline Range range_of(const float* x, int count) {
  Range range{x[0], x[0]};
  for (int k = 1; k < count; ++k) {
    if (x[k] < range.min) range.min = x[k];
    if (x[k] > range.max) range.max = x[k];
  }
  return range;
}
/// The element of largest magnitude, with its sign; the first of equals.
inline float extreme_of(const float* x, int count) {
  float extreme = 0;
  for (int k = 0; k < count; ++k) {
    if (std::fabs(x[k]) > std::fabs(extreme)) extreme = x[k];
  }
  return extreme;
}

/// Packs 32 five-bit quants: fifth bits as a u32, then the nibbles, value k beside value k + 16.
inline void store_five_bits(std::byte* to, const int* q) {
  std::uint32_t high = 0;
  for (int k = 0; k < 32; ++k) high |= static_cast<std::uint32_t>(q[k] >> 4) << k;
  store(to, high);
  for (int k = 0; k < 16; ++k) to[4 + k] = static_cast<std::byte>((q[k] & 15) | ((q[k + 16] & 15) << 4));
}

}  // namespace detail

inline void Q8_0::encode(const float* from, std::byte* to) {
  float const d = std::fabs(detail::extreme_of(from, 32)) / 127, inverse = detail::reciprocal(d);
  detail::store_half(to, d);
  for (int k = 0; k < 32; ++k) to[2 + k] = static_cast<std::byte>(detail::round_to(from[k] * inverse, -128, 127));
}

inline void Q4_0::encode(const float* from, std::byte* to) {
  float const d = detail::extreme_of(from, 32) / -8, inverse = detail::reciprocal(d);
  detail::store_half(to, d);
  for (int k = 0; k < 16; ++k) {
    int const low = detail::truncate_to(from[k] * inverse + 8.5f, 0, 15);
    int const high = detail::truncate_to(from[k + 16] * inverse + 8.5f, 0, 15);
    to[2 + k] = static_cast<std::byte>(low | (high << 4));
  }
}

inline void Q4_1::encode(const float* from, std::byte* to) {
  auto const [min, max] = detail::range_of(from, 32);
  float const d = (max - min) / 15, inverse = detail::reciprocal(d);
  detail::store_half(to, d);
  detail::store_half(to + 2, min);
  for (int k = 0; k < 16; ++k) {
    int const low = detail::truncate_to((from[k] - min) * inverse + 0.5f, 0, 15);
    int const high = detail::truncate_to((from[k + 16] - min) * inverse + 0.5f, 0, 15);
    to[4 + k] = static_cast<std::byte>(low | (high << 4));
  }
}

inline void Q5_0::encode(const float* from, std::byte* to) {
  float const d = detail::extreme_of(from, 32) / -16, inverse = detail::reciprocal(d);
  detail::store_half(to, d);
  int q[32];
  for (int k = 0; k < 32; ++k) q[k] = detail::truncate_to(from[k] * inverse + 16.5f, 0, 31);
  detail::store_five_bits(to + 2, q);
}

inline void Q5_1::encode(const float* from, std::byte* to) {
  auto const [min, max] = detail::range_of(from, 32);
  float const d = (max - min) / 31, inverse = detail::reciprocal(d);
  detail::store_half(to, d);
  detail::store_half(to + 2, min);
  int q[32];
  for (int k = 0; k < 32; ++k) q[k] = detail::truncate_to((from[k] - min) * inverse + 0.5f, 0, 31);
  detail::store_five_bits(to + 4, q);
}

namespace detail {

/// x ~ scale q - min with q in [0, levels] and min >= 0, for 32 values: least squares over trial step widths. Large
/// values weigh more, as errors there cost a dot product more.
struct ScaledRange {
  float scale, min;
};
inline ScaledRange fit_range(const float* x, int levels) {
  float weight[32], squares = 0, sum_w = 0, sum_wx = 0;
  for (int k = 0; k < 32; ++k) squares += x[k] * x[k];
  float const typical = std::sqrt(squares / 32);
  for (int k = 0; k < 32; ++k) {
    weight[k] = typical + std::fabs(x[k]);
    sum_w += weight[k];
    sum_wx += weight[k] * x[k];
  }
  auto const [lowest, highest] = range_of(x, 32);
  float const low = lowest < 0 ? lowest : 0;
  if (!(highest > low)) return {0, -low};

  ScaledRange best{(highest - low) / static_cast<float>(levels), -low};
  float best_error = -1;
  for (int trial = 0; trial <= 20; ++trial) {
    float const inverse = (static_cast<float>(levels) - 1 + 0.1f * static_cast<float>(trial)) / (highest - low);
    float q[32], sum_q = 0, sum_qq = 0, sum_qx = 0;
    for (int k = 0; k < 32; ++k) {
      q[k] = static_cast<float>(round_to(inverse * (x[k] - low), 0, levels));
      sum_q += weight[k] * q[k];
      sum_qq += weight[k] * q[k] * q[k];
      sum_qx += weight[k] * q[k] * x[k];
    }
    float const determinant = sum_w * sum_qq - sum_q * sum_q;
    if (!(determinant > 0)) continue;
    float scale = (sum_w * sum_qx - sum_wx * sum_q) / determinant;
    float offset = (sum_qq * sum_wx - sum_q * sum_qx) / determinant;
    if (offset > 0) offset = 0, scale = sum_qx / sum_qq;  // the format stores a minimum at or below zero
    float error = 0;
    for (int k = 0; k < 32; ++k) {
      float const difference = scale * q[k] + offset - x[k];
      error += weight[k] * difference * difference;
    }
    if (best_error < 0 || error < best_error) best_error = error, best = {scale, -offset};
  }
  return best;
}

/// Writes d, dmin and the packed scales of a Q4_K or Q5_K block and returns the 256 quants against them in q.
inline void encode_k_ranges(const float* from, int levels, std::byte* to, int* q) {
  ScaledRange fit[8];
  float scale_max = 0, min_max = 0;
  for (int s = 0; s < 8; ++s) {
    fit[s] = fit_range(from + 32 * s, levels);
    if (fit[s].scale > scale_max) scale_max = fit[s].scale;
    if (fit[s].min > min_max) min_max = fit[s].min;
  }
  store_half(to, scale_max / 63);
  store_half(to + 2, min_max / 63);
  int scales[8], mins[8];
  for (int s = 0; s < 8; ++s) {
    scales[s] = round_to(fit[s].scale * reciprocal(scale_max) * 63, 0, 63);
    mins[s] = round_to(fit[s].min * reciprocal(min_max) * 63, 0, 63);
  }
  for (int s = 0; s < 4; ++s) {
    to[4 + s] = static_cast<std::byte>(scales[s] | ((scales[s + 4] >> 4) << 6));
    to[8 + s] = static_cast<std::byte>(mins[s] | ((mins[s + 4] >> 4) << 6));
    to[12 + s] = static_cast<std::byte>((scales[s + 4] & 15) | ((mins[s + 4] & 15) << 4));
  }
  float const d = load_half(to), d_min = load_half(to + 2);
  for (int s = 0; s < 8; ++s) {
    float const inverse = reciprocal(d * static_cast<float>(scales[s])), min = d_min * static_cast<float>(mins[s]);
    for (int k = 0; k < 32; ++k) q[32 * s + k] = round_to((from[32 * s + k] + min) * inverse, 0, levels);
  }
}

/// The scale (of either sign) for which x ~ scale q with q in [-32, 31] is best for 16 values weighted by x^2.
inline float fit_scale(const float* x) {
  float const extreme = extreme_of(x, 16);
  if (std::fabs(extreme) < 1e-15f) return 0;  // its square would vanish below
  float best = extreme / -32, best_gain = -1;
  for (int trial = -9; trial <= 9; ++trial) {
    float const inverse = (-32 + 0.1f * static_cast<float>(trial)) / extreme;
    float sum_qx = 0, sum_qq = 0;
    for (int k = 0; k < 16; ++k) {
      float const q = static_cast<float>(round_to(inverse * x[k], -32, 31)), weight = x[k] * x[k];
      sum_qx += weight * q * x[k];
      sum_qq += weight * q * q;
    }
    // sum (x - scale q)^2 = sum x^2 - gain at the best scale
    float const gain = sum_qq > 0 ? sum_qx * sum_qx / sum_qq : -1;
    if (gain > best_gain) best_gain = gain, best = sum_qx / sum_qq;
  }
  return best;
}

}  // namespace detail

inline void Q4_K::encode(const float* from, std::byte* to) {
  int q[256];
  detail::encode_k_ranges(from, 15, to, q);
  for (int pair = 0; pair < 4; ++pair) {
    for (int k = 0; k < 32; ++k) {
      to[16 + 32 * pair + k] = static_cast<std::byte>(q[64 * pair + k] | (q[64 * pair + 32 + k] << 4));
    }
  }
}

inline void Q5_K::encode(const float* from, std::byte* to) {
  int q[256];
  detail::encode_k_ranges(from, 31, to, q);
  for (int k = 0; k < 32; ++k) {
    int fifth = 0;
    for (int s = 0; s < 8; ++s) fifth |= (q[32 * s + k] >> 4) << s;
    to[16 + k] = static_cast<std::byte>(fifth);
  }
  for (int pair = 0; pair < 4; ++pair) {
    for (int k = 0; k < 32; ++k) {
      to[48 + 32 * pair + k] = static_cast<std::byte>((q[64 * pair + k] & 15) | ((q[64 * pair + 32 + k] & 15) << 4));
    }
  }
}

inline void Q6_K::encode(const float* from, std::byte* to) {
  float scale[16];
  for (int s = 0; s < 16; ++s) scale[s] = detail::fit_scale(from + 16 * s);
  float const extreme = detail::extreme_of(scale, 16), inverse_d = extreme != 0 ? -128 / extreme : 0;
  detail::store_half(to + 208, detail::reciprocal(inverse_d));
  float const d = detail::load_half(to + 208);
  int q[256];
  for (int s = 0; s < 16; ++s) {
    int const stored = detail::round_to(inverse_d * scale[s], -128, 127);
    to[192 + s] = static_cast<std::byte>(stored);
    float const inverse = detail::reciprocal(d * static_cast<float>(stored));
    for (int k = 0; k < 16; ++k) q[16 * s + k] = detail::round_to(from[16 * s + k] * inverse, -32, 31) + 32;
  }
  for (int half = 0; half < 2; ++half) {
    const int* const v = q + 128 * half;
    for (int k = 0; k < 64; ++k) to[64 * half + k] = static_cast<std::byte>((v[k] & 15) | ((v[k + 64] & 15) << 4));
    for (int k = 0; k < 32; ++k) {
      int const high = (v[k] >> 4) | ((v[k + 32] >> 4) << 2) | ((v[k + 64] >> 4) << 4) | ((v[k + 96] >> 4) << 6);
      to[128 + 32 * half + k] = static_cast<std::byte>(high);
    }
  }
}

}  // namespace graft
