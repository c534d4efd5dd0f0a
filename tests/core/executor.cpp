// SPDX-License-Identifier: Apache-2.0
// Executors run every chunk exactly once, and what chunks wrote is there when run() returns. Built with the tsan
// preset this is also the data-race test of the pool.
#include <graft/core/executor.hpp>
#include <tests/catch.hpp>

#include <chrono>
#include <memory>
#include <numeric>
#include <set>
#include <thread>
#include <vector>

namespace {

using graft::Executor;
using graft::index_t;

/// Runs one grid; how often each chunk ran. The counters are plain integers on purpose: only the executor orders them.
std::vector<int> count_runs(Executor& executor, index_t count) {
  std::vector<int> runs(static_cast<std::size_t>(count), 0);
  executor.run(count, [&](index_t k) { ++runs[static_cast<std::size_t>(k)]; });
  return runs;
}

bool each_once(std::vector<int> const& runs) {
  for (int const n : runs)
    if (n != 1) return false;
  return true;
}

TEST_CASE("the serial executor runs every chunk once, in order") {
  graft::SerialExecutor executor;
  std::vector<index_t> order;
  executor.run(100, [&](index_t k) { order.push_back(k); });
  REQUIRE(order.size() == 100);
  for (index_t k = 0; k < 100; ++k) REQUIRE(order[static_cast<std::size_t>(k)] == k);
  executor.run(0, [](index_t) { FAIL("a grid of no chunks ran one"); });
  CHECK(executor.concurrency() == 1);
}

TEST_CASE("a pool runs every chunk once, whatever the number of threads and chunks", "[threads]") {
  for (index_t const threads : {1, 2, 3, 5}) {
    graft::ThreadPool pool(threads);
    REQUIRE(pool.concurrency() == threads);
    for (index_t const count : {0, 1, 2, 3, 4, 7, 64, 1000}) {
      INFO(threads << " threads, " << count << " chunks");
      REQUIRE(each_once(count_runs(pool, count)));
    }
  }
}

TEST_CASE("many short runs in a row do not lose or repeat a chunk", "[threads]") {
  graft::ThreadPool pool(3);
  std::vector<int> runs(8, 0);
  constexpr int rounds = 5'000;
  for (int round = 0; round < rounds; ++round) pool.run(8, [&](index_t k) { ++runs[static_cast<std::size_t>(k)]; });
  for (int const n : runs) REQUIRE(n == rounds);
}

TEST_CASE("a run sees what the caller and the runs before it wrote", "[threads]") {
  graft::ThreadPool pool(3);
  constexpr index_t n = 64;
  std::vector<index_t> a(n), b(n);
  for (index_t round = 1; round <= 500; ++round) {
    std::iota(a.begin(), a.end(), round);
    pool.run(n, [&](index_t k) { b[static_cast<std::size_t>(k)] = a[static_cast<std::size_t>(n - 1 - k)]; });
    pool.run(n, [&](index_t k) { a[static_cast<std::size_t>(k)] = b[static_cast<std::size_t>(n - 1 - k)] + 1; });
    for (index_t k = 0; k < n; ++k) REQUIRE(a[static_cast<std::size_t>(k)] == k + round + 1);
  }
}

TEST_CASE("workers that have parked wake up again", "[threads]") {
  graft::ThreadPool pool(2);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // far longer than a worker spins
    REQUIRE(each_once(count_runs(pool, 16)));
  }
}

TEST_CASE("a caller whose chunks are done parks until the slowest worker is", "[threads]") {
  graft::ThreadPool pool(2);
  std::vector<int> done(2, 0);
  pool.run(2, [&](index_t k) {
    if (k == 1) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    done[static_cast<std::size_t>(k)] = 1;
  });
  CHECK(done[0] + done[1] == 2);
}

TEST_CASE("chunks of a pool really run on several threads", "[threads]") {
  graft::ThreadPool pool(2);
  std::vector<std::thread::id> ids(2);
  std::atomic<int> arrived{0};
  pool.run(2, [&](index_t k) {  // each chunk waits for the other, so one thread alone would never finish
    ids[static_cast<std::size_t>(k)] = std::this_thread::get_id();
    ++arrived;
    while (arrived.load() < 2) std::this_thread::yield();
  });
  CHECK(ids[0] != ids[1]);
}

TEST_CASE("pools come and go without a run, and with one as their last act", "[threads]") {
  for (int round = 0; round < 50; ++round) {
    graft::ThreadPool const idle(3);
    graft::ThreadPool busy(3);
    REQUIRE(each_once(count_runs(busy, 5)));
  }
}

TEST_CASE("by default a pool has one thread per hardware thread") {
  auto const hardware = static_cast<index_t>(std::thread::hardware_concurrency());
  CHECK(graft::ThreadPool().concurrency() == (hardware > 0 ? hardware : 1));
}

TEST_CASE("the slices of a foreign pool together run every chunk once", "[threads]") {
  for (index_t const slices : {1, 2, 3, 7})
    for (index_t const count : {0, 1, 6, 7, 8, 100}) {
      INFO(slices << " slices, " << count << " chunks");
      std::vector<int> runs(static_cast<std::size_t>(count), 0);
      std::vector<std::thread> threads;  // the foreign pool
      for (index_t slice = 0; slice < slices; ++slice)
        threads.emplace_back([&, slice] {
          graft::SliceExecutor executor(slice, slices);
          executor.run(count, [&](index_t k) { ++runs[static_cast<std::size_t>(k)]; });
        });
      for (auto& thread : threads) thread.join();
      REQUIRE(each_once(runs));
    }
}

TEST_CASE("a function reference passes arguments and results and copies like a pointer") {
  int calls = 0;
  auto add = [&](int a, int b) { return ++calls, a + b; };
  graft::FunctionRef<int(int, int)> const f = add;
  graft::FunctionRef<int(int, int)> const g = f;
  CHECK(f(2, 3) == 5);
  CHECK(g(20, 3) == 23);
  CHECK(calls == 2);  // both call the one lambda
  STATIC_REQUIRE(std::is_trivially_copyable_v<graft::FunctionRef<int(int, int)>>);
}

}  // namespace
