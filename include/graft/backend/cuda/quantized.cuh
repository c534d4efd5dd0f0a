// SPDX-License-Identifier: Apache-2.0
// Products with weights in ggml's formats: few rows meet the blocks as they are stored, for many rows the weight is
// decoded in slices. Q8_0, Q4_0, Q4_1 and Q6_K.
#pragma once

#include <graft/backend/cuda/columns.cuh>
#include <graft/backend/cuda/cuda_backend.cuh>
#include <graft/backend/cuda/tensor_core.cuh>
#include <graft/backend/weight.hpp>

#include <cstring>

namespace graft {
namespace cuda {

/// Formats are decoded in parts of 32 values.
inline constexpr int part_values = 32;

/// Writes part `part` of a stored row to w.
template <class Block>
__device__ inline void decode_part(std::byte const* row, index_t part, float (&w)[part_values]) {
  if constexpr (Block::block == part_values)
    Block::decode(row + part * Block::bytes, w);
  else
    Block::decode_part(row + part / 8 * Block::bytes, static_cast<int>(part % 8), w);
}

inline constexpr int quantized_warps = 8, quantized_threads = 32 * quantized_warps;
inline constexpr int quantized_columns = 1024;  ///< of x in shared memory at a time: a part for every lane
inline constexpr int quantized_rows = 8;        ///< most rows of x that are multiplied block by block

/// Bytes of a row that 1024 columns take at most, with those before them that 16-byte loads bring along.
template <class Block>
inline constexpr int segment_bytes = static_cast<int>(round_up(quantized_columns / Block::block * Block::bytes, 16)) +
                                     16;

/// Copies `bytes` bytes of a stored row, which start at any address, into shared memory, 16 at a time, by a warp.
/// Returns where they are after `wait_for_copies` and a barrier.
template <class Block>
__device__ inline std::byte const* copy_segment(std::byte const* from, int bytes, int lane,
                                                std::byte (&to)[segment_bytes<Block>]) {
  int const before = static_cast<int>(reinterpret_cast<std::uintptr_t>(from) & 15);
  for (int k = 16 * lane; k < before + bytes; k += 16 * 32) {
    if (k >= before && k + 16 <= before + bytes) {
      copy16(from - before + k, to + k);
    } else {  // what lies around the segment is not ours to read
      for (int b = 0; b < 16; ++b)
        if (k + b >= before && k + b < before + bytes) to[k + b] = from[k + b - before];
    }
  }
  return to + before;
}
/// Bytes of `values` values, whole blocks.
template <class Block>
__device__ inline index_t stored_bytes(index_t values) {
  return values / Block::block * Block::bytes;
}

/// y[n, o] = x[n] . w[o] + b[o] for up to `Rows` rows. A warp owns an output: it brings 1024 columns of the stored row
/// into shared memory in 16-byte loads, and every lane decodes and multiplies 32 of them. Block: 8 outputs.
template <class Block, int Rows, class Act>
__global__ void __launch_bounds__(quantized_threads)
    quantized_few_rows(MatrixView<Act const, DeviceSpace> x, std::byte const* weight, index_t outputs,
                       VectorView<float const, DeviceSpace> bias, MatrixView<Act, DeviceSpace> y) {
  __shared__ float columns[Rows][part_values][32 + 1];  // [row, value, lane]
  alignas(16) __shared__ std::byte stored[quantized_warps][segment_bytes<Block>];
  int const thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  index_t const o = index_t{blockIdx.x} * quantized_warps + warp, cols = x.cols;
  std::byte const* const row = weight + o * stored_bytes<Block>(cols);
  float sum[Rows] = {};
  for (index_t first = 0; first < cols; first += quantized_columns) {
    int const count = static_cast<int>(cols - first < quantized_columns ? cols - first : quantized_columns);
    __syncthreads();  // the columns before have been used
    for (int k = thread; k < Rows * count; k += quantized_threads) {
      int const n = k / count, c = k % count;
      columns[n][c % part_values][c / part_values] = n < x.rows ? to_real(x(n, first + c)) : 0.f;
    }
    std::byte const* segment = nullptr;
    if (o < outputs)
      segment = copy_segment<Block>(row + stored_bytes<Block>(first), static_cast<int>(stored_bytes<Block>(count)),
                                    lane, stored[warp]);
    wait_for_copies();
    __syncthreads();
    if (segment == nullptr || lane * part_values >= count) continue;
    float w[part_values];
    decode_part<Block>(segment, lane, w);
#pragma unroll
    for (int k = 0; k < part_values; ++k)
#pragma unroll
      for (int n = 0; n < Rows; ++n) sum[n] += w[k] * columns[n][k][lane];
  }
#pragma unroll
  for (int n = 0; n < Rows; ++n) {
    float const total = warp_sum(sum[n]);
    if (lane == n && n < x.rows && o < outputs)
      y(n, o) = from_real<Act>(total + (bias.data != nullptr ? bias[o] : 0.f));
  }
}

inline constexpr int decoding_warps = 4, decoding_threads = 32 * decoding_warps;

/// out[r, :] = row r of a stored matrix: a warp has 1024 columns of a row, every lane decodes 32 of them, and the warp
/// writes neighbours together. Block (rows, columns in units of 1024).
template <class Block, class T>
__global__ void __launch_bounds__(decoding_threads)
    dequantize_rows(std::byte const* weight, MatrixView<T, DeviceSpace> out) {
  constexpr int n = pack_size<T>, padded = part_values + n;  // lanes' stores then meet different banks
  alignas(16) __shared__ std::byte stored[decoding_warps][segment_bytes<Block>];
  alignas(16) __shared__ T decoded[decoding_warps][32][padded];
  int const warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  index_t const r = index_t{blockIdx.x} * decoding_warps + warp, first = index_t{blockIdx.y} * quantized_columns;
  if (r >= out.rows) return;
  int const count = static_cast<int>(out.cols - first < quantized_columns ? out.cols - first : quantized_columns);
  std::byte const* const segment =
      copy_segment<Block>(weight + r * stored_bytes<Block>(out.cols) + stored_bytes<Block>(first),
                          static_cast<int>(stored_bytes<Block>(count)), lane, stored[warp]);
  wait_for_copies();
  __syncwarp();
  if (lane * part_values < count) {
    float w[part_values];
    decode_part<Block>(segment, lane, w);
#pragma unroll
    for (int k = 0; k < part_values; k += n) {
      Pack<T, n> some;
#pragma unroll
      for (int j = 0; j < n; ++j) some.value[j] = from_real<T>(w[k + j]);
      *aligned_as<Pack<T, n>>(&decoded[warp][lane][k]) = some;
    }
  }
  __syncwarp();
  bool const whole = aligned16(out);
  for (int k = n * lane; k < count; k += n * 32) {
    auto const some = load_pack<n>(&decoded[warp][k / part_values][k % part_values]);
    T* const to = out.row(r) + first + k;
    if (whole) {
      store_pack(to, some);
    } else {
#pragma unroll
      for (int j = 0; j < n; ++j) to[j] = some.value[j];
    }
  }
}

/// Calls f(Block{}) for the formats above; ContractError for others.
template <class F>
void with_quantized_format(Format format, F&& f) {
  switch (format) {
    case Format::q8_0:
      return f(Q8_0{});
    case Format::q4_0:
      return f(Q4_0{});
    case Format::q4_1:
      return f(Q4_1{});
    case Format::q6_k:
      return f(Q6_K{});
    default:
      raise<ContractError>("graft: the CUDA backend does not multiply weights in ", format_info(format).name,
                           "; convert the model with `graft convert --type`, for example to Q8_0");
  }
}

/// Whether weights of the format go through the kernels here.
constexpr bool is_quantized(Format format) { return format_info(format).block > 1; }

template <class Act>
void multiply_few_rows(CudaBackend<Act>& be, MatrixView<Act const, DeviceSpace> x, Weight const& weight,
                       VectorView<float const, DeviceSpace> bias, MatrixView<Act, DeviceSpace> y) {
  auto const grid = grid_of(ceil_div(weight.rows, quantized_warps));
  with_quantized_format(weight.format, [&](auto block) {
    using Block = decltype(block);
    auto const run = [&](auto kernel) {
      launch(kernel, grid, quantized_threads, 0, be.stream(), x, weight.data, weight.rows, bias, y);
    };
    switch (x.rows) {
      case 1:
        return run(quantized_few_rows<Block, 1, Act>);
      case 2:
        return run(quantized_few_rows<Block, 2, Act>);
      case 3:
        return run(quantized_few_rows<Block, 3, Act>);
      case 4:
        return run(quantized_few_rows<Block, 4, Act>);
      default:
        return run(quantized_few_rows<Block, 8, Act>);
    }
  });
}

}  // namespace cuda

/// out = the rows of a weight in Q8_0, Q4_0, Q4_1 or Q6_K. weight [o, i] in device memory, out [o, i].
template <class Act, class T>
void dequantize(CudaBackend<Act>& be, Weight const& weight, MatrixView<T, DeviceSpace> out) {
  auto const grid =
      cuda::grid_of(ceil_div(out.rows, cuda::decoding_warps), ceil_div(out.cols, cuda::quantized_columns));
  cuda::with_quantized_format(weight.format, [&](auto block) {
    cuda::launch(cuda::dequantize_rows<decltype(block), T>, grid, cuda::decoding_threads, 0, be.stream(), weight.data,
                 out);
  });
}

}  // namespace graft
