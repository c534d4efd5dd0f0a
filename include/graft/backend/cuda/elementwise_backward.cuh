// SPDX-License-Identifier: Apache-2.0
// Gradients of norms, activations, rotary position embedding and row maps on the device. Sums over rows: blocks of rows
// in their order, then the blocks in theirs, without atomics, so that a step repeats bit for bit.
#pragma once

#include <graft/backend/cuda/elementwise.cuh>
#include <graft/backend/row_map.hpp>

#include <array>
#include <span>

namespace graft {
namespace cuda {

inline constexpr index_t summed_rows = 32;  ///< rows whose sum a block makes alone

/// parts [b, size] and where their sum is added; null: not wanted.
struct SummedParts {
  MatrixView<float, DeviceSpace> parts{};
  float* out = nullptr;
};
template <int Count>
struct SummedVectors {
  SummedParts vector[Count];
};

/// out[k] += the sum of parts[0..., k] in their order, of vector blockIdx.y.
template <int Count>
__global__ void add_parts(__grid_constant__ SummedVectors<Count> const sums) {
  auto const& [parts, out] = sums.vector[blockIdx.y];
  index_t const k = index_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (out == nullptr || k >= parts.cols) return;
  float sum = 0;
  for (index_t b = 0; b < parts.rows; ++b) sum += parts(b, k);
  out[k] += sum;
}

/// Gradients of vectors that every row reads, in parts of the arena, one for each block of rows.
template <int Count>
class SumsOverRows {
 public:
  /// Adds to out[k] [size]; null: nobody wants it.
  template <class Act>
  SumsOverRows(CudaBackend<Act>& be, index_t blocks, std::array<float*, Count> out, index_t size)
      : stream_(be.stream()), size_(size) {
    for (int k = 0; k < Count; ++k) {
      if (out[k] == nullptr) continue;
      sums_.vector[k] = {be.arena().template matrix<float>(blocks, size), out[k]};
      any_ = true;
    }
  }
  /// [blocks, size], each row written by the block that has those rows; null data: not wanted.
  MatrixView<float, DeviceSpace> parts(int k) const { return sums_.vector[k].parts; }
  void add() const {
    if (any_) launch(add_parts<Count>, grid_of(ceil_div(size_, 128), Count), 128, 0, stream_, sums_);
  }

 private:
  cudaStream_t stream_;
  index_t size_;
  SummedVectors<Count> sums_{};
  bool any_ = false;
};

/// Both norms: y = z w (+ b) with z = (x - mean) s, where RMS norms have no mean. A block has `each` groups of
/// weight.size elements, `groups` of them per row; a thread owns the same columns of all, so it sums their weights'
/// gradients alone.
///     dx (+)= s (dy w - mean(dy w) - z mean(dy w z))      dweight += dy z      dbias += dy
template <bool centred, class Act>
__global__ void __launch_bounds__(most_row_threads)
    norm_backward(MatrixView<Act const, DeviceSpace> x, VectorView<float const, DeviceSpace> weight, float eps,
                  index_t groups, index_t each, MatrixView<Act const, DeviceSpace> dy, MatrixView<Act, DeviceSpace> dx,
                  bool replace, MatrixView<float, DeviceSpace> dweight, MatrixView<float, DeviceSpace> dbias) {
  index_t const size = weight.size, all = x.rows * groups, first = blockIdx.x * each;
  auto const count = static_cast<float>(size);
  for (index_t k = threadIdx.x; k < size; k += blockDim.x) {
    if (dweight.data != nullptr) dweight(blockIdx.x, k) = 0;
    if (dbias.data != nullptr) dbias(blockIdx.x, k) = 0;
  }
  for (index_t g = first; g < first + each && g < all; ++g) {
    index_t const row = g / groups, start = g % groups * size;
    Act const *from = x.row(row) + start, *slope = dy.row(row) + start;
    Act* const to = dx.row(row) + start;
    float mean = 0, squares = 0, level = 0, along = 0;
    if constexpr (centred) {
      for (index_t k = threadIdx.x; k < size; k += blockDim.x) mean += to_real(from[k]);
      mean = block_sum(mean) / count;
    }
    for (index_t k = threadIdx.x; k < size; k += blockDim.x) {
      float const v = to_real(from[k]) - mean;
      squares += v * v;
    }
    float const scale = 1 / sqrtf(block_sum(squares) / count + eps);
    for (index_t k = threadIdx.x; k < size; k += blockDim.x) {
      float const v = to_real(slope[k]) * weight[k];
      level += v;
      along += v * (to_real(from[k]) - mean) * scale;
    }
    level = centred ? block_sum(level) / count : 0.f;
    along = block_sum(along) / count;
    for (index_t k = threadIdx.x; k < size; k += blockDim.x) {
      float const v = to_real(slope[k]), z = (to_real(from[k]) - mean) * scale;
      if (dweight.data != nullptr) dweight(blockIdx.x, k) += v * z;
      if (dbias.data != nullptr) dbias(blockIdx.x, k) += v;
      float const before = replace ? 0.f : to_real(to[k]);
      to[k] = from_real<Act>(before + scale * (v * weight[k] - level - z * along));
    }
  }
}

template <bool centred, class Act>
void launch_norm_backward(CudaBackend<Act>& be, MatrixView<Act const, DeviceSpace> x,
                          VectorView<float const, DeviceSpace> weight, double eps,
                          MatrixView<Act const, DeviceSpace> dy, MatrixView<Act, DeviceSpace> dx,
                          VectorView<float, DeviceSpace> dweight, VectorView<float, DeviceSpace> dbias) {
  auto const scope = be.scope();
  index_t const groups = x.cols / weight.size, all = x.rows * groups;
  auto const wanted = [](auto sum) { return sum.empty() ? nullptr : sum.data; };
  index_t const each = dweight.empty() && dbias.empty() ? 1 : summed_rows, blocks = ceil_div(all, each);
  SumsOverRows<2> const sums(be, blocks, {wanted(dweight), wanted(dbias)}, weight.size);
  launch(norm_backward<centred, Act>, grid_of(blocks), threads_for(weight.size), 0, be.stream(), x, weight,
         static_cast<float>(eps), groups, each, dy, dx, dx.data == dy.data, sums.parts(0), sums.parts(1));
  sums.add();
}

/// dy = dy f'(x)
template <class Act>
struct ActivateBackward {
  static constexpr int columns = 8;
  Activation f;
  MatrixView<Act const, DeviceSpace> x;
  MatrixView<Act, DeviceSpace> dy;
  bool whole;

  __device__ void operator()(index_t row, index_t first) const {
    float v[columns], slope[columns];
    load_columns(x.row(row), first, x.cols, whole, v);
    load_columns(dy.row(row), first, x.cols, whole, slope);
    for (int k = 0; k < columns; ++k) slope[k] *= activation_derivative(f, v[k]);
    store_columns(slope, first, x.cols, whole, dy.row(row));
  }
};

template <class Act>
struct ActivateGatedBackward {
  static constexpr int columns = 8;
  Activation f;
  MatrixView<Act const, DeviceSpace> gate, up;
  MatrixView<Act, DeviceSpace> dgate, dup;
  bool whole;

  __device__ void operator()(index_t row, index_t first) const {
    float g[columns], u[columns], slope[columns], more[columns];
    load_columns(gate.row(row), first, gate.cols, whole, g);
    load_columns(up.row(row), first, gate.cols, whole, u);
    load_columns(dgate.row(row), first, gate.cols, whole, slope);
    for (int k = 0; k < columns; ++k) {
      more[k] = slope[k] * graft::activate(f, g[k]);
      slope[k] *= u[k] * activation_derivative(f, g[k]);
    }
    store_columns(slope, first, gate.cols, whole, dgate.row(row));
    add_columns(more, first, gate.cols, whole, dup.row(row));
  }
};

/// The transposed rotation of a pair.
template <class Act, class T>
struct RotateBackward {
  static constexpr int columns = 1;
  MatrixView<T const, DeviceSpace> cosine, sine;
  index_t heads, head_dim;
  MatrixView<Act, DeviceSpace> dx;

  __device__ void operator()(index_t row, index_t k) const {
    index_t const n = row / heads, half = cosine.cols;
    Act* const head = dx.row(n) + row % heads * head_dim;
    float const c = to_real(cosine(n, k)), s = to_real(sine(n, k)), u = to_real(head[k]), v = to_real(head[k + half]);
    head[k] = from_real<Act>(u * c + v * s);
    head[k + half] = from_real<Act>(v * c - u * s);
  }
};

/// One map over 32 of the listed rows (block y): a thread has both partners of a pair, or one element where there are
/// none. parts hold what the block's rows add to dL/dc, dL/dd and dL/de.
template <class Z, class G>
__global__ void row_map_backward_rows(RowMapRow<float const> map, index_t group, std::int32_t const* rows,
                                      index_t count, MatrixView<Z const, DeviceSpace> z, MatrixView<G, DeviceSpace> dy,
                                      MatrixView<float, DeviceSpace> dc, MatrixView<float, DeviceSpace> dd,
                                      MatrixView<float, DeviceSpace> de) {
  index_t const k = index_t{blockIdx.x} * blockDim.x + threadIdx.x, half = group / 2;
  bool const paired = group != 0;
  if (k >= (paired ? map.size / 2 : map.size)) return;
  index_t const at[2] = {paired ? k + k / half * half : k, paired ? k + k / half * half + half : k};
  float sum_c[2] = {}, sum_d[2] = {}, sum_e[2] = {}, c1[2] = {}, d[2] = {};
  // constant indices keep all of them in registers
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    if (s == 1 && !paired) break;
    c1[s] = map.c1 != nullptr ? map.c1[at[s]] : 0.f;
    d[s] = map.d != nullptr ? map.d[at[s]] : 0.f;
  }
  index_t const first = blockIdx.y * summed_rows;
  for (index_t r = first; r < first + summed_rows && r < count; ++r) {
    Z const* const input = z.row(rows[r]);
    G* const slope = dy.row(rows[r]);
    float in[2] = {}, g[2] = {};
    in[0] = to_real(input[at[0]]), g[0] = to_real(slope[at[0]]);
    if (paired) in[1] = to_real(input[at[1]]), g[1] = to_real(slope[at[1]]);
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      if (s == 1 && !paired) break;
      sum_c[s] += g[s] * in[s];
      sum_d[s] += g[s] * in[1 - s];
      sum_e[s] += g[s];
      if (map.c1 != nullptr || map.d != nullptr)
        slope[at[s]] = from_real<G>(g[s] + (c1[s] * g[s] + d[1 - s] * g[1 - s]));
    }
  }
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    if (s == 1 && !paired) break;
    if (dc.data != nullptr) dc(blockIdx.y, at[s]) = sum_c[s];
    if (dd.data != nullptr) dd(blockIdx.y, at[s]) = sum_d[s];
    if (de.data != nullptr) de(blockIdx.y, at[s]) = sum_e[s];
  }
}

}  // namespace cuda

/// The backward of rms_norm. x, dy [n, d], weight [d]; dx += the gradient of x, or is replaced by it where dx and dy
/// are the same memory; dweight [d] +=, in float, or empty.
template <class Act>
void rms_norm_backward(CudaBackend<Act>& be, MatrixView<Act const, DeviceSpace> x,
                       VectorView<float const, DeviceSpace> weight, double eps, MatrixView<Act const, DeviceSpace> dy,
                       MatrixView<Act, DeviceSpace> dx, VectorView<float, DeviceSpace> dweight) {
  cuda::launch_norm_backward<false>(be, x, weight, eps, dy, dx, dweight, {});
}

/// The backward of rms_norm_heads. x [n, heads * head_dim] before the norm, weight [head_dim]; dx holds the gradient of
/// the output and gets that of x, in place; dweight [head_dim] +=, in float, or empty.
template <class Act>
void rms_norm_heads_backward(CudaBackend<Act>& be, MatrixView<Act const, DeviceSpace> x,
                             VectorView<float const, DeviceSpace> weight, double eps, MatrixView<Act, DeviceSpace> dx,
                             VectorView<float, DeviceSpace> dweight) {
  cuda::launch_norm_backward<false>(be, x, weight, eps, MatrixView<Act const, DeviceSpace>(dx), dx, dweight, {});
}

/// The backward of layer_norm. x, dy [n, d], weight [d]; dx += or, where dx and dy are the same memory, replaced;
/// dweight, dbias [d] +=, in float, or empty.
template <class Act>
void layer_norm_backward(CudaBackend<Act>& be, MatrixView<Act const, DeviceSpace> x,
                         VectorView<float const, DeviceSpace> weight, double eps, MatrixView<Act const, DeviceSpace> dy,
                         MatrixView<Act, DeviceSpace> dx, VectorView<float, DeviceSpace> dweight,
                         VectorView<float, DeviceSpace> dbias) {
  cuda::launch_norm_backward<true>(be, x, weight, eps, dy, dx, dweight, dbias);
}

/// The backward of activate: dy = dy f'(x), in place. x, dy [n, f]
template <class Act>
void activate_backward(CudaBackend<Act>& be, Activation f, MatrixView<Act const, DeviceSpace> x,
                       MatrixView<Act, DeviceSpace> dy) {
  bool const whole = cuda::aligned16(x) && cuda::aligned16(dy);
  cuda::for_chunks(be, cuda::ActivateBackward<Act>{f, x, dy, whole}, x.rows, x.cols);
}

/// The backward of activate_gated, y = f(gate) * up: dgate holds dL/dy and gets dL/dgate, in place; dup += dL/dup.
/// gate is the value before the activation. All [n, f].
template <class Act>
void activate_gated_backward(CudaBackend<Act>& be, Activation f, MatrixView<Act const, DeviceSpace> gate,
                             MatrixView<Act const, DeviceSpace> up, MatrixView<Act, DeviceSpace> dgate,
                             MatrixView<Act, DeviceSpace> dup) {
  bool const whole = cuda::aligned16(gate) && cuda::aligned16(up) && cuda::aligned16(dgate) && cuda::aligned16(dup);
  cuda::for_chunks(be, cuda::ActivateGatedBackward<Act>{f, gate, up, dgate, dup, whole}, gate.rows, gate.cols);
}

/// The backward of rotate: the transposed rotation, in place. dx [n, heads * head_dim]; cosine, sine [n, angles].
template <class Act, class T>
void rotate_backward(CudaBackend<Act>& be, MatrixView<T const, DeviceSpace> cosine,
                     MatrixView<T const, DeviceSpace> sine, index_t head_dim, MatrixView<Act, DeviceSpace> dx) {
  index_t const heads = dx.cols / head_dim;
  cuda::for_chunks(be, cuda::RotateBackward<Act, T>{cosine, sine, heads, head_dim, dx}, dx.rows * heads, cosine.cols);
}

/// The backward of y'[j] = c[j] z[j] + d[j] z[p(j)] + e[j] for the listed rows, one map (`next` is not followed):
///     dc[j] += dy'[j] z[j]     dd[j] += dy'[j] z[p(j)]     de[j] += dy'[j]     dz[j] = c[j] dy'[j] + d[p(j)] dy'[p(j)]
/// z [n, size]; dy holds dL/dy' and gets dL/dz, in place. grad: dL/dc (into c1), dL/dd and dL/de, each may be null.
/// `rows` names device memory; elements may be f32, bf16 or f16.
template <class Act, class Z, class G>
void row_map_backward(CudaBackend<Act>& be, RowMapRow<float const> const& map, std::span<std::int32_t const> rows,
                      MatrixView<Z const, DeviceSpace> z, MatrixView<G, DeviceSpace> dy,
                      RowMapRow<float> const& grad) noexcept {
  if (rows.empty()) return;
  auto const scope = be.scope();
  index_t const count = static_cast<index_t>(rows.size()), group = map.group != 0 ? map.group : grad.group;
  index_t const blocks = ceil_div(count, cuda::summed_rows), threads = group != 0 ? map.size / 2 : map.size;
  cuda::SumsOverRows<3> const sums(be, blocks, {grad.c1, grad.d, grad.e}, map.size);
  cuda::launch(cuda::row_map_backward_rows<Z, G>, cuda::grid_of(ceil_div(threads, 128), blocks), 128, 0, be.stream(),
               map, group, rows.data(), count, z, dy, sums.parts(0), sums.parts(1), sums.parts(2));
  sums.add();
}

}  // namespace graft
