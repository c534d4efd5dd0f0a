// SPDX-License-Identifier: Apache-2.0
// Norms, activations, residual sums, copies, embeddings, rotary position embedding and writes to the KV cache on the
// GPU. All arithmetic is in float, rounded once at the end.
#pragma once

#include <graft/backend/activation.hpp>
#include <graft/backend/attention.hpp>
#include <graft/backend/cuda/columns.cuh>
#include <graft/backend/cuda/cuda_backend.cuh>
#include <graft/backend/cuda/quantized.cuh>
#include <graft/backend/delivery.hpp>
#include <graft/backend/weight.hpp>

#include <algorithm>
#include <cstdint>

namespace graft {
namespace cuda {

/// Calls operation(row, first) for every `Operation::columns` columns from `first` on of every row, each from one
/// thread.
template <class Operation>
__global__ void each_chunk(Operation operation, index_t rows, index_t cols) {
  index_t const first = (index_t{blockIdx.x} * blockDim.x + threadIdx.x) * Operation::columns;
  if (first >= cols) return;
  for (index_t row = blockIdx.y; row < rows; row += gridDim.y) operation(row, first);
}

template <class Act, class Operation>
void for_chunks(CudaBackend<Act>& be, Operation const& operation, index_t rows, index_t cols) {
  index_t const chunks = ceil_div(cols, Operation::columns);
  index_t const threads = std::min<index_t>(256, round_up(chunks, 32));
  launch(each_chunk<Operation>, grid_of(ceil_div(chunks, threads), std::min<index_t>(rows, 65535)),
         static_cast<unsigned>(threads), 0, be.stream(), operation, rows, cols);
}

/// One element after the other, of anything.
template <class F>
struct EachElement {
  static constexpr int columns = 1;
  F f;
  __device__ void operator()(index_t /*row*/, index_t k) const { f(k); }
};

inline constexpr int most_row_threads = 512;
/// Threads for a row of `cols` elements, 8 each where that is enough.
inline unsigned threads_for(index_t cols) {
  return static_cast<unsigned>(std::clamp<index_t>(round_up(ceil_div(cols, 8), 32), 32, most_row_threads));
}

template <class Act>
struct Activate {
  static constexpr int columns = 8;
  Activation f;
  MatrixView<Act, DeviceSpace> x;
  bool whole;

  __device__ void operator()(index_t row, index_t first) const {
    float v[columns];
    load_columns(x.row(row), first, x.cols, whole, v);
    for (float& each : v) each = graft::activate(f, each);
    store_columns(v, first, x.cols, whole, x.row(row));
  }
};

template <class Act>
struct ActivateGated {
  static constexpr int columns = 8;
  Activation f;
  MatrixView<Act, DeviceSpace> gate;
  MatrixView<Act const, DeviceSpace> up;
  bool whole;

  __device__ void operator()(index_t row, index_t first) const {
    float g[columns], u[columns];
    load_columns(gate.row(row), first, gate.cols, whole, g);
    load_columns(up.row(row), first, gate.cols, whole, u);
    for (int k = 0; k < columns; ++k) g[k] = graft::activate(f, g[k]) * u[k];
    store_columns(g, first, gate.cols, whole, gate.row(row));
  }
};

template <class Act>
struct Add {
  static constexpr int columns = 8;
  MatrixView<Act const, DeviceSpace> x;
  MatrixView<Act, DeviceSpace> h;
  bool whole;

  __device__ void operator()(index_t row, index_t first) const {
    float v[columns];
    load_columns(x.row(row), first, h.cols, whole, v);
    add_columns(v, first, h.cols, whole, h.row(row));
  }
};

/// to = from, from one element type to another.
template <class From, class To>
struct Convert {
  static constexpr int columns = 8;
  MatrixView<From const, DeviceSpace> from;
  MatrixView<To, DeviceSpace> to;
  bool whole;

  __device__ void operator()(index_t row, index_t first) const {
    float v[columns];
    load_columns(from.row(row), first, to.cols, whole, v);
    store_columns(v, first, to.cols, whole, to.row(row));
  }
};

/// The first rows of `from` to where `to` says; `to` is in device memory.
template <class Act>
struct Deliver {
  static constexpr int columns = 8;
  MatrixView<Act const, DeviceSpace> from;
  Delivery<Act> const* to;
  bool whole;

  __device__ void operator()(index_t row, index_t first) const {
    if (row >= to->rows) return;
    float v[columns];
    Act* const target = to->data + row * to->stride;
    load_columns(from.row(row), first, from.cols, whole, v);
    store_columns(v, first, from.cols, aligned16(target), target);
  }
};

/// h[n] = table[index[n]] or += that; a dense table of numbers T.
template <class Act, class T>
struct Gather {
  static constexpr int columns = 8;
  MatrixView<T const, DeviceSpace> table;
  std::int32_t const* index;
  MatrixView<Act, DeviceSpace> h;
  bool accumulate, whole;

  __device__ void operator()(index_t row, index_t first) const {
    float v[columns];
    load_columns(table.row(index[row]), first, h.cols, whole, v);
    if (accumulate) return add_columns(v, first, h.cols, whole, h.row(row));
    store_columns(v, first, h.cols, whole, h.row(row));
  }
};

/// The same of a table of blocks, a part of 32 values per thread.
template <class Act, class Block>
struct GatherBlocks {
  static constexpr int columns = part_values;
  std::byte const* table;
  std::int32_t const* index;
  MatrixView<Act, DeviceSpace> h;
  bool accumulate, whole;

  __device__ void operator()(index_t row, index_t first) const {
    float v[columns];
    decode_part<Block>(table + index[row] * (h.cols / Block::block * Block::bytes), first / columns, v);
    if (accumulate) return add_columns(v, first, h.cols, whole, h.row(row));
    store_columns(v, first, h.cols, whole, h.row(row));
  }
};

/// Turns columns k and k + angles of every head. A row here is a head of a row of x; `first` counts angles.
template <class Act, class T>
struct Rotate {
  static constexpr int columns = 4;
  MatrixView<T const, DeviceSpace> cosine, sine;
  index_t heads, head_dim;
  MatrixView<Act, DeviceSpace> x;
  bool whole;

  __device__ void operator()(index_t row, index_t first) const {
    index_t const n = row / heads, angles = cosine.cols;
    Act* const low = x.row(n) + row % heads * head_dim;
    Act* const high = low + angles;
    float c[columns], s[columns], u[columns], v[columns];
    load_columns(cosine.row(n), first, angles, whole, c);
    load_columns(sine.row(n), first, angles, whole, s);
    load_columns(low, first, angles, whole, u);
    load_columns(high, first, angles, whole, v);
    for (int k = 0; k < columns; ++k) {
      float const turned = u[k] * c[k] - v[k] * s[k];
      v[k] = v[k] * c[k] + u[k] * s[k];
      u[k] = turned;
    }
    store_columns(u, first, angles, whole, low);
    store_columns(v, first, angles, whole, high);
  }
};

/// A row here is row r of span s, s * max_rows + r; spans with fewer rows have nothing there.
template <class Act>
struct StoreKv {
  static constexpr int columns = 8;
  KvView<Act> kv;
  AttentionSpan const* spans;
  index_t max_rows;
  MatrixView<Act const, DeviceSpace> k, v;
  bool whole;

  __device__ void operator()(index_t row, index_t first) const {
    AttentionSpan const& span = spans[row / max_rows];
    index_t const r = row % max_rows;
    index_t const token = span.first_token + r, slot = token % kv.page_tokens;
    if (r >= span.rows || token < 0) return;
    std::int32_t const page = span.pages[token / kv.page_tokens];
    float values[columns];
    Act* const key = kv.key(page, slot);
    Act* const value = kv.value(page, slot);
    bool const aligned = whole && aligned16(key, value);  // pages lie where the cache puts them
    load_columns(k.row(span.first_row + r), first, kv.width, whole, values);
    store_columns(values, first, kv.width, aligned, key);
    load_columns(v.row(span.first_row + r), first, kv.width, whole, values);
    store_columns(values, first, kv.width, aligned, value);
  }
};

/// One block per group of weight.size elements: y = x / rms(x) * weight. x and y may be the same.
template <class Act>
__global__ void __launch_bounds__(most_row_threads)
    rms_norm_groups(MatrixView<Act const, DeviceSpace> x, VectorView<float const, DeviceSpace> weight, float eps,
                    index_t groups, MatrixView<Act, DeviceSpace> y, bool whole) {
  constexpr int n = 8;
  index_t const row = blockIdx.x / groups, size = weight.size, start = blockIdx.x % groups * size;
  Act const* const from = x.row(row) + start;
  Act* const to = y.row(row) + start;
  float squares = 0, v[n], w[n];
  for (index_t k = n * index_t{threadIdx.x}; k < size; k += n * index_t{blockDim.x}) {
    load_columns(from, k, size, whole, v);
    for (float const each : v) squares += each * each;
  }
  float const scale = 1 / sqrtf(block_sum(squares) / static_cast<float>(size) + eps);
  for (index_t k = n * index_t{threadIdx.x}; k < size; k += n * index_t{blockDim.x}) {
    load_columns(from, k, size, whole, v);
    load_columns(weight.data, k, size, whole, w);
    for (int j = 0; j < n; ++j) v[j] = v[j] * scale * w[j];
    store_columns(v, k, size, whole, to);
  }
}

/// to = layer_norm(from), by all threads of a block, of which each has 8 columns of every 8 * blockDim.x and knows
/// their sum. The variance is taken around the mean, not as a difference of large numbers. from and to may be the same.
template <class Act>
__device__ void layer_norm_row(float sum, Act const* from, index_t size, float const* weight, float const* bias,
                               float eps, bool whole, Act* to) {
  constexpr int n = 8;
  index_t const first = n * index_t{threadIdx.x}, step = n * index_t{blockDim.x};
  float const mean = block_sum(sum) / static_cast<float>(size);
  float squares = 0, v[n], w[n], b[n];
  for (index_t k = first; k < size; k += step) {
    load_columns(from, k, size, whole, v);
    for (int j = 0; j < n; ++j)
      if (k + j < size) squares += (v[j] - mean) * (v[j] - mean);
  }
  float const scale = 1 / sqrtf(block_sum(squares) / static_cast<float>(size) + eps);
  for (index_t k = first; k < size; k += step) {
    load_columns(from, k, size, whole, v);
    load_columns(weight, k, size, whole, w);
    load_columns(bias, k, size, whole, b);
    for (int j = 0; j < n; ++j) v[j] = (v[j] - mean) * scale * w[j] + b[j];
    store_columns(v, k, size, whole, to);
  }
}

/// One block per row.
template <class Act>
__global__ void __launch_bounds__(most_row_threads)
    layer_norm_rows(MatrixView<Act const, DeviceSpace> x, float const* weight, float const* bias, float eps,
                    MatrixView<Act, DeviceSpace> y, bool whole) {
  constexpr int n = 8;
  Act const* const from = x.row(blockIdx.x);
  float sum = 0, v[n];
  for (index_t k = n * index_t{threadIdx.x}; k < x.cols; k += n * index_t{blockDim.x}) {
    load_columns(from, k, x.cols, whole, v);
    for (float const each : v) sum += each;
  }
  layer_norm_row(sum, from, x.cols, weight, bias, eps, whole, y.row(blockIdx.x));
}

/// A dense weight as a matrix of its own type.
template <class T>
MatrixView<T const, DeviceSpace> dense_view(Weight const& weight) {
  return {reinterpret_cast<T const*>(weight.data), weight.rows, weight.cols, weight.cols};
}

/// Calls f(T{}) with the number type of a dense format; ContractError for formats the backend cannot read.
template <class F>
void with_dense_format(Format format, F&& f) {
  switch (format) {
    case Format::f32:
      return f(float{});
    case Format::f16:
      return f(f16{});
    case Format::bf16:
      return f(bf16{});
    default:
      raise<ContractError>("graft: the CUDA backend does not read weights in ", format_info(format).name,
                           "; convert the model with `graft convert --type`, for example to BF16");
  }
}

}  // namespace cuda

/// f(k) for every k in [0, count), each in one thread; f is plain data with a call operator for the device.
template <class Act, class F>
void for_each_element(CudaBackend<Act>& be, index_t count, F const& f) {
  if (count > 0) cuda::for_chunks(be, cuda::EachElement<F>{f}, 1, count);
}

/// to = from, in another type of numbers: f32, bf16 or f16. Both [n, d].
template <class Act, class From, class To>
void convert(CudaBackend<Act>& be, MatrixView<From const, DeviceSpace> from, MatrixView<To, DeviceSpace> to) {
  cuda::for_chunks(be, cuda::Convert<From, To>{from, to, cuda::aligned16(from) && cuda::aligned16(to)}, to.rows,
                   to.cols);
}

/// y = x / rms(x) * weight per row. x, y [n, d] (may be the same), weight [d].
template <class Act>
void rms_norm(CudaBackend<Act>& be, MatrixView<Act const, DeviceSpace> x, VectorView<float const, DeviceSpace> weight,
              double eps, MatrixView<Act, DeviceSpace> y) {
  bool const whole = cuda::aligned16(x) && cuda::aligned16(y) && cuda::aligned16(weight.data);
  cuda::launch(cuda::rms_norm_groups<Act>, cuda::grid_of(x.rows), cuda::threads_for(x.cols), 0, be.stream(), x, weight,
               static_cast<float>(eps), index_t{1}, y, whole);
}

/// RMS norm of every head of every row on its own, in place. x [n, heads * head_dim], weight [head_dim].
template <class Act>
void rms_norm_heads(CudaBackend<Act>& be, MatrixView<Act, DeviceSpace> x, VectorView<float const, DeviceSpace> weight,
                    double eps) {
  index_t const heads = x.cols / weight.size;
  bool const whole =
      cuda::aligned16(x) && cuda::aligned16(weight.data) && weight.size * static_cast<index_t>(sizeof(Act)) % 16 == 0;
  cuda::launch(cuda::rms_norm_groups<Act>, cuda::grid_of(x.rows * heads), cuda::threads_for(weight.size), 0,
               be.stream(), MatrixView<Act const, DeviceSpace>(x), weight, static_cast<float>(eps), heads, x, whole);
}

/// y = (x - mean) / sqrt(var + eps) * weight + bias per row. x, y [n, d] (may be the same); weight, bias [d].
template <class Act>
void layer_norm(CudaBackend<Act>& be, MatrixView<Act const, DeviceSpace> x, VectorView<float const, DeviceSpace> weight,
                VectorView<float const, DeviceSpace> bias, double eps, MatrixView<Act, DeviceSpace> y) {
  bool const whole = cuda::aligned16(x) && cuda::aligned16(y) && cuda::aligned16(weight.data, bias.data);
  cuda::launch(cuda::layer_norm_rows<Act>, cuda::grid_of(x.rows), cuda::threads_for(x.cols), 0, be.stream(), x,
               weight.data, bias.data, static_cast<float>(eps), y, whole);
}

/// x = f(x), in place. x [n, f]
template <class Act>
void activate(CudaBackend<Act>& be, Activation f, MatrixView<Act, DeviceSpace> x) {
  cuda::for_chunks(be, cuda::Activate<Act>{f, x, cuda::aligned16(x)}, x.rows, x.cols);
}

/// gate = f(gate) * up, in place. gate, up [n, f]
template <class Act>
void activate_gated(CudaBackend<Act>& be, Activation f, MatrixView<Act, DeviceSpace> gate,
                    MatrixView<Act const, DeviceSpace> up) {
  bool const whole = cuda::aligned16(gate) && cuda::aligned16(up);
  cuda::for_chunks(be, cuda::ActivateGated<Act>{f, gate, up, whole}, gate.rows, gate.cols);
}

/// h += x. h, x [n, d]
template <class Act>
void add(CudaBackend<Act>& be, MatrixView<Act const, DeviceSpace> x, MatrixView<Act, DeviceSpace> h) {
  cuda::for_chunks(be, cuda::Add<Act>{x, h, cuda::aligned16(x) && cuda::aligned16(h)}, h.rows, h.cols);
}

/// to = from. Both [n, d].
template <class Act>
void copy(CudaBackend<Act>& be, MatrixView<Act const, DeviceSpace> from, MatrixView<Act, DeviceSpace> to) {
  convert(be, from, to);
}

/// As many rows of `from` as `to` has, to where it lies. `to` itself is in device memory.
template <class Act>
void deliver(CudaBackend<Act>& be, MatrixView<Act const, DeviceSpace> from, Delivery<Act> const* to) {
  cuda::for_chunks(be, cuda::Deliver<Act>{from, to, cuda::aligned16(from)}, from.rows, from.cols);
}

/// h[n] = table[index[n]], or += with `accumulate`. h [n, d]; index [n] in device memory. The table is F32, F16, BF16,
/// Q8_0, Q4_0, Q4_1 or Q6_K; ContractError otherwise.
template <class Act>
void gather_rows(CudaBackend<Act>& be, Weight const& table, std::int32_t const* index, MatrixView<Act, DeviceSpace> h,
                 bool accumulate = false) {
  if (cuda::is_quantized(table.format))
    return cuda::with_quantized_format(table.format, [&](auto block) {
      using Block = decltype(block);
      cuda::for_chunks(be, cuda::GatherBlocks<Act, Block>{table.data, index, h, accumulate, cuda::aligned16(h)}, h.rows,
                       h.cols);
    });
  cuda::with_dense_format(table.format, [&](auto number) {
    using T = decltype(number);
    auto const view = cuda::dense_view<T>(table);
    bool const whole = cuda::aligned16(view) && cuda::aligned16(h);
    cuda::for_chunks(be, cuda::Gather<Act, T>{view, index, h, accumulate, whole}, h.rows, h.cols);
  });
}

/// Rotates the first 2 * angles columns of every head: k with k + angles (Hugging Face's half-split pairing), in place.
/// x [n, heads * head_dim]; cosine, sine [n, angles], activations or floats.
template <class Act, class T>
void rotate(CudaBackend<Act>& be, MatrixView<T const, DeviceSpace> cosine, MatrixView<T const, DeviceSpace> sine,
            index_t head_dim, MatrixView<Act, DeviceSpace> x) {
  index_t const heads = x.cols / head_dim, angles = cosine.cols;
  bool const whole = cuda::aligned16(cosine) && cuda::aligned16(sine) && cuda::aligned16(x) &&
                     head_dim * static_cast<index_t>(sizeof(Act)) % 16 == 0 &&
                     angles * static_cast<index_t>(sizeof(Act)) % 16 == 0;
  cuda::for_chunks(be, cuda::Rotate<Act, T>{cosine, sine, heads, head_dim, x, whole}, x.rows * heads, angles);
}

/// Writes keys and values of the batch into their pages. k, v [n, kv_heads * head_dim]; spans, their pages and the
/// cache's table of pages in device memory.
template <class Act>
void store_kv(CudaBackend<Act>& be, KvView<Act> const& kv, AttentionSpans const& spans,
              MatrixView<Act const, DeviceSpace> k, MatrixView<Act const, DeviceSpace> v) {
  bool const whole = cuda::aligned16(k) && cuda::aligned16(v);
  cuda::for_chunks(be, cuda::StoreKv<Act>{kv, spans.data(), spans.max_rows, k, v, whole},
                   static_cast<index_t>(spans.size()) * spans.max_rows, kv.width);
}

}  // namespace graft
