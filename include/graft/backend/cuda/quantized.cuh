// SPDX-License-Identifier: Apache-2.0
// Products with weights in ggml's formats: few rows meet the blocks as they are stored, for many rows the weight is
// decoded in slices. Q8_0, Q4_0, Q4_1 and Q6_K.
#pragma once

#include <graft/backend/cuda/columns.cuh>
#include <graft/backend/cuda/cuda_backend.cuh>
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
  index_t const row_size = cols / Block::block * Block::bytes;
  std::byte const* const row = weight + o * row_size;
  float sum[Rows] = {};
  for (index_t first = 0; first < cols; first += quantized_columns) {
    int const count = static_cast<int>(cols - first < quantized_columns ? cols - first : quantized_columns);
    __syncthreads();  // the columns before have been used
    for (int k = thread; k < Rows * count; k += quantized_threads) {
      int const n = k / count, c = k % count;
      columns[n][c % part_values][c / part_values] = n < x.rows ? to_real(x(n, first + c)) : 0.f;
    }
    std::byte const* segment = nullptr;
    if (o < outputs) {
      std::byte const* const from = row + first / Block::block * Block::bytes;
      int const bytes = count / static_cast<int>(Block::block) * static_cast<int>(Block::bytes);
      int const before = static_cast<int>(reinterpret_cast<std::uintptr_t>(from) & 15);
      for (int k = 16 * lane; k < before + bytes; k += 16 * 32) {
        if (k >= before && k + 16 <= before + bytes) {
          *aligned_as<uint4>(stored[warp] + k) = *aligned_as<uint4 const>(from - before + k);
        } else {  // what lies around the segment is not ours to read
          for (int b = 0; b < 16; ++b)
            if (k + b >= before && k + b < before + bytes) stored[warp][k + b] = from[k + b - before];
        }
      }
      segment = stored[warp] + before;
    }
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

/// out[r, :] = row r of a stored matrix, a part of 32 values per thread.
template <class Block, class Act>
__global__ void dequantize_rows(std::byte const* weight, MatrixView<Act, DeviceSpace> out) {
  index_t const parts = out.cols / part_values, part = index_t{blockIdx.x} * blockDim.x + threadIdx.x;
  index_t const r = part / parts, k = part % parts;
  if (r >= out.rows) return;
  float w[part_values];
  decode_part<Block>(weight + r * (out.cols / Block::block * Block::bytes), k, w);
  store_columns(w, k * part_values, out.cols, aligned16(out), out.row(r));
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
  constexpr int threads = 128;
  auto const blocks = cuda::grid_of(ceil_div(out.rows * (out.cols / cuda::part_values), threads));
  cuda::with_quantized_format(weight.format, [&](auto block) {
    cuda::launch(cuda::dequantize_rows<decltype(block), T>, blocks, threads, 0, be.stream(), weight.data, out);
  });
}

}  // namespace graft
