// SPDX-License-Identifier: Apache-2.0
// One block of threads, each a fiber. A thread runs until it waits for others; who goes on next is drawn by lot, so
// that a result which needs a barrier that is not there changes from seed to seed.
//
// Stricter than the hardware, so that what runs here runs everywhere: a barrier must be reached by all threads of the
// block, a warp's exchange by all lanes of its mask, at one place in the source.
#pragma once

#include <tests/cuda/emulation/fiber.hpp>
#include <tests/cuda/emulation/vector_types.hpp>

#include <bit>
#include <cstdint>
#include <cstring>
#include <memory>
#include <source_location>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

inline uint3 threadIdx{}, blockIdx{};
inline dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

namespace emulation {

/// A reproducible stream of numbers: xorshift64*, Vigna 2016, arXiv:1402.6246.
struct Lots {
  std::uint64_t state = 0x9e3779b97f4a7c15u;
  /// A number below `limit`.
  unsigned draw(unsigned limit) {
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return static_cast<unsigned>(((state * 0x2545f4914f6cdd1du) >> 32) * limit >> 32);
  }
};

inline std::string describe(std::source_location const& where) {
  std::string const file = where.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}

/// Does a warp's exchange once all lanes of the mask are there: operands[lane] is what each brought, null for others.
using Exchange = void (*)(void* const* operands, unsigned mask);

class Block {
 public:
  /// The one that is running.
  static Block& get() {
    static Block block;
    return block;
  }

  Lots lots;

  /// Runs all threads of one block. "" or what went wrong, as a sentence.
  std::string run(dim3 shape, void (*body)(void*), void* argument) {
    count_ = shape.x * shape.y * shape.z;
    threads_.assign(count_, {});
    warps_.assign((count_ + 31) / 32, 0);
    ready_.clear();
    arrived_ = returned_ = 0;
    error_.clear();
    for (unsigned t = 0; t < count_; ++t) {
      threads_[t].index = {t % shape.x, t / shape.x % shape.y, t / (shape.x * shape.y)};
      ready_.push_back(t);
    }
    while (!ready_.empty() && error_.empty()) {
      unsigned const k = lots.draw(static_cast<unsigned>(ready_.size()));
      current_ = ready_[k];
      ready_[k] = ready_.back();
      ready_.pop_back();
      Thread& thread = threads_[current_];
      if (thread.fiber == nullptr) thread.fiber = take_fiber();
      threadIdx = thread.index;
      if (thread.fiber->resume(body, argument)) {
        idle_.push_back(thread.fiber);
        thread.fiber = nullptr;
        thread.at = At::end;
        ++returned_;
      }
    }
    if (error_.empty() && returned_ != count_) error_ = stuck();
    for (Thread& thread : threads_)
      if (thread.fiber != nullptr) {
        thread.fiber->restart();
        idle_.push_back(thread.fiber);
      }
    return error_;
  }

  /// Called by a thread: waits for all threads of the block; the number of those whose predicate held.
  int barrier(bool predicate, std::source_location const& where) {
    Thread& self = threads_[current_];
    self.at = At::barrier;
    self.where = where;
    votes_ = (arrived_ == 0 ? 0 : votes_) + predicate;
    if (++arrived_ == count_) {
      arrived_ = 0;
      for (unsigned t = 0; t < count_; ++t) {
        if (!same(threads_[t].where, where))
          return fail("threads of one block meet at two barriers: ", threads_[t].where, " and ", where);
        threads_[t].votes = votes_;
        ready_.push_back(t);
      }
    }
    Fiber::suspend();
    return self.votes;
  }

  /// Called by a thread: waits for the lanes of the mask, one of which then does the exchange for all.
  void exchange(unsigned mask, void* operand, Exchange does, std::source_location const& where) {
    Thread& self = threads_[current_];
    unsigned const warp = current_ / 32, lane = current_ % 32;
    if ((mask >> lane & 1) == 0) {
      fail("lane ", lane, " is not in the mask of its own exchange at ", where);
      return;
    }
    self.at = At::exchange;
    self.where = where;
    self.mask = mask;
    self.operand = operand;
    self.does = does;
    warps_[warp] |= 1u << lane;
    if ((warps_[warp] & mask) == mask) {
      void* operands[32] = {};
      for (unsigned k = 0; k < 32; ++k)
        if (mask >> k & 1) {
          Thread const& other = threads_[warp * 32 + k];
          if (other.mask != mask || other.does != does || !same(other.where, where)) {
            fail("lanes of one warp meet at two exchanges: ", other.where, " and ", where);
            return;
          }
          operands[k] = other.operand;
        }
      does(operands, mask);
      warps_[warp] &= ~mask;
      for (unsigned k = 0; k < 32; ++k)
        if (mask >> k & 1) ready_.push_back(warp * 32 + k);
    }
    Fiber::suspend();
  }

  /// Called by a thread: gives up the whole block, for the reason that the parts say; does not return. What lives on
  /// the thread's stack is never destroyed, so the parts own no memory.
  template <class... Parts>
  int fail(Parts const&... parts) {
    {
      std::ostringstream out;
      (print(out, parts), ...);
      error_ = out.str();
    }
    for (;;) Fiber::suspend();
  }

 private:
  enum class At : std::uint8_t { work, barrier, exchange, end };
  struct Thread {
    Fiber* fiber = nullptr;
    uint3 index{};
    At at = At::work;
    std::source_location where;
    int votes = 0;
    unsigned mask = 0;
    void* operand = nullptr;
    Exchange does = nullptr;
  };

  template <class Part>
  static void print(std::ostringstream& out, Part const& part) {
    if constexpr (std::is_same_v<Part, std::source_location>)
      out << describe(part);
    else
      out << part;
  }

  static bool same(std::source_location const& a, std::source_location const& b) {
    return a.line() == b.line() && a.column() == b.column() && std::strcmp(a.file_name(), b.file_name()) == 0;
  }

  Fiber* take_fiber() {
    if (idle_.empty()) {
      fibers_.push_back(std::make_unique<Fiber>());
      idle_.push_back(fibers_.back().get());
    }
    Fiber* const fiber = idle_.back();
    idle_.pop_back();
    return fiber;
  }

  // Nobody can go on: who waits where.
  std::string stuck() const {
    std::ostringstream out;
    for (unsigned t = 0; t < count_; ++t) {
      Thread const& first = threads_[t];
      if (first.at == At::end) continue;
      unsigned here = 0;
      for (Thread const& other : threads_) here += other.at == first.at && same(other.where, first.where);
      if (first.at == At::barrier)
        out << "the barrier at " << describe(first.where) << " was reached by " << here << " of " << count_
            << " threads";
      else
        out << "an exchange of lanes " << std::hex << "0x" << first.mask << std::dec << " at " << describe(first.where)
            << " was reached by " << here << " threads of the block, but not by all lanes of its mask";
      out << "; " << returned_ << " threads have returned";
      break;
    }
    for (Thread const& other : threads_)
      if (other.at == At::exchange) {
        out << "; lanes wait at " << describe(other.where);
        break;
      }
    return out.str();
  }

  unsigned count_ = 0, current_ = 0, arrived_ = 0, returned_ = 0;
  int votes_ = 0;
  std::vector<Thread> threads_;
  std::vector<unsigned> warps_;  // the lanes that wait for an exchange
  std::vector<unsigned> ready_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;
  std::string error_;
};

}  // namespace emulation
