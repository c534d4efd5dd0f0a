// SPDX-License-Identifier: Apache-2.0
// PTX's mma.m16n8k16 and ldmatrix.x4, which have no name in CUDA C++: the layouts of PTX ISA 9.0, section 9.7.14,
// written down once more. The last lane to arrive does a warp's work for all.
#pragma once

#include <tests/cuda/emulation/device_functions.hpp>

#include <cstdint>

namespace emulation {

/// Element 0 (low half) or 1 of a register of two 16-bit numbers.
template <class T>
float half_of(std::uint32_t both, int which) {
  T value;
  value.bits = static_cast<std::uint16_t>(which == 0 ? both : both >> 16);
  return static_cast<float>(value);
}

struct MultiplyAdd {
  float* d;
  std::uint32_t const *a, *b;
};
template <class T>
void multiply_add(float (&d)[4], std::uint32_t const (&a)[4], std::uint32_t const (&b)[2],
                  std::source_location where = std::source_location::current()) {
  MultiplyAdd own{d, a, b};
  Block::get().exchange(
      0xffffffffu, &own,
      [](void* const* operands, unsigned) {
        float left[16][16], right[8][16];
        for (int lane = 0; lane < 32; ++lane) {
          auto const& o = *static_cast<MultiplyAdd*>(operands[lane]);
          for (int i = 0; i < 8; ++i)  // a0 .. a7 of the PTX manual
            left[lane / 4 + (i % 4 >= 2 ? 8 : 0)][lane % 4 * 2 + i % 2 + (i >= 4 ? 8 : 0)] =
                half_of<T>(o.a[i / 2], i % 2);
          for (int i = 0; i < 4; ++i)
            right[lane / 4][lane % 4 * 2 + i % 2 + (i >= 2 ? 8 : 0)] = half_of<T>(o.b[i / 2], i % 2);
        }
        for (int lane = 0; lane < 32; ++lane) {
          auto const& o = *static_cast<MultiplyAdd*>(operands[lane]);
          for (int i = 0; i < 4; ++i) {
            int const row = lane / 4 + (i >= 2 ? 8 : 0), col = lane % 4 * 2 + i % 2;
            for (int k = 0; k < 16; ++k) o.d[i] += left[row][k] * right[col][k];
          }
        }
      },
      where);
}

struct LoadMatrices {
  std::uint32_t* to;
  std::uint16_t const* row;
};
template <bool transposed, class T>
void load_matrices(std::uint32_t (&to)[4], T const* row, std::source_location where = std::source_location::current()) {
  if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) Block::get().fail("ldmatrix: a row is not aligned to 16 bytes");
  LoadMatrices own{to, reinterpret_cast<std::uint16_t const*>(row)};
  Block::get().exchange(
      0xffffffffu, &own,
      [](void* const* operands, unsigned) {
        auto const row_of = [&](int lane) { return static_cast<LoadMatrices*>(operands[lane])->row; };
        for (int lane = 0; lane < 32; ++lane)
          for (int matrix = 0; matrix < 4; ++matrix) {
            std::uint32_t both = 0;
            for (int i = 0; i < 2; ++i) {
              int const r = transposed ? lane % 4 * 2 + i : lane / 4, c = transposed ? lane / 4 : lane % 4 * 2 + i;
              both |= std::uint32_t{row_of(8 * matrix + r)[c]} << (16 * i);
            }
            static_cast<LoadMatrices*>(operands[lane])->to[matrix] = both;
          }
      },
      where);
}

}  // namespace emulation
