// SPDX-License-Identifier: Apache-2.0
// A matrix of an engine that is not ours: rows lie further apart than they are long.
#pragma once

#include <graft/core/types.hpp>
#include <graft/core/view.hpp>

#include <cstring>
#include <vector>

namespace graft::testing {

/// A row-strided buffer of its own: rows x cols elements, `gap` foreign elements behind each row that nobody may touch.
template <class T>
class Buffer {
 public:
  Buffer(index_t rows, index_t cols, index_t gap = 0)
      : rows_(rows), cols_(cols), stride_(cols + gap), values_(static_cast<std::size_t>(rows * (cols + gap)), mark()) {}

  MatrixView<T> view() { return {values_.data(), rows_, cols_, stride_}; }
  MatrixView<T const> view() const { return {values_.data(), rows_, cols_, stride_}; }
  T* row(index_t r) { return values_.data() + r * stride_; }
  T const* row(index_t r) const { return values_.data() + r * stride_; }

  /// Whether the elements between the rows are still what they were.
  bool gaps_untouched() const {
    T const expected = mark();
    for (index_t r = 0; r < rows_; ++r)
      for (index_t c = cols_; c < stride_; ++c)
        if (std::memcmp(row(r) + c, &expected, sizeof(T)) != 0) return false;
    return true;
  }

 private:
  static T mark() { return static_cast<T>(-12345.0f); }
  index_t rows_, cols_, stride_;
  std::vector<T> values_;
};

}  // namespace graft::testing
