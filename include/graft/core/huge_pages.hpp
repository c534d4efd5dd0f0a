// SPDX-License-Identifier: Apache-2.0
// Memory in pages of 2 MiB where the system has them. Weights are streamed once for every token, so nearly every page
// of 4 KiB is one that the processor must look up first.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace graft::detail {

/// Asks for huge pages in the part of [data, data + bytes) that whole ones can cover. A hint: where the system has
/// none, or gives them anyway, nothing changes. Best before the memory is first touched.
inline void prefer_huge_pages(void* data, std::size_t bytes) noexcept {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t page = std::uintptr_t{1} << 21;
  if (data == nullptr || bytes < page) return;
  auto const from = reinterpret_cast<std::uintptr_t>(data);
  std::uintptr_t const first = (from + page - 1) & ~(page - 1), last = (from + bytes) & ~(page - 1);
  if (first < last) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace graft::detail
