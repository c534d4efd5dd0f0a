// SPDX-License-Identifier: Apache-2.0
// Small arrays of plain data that are written in host memory and copied to a space together.
#pragma once

#include <graft/core/memory.hpp>
#include <graft/core/types.hpp>

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <vector>

namespace graft {

/// Where an array of a parcel is written, and where kernels read it once the parcel is sent.
template <class T>
struct ParcelPiece {
  T* host = nullptr;
  T* resident = nullptr;
};

/// start, take, take, ..., fill the pieces, send. Where a piece lies follows from what was taken before it; memory in
/// the space is taken anew only where a parcel is larger than all before it.
template <MemorySpace S>
class Parcel {
 public:
  static constexpr index_t alignment = 64;

  /// Bytes that `count` elements of T take.
  template <class T>
  static constexpr index_t bytes_of(index_t count) {
    return round_up(count * static_cast<index_t>(sizeof(T)), alignment);
  }

  /// Empty, with room for `bytes`, the sum of bytes_of(...) of what is taken.
  void start(index_t bytes) {
    if (memory_.size() < bytes) memory_ = Storage<std::byte, S>(std::max<index_t>(2 * bytes, 4096));
    host_.assign(static_cast<std::size_t>(bytes), std::byte{0});
    used_ = 0;
  }
  /// `count` elements, all bytes zero.
  template <class T>
  ParcelPiece<T> take(index_t count) {
    static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= alignment);
    index_t const at = used_;
    used_ += bytes_of<T>(count);
    assert(used_ <= static_cast<index_t>(host_.size()));
    return {reinterpret_cast<T*>(host_.data() + at), reinterpret_cast<T*>(memory_.data() + at)};
  }
  /// Copies everything, in the order of the backend's queue; the host's memory may be reused at once.
  template <class B>
  void send(B& be) const {
    copy_to_device(be, host_.data(), memory_.data(), used_);
  }

 private:
  std::vector<std::byte> host_;
  Storage<std::byte, S> memory_;
  index_t used_ = 0;
};

}  // namespace graft
