// SPDX-License-Identifier: Apache-2.0
// Memory for what a bank publishes: coefficients of maps and factors of deltas, as they are computed or in bf16.
#pragma once

#include <graft/backend/numbers.hpp>
#include <graft/backend/row_map.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace graft {

/// What a bank keeps the numbers of its modules in. Arithmetic is the same for both.
enum class AdapterStorage : std::uint8_t {
  full,  ///< the backend's Real, f32
  bf16,  ///< rounded to nearest even: half of it to keep, and to read at every step; for serving, not for training
};

/// Owns numbers that never change once written.
template <class R>
class NumberStorage {
 public:
  explicit NumberStorage(AdapterStorage as = AdapterStorage::full) : as_(as) {}

  AdapterStorage as() const { return as_; }

  /// What write(R*) writes over `size` zeros.
  template <class Write>
  Numbers<R> keep(index_t size, Write&& write) {
    auto values = std::make_unique<R[]>(static_cast<std::size_t>(size));
    write(values.get());
    if (as_ == AdapterStorage::full) return full_.emplace_back(std::move(values)).get();
    auto& narrow = narrow_.emplace_back(std::make_unique<graft::bf16[]>(static_cast<std::size_t>(size)));
    std::transform(values.get(), values.get() + size, narrow.get(),
                   [](R value) { return graft::bf16(static_cast<float>(value)); });
    return narrow.get();
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
  AdapterStorage as_;
  std::vector<std::unique_ptr<R[]>> full_;
  std::vector<std::unique_ptr<graft::bf16[]>> narrow_;
};

}  // namespace graft
