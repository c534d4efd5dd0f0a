// SPDX-License-Identifier: Apache-2.0
// The numbers of adapters as kernels read them: in the type of arithmetic, or in bf16, which is half of it to read.
#pragma once

#include <graft/config.hpp>
#include <graft/core/scalar.hpp>
#include <graft/core/types.hpp>

#include <cassert>
#include <cstddef>

namespace graft {

/// A pointer to numbers that never change, and what they are stored in: R, or bf16 ("narrow"). An element is an R
/// either way, bit for bit the stored number. Null where there are none.
template <class R>
class Numbers {
 public:
  Numbers() = default;
  GRAFT_HOST_DEVICE Numbers(std::nullptr_t) {}
  GRAFT_HOST_DEVICE Numbers(R const* data) : data_(data) {}
  GRAFT_HOST_DEVICE Numbers(bf16 const* data) : data_(data), narrow_(data != nullptr) {}

  GRAFT_HOST_DEVICE bool narrow() const { return narrow_; }
  GRAFT_HOST_DEVICE void const* data() const { return data_; }
  /// Bytes of `count` of them.
  GRAFT_HOST_DEVICE index_t bytes(index_t count) const {
    return count * static_cast<index_t>(narrow_ ? sizeof(bf16) : sizeof(R));
  }
  /// The pointer as what it is, for loops over many elements: T is bf16 where narrow, else R.
  template <class T>
  GRAFT_HOST_DEVICE T const* as() const {
    return static_cast<T const*>(data_);
  }
  /// The pointer where numbers cannot be narrow: nothing that is trained is.
  R const* full() const {
    assert(!narrow_);
    return as<R>();
  }
  /// Numbers of the same type elsewhere.
  Numbers moved_to(void const* data) const {
    Numbers moved = *this;
    moved.data_ = data;
    return moved;
  }

  GRAFT_HOST_DEVICE R operator[](index_t k) const {
    return narrow_ ? static_cast<R>(static_cast<float>(as<bf16>()[k])) : as<R>()[k];
  }
  GRAFT_HOST_DEVICE friend Numbers operator+(Numbers from, index_t count) {
    if (from.narrow_) return from.template as<bf16>() + count;
    return from.template as<R>() + count;
  }
  GRAFT_HOST_DEVICE friend bool operator==(Numbers const& numbers, std::nullptr_t) { return numbers.data_ == nullptr; }

 private:
  void const* data_ = nullptr;
  bool narrow_ = false;
};

}  // namespace graft
