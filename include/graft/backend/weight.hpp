// SPDX-License-Identifier: Apache-2.0
// A frozen weight matrix in its storage format, usually inside a memory-mapped file.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/format.hpp>
#include <graft/core/types.hpp>
#include <graft/core/view.hpp>

#include <cstddef>

namespace graft {

/// View of W [o, i]: rows of blocks in `format`. Rows may be stored in another order than they are used in
/// (GGUF's q and k): logical row k is stored row row_order[k].
struct Weight {
  std::byte const* data = nullptr;
  Format format = Format::f32;
  index_t rows = 0, cols = 0;               ///< o, i
  std::int32_t const* row_order = nullptr;  ///< [o] or null: as stored

  bool empty() const { return data == nullptr; }
  index_t bytes() const { return rows * row_bytes(format, cols); }
  std::byte const* row_data(index_t k) const {
    return data + (row_order != nullptr ? row_order[k] : k) * row_bytes(format, cols);
  }
  /// Writes logical row k, decoded, to out [i].
  template <class T>
  void row(index_t k, T* out) const {
    decode_row(format, row_data(k), 0, cols, out);
  }
  /// Rows [first, first + count) as a weight of their own.
  Weight row_range(index_t first, index_t count) const {
    Weight part = *this;
    part.rows = count;
    if (row_order != nullptr)
      part.row_order = row_order + first;
    else
      part.data = data + first * row_bytes(format, cols);
    return part;
  }
};

/// A dense f32 matrix [o, i] as a weight.
inline Weight dense_weight(MatrixView<float const> matrix) {
  expects(matrix.stride == matrix.cols, "graft: a weight's rows must be contiguous; stride is ", matrix.stride,
          ", columns are ", matrix.cols);
  return {reinterpret_cast<std::byte const*>(matrix.data), Format::f32, matrix.rows, matrix.cols, nullptr};
}

}  // namespace graft
