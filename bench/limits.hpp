// SPDX-License-Identifier: Apache-2.0
// What this machine can do at best, measured beside the case that is compared with it: reading memory, and the dot
// product instructions of each level with operands in registers; AMX's with operands in the first-level cache, from
// which each meets two.
#pragma once

#include <graft/backend/cpu/amx.hpp>
#include <graft/backend/cpu/isa.hpp>
#include <graft/core/executor.hpp>
#include <graft/core/memory.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <span>
#include <string_view>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace bench {

using graft::index_t;
using graft::Isa;

/// Threads to compute with: GRAFT_THREADS, or 0 for one per core.
inline int threads() {
  const char* const name = std::getenv("GRAFT_THREADS");
  return name != nullptr ? std::atoi(name) : 0;
}
/// Seconds on the clock, or with GRAFT_CLOCK=cpu those this thread computed: what a machine that others use as well can
/// still say of one thread.
inline double now() {
  static bool const cpu = [] {
    const char* const name = std::getenv("GRAFT_CLOCK");
    return name != nullptr && std::string_view(name) == "cpu";
  }();
  timespec t{};
  clock_gettime(cpu ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}
template <class F>
double seconds_of(F&& f) {
  double const start = now();
  f();
  return now() - start;
}
/// The element in the middle; reorders.
inline double median(std::vector<double>& v) {
  std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2), v.end());
  return v[v.size() / 2];
}

#if GRAFT_CAN_TARGET
GRAFT_TARGET_BEGIN("avx2")
/// The bits of `size` bytes, read from `streams` places in turn, two cache lines at a time.
template <int streams>
std::uint64_t read_256(std::byte const* from, std::size_t size) {
  __m256i sum[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
  std::size_t const each = size / streams;
  for (std::size_t k = 0; k < each; k += 128)
    for (int s = 0; s < streams; ++s)
      for (int j = 0; j < 4; ++j) {
        auto const* const at = reinterpret_cast<__m256i const*>(from + static_cast<std::size_t>(s) * each + k);
        sum[j] = _mm256_or_si256(sum[j], _mm256_loadu_si256(at + j));
      }
  std::uint64_t all[4];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(all),
                      _mm256_or_si256(_mm256_or_si256(sum[0], sum[1]), _mm256_or_si256(sum[2], sum[3])));
  return all[0] | all[1] | all[2] | all[3];
}
GRAFT_TARGET_END
#endif

/// How fast all threads of an executor read memory that no cache holds, in bytes per second: from end to end, in two
/// streams, or in eight as a product walks rows of a weight, whichever is the fastest now. Of the memory that an
/// operation reads, because one place of a (virtual) machine's memory may be half as fast as another (of large memory
/// every so many pieces); or of its own, where that memory is not given or so small that a cache could hold part of it.
class ReadLimit {
 public:
  using Memory = std::vector<std::span<std::byte const>>;

  explicit ReadLimit(graft::Executor& executor, Memory const& memory = {}) : executor_(executor) {
    auto all = pieces_of(memory);
    if (all.size() * piece < enough / 2) {
      own_ = graft::Storage<std::byte, graft::HostSpace>(static_cast<index_t>(enough));
      std::memset(own_.data(), 1, enough);
      all = pieces_of({{own_.data(), enough}});
    }
    std::size_t const step = std::max<std::size_t>(1, all.size() * piece / enough);
    for (std::size_t k = 0; k < all.size(); k += step) pieces_.push_back(all[k]);
    sums_.resize(pieces_.size() * 8);
  }

  double operator()() { return std::max({by(read_piece<1>), by(read_piece<2>), by(read_piece<8>)}); }

 private:
  static constexpr std::size_t piece = std::size_t{1} << 20, enough = std::size_t{256} << 20;

  static std::vector<std::byte const*> pieces_of(Memory const& memory) {
    std::vector<std::byte const*> all;
    for (auto const& part : memory)
      for (std::size_t at = 0; at + piece <= part.size(); at += piece) all.push_back(part.data() + at);
    return all;
  }
  double by(std::uint64_t (*read)(std::byte const*)) {
    auto const count = static_cast<index_t>(pieces_.size());
    double const seconds = seconds_of([&] {
      executor_.run(count, [&](index_t k) {
        sums_[static_cast<std::size_t>(k) * 8] = read(pieces_[static_cast<std::size_t>(k)]);
      });
    });
    return static_cast<double>(pieces_.size() * piece) / seconds;
  }
  template <int streams>
  static std::uint64_t read_piece(std::byte const* from) {
#if GRAFT_CAN_TARGET
    if (graft::detected_isa() >= Isa::avx2) return read_256<streams>(from, piece);
#endif
    std::uint64_t sum = 0, word = 0;
    for (std::size_t at = 0; at < piece; at += sizeof word) std::memcpy(&word, from + at, sizeof word), sum |= word;
    return sum;
  }

  graft::Executor& executor_;
  graft::Storage<std::byte, graft::HostSpace> own_;  // as graft takes memory, in huge pages where there are any
  std::vector<std::byte const*> pieces_;
  std::vector<std::uint64_t> sums_;
};

// Ten independent sums hide the latency; the empty asm keeps them from being computed at compile time.
#define GRAFT_LIMIT(name, Register, zero, step)                                                          \
  inline void name(index_t count) {                                                                      \
    Register const x = zero;                                                                             \
    Register a0 = x, a1 = x, a2 = x, a3 = x, a4 = x, a5 = x, a6 = x, a7 = x, a8 = x, a9 = x;             \
    for (index_t k = 0; k < count; ++k) {                                                                \
      a0 = step(a0), a1 = step(a1), a2 = step(a2), a3 = step(a3), a4 = step(a4);                         \
      a5 = step(a5), a6 = step(a6), a7 = step(a7), a8 = step(a8), a9 = step(a9);                         \
      asm volatile("" : "+v"(a0), "+v"(a1), "+v"(a2), "+v"(a3), "+v"(a4), "+v"(a5), "+v"(a6), "+v"(a7)); \
      asm volatile("" : "+v"(a8), "+v"(a9));                                                             \
    }                                                                                                    \
  }
#if GRAFT_CAN_TARGET
GRAFT_TARGET_BEGIN("avx2,fma")
#define GRAFT_STEP(a) _mm256_fmadd_ps(x, x, a)
GRAFT_LIMIT(fma_256, __m256, _mm256_set1_ps(1e-9f), GRAFT_STEP)
#undef GRAFT_STEP
#define GRAFT_STEP(a) _mm256_maddubs_epi16(a, x)
GRAFT_LIMIT(integers_256, __m256i, _mm256_set1_epi8(1), GRAFT_STEP)
#undef GRAFT_STEP
GRAFT_TARGET_END
GRAFT_TARGET_BEGIN("avx512f,avx512vnni,avx512bf16")
#define GRAFT_STEP(a) _mm512_fmadd_ps(x, x, a)
GRAFT_LIMIT(fma_512, __m512, _mm512_set1_ps(1e-9f), GRAFT_STEP)
#undef GRAFT_STEP
#define GRAFT_STEP(a) _mm512_dpbf16_ps(a, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(x))
GRAFT_LIMIT(bf16_512, __m512, _mm512_set1_ps(1e-9f), GRAFT_STEP)
#undef GRAFT_STEP
#define GRAFT_STEP(a) _mm512_dpbusd_epi32(a, x, x)
GRAFT_LIMIT(integers_512, __m512i, _mm512_set1_epi8(1), GRAFT_STEP)
#undef GRAFT_STEP
GRAFT_TARGET_END
#endif
#undef GRAFT_LIMIT

#if GRAFT_CAN_TARGET
/// `count` times four products of tiles, of two tiles by two.
inline void bf16_tiles(index_t count) {
  constexpr index_t stride = graft::cpu::amx_row_bytes;
  alignas(64) static std::byte const zeros[4][graft::cpu::amx_rows * stride] = {};
  graft::cpu::AmxTiles tiles;
  for (index_t k = 0; k < count; ++k) {
    tiles.load<4>(zeros[0], stride), tiles.load<6>(zeros[2], stride);
    tiles.multiply<0, 4, 6>();
    tiles.load<7>(zeros[3], stride);
    tiles.multiply<1, 4, 7>();
    tiles.load<5>(zeros[1], stride);
    tiles.multiply<2, 5, 6>();
    tiles.multiply<3, 5, 7>();
  }
}
#endif

/// Operations per second (a multiplication and an addition are two) of all threads of an executor with the best
/// instruction of a level, for bf16 that of f32 where it has none of its own; 0 at the baseline.
enum class Instruction { fma, bf16, integers };
inline double operation_limit([[maybe_unused]] graft::Executor& executor, [[maybe_unused]] Isa isa,
                              [[maybe_unused]] Instruction instruction) {
#if GRAFT_CAN_TARGET
  void (*loop)(index_t) = nullptr;
  double operations = 0;  // of a loop's turn
  if (instruction == Instruction::bf16 && isa < Isa::vnni) instruction = Instruction::fma;
  if (instruction == Instruction::fma && isa >= Isa::avx512) loop = fma_512, operations = 10 * 32;
  if (instruction == Instruction::fma && isa == Isa::avx2) loop = fma_256, operations = 10 * 16;
  if (instruction == Instruction::bf16 && isa == Isa::vnni) loop = bf16_512, operations = 10 * 64;
  if (instruction == Instruction::bf16 && isa == Isa::amx) loop = bf16_tiles, operations = 4 * 2 * 16 * 16 * 32;
  if (instruction == Instruction::integers && isa < Isa::vnni) loop = integers_256, operations = 10 * 64;
  if (instruction == Instruction::integers && isa >= Isa::vnni) loop = integers_512, operations = 10 * 128;
  if (loop == nullptr) return 0;
  constexpr index_t count = 100000;
  index_t const tasks = 4 * executor.concurrency();
  double const seconds = seconds_of([&] { executor.run(tasks, [&](index_t) { loop(count); }); });
  return static_cast<double>(tasks * count) * operations / seconds;
#else
  return 0;
#endif
}

}  // namespace bench
