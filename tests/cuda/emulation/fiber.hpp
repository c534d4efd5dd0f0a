// SPDX-License-Identifier: Apache-2.0
// Fibers: functions with a stack of their own that stop in the middle and go on later. A switch costs nanoseconds on
// x86-64; elsewhere the C library's contexts do it, with a system call each.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulation {

#if defined(__x86_64__)
// Leaves the callee-saved registers on the old stack, notes where, and takes those of the new one.
[[gnu::naked, gnu::noinline]] inline void switch_stack(void** /*from*/, void* /*to*/) {
  asm("pushq %rbp\n\tpushq %rbx\n\tpushq %r12\n\tpushq %r13\n\tpushq %r14\n\tpushq %r15\n\t"
      "movq %rsp, (%rdi)\n\tmovq %rsi, %rsp\n\t"
      "popq %r15\n\tpopq %r14\n\tpopq %r13\n\tpopq %r12\n\tpopq %rbx\n\tpopq %rbp\n\tret");
}
#endif

/// Runs `body(argument)` again and again, one stretch per resume(); one OS thread uses all fibers.
class Fiber {
 public:
  Fiber() {
    std::size_t const page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    void* const memory =
        mmap(nullptr, stack_bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) {  // an overflow ends the program
      std::perror("emulation: no memory for a fiber's stack");
      std::abort();
    }
    stack_ = static_cast<std::byte*>(memory) + page;
    // tops that lie whole pages apart would all meet in the same sets of the first-level cache
    static std::size_t made = 0;
    top_ = stack_ + stack_bytes - made++ % 16 * 256;
    restart();
  }
  Fiber(Fiber const&) = delete;
  Fiber& operator=(Fiber const&) = delete;

  /// Forgets whatever was running.
  void restart() {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stack_, stack_bytes);
#endif
#if defined(__x86_64__)
    auto* const top = reinterpret_cast<void**>(top_);
    top[-2] = reinterpret_cast<void*>(&enter);  // what the first switch returns to, with the alignment a call leaves
    for (int k = 3; k <= 8; ++k) top[-k] = nullptr;
    stopped_ = top - 8;
#else
    getcontext(&context_);
    context_.uc_stack = {stack_, 0, stack_bytes};
    context_.uc_link = nullptr;
    makecontext(&context_, &enter, 0);
#endif
  }

  /// Goes on until the body suspends or returns; true when it returned.
  bool resume(void (*body)(void*), void* argument) {
    body_ = body, argument_ = argument, returned_ = false;
    current_ = this;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&home_fake_stack_, stack_, stack_bytes);
#endif
#if defined(__x86_64__)
    switch_stack(&home_, stopped_);
#else
    swapcontext(&home_, &context_);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(home_fake_stack_, nullptr, nullptr);
#endif
    return returned_;
  }

  /// Called on a fiber: back to whoever resumed it.
  static void suspend() {
    Fiber* const self = current_;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&self->fake_stack_, home_stack_, home_stack_bytes_);
#endif
#if defined(__x86_64__)
    switch_stack(&self->stopped_, home_);
#else
    swapcontext(&self->context_, &home_);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(self->fake_stack_, &home_stack_, &home_stack_bytes_);
#endif
  }

 private:
  static constexpr std::size_t stack_bytes = std::size_t{256} << 10;

  static void enter() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &home_stack_, &home_stack_bytes_);
#endif
    for (;;) {
      Fiber* const self = current_;
      self->body_(self->argument_);
      self->returned_ = true;
      suspend();
    }
  }

  std::byte *stack_ = nullptr, *top_ = nullptr;
  void (*body_)(void*) = nullptr;
  void* argument_ = nullptr;
  bool returned_ = false;
  static inline Fiber* current_ = nullptr;
#if defined(__x86_64__)
  void* stopped_ = nullptr;
  static inline void* home_ = nullptr;
#else
  ucontext_t context_;
  static inline ucontext_t home_;
#endif
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack_ = nullptr;
  static inline void* home_fake_stack_ = nullptr;
  static inline void const* home_stack_ = nullptr;
  static inline std::size_t home_stack_bytes_ = 0;
#endif
};

}  // namespace emulation
