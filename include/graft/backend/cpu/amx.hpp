// SPDX-License-Identifier: Apache-2.0
// AMX: eight tile registers and products of bf16 between them. In assembly, because the intrinsics of g++ 12 do not say
// which memory they read, and what was written there last is then left out.
#pragma once

#include <graft/config.hpp>
#include <graft/core/types.hpp>

#include <cstdint>

#if GRAFT_CAN_TARGET

namespace graft::cpu {

/// A tile is so many rows of so many bytes.
inline constexpr index_t amx_rows = 16, amx_row_bytes = 64;

/// This thread's tile registers, given back at the end of the scope, since what they hold is saved at every change of
/// threads. For processors and processes that have them: Isa::amx.
class AmxTiles {
 public:
  /// All whole.
  AmxTiles() {
    Shapes shapes;
    for (int t = 0; t < 8; ++t) shapes.row_bytes[t] = amx_row_bytes, shapes.rows[t] = amx_rows;
    asm volatile("ldtilecfg %0" ::"m"(shapes) : "memory");
  }
  ~AmxTiles() { asm volatile("tilerelease" ::: "memory"); }
  AmxTiles(AmxTiles const&) = delete;
  AmxTiles& operator=(AmxTiles const&) = delete;

  template <int Tile>
  void clear() {
    asm volatile("tilezero %%tmm%c0" ::"i"(Tile) : "memory");
  }
  /// Rows lie `stride` bytes apart.
  template <int Tile>
  void load(void const* from, index_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(Tile) : "memory");
  }
  template <int Tile>
  void store(void* to, index_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(Tile) : "memory");
  }
  /// sums[o][n] += w[o] . x[:, n], in f32: a row of w is 32 bf16, a row of x two of each of 16 columns. Values of even
  /// and of odd place are summed one after the other, then the two sums, then `sums` (Intel SDM, TDPBF16PS).
  template <int Sums, int W, int X>
  void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sums), "i"(W), "i"(X) : "memory");
  }

 private:
  /// What ldtilecfg reads.
  struct alignas(64) Shapes {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
  };
};

}  // namespace graft::cpu

#endif
