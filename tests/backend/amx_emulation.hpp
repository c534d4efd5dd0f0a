// SPDX-License-Identifier: Apache-2.0
// AMX's instructions as far as graft has them, for processors without: what the processor refuses is decoded and done
// by plain loops, as the Intel SDM, volume 2, describes each, so that the compiled code itself is tested.
#pragma once

#if defined(__linux__) && defined(__x86_64__)

#include <signal.h>
#include <ucontext.h>

#include <atomic>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace graft_test {

/// While it lives, AMX's instructions work in all threads; only one at a time.
class AmxEmulation {
 public:
  AmxEmulation() {
    struct sigaction action {};
    action.sa_sigaction = [](int, siginfo_t*, void* context) { refused(*static_cast<ucontext_t*>(context)); };
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGILL, &action, &before_);
    products = 0, wrong = 0;
  }
  ~AmxEmulation() { sigaction(SIGILL, &before_, nullptr); }
  AmxEmulation(AmxEmulation const&) = delete;
  AmxEmulation& operator=(AmxEmulation const&) = delete;

  /// Products of tiles so far.
  static inline std::atomic<long> products = 0;
  /// Instructions a processor would have refused: tiles of shapes that do not fit, or not set.
  static inline std::atomic<long> wrong = 0;
  /// Whether this thread holds no tiles.
  static bool released() { return registers.palette == 0; }

 private:
  struct Tile {
    std::uint8_t rows;
    std::uint16_t row_bytes;
    alignas(64) std::byte bytes[16][64];

    float sum(int m, int n) const {
      float value;
      std::memcpy(&value, bytes[m] + 4 * n, sizeof value);
      return value;
    }
    /// bf16 k of row m; what is not normal is 0.
    float half(int m, int k) const {
      std::uint16_t bits;
      std::memcpy(&bits, bytes[m] + 2 * k, sizeof bits);
      return flushed(std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16));
    }
  };
  struct Registers {
    std::uint8_t palette;
    Tile tiles[8];
  };
  static inline thread_local Registers registers;

  static float flushed(float value) {
    return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.f, value) : value;
  }
  static void expect(bool holds) { wrong += !holds; }

  /// ldtilecfg
  static void configure(std::byte const* from) {
    registers = Registers{};
    registers.palette = static_cast<std::uint8_t>(from[0]);
    expect(registers.palette == 1 && from[1] == std::byte{0});
    for (int k = 0; k < 16; ++k) {
      std::uint16_t row_bytes;
      std::memcpy(&row_bytes, from + 16 + 2 * k, sizeof row_bytes);
      auto const rows = static_cast<std::uint8_t>(from[48 + k]);
      expect(rows <= 16 && row_bytes <= 64 && (rows == 0) == (row_bytes == 0) && (k < 8 || rows == 0));
      if (k < 8) registers.tiles[k].rows = rows, registers.tiles[k].row_bytes = row_bytes;
    }
    for (int k = 2; k < 16; ++k) expect(from[k] == std::byte{0});
  }
  /// tdpbf16ps
  static void multiply(Tile& sums, Tile const& x, Tile const& w) {
    ++products;
    expect(sums.rows > 0 && sums.rows == x.rows && sums.row_bytes == w.row_bytes && x.row_bytes == 4 * w.rows);
    for (int m = 0; m < sums.rows; ++m)
      for (int n = 0; n < sums.row_bytes / 4; ++n) {
        float even = 0, odd = 0;
        for (int k = 0; k < w.rows; ++k) {
          even = flushed(std::fma(x.half(m, 2 * k), w.half(k, 2 * n), even));
          odd = flushed(std::fma(x.half(m, 2 * k + 1), w.half(k, 2 * n + 1), odd));
        }
        float const sum = flushed(flushed(sums.sum(m, n)) + flushed(even + odd));
        std::memcpy(sums.bytes[m] + 4 * n, &sum, sizeof sum);
      }
  }

  /// The instruction at the place of the signal; another handler's, or the end of the program, if it is not AMX's.
  static void refused(ucontext_t& context) {
    constexpr int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                               REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    auto& general = context.uc_mcontext.gregs;
    auto const value = [&](int number) { return static_cast<std::uint64_t>(general[order[number]]); };
    auto const* at = reinterpret_cast<std::uint8_t const*>(general[REG_RIP]);
    // a VEX prefix of three bytes: C4, inverted upper bits of three registers and the map 0F38, an inverted register
    // and what stands for the prefixes none, 66, F3 and F2
    if (at[0] != 0xc4 || (at[1] & 0x1f) != 2 || (at[2] & 0x84) != 0) return void(signal(SIGILL, SIG_DFL));
    int const upper_index = (at[1] & 0x40) != 0 ? 0 : 8, upper_base = (at[1] & 0x20) != 0 ? 0 : 8;
    int const other = ~(at[2] >> 3) & 15, prefix = at[2] & 3, code = at[3], mode = at[4] >> 6;
    int const tile = at[4] >> 3 & 7, second = at[4] & 7;
    at += 5;
    std::uint64_t address = 0, stride = 0;
    if (mode != 3) {
      int base = second;
      if (second == 4) {  // a byte of its own: base + index << scale
        int const scale = *at >> 6, index = (*at >> 3 & 7) + upper_index;
        if (index != 4) stride = value(index) << scale;
        base = *at++ & 7;
      }
      expect(mode != 0 || base != 5);  // no base: graft has none
      address = value(base + upper_base);
      std::int32_t displacement = 0;
      if (mode == 1) displacement = static_cast<std::int8_t>(*at++);
      if (mode == 2) std::memcpy(&displacement, at, 4), at += 4;
      address += static_cast<std::uint64_t>(static_cast<std::int64_t>(displacement));
    }
    auto* const memory = reinterpret_cast<std::byte*>(address);
    auto const row = [&](int k) { return memory + static_cast<std::int64_t>(stride) * k; };
    Tile& first = registers.tiles[tile];
    enum { none = 0, f3 = 2, f2 = 3 };
    if (code == 0x49 && prefix == none && mode != 3) {
      configure(memory);
    } else if (code == 0x49 && prefix == none && tile == 0 && second == 0) {
      registers = Registers{};
    } else if (code == 0x49 && prefix == f2 && mode == 3) {
      expect(first.rows > 0);
      std::memset(first.bytes, 0, sizeof first.bytes);
    } else if (code == 0x4b && prefix == f2 && mode != 3 && second == 4) {
      expect(first.rows > 0);
      std::memset(first.bytes, 0, sizeof first.bytes);
      for (int k = 0; k < first.rows; ++k) std::memcpy(first.bytes[k], row(k), first.row_bytes);
    } else if (code == 0x4b && prefix == f3 && mode != 3 && second == 4) {
      expect(first.rows > 0);
      for (int k = 0; k < first.rows; ++k) std::memcpy(row(k), first.bytes[k], first.row_bytes);
    } else if (code == 0x5c && prefix == f3 && mode == 3) {
      expect(tile != second && tile != other && second != other);
      multiply(first, registers.tiles[second], registers.tiles[other & 7]);
    } else {
      return void(signal(SIGILL, SIG_DFL));
    }
    general[REG_RIP] = static_cast<greg_t>(reinterpret_cast<std::uintptr_t>(at));
  }

  struct sigaction before_ {};
};

}  // namespace graft_test

#endif
