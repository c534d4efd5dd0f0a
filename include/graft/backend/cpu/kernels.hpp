// SPDX-License-Identifier: Apache-2.0
// The hot loops of the CPU backend, compiled once per instruction-set level. The files in level/ hold one body per
// idea; each is read here once per level, into a namespace of its own, with that level's instructions allowed.
#pragma once

#include <graft/backend/activation.hpp>
#include <graft/backend/attention.hpp>
#include <graft/backend/cpu/amx.hpp>
#include <graft/backend/cpu/isa.hpp>
#include <graft/backend/cpu/outer_products.hpp>
#include <graft/backend/low_rank.hpp>
#include <graft/backend/row_map.hpp>
#include <graft/backend/weight.hpp>
#include <graft/core/scalar.hpp>
#include <graft/core/view.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <span>
#include <type_traits>
#include <utility>

// A program of many units can compile the kernels once, and with them what adapter/compiled.hpp and model/compiled.hpp
// list: all define GRAFT_EXTERN_KERNELS, and one of them GRAFT_DEFINE_KERNELS before it includes graft/graft.hpp.
// CMake: link graft::kernels. GRAFT_ONCE_WITH_KERNELS begins an explicit instantiation where it is, and elsewhere
// declares it.
#if !defined(GRAFT_EXTERN_KERNELS)
#define GRAFT_KERNELS_ARE_HERE 1
#elif defined(GRAFT_DEFINE_KERNELS)
#define GRAFT_KERNELS_ARE_HERE 1
#define GRAFT_ONCE_WITH_KERNELS template
#else
#define GRAFT_KERNELS_ARE_HERE 0
#define GRAFT_ONCE_WITH_KERNELS extern template
#endif

#if defined(__x86_64__) && (GRAFT_KERNELS_ARE_HERE || defined(__AVX2__))  // whose reading takes a third of a second
#include <immintrin.h>
#endif

namespace graft::detail {

/// Rows of activations rounded to 8-bit integers, a scale per block of 32: x = scale q.
struct IntegerRows {
  index_t rows = 0, blocks = 0;
  std::int8_t* q = nullptr;             ///< [rows, 32 blocks]
  float* scale = nullptr;               ///< [rows, blocks]
  std::int32_t* offset = nullptr;       ///< [rows, blocks], -8 sum of q: what weights that are 8 too high add too much
  std::int32_t* half_offset = nullptr;  ///< [rows, 2 blocks], the same of 16 numbers
  float* scaled_sum = nullptr;          ///< [rows, blocks], scale * sum
};

/// Rows [first, last) of a weight, or none: what a thread is likely to read after a chunk.
struct RowsAhead {
  Weight const* weight = nullptr;
  index_t first = 0, last = 0;
};

/// Outputs of a dot product's tile.
inline constexpr int tile_outputs = 4;
/// The bytes of the rows of A, from rank `first` on, that are read together.
template <class R>
std::span<std::byte const> ranks_together(LowRankFactors<R> const& f, index_t inputs, index_t first) {
  if (first >= f.rank) return {};
  auto const a = f.a + first * inputs;
  index_t const ranks = std::min<index_t>(tile_outputs, f.rank - first);
  return {static_cast<std::byte const*>(a.data()), static_cast<std::size_t>(a.bytes(ranks * inputs))};
}

}  // namespace graft::detail

namespace graft::cpu {

inline constexpr index_t max_page_tokens = 64;
/// Queries, of several rows and of the heads that share keys, that read a page one after the other.
inline constexpr index_t attention_queries = 48;
/// What they sum of a chunk of keys that others came before: so many numbers, those of 48 heads of 128.
inline constexpr index_t attention_numbers = 48 * 128;
/// Tokens of a chunk of keys, which has a softmax of its own: whole pages.
constexpr index_t key_chunk(index_t page_tokens) { return std::max<index_t>(1, 512 / page_tokens) * page_tokens; }

/// Outputs one task computes. A multiple of 64, the usual group of a row map, so that maps are applied while the chunk
/// is in cache; depends on the shape alone.
inline constexpr index_t product_chunk_outputs = 64;
/// Outputs of the last tasks where no map needs more, so that threads finish together.
inline constexpr index_t last_chunk_outputs = 32;

/// Columns of a weight that a task of the transposed product takes.
inline constexpr index_t transposed_columns = 64;

/// Widths are padded to whole cache lines, the widest register of any level.
template <class R>
constexpr index_t padded(index_t count) {
  return round_up(count, 64 / static_cast<index_t>(sizeof(R)));
}

// In another namespace, because a name in cpu itself would make calls of a level ambiguous with the baseline's.
using detail::IntegerRows;
using detail::ranks_together;
using detail::RowsAhead;
using detail::tile_outputs;
constexpr bool in_integers(Format format) { return format_info(format).weight && format_info(format).block > 1; }

// A level's kernels stand in several tables, because whoever names a table compiles all that is in it. level/*.inc say
// what each kernel does.

/// What applies adapters.
template <class R>
struct AdapterKernels {
  void (*shrink)(LowRankTile<R> const& tile, index_t site, index_t inputs, MatrixView<R const> x, index_t share,
                 index_t shares, std::span<std::byte const> then, MatrixView<R> t);
  void (*expand)(LowRankTile<R> const& tile, index_t site, index_t outputs, MatrixView<R const> t, index_t first,
                 index_t last, MatrixView<R> y);
  void (*map_rows)(RowMapRow<R const> const& map, R* y, index_t rows, index_t stride, index_t first, index_t last);
};

/// What layers consist of besides.
template <class R>
struct LayerKernels {
  void (*product_chunk)(MatrixView<R const> x, Weight const& w, VectorView<R const> bias, index_t o0, index_t o1,
                        RowsAhead const& then, MatrixView<R> y);
  void (*rms_norm_row)(R const* x, R const* weight, R eps, index_t count, R* y);
  void (*layer_norm_row)(R const* x, R const* weight, R const* bias, R eps, index_t count, R* y);
  void (*activate_row)(Activation f, index_t count, R* x);
  void (*activate_gated_row)(Activation f, R const* up, index_t count, R* gate);
  void (*add_row)(R const* x, index_t count, R* h);
  void (*rotate_row)(R const* cosine, R const* sine, index_t half, index_t head_dim, index_t cols, R* row);
  void (*attend)(KvView<R> const& kv, AttentionShape const& shape, AttentionSpan const& span, index_t row0,
                 index_t row1, index_t kv_head, MatrixView<R const> q, MatrixView<R> out);
  void (*attend_chunk)(KvView<R> const& kv, AttentionShape const& shape, AttentionSpan const& span, index_t row0,
                       index_t row1, index_t kv_head, index_t chunk, MatrixView<R const> q, MatrixView<R> parts);
  void (*combine_chunks)(MatrixView<R> parts, R* out);
  void (*narrow_row)(R const* x, index_t count, bf16* y);
};

/// What backward passes need besides.
template <class R>
struct BackwardKernels {
  void (*add_product)(Strided<R> a, MatrixView<R const> b, MatrixView<R> out);
  void (*dots)(MatrixView<R const> x, MatrixView<R const> w, R scale, MatrixView<R> out);
  void (*decode_rows)(Weight const& w, index_t o, index_t rows, index_t first, index_t count, MatrixView<R> panel);
  void (*activate_row)(Activation f, R const* x, index_t count, R* dy);
  void (*activate_gated_row)(Activation f, R const* gate, R const* up, index_t count, R* dgate, R* dup);
  void (*map_row)(RowMapRow<R const> const& map, index_t group, R const* z, R* dy, index_t first, index_t last,
                  RowMapRow<R> const& grad);
  void (*rms_norm_row)(R const* x, R const* weight, R eps, index_t count, R const* dy, bool replace, R* dx, R* dweight);
  double (*exponentials)(R* x, index_t count, R highest);
};

/// The products of `native` precision; null where a level has no instruction for them. Rows of bf16 are padded as
/// others are, and rounded so many at a time; what is in the memory of these is the kernels' affair. Rows of
/// bf16_transposed are plain, and padded too.
struct NativeKernels {
  void (*round_to_integers)(float const* x, index_t n, IntegerRows const& to) = nullptr;
  index_t bf16_rows = 1;
  void (*round_to_bf16)(MatrixView<float const> x, bf16* out) = nullptr;
  void (*integer_chunk)(IntegerRows const& x, Weight const& w, VectorView<float const> bias, index_t o0, index_t o1,
                        RowsAhead const& then, MatrixView<float> y) = nullptr;
  void (*bf16_chunk)(MatrixView<bf16 const> x, Weight const& w, VectorView<float const> bias, index_t o0, index_t o1,
                     RowsAhead const& then, MatrixView<float> y) = nullptr;
  void (*bf16_transposed)(MatrixView<bf16 const> dy, Weight const& w, index_t o, index_t first,
                          MatrixView<float> dx) = nullptr;
  /// bf16_chunk, bit for bit, by a weight in PackedExponents.
  void (*packed_chunk)(MatrixView<bf16 const> x, Weight const& w, VectorView<float const> bias, index_t o0, index_t o1,
                       RowsAhead const& then, MatrixView<float> y) = nullptr;
};

/// The form of a format's weights that products read, and of bf16 how its pieces are made of slices of a strip's rows.
struct PackKernels {
  PackedForm form = PackedForm::none;
  index_t most_rows = 0;  ///< of X; products of more read the weight itself
  /// How many numbers have no code.
  index_t (*count)(bf16 const* const* row, index_t inputs, PackedCodes const& codes) = nullptr;
  /// Writes the piece, and zeros to a whole line.
  void (*write)(bf16 const* const* row, index_t inputs, PackedCodes const& codes, std::byte* to) = nullptr;
};

/// The kernels of a level; double has those of the baseline alone. Templates, so that a program compiles what it uses.
template <class R>
AdapterKernels<R> const& adapter_kernels(Isa isa);
template <class R>
LayerKernels<R> const& layer_kernels(Isa isa);
template <class R>
BackwardKernels<R> const& backward_kernels(Isa isa);
/// The native products of a level.
template <class R>
NativeKernels native_kernels(Isa isa);
template <class R>
PackKernels pack_kernels(Isa isa, Precision precision, Format format);

}  // namespace graft::cpu

// Baseline: whatever the flags allow, also for double. Levels that the flags include already are the baseline itself.
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define GRAFT_LEVEL_BYTES 64
#define GRAFT_LEVEL_INTRINSICS 512
#if defined(__AVX512VNNI__) && defined(__AVX512BF16__)
#define GRAFT_LEVEL_VNNI 1
#endif
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define GRAFT_LEVEL_BYTES 32
#define GRAFT_LEVEL_INTRINSICS 256
#else
#define GRAFT_LEVEL_BYTES 16
#define GRAFT_LEVEL_INTRINSICS 0
#endif
#if !defined(GRAFT_LEVEL_VNNI)
#define GRAFT_LEVEL_VNNI 0
#endif
#define GRAFT_LEVEL inline baseline
#include <graft/backend/cpu/level/all.inc>

#if GRAFT_KERNELS_ARE_HERE
#if GRAFT_CAN_TARGET
GRAFT_TARGET_BEGIN("avx2,fma,f16c")
#define GRAFT_LEVEL avx2
#define GRAFT_LEVEL_BYTES 32
#define GRAFT_LEVEL_INTRINSICS 256
#define GRAFT_LEVEL_VNNI 0
#include <graft/backend/cpu/level/all.inc>
GRAFT_TARGET_END

GRAFT_TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
#define GRAFT_LEVEL avx512
#define GRAFT_LEVEL_BYTES 64
#define GRAFT_LEVEL_INTRINSICS 512
#define GRAFT_LEVEL_VNNI 0
#include <graft/backend/cpu/level/all.inc>
GRAFT_TARGET_END

GRAFT_TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")
#define GRAFT_LEVEL vnni
#define GRAFT_LEVEL_BYTES 64
#define GRAFT_LEVEL_INTRINSICS 512
#define GRAFT_LEVEL_VNNI 1
#include <graft/backend/cpu/level/all.inc>
GRAFT_TARGET_END

GRAFT_TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx512vbmi2")
#include <graft/backend/cpu/level/packed_exponents.inc>
#include <graft/backend/cpu/level/packed_tiles.inc>
GRAFT_TARGET_END
#endif

namespace graft::cpu {

// A level that the compiler's flags include already is the baseline.
#if GRAFT_CAN_TARGET
#define GRAFT_CHOOSE_LEVEL(table)                   \
  if constexpr (std::same_as<R, float>) {           \
    if constexpr (baseline::register_bytes < 64)    \
      if (isa >= Isa::avx512) return avx512::table; \
    if constexpr (baseline::register_bytes < 32)    \
      if (isa == Isa::avx2) return avx2::table;     \
  }                                                 \
  return baseline::table
#else
#define GRAFT_CHOOSE_LEVEL(table) return baseline::table
#endif

template <class R>
AdapterKernels<R> const& adapter_kernels([[maybe_unused]] Isa isa) {
  GRAFT_CHOOSE_LEVEL(adapter_table<R>);
}
template <class R>
LayerKernels<R> const& layer_kernels([[maybe_unused]] Isa isa) {
  GRAFT_CHOOSE_LEVEL(layer_table<R>);
}
template <class R>
BackwardKernels<R> const& backward_kernels([[maybe_unused]] Isa isa) {
  GRAFT_CHOOSE_LEVEL(backward_table<R>);
}
#undef GRAFT_CHOOSE_LEVEL

template <class R>
NativeKernels native_kernels([[maybe_unused]] Isa isa) {
  if constexpr (std::same_as<R, float>) {
#if GRAFT_CAN_TARGET
    if (isa == Isa::amx)
      return {vnni::round_to_integers,
              amx_rows,
              vnni::round_to_tiles,
              vnni::integer_chunk,
              vnni::tile_chunk,
              vnni::bf16_transposed,
              has_vbmi2() ? vnni::packed_tile_chunk : nullptr};
    if (isa == Isa::vnni)
      return {vnni::round_to_integers,
              1,
              vnni::round_row_to_bf16,
              vnni::integer_chunk,
              vnni::bf16_chunk,
              vnni::bf16_transposed,
              has_vbmi2() ? vnni::packed_chunk : nullptr};
    if (isa >= Isa::avx2) return {avx2::round_to_integers, 1, nullptr, avx2::integer_chunk, nullptr, nullptr};
#endif
  }
  return {};
}

template <class R>
PackKernels pack_kernels([[maybe_unused]] Isa isa, [[maybe_unused]] Precision precision,
                         [[maybe_unused]] Format format) {
#if GRAFT_CAN_TARGET
  if constexpr (std::same_as<R, float>) {
    bool const halves = format == Format::bf16, native = precision == Precision::native;
    if (isa >= Isa::vnni && has_vbmi2() && native && halves)
      return {PackedForm::exponents, std::numeric_limits<index_t>::max(), vnni::count_escapes, vnni::write_piece};
    if (isa >= Isa::avx2 && isa < Isa::vnni && native && in_integers(format))
      return {PackedForm::strips, std::numeric_limits<index_t>::max(), nullptr, nullptr};
    // a level that the compiler's flags include is the baseline, whose products do not read it with wider registers
    if (isa == Isa::avx2 && baseline::register_bytes < 64 && halves)
      return {PackedForm::high_bytes, avx2::turned_rows, avx2::count_listed, avx2::write_strip};
  }
#endif
  return {};
}

#if defined(GRAFT_DEFINE_KERNELS)
template AdapterKernels<float> const& adapter_kernels<float>(Isa);
template AdapterKernels<double> const& adapter_kernels<double>(Isa);
template LayerKernels<float> const& layer_kernels<float>(Isa);
template LayerKernels<double> const& layer_kernels<double>(Isa);
template BackwardKernels<float> const& backward_kernels<float>(Isa);
template BackwardKernels<double> const& backward_kernels<double>(Isa);
template NativeKernels native_kernels<float>(Isa);
template NativeKernels native_kernels<double>(Isa);
template PackKernels pack_kernels<float>(Isa, Precision, Format);
template PackKernels pack_kernels<double>(Isa, Precision, Format);
#endif

}  // namespace graft::cpu
#endif
