// SPDX-License-Identifier: Apache-2.0
// Clipping of a module's gradient by its global norm.
#pragma once

#include <graft/backend/optimizer.hpp>
#include <graft/core/executor.hpp>
#include <graft/core/view.hpp>

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

namespace graft {

/// The L2 norm of all buffers together, in double; the same bits on any executor.
template <class R>
double global_norm(Executor& executor, std::span<VectorView<R> const> buffers) {
  constexpr index_t chunk = 8192;
  double total = 0;
  for (auto const& buffer : buffers) {
    std::vector<double> sums(static_cast<std::size_t>(ceil_div(buffer.size, chunk)));
    executor.run(static_cast<index_t>(sums.size()), [&](index_t c) {
      double sum = 0;
      for (index_t k = c * chunk; k < std::min(buffer.size, (c + 1) * chunk); ++k)
        sum += static_cast<double>(buffer[k]) * static_cast<double>(buffer[k]);
      sums[static_cast<std::size_t>(c)] = sum;
    });
    for (double const sum : sums) total += sum;
  }
  return std::sqrt(total);
}

/// Scales one module's gradients so that their global norm is at most `most`; returns the norm they had (clip_scale).
template <class R>
double clip_gradient(Executor& executor, std::span<VectorView<R> const> buffers, double most) {
  double const norm = global_norm(executor, buffers), scale = clip_scale(norm, most);
  if (scale < 1)
    for (auto const& buffer : buffers)
      for (R& value : buffer) value = static_cast<R>(value * scale);
  return norm;
}

/// The same with the norm written where the gradients are, for code that does not ask where that is; most = 0 scales
/// nothing.
template <class R>
void clip_gradient(Executor& executor, std::span<VectorView<R> const> buffers, double most, double* norm) {
  *norm = most > 0 ? clip_gradient(executor, buffers, most) : global_norm(executor, buffers);
}

}  // namespace graft
