// SPDX-License-Identifier: Apache-2.0
// Scratch memory that grows while a program warms up and is never allocated again afterwards.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/memory.hpp>
#include <graft/core/types.hpp>
#include <graft/core/view.hpp>

#include <cstddef>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

namespace graft {

template <MemorySpace S>
class ArenaScope;

/// Bump allocator over blocks it keeps. Everything handed out lives until the enclosing `ArenaScope` ends.
template <MemorySpace S>
class BasicArena {
 public:
  static constexpr std::size_t alignment = Memory<S>::alignment;

  template <class T>
  T* allocate(index_t count) {
    static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>,
                  "graft: an Arena holds plain data only; its elements are never destroyed");
    return static_cast<T*>(take(bytes_of<T>(count)));
  }
  template <class T>
  VectorView<T, S> vector(index_t size) {
    return {allocate<T>(size), size};
  }
  template <class T>
  MatrixView<T, S> matrix(index_t rows, index_t cols) {
    return {allocate<T>(rows * cols), rows, cols, cols};
  }

  /// Bytes that `count` elements of T take here.
  template <class T>
  static constexpr std::size_t bytes_of(index_t count) {
    return (static_cast<std::size_t>(count) * sizeof(T) + alignment - 1) / alignment * alignment;
  }
  /// Makes sure that `bytes` more, the sum of bytes_of(...) of what follows, are handed out without allocation.
  void reserve(std::size_t bytes) {
    if (block_ == 0 && used_ == 0 && blocks_.size() > 1) join();
    for (std::size_t k = block_; k < blocks_.size(); ++k)
      if (blocks_[k].size - (k == block_ ? used_ : 0) >= bytes) return;
    if (bytes != 0) add_block(bytes);
  }

  /// Bytes held, used or not.
  std::size_t capacity() const {
    std::size_t sum = 0;
    for (auto const& block : blocks_) sum += block.size;
    return sum;
  }

 private:
  friend class ArenaScope<S>;
  struct Free {
    void operator()(std::byte* p) const { Memory<S>::free(p); }
  };
  struct Block {
    std::unique_ptr<std::byte, Free> data;
    std::size_t size;
  };

  // bytes is a multiple of the alignment
  void* take(std::size_t bytes) {
    while (block_ < blocks_.size() && used_ + bytes > blocks_[block_].size) ++block_, used_ = 0;
    if (block_ == blocks_.size()) {
      add_block(bytes);
      used_ = 0;
    }
    void* const result = blocks_[block_].data.get() + used_;
    used_ += bytes;
    return result;
  }

  void add_block(std::size_t bytes) {
    std::size_t const size = bytes > Memory<S>::minimum_block ? bytes : Memory<S>::minimum_block;
    blocks_.push_back({std::unique_ptr<std::byte, Free>(static_cast<std::byte*>(Memory<S>::allocate(size))), size});
  }

  // One block as large as all of them: pieces of other sizes would leave gaps in the old ones for ever.
  void join() {
    std::size_t const size = capacity();
    blocks_.clear();
    if (void* const data = Memory<S>::try_allocate(size))
      blocks_.push_back({std::unique_ptr<std::byte, Free>(static_cast<std::byte*>(data)), size});
  }

  std::vector<Block> blocks_;
  std::size_t block_ = 0, used_ = 0;
};

using Arena = BasicArena<HostSpace>;

/// Gives back on destruction what was taken from the arena since construction.
template <MemorySpace S>
class ArenaScope {
 public:
  explicit ArenaScope(BasicArena<S>& arena) : arena_(arena), block_(arena.block_), used_(arena.used_) {}
  ~ArenaScope() {
    bool const joins = block_ == 0 && used_ == 0 && arena_.block_ > 0;
    arena_.block_ = block_, arena_.used_ = used_;
    if (joins) arena_.join();
  }
  ArenaScope(ArenaScope const&) = delete;
  ArenaScope& operator=(ArenaScope const&) = delete;

 private:
  BasicArena<S>& arena_;
  std::size_t block_, used_;
};

}  // namespace graft
