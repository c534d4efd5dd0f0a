// SPDX-License-Identifier: Apache-2.0
// How weights lie in memory for those products that read them packed, and none of their bits lost: matrices in bf16 in
// 11.3 or 12 bits a number instead of 16, and blocks of integers with the outputs side by side.
//
// Sign and mantissa of trained weights are as good as random, but their exponents are not: seven that follow each other
// have 97 % of them (that they are worth 2.6 bits each is what DFloat11, arXiv:2504.11651, makes use of on GPUs, by a
// Huffman code). Two forms make use of that, each of what its products' instructions take apart fastest. Integers have
// no bits to spare, but instructions: in a file a row's numbers stand one after the other, in registers one of each
// output.
#pragma once

#include <graft/core/format.hpp>
#include <graft/core/types.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace graft {

enum class PackedForm : std::uint8_t {
  none,
  exponents,   ///< PackedExponents, of bf16, for native precision at levels vnni and amx
  high_bytes,  ///< PackedHighBytes, of bf16, for level avx2
  strips,      ///< PackedStrips, of blocks of integers, for native precision at level avx2
};

/// A number is a byte of mantissa and sign, and a code of three bits: exponent = base + code for code 1 to 7, and for
/// code 0 the next byte of a list. 11.3 bits a number.
/// A strip of 16 outputs is a piece for every slice of inputs:
///   piece = its steps of 32 inputs, one after the other, then the exponents of code 0, then zeros to a whole line;
///   step = 3 lines of codes, 8 units of 64 bytes of mantissas (upper 7 bits) and signs.
/// Unit n + 4 j of a step has inputs [16 j, 16 j + 16) of outputs n, n + 4, n + 8 and n + 12. Byte k of the codes'
/// lines a, b and c has the codes of byte k of units 0 to 7, which are, low bits first: a: unit 0 (3 bits), unit 1 (3),
/// unit 6 (its lower 2); b: units 2, 3 and 7 so; c: units 4 and 5, and the upper bits of units 6 and 7.
struct PackedExponents {
  static constexpr index_t outputs = 16, step_inputs = 32, units = 8, line = 64;
  static constexpr index_t code_bytes = 3 * line, step_bytes = code_bytes + units * line;
  static constexpr index_t head_bytes = 0, listed_bytes = 1, end_bytes = 0;
  static constexpr index_t max_inputs = std::numeric_limits<index_t>::max();
  /// Inputs of a slice; the last one has up to half as many more.
  static constexpr index_t slice_inputs = 512;

  static index_t slices(index_t inputs) {
    return inputs < slice_inputs ? 1 : (inputs + slice_inputs / 2) / slice_inputs;
  }
  /// Where the slice that begins with input `first` ends.
  static index_t slice_end(index_t first, index_t inputs) {
    return inputs - first < slice_inputs * 3 / 2 ? inputs : first + slice_inputs;
  }
};

/// A number is its lower byte, and a code of four bits for the upper one, which has the sign and all but the last bit
/// of the exponent: the code's byte in a table of the 16 that the weight has most, or what a list says. 12 bits a
/// number, as no more than some 2 of 10,000 are in the list.
/// The table comes first, in a line of its own. A strip of 8 outputs is one piece:
///   piece = its steps of 8 inputs, one after the other, then the list, then zeros to a whole line;
///   step = 32 bytes of codes, 64 lower bytes;
///   list = (input * 8 + output) << 8 | upper byte for each number that has none of the 16 bytes, in 32 bits, by rising
///          inputs, and `end`.
/// Lower byte 32 q + 16 p + 8 h + 2 n + k of a step is that of input 4 q + 2 h + k of output 4 p + n; its code is in
/// byte 16 p + 8 h + 2 n + k of the codes, in the lower four bits where q is 0 and in the upper ones where it is 1.
struct PackedHighBytes {
  static constexpr index_t outputs = 8, step_inputs = 8, code_bytes = 32, step_bytes = 96;
  static constexpr index_t head_bytes = 16, listed_bytes = 4, end_bytes = 4;
  static constexpr std::uint32_t end = ~std::uint32_t{0};
  /// What the list's positions can name.
  static constexpr index_t max_inputs = (index_t{1} << 21) - 1;

  static index_t slices(index_t) { return 1; }
  static index_t slice_end(index_t, index_t inputs) { return inputs; }
};

/// Blocks of integers of 8 outputs side by side: the file's bytes in another order.
/// A strip of 8 outputs is one piece:
///   piece = its blocks, one after the other, then zeros to a whole line;
///   block = the scale of each output in half precision, and where a block has a minimum the same of that; then the
///           block's other bytes as the file has them, four of each output at a time.
struct PackedStrips {
  static constexpr index_t outputs = 8;
  /// Of scale and minimum, two bytes each: what makes the rest of a block whole words.
  template <class Block>
  static constexpr index_t head_bytes = Block::bytes % 4 == 0 ? 4 : 2;
  /// Where they stand in the file's block.
  template <class Block>
  static constexpr index_t head_at = std::is_same_v<Block, Q6_K> ? Block::bytes - head_bytes<Block> : 0;
};

/// What a weight's codes stand for.
struct PackedCodes {
  std::uint8_t base = 0;                 ///< of exponents
  std::array<std::uint8_t, 16> table{};  ///< of high bytes
};

/// View of the form of a matrix [o, i], by pieces; those of the first outputs come first.
struct PackedWeight {
  static constexpr index_t line = 64;

  PackedForm form = PackedForm::none;
  std::uint8_t base = 0;  ///< of exponents
  std::byte const* data = nullptr;
  std::uint32_t const* pieces = nullptr;  ///< [pieces + 1], where each begins, in lines of data

  bool empty() const { return form == PackedForm::none; }
  /// Piece k, counted by slices of inputs and then by strips of outputs.
  std::byte const* piece(index_t k) const { return data + static_cast<std::size_t>(pieces[k]) * line; }

  /// Outputs of a strip.
  index_t outputs() const { return form == PackedForm::exponents ? PackedExponents::outputs : 8; }
  /// Outputs from `first` on, of [i] inputs; empty where no strip begins there.
  PackedWeight row_range(index_t first, index_t inputs) const {
    static_assert(PackedHighBytes::outputs == 8 && PackedStrips::outputs == 8);
    if (empty() || first % outputs() != 0) return {};
    index_t const slices = form == PackedForm::exponents ? PackedExponents::slices(inputs) : 1;
    return {form, base, data, pieces + first / outputs() * slices};
  }
};

}  // namespace graft
