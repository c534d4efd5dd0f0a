// SPDX-License-Identifier: Apache-2.0
// The counter sees every way to the heap; otherwise "no allocation" would prove nothing.
#include <graft/testing/counting_allocator.hpp>

#include <graft/core/arena.hpp>
#include <tests/catch.hpp>

#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace {

/// How many allocations f makes, on whatever thread.
template <class F>
std::int64_t count(F&& f) {
  auto const before = graft::testing::allocation_count();
  f();
  return graft::testing::allocation_count() - before;
}

void* volatile kept;  // keeps the compiler from leaving an allocation out
void* keep(void* memory) {
  kept = memory;
  return memory;
}

TEST_CASE("allocations are counted however they are made") {
  CHECK(count([] {}) == 0);
  CHECK(count([] {
          auto const p = std::make_unique<int>(3);
          keep(p.get());
        }) == 1);
  CHECK(count([] {
          std::vector<double> v(100);
          keep(v.data());
        }) == 1);
  CHECK(count([] {
          struct alignas(64) Wide {
            char bytes[64];
          };
          auto const p = std::make_unique<Wide>();
          keep(p.get());
        }) == 1);
  CHECK(count([] {
          graft::Arena arena;
          keep(arena.allocate<float>(10));
        }) >= 1);
  CHECK(count([] { std::thread([] { keep(std::make_unique<int>(1).get()); }).join(); }) >= 1);
}

TEST_CASE("memory that is kept or comes from the stack is not counted") {
  graft::Arena arena;
  { keep(arena.allocate<float>(1000)); }
  CHECK(count([&] {
          for (int k = 0; k < 100; ++k) {
            graft::ArenaScope const scope(arena);
            keep(arena.allocate<float>(500));
          }
        }) <= 1);  // the first scope begins behind the 1000
  std::vector<int> v;
  v.reserve(100);
  CHECK(count([&] {
          for (int k = 0; k < 100; ++k) v.push_back(k);
        }) == 0);
  std::string const brief = "short";
  CHECK(count([&] { std::string const copy = brief; }) == 0);
}

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST_CASE("C's functions are counted, too") {
  CHECK(count([] { std::free(keep(std::malloc(10))); }) == 1);
  CHECK(count([] { std::free(keep(std::calloc(10, 10))); }) == 1);
  CHECK(count([] { std::free(keep(std::aligned_alloc(64, 64))); }) == 1);
  void* memory = nullptr;
  CHECK(count([&] { REQUIRE(posix_memalign(&memory, 64, 100) == 0); }) >= 1);
  CHECK(reinterpret_cast<std::uintptr_t>(memory) % 64 == 0);
  CHECK(count([&] { memory = keep(std::realloc(memory, 100'000)); }) == 1);
  std::free(memory);
}
#endif

}  // namespace
