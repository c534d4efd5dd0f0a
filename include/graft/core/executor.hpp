// SPDX-License-Identifier: Apache-2.0
// Who runs the chunks of an operation: the calling thread, graft's own pool, or one slice of a foreign pool.
#pragma once

#include <graft/core/types.hpp>

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace graft {

/// A reference to something callable; valid while the callable lives. Never allocates.
template <class Signature>
class FunctionRef;

template <class R, class... Args>
class FunctionRef<R(Args...)> {
 public:
  template <class F>
  requires(!std::same_as<std::remove_cvref_t<F>, FunctionRef>)
      FunctionRef(F&& f)  // NOLINT: implicit on purpose, callers pass lambdas
      : object_(const_cast<void*>(static_cast<void const*>(std::addressof(f)))),
        call_([](void* object, Args... args) -> R {
          return (*static_cast<std::remove_reference_t<F>*>(object))(static_cast<Args&&>(args)...);
        }) {}
  R operator()(Args... args) const { return call_(object_, static_cast<Args&&>(args)...); }

 private:
  void* object_;
  R (*call_)(void*, Args...);
};

/// Runs task(0) ... task(count - 1), each once, and returns when all are done.
/// What a chunk sums is the operation's and depends on shapes only, so results do not depend on the executor.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual void run(index_t count, FunctionRef<void(index_t)> task) = 0;
  /// How many chunks may run at the same time.
  virtual index_t concurrency() const { return 1; }
  /// Whether all of a grid is done when run() returns, that of other slices included.
  virtual bool waits() const { return true; }
};

/// Everything on the calling thread.
class SerialExecutor final : public Executor {
 public:
  void run(index_t count, FunctionRef<void(index_t)> task) override {
    for (index_t k = 0; k < count; ++k) task(k);
  }
};

/// Slice i of n: of every grid this thread runs the chunks i, i + n, i + 2n, ...; the host's other threads
/// make the same call with the other slices. The host synchronises between operations, graft does not.
class SliceExecutor final : public Executor {
 public:
  SliceExecutor(index_t slice, index_t slices) : slice_(slice), slices_(slices) {}
  void run(index_t count, FunctionRef<void(index_t)> task) override {
    for (index_t k = slice_; k < count; k += slices_) task(k);
  }
  bool waits() const override { return slices_ == 1; }

 private:
  index_t slice_, slices_;
};

/// A small pool: the caller takes part, chunks are claimed one by one, idle workers spin briefly and then park.
class ThreadPool final : public Executor {
 public:
  /// `threads` counts the caller; 0 means one per hardware thread.
  explicit ThreadPool(index_t threads = 0) {
    if (threads <= 0) threads = static_cast<index_t>(std::thread::hardware_concurrency());
    for (index_t k = 1; k < threads; ++k) workers_.emplace_back([this] { work(); });
  }
  ~ThreadPool() override {
    stop_.store(true, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    for (auto& worker : workers_) worker.join();
  }
  ThreadPool(ThreadPool const&) = delete;
  ThreadPool& operator=(ThreadPool const&) = delete;

  index_t concurrency() const override { return static_cast<index_t>(workers_.size()) + 1; }

  void run(index_t count, FunctionRef<void(index_t)> task) override {
    if (count <= 1 || workers_.empty()) {
      for (index_t k = 0; k < count; ++k) task(k);
      return;
    }
    task_ = &task;
    count_ = count;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(static_cast<std::int32_t>(workers_.size()), std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    claim_chunks();
    wait_until([this] { return busy_.load(std::memory_order_acquire) == 0; },
               [this] {
                 auto const left = busy_.load(std::memory_order_acquire);
                 if (left != 0) busy_.wait(left, std::memory_order_acquire);
               });
  }

 private:
  void claim_chunks() {
    for (index_t k; (k = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) (*task_)(k);
  }

  void work() {
    std::uint32_t seen = 0;
    for (;;) {
      wait_until([&] { return generation_.load(std::memory_order_acquire) != seen; },
                 [&] { generation_.wait(seen, std::memory_order_acquire); });
      ++seen;  // run() waits for every worker, so generations come one at a time
      if (stop_.load(std::memory_order_relaxed)) return;
      claim_chunks();
      if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_all();
    }
  }

  // Spinning for some tens of microseconds, about one operation of a small model, spares system calls, while a pool
  // that shares its cores with another process soon gives them up.
  template <class Ready, class Park>
  static void wait_until(Ready ready, Park park) {
    for (int spin = 0; spin < 1000; ++spin) {
      if (ready()) return;
#if defined(__x86_64__) || defined(__i386__)
      __builtin_ia32_pause();
#endif
    }
    while (!ready()) park();
  }

  // What workers wait for and what they find there, what all claim from, what the caller waits for: a cache line each,
  // so that nobody who waits slows down those who work.
  alignas(64) std::atomic<std::uint32_t> generation_{0};
  std::atomic<bool> stop_{false};
  FunctionRef<void(index_t)> const* task_ = nullptr;
  index_t count_ = 0;
  alignas(64) std::atomic<index_t> next_{0};
  alignas(64) std::atomic<std::int32_t> busy_{0};  // of 32 bits, which a system call can wait for
  alignas(64) std::vector<std::thread> workers_;
};

}  // namespace graft
