// SPDX-License-Identifier: Apache-2.0
// How the dense products of backward passes read their first operand.
#pragma once

#include <graft/core/view.hpp>

#include <type_traits>

namespace graft {
namespace detail {

/// A matrix that is read element by element, a(m, k) = data[m * row + k * step]: a view, or its transpose.
template <class R>
struct Strided {
  R const* data;
  index_t row, step;
};

}  // namespace detail
namespace cpu {

template <class R>
using Strided = detail::Strided<R>;  // a name in cpu itself would make calls of a level ambiguous with the baseline's
template <class R>
Strided<std::remove_const_t<R>> as_is(MatrixView<R> m) {
  return {m.data, m.stride, 1};
}
template <class R>
Strided<std::remove_const_t<R>> transposed(MatrixView<R> m) {
  return {m.data, 1, m.stride};
}

inline constexpr index_t outer_tile_depth = 128;  // rows of b between two visits of out: 32 KiB of f32

}  // namespace cpu
}  // namespace graft
