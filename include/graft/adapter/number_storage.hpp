// SPDX-License-Identifier: Apache-2.0
// Memory for what a bank publishes: coefficients of maps and factors of deltas, as they are computed or in bf16.
#pragma once

#include <graft/backend/numbers.hpp>
#include <graft/backend/row_map.hpp>
#include <graft/core/arena.hpp>
#include <graft/core/memory.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace graft {

/// What a bank keeps the numbers of its modules in. Arithmetic is the same for both.
enum class AdapterStorage : std::uint8_t {
  full,  ///< the backend's Real, f32
  bf16,  ///< rounded to nearest even: half of it to keep, and to read at every step; for serving, not for training
};

/// Owns numbers that never change once written, one behind the other in blocks that grow: a step that reads a module
/// then walks through few, large pages.
template <class R>
class NumberStorage {
 public:
  explicit NumberStorage(AdapterStorage as = AdapterStorage::full) : as_(as) {}

  AdapterStorage as() const { return as_; }

  /// What write(R*) writes over `size` zeros.
  template <class Write>
  Numbers<R> keep(index_t size, Write&& write) {
    if (as_ == AdapterStorage::full) {
      R* const values = take<R>(size);
      std::fill_n(values, size, R{0});
      write(values);
      return values;
    }
    std::vector<R> values(static_cast<std::size_t>(size));
    write(values.data());
    auto* const narrow = take<graft::bf16>(size);
    std::transform(values.begin(), values.end(), narrow, [](R v) { return graft::bf16(static_cast<float>(v)); });
    return narrow;
  }

  /// The map that write(RowMapRow<R> const&) writes over zeros; c - 1 is written too where it is not wanted.
  template <class Write>
  RowMapRow<R const> keep_map(index_t size, bool c, bool d, bool e, index_t group, Write&& write) {
    index_t const at_d = size, at_e = d ? 2 * size : size, end = e ? at_e + size : at_e;
    auto const all = keep(end, [&](R* v) {
      write(RowMapRow<R>{v, d ? v + at_d : nullptr, e ? v + at_e : nullptr, size, d ? group : 0, nullptr});
    });
    RowMapRow<R const> map{{}, {}, {}, size, d ? group : 0, nullptr};
    if (c) map.c1 = all;
    if (d) map.d = all + at_d;
    if (e) map.e = all + at_e;
    return map;
  }

 private:
  using Block = Storage<std::byte, HostSpace>;
  static constexpr index_t smallest = index_t{1} << 16;

  // Not an arena, whose blocks are no larger than what is asked for, because it joins them when it is empty; these
  // never are.
  template <class T>
  T* take(index_t size) {
    index_t const bytes = static_cast<index_t>(Arena::bytes_of<T>(size));
    if (blocks_.empty() || used_ + bytes > blocks_.back().size()) {
      index_t const twice = blocks_.empty() ? smallest : 2 * blocks_.back().size();
      blocks_.emplace_back(std::max(bytes, twice));
      used_ = 0;
    }
    return reinterpret_cast<T*>(blocks_.back().data() + std::exchange(used_, used_ + bytes));
  }

  AdapterStorage as_;
  std::vector<Block> blocks_;
  index_t used_ = 0;  ///< of the last block
};

}  // namespace graft
