// SPDX-License-Identifier: Apache-2.0
// Large memory asks the system for huge pages, small memory does not, and neither touches its neighbours.
#include <graft/core/memory.hpp>
#include <tests/catch.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <string>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

using graft::HostSpace;
using graft::index_t;
using graft::Storage;

/// Whether the mapping that holds this address prefers huge pages; they are flagged "hg" in Linux's list.
bool prefers_huge_pages(void const* address) {
  std::ifstream maps("/proc/self/smaps");
  auto const at = reinterpret_cast<std::uintptr_t>(address);
  bool inside = false;
  for (std::string line; std::getline(maps, line);) {
    unsigned long long first = 0, last = 0;
    if (std::sscanf(line.c_str(), "%llx-%llx ", &first, &last) == 2)
      inside = first <= at && at < last;
    else if (inside && line.starts_with("VmFlags:"))
      return line.find(" hg") != std::string::npos;
  }
  return false;
}

constexpr std::size_t huge_page = std::size_t{1} << 21;

/// Asks the system itself, because an emulator may pass such hints by.
bool system_has_huge_pages() {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  void* const some = ::mmap(nullptr, huge_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (some == MAP_FAILED) return false;
  ::madvise(some, huge_page, MADV_HUGEPAGE);
  bool const tells = prefers_huge_pages(some);
  ::munmap(some, huge_page);
  return tells;
#else
  return false;
#endif
}

TEST_CASE("large memory prefers huge pages") {
  if (!system_has_huge_pages()) GRAFT_SKIP("this system has no huge pages, or does not tell");
  constexpr index_t size = index_t{16} << 20;
  Storage<std::byte, HostSpace> const large(size);
  CHECK(prefers_huge_pages(large.data() + size / 2));
  std::fill_n(large.data(), size, std::byte{7});
  CHECK(std::all_of(large.data(), large.data() + size, [](std::byte b) { return b == std::byte{7}; }));
}

#if defined(__linux__)
TEST_CASE("whole huge pages are asked for, and nothing around them") {
  if (!system_has_huge_pages()) GRAFT_SKIP("this system has no huge pages, or does not tell");
  constexpr std::size_t page = huge_page, size = 8 * page;
  void* const all = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(all != MAP_FAILED);
  auto const from = reinterpret_cast<std::uintptr_t>(all);
  auto* const first = reinterpret_cast<std::byte*>((from + page - 1) / page * page);  // seven whole pages from here
  graft::detail::prefer_huge_pages(first + 1, 2 * page - 2);
  for (std::size_t k = 0; k < 7; ++k) CHECK_FALSE(prefers_huge_pages(first + k * page));
  graft::detail::prefer_huge_pages(first + 1, 4 * page);
  for (std::size_t k = 0; k < 7; ++k) CHECK(prefers_huge_pages(first + k * page) == (k >= 1 && k < 4));
  ::munmap(all, size);
}
#endif

TEST_CASE("asking for huge pages is a hint that takes anything") {
  std::byte some[100] = {std::byte{5}};
  graft::detail::prefer_huge_pages(nullptr, std::size_t{1} << 30);
  graft::detail::prefer_huge_pages(some, 0);
  graft::detail::prefer_huge_pages(some, sizeof some);
  CHECK(some[0] == std::byte{5});
}

}  // namespace
