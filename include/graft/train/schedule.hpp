// SPDX-License-Identifier: Apache-2.0
// Learning rates over the steps of a training, with HF transformers' formulas.
#pragma once

#include <graft/core/types.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>

namespace graft {

/// Rises linearly from 0 during `warmup` steps, then
///   constant    stays at the peak
///   linear      falls to 0 at `total`
///   cosine      peak (1 + cos(pi progress)) / 2
///   polynomial  (peak - end) (1 - progress)^power + end
/// with progress = (step - warmup) / (total - warmup).
struct Schedule {
  enum class Kind : std::uint8_t { constant, linear, cosine, polynomial };
  static constexpr std::array<std::string_view, 4> names(Kind = {}) {
    return {"constant", "linear", "cosine", "polynomial"};
  }

  Kind kind = Kind::linear;
  index_t warmup = 0, total = 0;  ///< in optimiser steps
  double power = 1, end = 1e-7;   ///< polynomial only; `end` is a learning rate

  /// Of optimiser step `step`, counted from 0: with a warm-up the first step's rate is 0, as HF's is.
  double rate(double peak, index_t step) const {
    auto const ratio = [](index_t a, index_t b) {
      return static_cast<double>(a) / static_cast<double>(std::max<index_t>(1, b));
    };
    if (step < warmup) return peak * ratio(step, warmup);
    double const progress = ratio(step - warmup, total - warmup), left = std::max(0.0, 1 - progress);
    switch (kind) {
      case Kind::constant:
        return peak;
      case Kind::linear:
        return peak * left;
      case Kind::cosine:  // HF's goes on behind the end, where it would rise again
        return peak * std::max(0.0, 0.5 * (1 + std::cos(3.14159265358979323846 * progress)));
      case Kind::polynomial:
        return step > total ? end : (peak - end) * std::pow(left, power) + end;
    }
    return peak;
  }
};

}  // namespace graft
