// SPDX-License-Identifier: Apache-2.0
// A matrix in bf16 in some 11.3 bits a number instead of 16, and none of its bits lost.
//
// Sign and mantissa of trained weights are as good as random, but their exponents are not: seven that follow each other
// have 97 % of them (that they are worth 2.6 bits each is what DFloat11, arXiv:2504.11651, makes use of on GPUs, by a
// Huffman code). So here a number is a byte of mantissa and sign, and a code of three bits:
//   exponent = base + code for code 1 to 7, and for code 0 the next byte of a list.
#pragma once

#include <graft/core/types.hpp>

#include <cstddef>
#include <cstdint>

namespace graft {

/// View of a matrix [o, i] of bf16, by pieces of 16 outputs times a slice of inputs, those of the first outputs first:
///   piece = its steps of 32 inputs, one after the other, then the exponents of code 0, then zeros to a whole line;
///   step = 3 lines of codes, 8 units of 64 bytes of mantissas (upper 7 bits) and signs.
/// Unit n + 4 j of a step has inputs [16 j, 16 j + 16) of outputs n, n + 4, n + 8 and n + 12. Byte k of the codes'
/// lines a, b and c has the codes of byte k of units 0 to 7, which are, low bits first: a: unit 0 (3 bits), unit 1 (3),
/// unit 6 (its lower 2); b: units 2, 3 and 7 so; c: units 4 and 5, and the upper bits of units 6 and 7.
struct CompactWeight {
  static constexpr index_t outputs = 16, step_inputs = 32, units = 8, line = 64;
  static constexpr index_t code_bytes = 3 * line, step_bytes = code_bytes + units * line;
  /// Inputs of a slice; the last one has up to half as many more.
  static constexpr index_t slice_inputs = 512;

  std::byte const* data = nullptr;
  std::uint32_t const* pieces = nullptr;  ///< [ceil(o / 16) * slices + 1], where each begins, in lines of data
  std::uint8_t base = 0;

  bool empty() const { return data == nullptr; }

  static index_t slices(index_t inputs) {
    return inputs < slice_inputs ? 1 : (inputs + slice_inputs / 2) / slice_inputs;
  }
  /// Where the slice that begins with input `first` ends.
  static index_t slice_end(index_t first, index_t inputs) {
    return inputs - first < slice_inputs * 3 / 2 ? inputs : first + slice_inputs;
  }
  /// Piece k, counted by slices of [i] inputs and then by outputs.
  std::byte const* piece(index_t k) const { return data + static_cast<std::size_t>(pieces[k]) * line; }

  /// Outputs from `first` on; empty where a piece begins before.
  CompactWeight row_range(index_t first, index_t inputs) const {
    if (empty() || first % outputs != 0) return {};
    return {data, pieces + first / outputs * slices(inputs), base};
  }
};

}  // namespace graft
