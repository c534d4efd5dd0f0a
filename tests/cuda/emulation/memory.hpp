// SPDX-License-Identifier: Apache-2.0
// The emulated device's memory. Every allocation has pages of its own that end a few bytes behind it, with pages nobody
// may touch around them; fresh memory is NaN in every format; the host may not read it while no kernel runs. What was
// freed is never handed out again.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

namespace emulation {

inline constexpr unsigned char poison_byte = 0xff;  // f64, f32, bf16 and f16 of these bytes are NaN
inline constexpr unsigned char guard_byte = 0xfd;   // so are those of these

class Memory {
 public:
  static Memory& get() {
    static Memory memory;
    return memory;
  }

  /// Null when there is none left.
  void* allocate(std::size_t bytes) {
    std::size_t const room = std::max<std::size_t>((bytes + alignment - 1) / alignment * alignment, alignment);
    std::size_t const pages = (room + page_ - 1) / page_ * page_;
    if (next_ + pages + 2 * page_ > end_) return nullptr;
    std::byte* const first = next_ + page_;
    next_ = first + pages;
    allow(first, pages, true);
    std::byte* const data = first + pages - room;
    std::memset(first, guard_byte, pages);
    std::memset(data, poison_byte, bytes);
    if (!open_) allow(first, pages, false);
    blocks_[data] = {bytes, first, pages};
    ++allocations;
    return data;
  }

  /// "" or what is wrong.
  std::string free(void* data) {
    auto const found = blocks_.find(static_cast<std::byte*>(data));
    if (found == blocks_.end()) return "cudaFree of memory that is not allocated";
    std::string const error = check();
    mmap(found->second.first, found->second.pages, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
         -1, 0);
    blocks_.erase(found);
    return error;
  }

  /// "" or which allocation was written around.
  std::string check() {
    bool const was_open = open_;
    open(true);
    std::string error;
    for (auto const& [data, block] : blocks_) {
      auto const wrong = [](std::byte b) { return b != std::byte{guard_byte}; };
      std::byte* const end = data + block.bytes;
      if (auto* const at = std::find_if(block.first, data, wrong); at != data)
        error = "something was written " + std::to_string(data - at) + " bytes before an allocation of " +
                std::to_string(block.bytes) + " bytes";
      if (auto* const at = std::find_if(end, block.first + block.pages, wrong); at != block.first + block.pages)
        error = "something was written " + std::to_string(at - end) + " bytes behind the end of an allocation of " +
                std::to_string(block.bytes) + " bytes";
      if (!error.empty()) {  // told once
        std::fill(block.first, data, std::byte{guard_byte});
        std::fill(end, block.first + block.pages, std::byte{guard_byte});
        break;
      }
    }
    open(was_open);
    return error;
  }

  /// Whether the host may touch the memory.
  void open(bool yes) {
    if (yes == open_) return;
    open_ = yes;
    for (auto const& [data, block] : blocks_) allow(block.first, block.pages, yes);
  }

  /// Whether [data, data + bytes) lies inside one allocation.
  bool holds(void const* data, std::size_t bytes) const {
    auto const* const at = static_cast<std::byte const*>(data);
    auto const next = blocks_.upper_bound(const_cast<std::byte*>(at));
    if (next == blocks_.begin()) return false;
    auto const& [start, block] = *std::prev(next);
    return at >= start && at + bytes <= start + block.bytes;
  }
  /// Whether the address is one of the device's at all.
  bool is_device(void const* data) const { return data >= begin_ && data < end_; }

  /// The first word of [data, data + bytes), host memory, that is an address of the host's, or null. Kernels of a GPU
  /// cannot follow it; those of the emulation would. Numbers that look like one are too rare to meet.
  void const* host_address_in(void const* data, std::size_t bytes) const {
    std::uintptr_t word;
    for (std::size_t k = 0; k + sizeof word <= bytes; k += sizeof word) {
      std::memcpy(&word, static_cast<std::byte const*>(data) + k, sizeof word);
      if (word >> 40 == 0 || word >> 48 != 0) continue;  // where Linux maps nothing for a program
      auto* const page = reinterpret_cast<void*>(word / page_ * page_);
      unsigned char resident;
      if (!is_device(page) && mincore(page, 1, &resident) == 0) return reinterpret_cast<void const*>(word);
    }
    return nullptr;
  }

  std::size_t live() const { return blocks_.size(); }
  std::size_t allocations = 0;  ///< ever made

 private:
  static constexpr std::size_t alignment = 256;  // cudaMalloc's

  Memory() : page_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))) {
    std::size_t const bytes = std::size_t{1} << 38;
    void* const region = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (region == MAP_FAILED) {
      std::perror("emulation: no addresses for the device's memory");
      std::abort();
    }
    begin_ = next_ = static_cast<std::byte*>(region);
    end_ = begin_ + bytes;
  }

  static void allow(std::byte* first, std::size_t bytes, bool yes) {
    if (mprotect(first, bytes, yes ? PROT_READ | PROT_WRITE : PROT_NONE) != 0) {
      std::perror("emulation: memory cannot be protected");
      std::abort();
    }
  }

  struct Allocation {
    std::size_t bytes;
    std::byte* first;  // of its pages
    std::size_t pages;
  };
  std::size_t page_;
  std::byte *begin_ = nullptr, *next_ = nullptr, *end_ = nullptr;
  std::map<std::byte*, Allocation> blocks_;
  bool open_ = false;
};

}  // namespace emulation
