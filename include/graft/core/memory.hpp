// SPDX-License-Identifier: Apache-2.0
// Memory of a space: how it is taken, given back and filled, and an owner of some of it.
#pragma once

#include <graft/core/huge_pages.hpp>
#include <graft/core/types.hpp>
#include <graft/core/view.hpp>

#include <cstddef>
#include <cstring>
#include <new>
#include <span>
#include <type_traits>
#include <utility>

namespace graft {

/// How memory of a space is taken and filled. The copies wait for whatever uses the space; hot paths use a backend's.
/// Memory<DeviceSpace> is in graft/backend/cuda/runtime.cuh.
template <MemorySpace S>
struct Memory;

template <>
struct Memory<HostSpace> {
  static constexpr std::size_t alignment = 64;  // one cache line, one 512-bit register
  static constexpr std::size_t minimum_block = std::size_t{1} << 16;

  static void* allocate(std::size_t bytes) {
    void* const data = ::operator new (bytes, std::align_val_t{alignment});
    detail::prefer_huge_pages(data, bytes);
    return data;
  }
  /// Null where `allocate` would raise.
  static void* try_allocate(std::size_t bytes) noexcept {
    void* const data = ::operator new (bytes, std::align_val_t{alignment}, std::nothrow);
    detail::prefer_huge_pages(data, bytes);
    return data;
  }
  static void free(void* data) noexcept { ::operator delete (data, std::align_val_t{alignment}); }

  static void copy_from_host(void* to, void const* from, std::size_t bytes) { std::memcpy(to, from, bytes); }
  static void copy_within(void* to, void const* from, std::size_t bytes) { std::memcpy(to, from, bytes); }
  static void clear(void* to, std::size_t bytes) { std::memset(to, 0, bytes); }
};

/// Owns `size` elements of plain data in a space.
template <class T, MemorySpace S>
class Storage {
  static_assert(std::is_trivially_copyable_v<T>, "graft: a Storage holds plain data only");

 public:
  Storage() = default;
  /// Uninitialised.
  explicit Storage(index_t size)
      : data_(size > 0 ? static_cast<T*>(Memory<S>::allocate(static_cast<std::size_t>(size) * sizeof(T))) : nullptr),
        size_(size) {}
  /// Uninitialised; empty where there is not as much memory.
  static Storage attempt(index_t size) {
    Storage result;
    if (size > 0) result.data_ = static_cast<T*>(Memory<S>::try_allocate(static_cast<std::size_t>(size) * sizeof(T)));
    if (result.data_ != nullptr) result.size_ = size;
    return result;
  }
  /// A copy of host memory.
  explicit Storage(std::span<T const> host) : Storage(static_cast<index_t>(host.size())) {
    if (size_ > 0) Memory<S>::copy_from_host(data_, host.data(), host.size_bytes());
  }
  ~Storage() {
    if (data_ != nullptr) Memory<S>::free(data_);
  }
  Storage(Storage&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Storage& operator=(Storage&& other) noexcept {
    std::swap(data_, other.data_), std::swap(size_, other.size_);
    return *this;
  }

  /// Makes room for at least `size` elements; what was there is lost where there was less.
  void make_room(index_t size) {
    if (size_ < size) *this = Storage(), *this = Storage(size);  // the old memory first
  }
  /// Zero bytes everywhere.
  void clear() {
    if (size_ > 0) Memory<S>::clear(data_, static_cast<std::size_t>(size_) * sizeof(T));
  }

  T* data() const { return data_; }
  index_t size() const { return size_; }
  VectorView<T, S> view() const { return {data_, size_}; }

 private:
  T* data_ = nullptr;
  index_t size_ = 0;
};

}  // namespace graft
