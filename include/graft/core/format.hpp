// SPDX-License-Identifier: Apache-2.0
// The formats tensors are stored in, as a run-time tag, and the ways from the tag to values: whole rows, or a static
// type chosen once for a kernel.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/format_blocks.hpp>
#include <graft/core/format_quantize.hpp>
#include <graft/core/types.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace graft {

/// Storage format of a tensor. Those up to q6_k can be weights; the integers occur in files beside them.
enum class Format : std::uint8_t {
  f32,
  f16,
  bf16,
  f64,
  q8_0,
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  q4_k,
  q5_k,
  q6_k,
  i8,
  i16,
  i32,
  i64,
  u8,
  boolean
};
inline constexpr int format_count = 18;

struct FormatInfo {
  const char* name;  ///< as GGUF and safetensors spell it
  index_t block;     ///< values per block; the last dimension of a tensor is a multiple of it
  index_t bytes;     ///< bytes per block
  bool weight;       ///< has real values: decode_row and with_format take it
};

namespace detail {
inline constexpr FormatInfo format_table[format_count] = {{"F32", F32::block, F32::bytes, true},
                                                          {"F16", F16::block, F16::bytes, true},
                                                          {"BF16", BF16::block, BF16::bytes, true},
                                                          {"F64", F64::block, F64::bytes, true},
                                                          {"Q8_0", Q8_0::block, Q8_0::bytes, true},
                                                          {"Q4_0", Q4_0::block, Q4_0::bytes, true},
                                                          {"Q4_1", Q4_1::block, Q4_1::bytes, true},
                                                          {"Q5_0", Q5_0::block, Q5_0::bytes, true},
                                                          {"Q5_1", Q5_1::block, Q5_1::bytes, true},
                                                          {"Q4_K", Q4_K::block, Q4_K::bytes, true},
                                                          {"Q5_K", Q5_K::block, Q5_K::bytes, true},
                                                          {"Q6_K", Q6_K::block, Q6_K::bytes, true},
                                                          {"I8", 1, 1, false},
                                                          {"I16", 1, 2, false},
                                                          {"I32", 1, 4, false},
                                                          {"I64", 1, 8, false},
                                                          {"U8", 1, 1, false},
                                                          {"BOOL", 1, 1, false}};
}  // namespace detail
constexpr FormatInfo format_info(Format format) { return detail::format_table[static_cast<int>(format)]; }

/// Bytes of a stored row of `cols` values, a multiple of the format's block.
constexpr index_t row_bytes(Format format, index_t cols) {
  FormatInfo const info = format_info(format);
  return cols / info.block * info.bytes;
}

/// Calls f with the block struct of the format, f(Q4_1{}), so that a kernel's inner loop knows it at compile time.
/// ContractError for a format that cannot be a weight.
template <class F>
decltype(auto) with_format(Format format, F&& f) {
  switch (format) {
    case Format::f32:
      return f(F32{});
    case Format::f16:
      return f(F16{});
    case Format::bf16:
      return f(BF16{});
    case Format::f64:
      return f(F64{});
    case Format::q8_0:
      return f(Q8_0{});
    case Format::q4_0:
      return f(Q4_0{});
    case Format::q4_1:
      return f(Q4_1{});
    case Format::q5_0:
      return f(Q5_0{});
    case Format::q5_1:
      return f(Q5_1{});
    case Format::q4_k:
      return f(Q4_K{});
    case Format::q5_k:
      return f(Q5_K{});
    case Format::q6_k:
      return f(Q6_K{});
    default:
      raise<ContractError>("a tensor of format ", format_info(format).name, " cannot be used as a weight");
  }
}

/// Values [first, first + count) of one stored row; first and count are multiples of the block. T is float or double;
/// every format but F64 has its values in float, and double widens those.
template <class T>
void decode_row(Format format, const std::byte* row, index_t first, index_t count, T* out) {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>, "graft: rows decode to float or double");
  with_format(format, [=](auto tag) {
    using Block = decltype(tag);
    const std::byte* const from = row + first / Block::block * Block::bytes;
    index_t const blocks = count / Block::block;
    T* __restrict const to = out;
    for (index_t k = 0; k < blocks; ++k) Block::decode(from + k * Block::bytes, to + k * Block::block);
  });
}

/// Quantises a row of `cols` values, a multiple of the block. F16 and BF16 round to nearest even, the 32-value formats
/// give the bytes of ggml's reference quantisers, the K formats search scales (see format_quantize.hpp).
inline void encode_row(Format format, const float* row, index_t cols, std::byte* out) {
  with_format(format, [=](auto tag) {
    using Block = decltype(tag);
    for (index_t k = 0; k < cols / Block::block; ++k) Block::encode(row + k * Block::block, out + k * Block::bytes);
  });
}

}  // namespace graft
