// SPDX-License-Identifier: Apache-2.0
// Counts heap allocations. Include it in exactly one source file of a test program: it replaces malloc and its
// relatives (glibc), or operator new (elsewhere, and under sanitizers, which bring a malloc of their own).
#pragma once

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#if defined(__clang__) && defined(__x86_64__)
#include <mm_malloc.h>  // declares posix_memalign its own way, which must come before the definition
#endif

namespace graft::testing {

namespace detail {
inline std::atomic<std::int64_t> allocations{0};
inline void* counted(void* memory) noexcept {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return memory;
}
}  // namespace detail

/// Heap allocations of the whole program so far. Take the difference around what must not allocate:
///     auto const before = graft::testing::allocation_count();
///     step();
///     auto const during = graft::testing::allocation_count() - before;    // compare later: test macros allocate
inline std::int64_t allocation_count() { return detail::allocations.load(std::memory_order_relaxed); }

}  // namespace graft::testing

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define GRAFT_COUNT_OPERATOR_NEW
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define GRAFT_COUNT_OPERATOR_NEW
#endif
#endif
#if !defined(__GLIBC__) && !defined(GRAFT_COUNT_OPERATOR_NEW)
#define GRAFT_COUNT_OPERATOR_NEW
#endif

#if !defined(GRAFT_COUNT_OPERATOR_NEW)

// operator new and Eigen end here too
extern "C" {
void* __libc_malloc(std::size_t) noexcept;
void* __libc_calloc(std::size_t, std::size_t) noexcept;
void* __libc_realloc(void*, std::size_t) noexcept;
void* __libc_memalign(std::size_t, std::size_t) noexcept;

void* malloc(std::size_t size) noexcept { return graft::testing::detail::counted(__libc_malloc(size)); }
void* calloc(std::size_t count, std::size_t size) noexcept {
  return graft::testing::detail::counted(__libc_calloc(count, size));
}
void* realloc(void* memory, std::size_t size) noexcept {
  return graft::testing::detail::counted(__libc_realloc(memory, size));
}
void* memalign(std::size_t alignment, std::size_t size) noexcept {
  return graft::testing::detail::counted(__libc_memalign(alignment, size));
}
void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
  return graft::testing::detail::counted(__libc_memalign(alignment, size));
}
int posix_memalign(void** memory, std::size_t alignment, std::size_t size) noexcept {
  void* const result = graft::testing::detail::counted(__libc_memalign(alignment, size));
  if (result == nullptr) return ENOMEM;
  *memory = result;
  return 0;
}
}

#else

// Not inlined: GCC 12 would call malloc and free below a mismatch with the new and delete of the caller.
[[gnu::noinline]] void* operator new(std::size_t size) {
  if (void* const memory = graft::testing::detail::counted(std::malloc(size != 0 ? size : 1))) return memory;
  std::abort();
}
[[gnu::noinline]] void* operator new(std::size_t size, std::align_val_t alignment) {
  auto const a = static_cast<std::size_t>(alignment);
  if (void* const memory = graft::testing::detail::counted(std::aligned_alloc(a, (size + a - 1) / a * a)))
    return memory;
  std::abort();
}
[[gnu::noinline]] void* operator new(std::size_t size, std::nothrow_t const&) noexcept {
  return graft::testing::detail::counted(std::malloc(size != 0 ? size : 1));
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

#endif
#undef GRAFT_COUNT_OPERATOR_NEW
