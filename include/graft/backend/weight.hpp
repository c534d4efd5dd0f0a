// SPDX-License-Identifier: Apache-2.0
// A frozen weight matrix in its storage format, usually inside a memory-mapped file.
#pragma once

#include <graft/backend/packed_weight.hpp>
#include <graft/core/error.hpp>
#include <graft/core/format.hpp>
#include <graft/core/types.hpp>
#include <graft/core/view.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace graft {

/// View of W [o, i]: rows of blocks in `format`. Rows may be stored in another order than they are used in
/// (GGUF's q and k): logical row k is stored row row_order[k].
struct Weight {
  std::byte const* data = nullptr;
  Format format = Format::f32;
  index_t rows = 0, cols = 0;               ///< o, i
  std::int32_t const* row_order = nullptr;  ///< [o] or null: as stored
  PackedWeight packed{};                    ///< what products read in its place, where it is kept (cpu/pack.hpp)

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
    part.packed = packed.row_range(first, cols);
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

/// Whether both hold the same numbers, in whatever formats and orders of rows.
inline bool same_values(Weight const& a, Weight const& b) {
  if (a.rows != b.rows || a.cols != b.cols) return false;
  if (a.format == b.format && a.row_order == nullptr && b.row_order == nullptr)
    return std::equal(a.data, a.data + a.bytes(), b.data);
  std::vector<float> one(static_cast<std::size_t>(a.cols)), other(one.size());
  for (index_t r = 0; r < a.rows; ++r) {
    a.row(r, one.data());
    b.row(r, other.data());
    if (one != other) return false;
  }
  return true;
}

}  // namespace graft
