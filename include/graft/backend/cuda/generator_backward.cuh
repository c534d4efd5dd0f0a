// SPDX-License-Identifier: Apache-2.0
// The way back through one generator of vectors (make_vectors.cuh) and one prompt. What it adds to has one owner each:
// blocks for pieces of the bottleneck's sums, which one block adds up, threads for the elements of the factors and of
// the prompt's rows, blocks for columns.
#pragma once

#include <graft/backend/activation.hpp>
#include <graft/backend/cuda/elementwise.cuh>
#include <graft/backend/cuda/make_vectors.cuh>
#include <graft/backend/generator.hpp>
#include <graft/backend/rational.hpp>

namespace graft {
namespace cuda {

/// What the kernels hand on, in scratch memory.
struct GeneratorState {
  float* h = nullptr;          ///< [d] what was pooled
  float* dh = nullptr;         ///< [d]
  float* activated = nullptr;  ///< [r] f(z)
  float* slope = nullptr;      ///< [r] dL/dz
  float* share = nullptr;      ///< [p] of attention pooling: scores, then shares
  float* along = nullptr;      ///< [p] dh . x, then dL/dscore
  float* parts = nullptr;      ///< [h_pieces + vector_pieces, r] of z = W_down h and of dL/df(z) = dl W_up
  index_t h_pieces = 0, vector_pieces = 0;
};

/// dL/d(vector j) of the term's own vectors, from that of the request's sum.
__device__ inline float own_slope(GeneratorTerm<float> const& term, float const* dl, index_t j) {
  return term.weight * dl[j < term.query && term.rotated_query ? term.generator.vectors + j : j];
}

/// dL/dz from dy = dL/df(z); adds to the gradients of a rational's coefficients.
__device__ inline float generator_slope(VectorGenerator<float> const& g, float z, float dy, float* da, float* db) {
  using Function = VectorGenerator<float>::Function;
  switch (g.function) {
    case Function::rational_a:
    case Function::rational_b:
      return rational_backward(g.function == Function::rational_a ? RationalForm::a : RationalForm::b, g.numerator,
                               g.numerator_degree, g.denominator, g.denominator_degree, z, dy, da, db);
    case Function::gelu:
      return dy * activation_derivative(Activation::gelu, z);
    case Function::silu:
      return dy * activation_derivative(Activation::silu, z);
    default:
      return dy * activation_derivative(Activation::relu, z);
  }
}

/// Pools again: a warp per row for the scores, then blocks for the columns.
template <class X>
__global__ void __launch_bounds__(make_vectors_threads)
    generator_scores(VectorGenerator<float> g, MatrixView<X const, DeviceSpace> x, GeneratorState state) {
  score_rows(g, x, state.share);
}
template <class X>
__global__ void __launch_bounds__(make_vectors_threads)
    generator_pool(VectorGenerator<float> g, MatrixView<X const, DeviceSpace> x, bool whole, GeneratorState state) {
  pool_rows(g, x, whole, state.share, state.h);
}

inline constexpr index_t bottleneck_piece = 1024;  ///< columns of W_down or rows of W_up whose sum a block makes

/// state.parts, a block for piece blockIdx.x of rank blockIdx.y.
template <class R>
__global__ void __launch_bounds__(make_vectors_threads)
    generator_parts(GeneratorTerm<R> term, R const* dl, GeneratorState state) {
  VectorGenerator<R> const& g = term.generator;
  index_t const r = blockIdx.y;
  bool const of_h = blockIdx.x < state.h_pieces;
  index_t const first = (of_h ? blockIdx.x : blockIdx.x - state.h_pieces) * bottleneck_piece;
  index_t const size = of_h ? g.width : g.vectors;
  index_t const last = first + bottleneck_piece < size ? first + bottleneck_piece : size;
  float sum = 0;
  if (of_h) {
#pragma unroll 4
    for (index_t k = first + threadIdx.x; k < last; k += make_vectors_threads)
      sum += g.down[r * g.width + k] * state.h[k];
  } else {
#pragma unroll 4
    for (index_t k = first + threadIdx.x; k < last; k += make_vectors_threads)
      sum += own_slope(term, dl, k) * g.up[k * g.rank + r];
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) state.parts[blockIdx.x * g.rank + r] = sum;
}

/// f(z) and dL/dz: the parts added in their order, by one block.
template <class R>
__global__ void __launch_bounds__(make_vectors_threads)
    generator_bottleneck(VectorGenerator<R> g, GeneratorGradient<R> grad, GeneratorState state) {
  for (index_t r = threadIdx.x; r < g.rank; r += make_vectors_threads) {
    float z = 0, dy = 0;
    float const* part = state.parts + r;
    for (index_t k = 0; k < state.h_pieces; ++k, part += g.rank) z += *part;
    for (index_t k = 0; k < state.vector_pieces; ++k, part += g.rank) dy += *part;
    state.activated[r] = z, state.slope[r] = dy;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (index_t r = 0; r < g.rank; ++r) {  // few; the coefficients' sums run in this order
    float const z = state.activated[r];
    state.activated[r] = generator_function(g, z);
    state.slope[r] = generator_slope(g, z, state.slope[r], grad.numerator, grad.denominator);
  }
}

/// along = dh . x, a warp per row.
template <class X>
__global__ void __launch_bounds__(make_vectors_threads)
    generator_along(VectorGenerator<float> g, MatrixView<X const, DeviceSpace> x, GeneratorState state) {
  g.pool = state.dh;
  score_rows(g, x, state.along);
}

/// Scores become shares w_t = softmax(s)_t, and along becomes ds_t = w_t (dw_t - sum_u w_u dw_u); one block.
template <class R>
__global__ void __launch_bounds__(make_vectors_threads) generator_shares(index_t p, GeneratorState state) {
  index_t const first = threadIdx.x, step = blockDim.x;  // a thread has the same rows throughout
  float highest = -INFINITY, total = 0, mean = 0;
  for (index_t t = first; t < p; t += step) highest = state.share[t] > highest ? state.share[t] : highest;
  highest = block_max(highest);
  for (index_t t = first; t < p; t += step) total += state.share[t] = exp_of(state.share[t] - highest);
  total = block_sum(total);
  for (index_t t = first; t < p; t += step) state.share[t] /= total, mean += state.share[t] * state.along[t];
  mean = block_sum(mean);
  for (index_t t = first; t < p; t += step) state.along[t] = state.share[t] * (state.along[t] - mean);
}

/// Of attention pooling's own vector; blocks as generator_pool's.
template <class X>
__global__ void __launch_bounds__(make_vectors_threads)
    generator_pool_gradient(MatrixView<X const, DeviceSpace> x, bool whole, GeneratorState state, float* gradient) {
  sum_rows(
      x, whole, false, [&](index_t t) { return state.along[t]; }, [&](index_t k, float sum) { gradient[k] += sum; });
}

/// dh = dz W_down and, where the generator is trained, dW_up += dl f^T, db += dl, dW_down += dz h^T: a thread per
/// element.
template <class R>
__global__ void generator_factors(GeneratorTerm<R> term, GeneratorGradient<R> grad, R const* dl, GeneratorState state) {
  VectorGenerator<R> const& g = term.generator;
  index_t const column = index_t{blockIdx.x} * blockDim.x + threadIdx.x, ups = g.vectors * g.rank;
  if (column < g.width) {
    float sum = 0;
#pragma unroll 4
    for (index_t r = 0; r < g.rank; ++r) sum += state.slope[r] * g.down[r * g.width + column];
    state.dh[column] = sum;
    return;
  }
  if (grad.up == nullptr) return;
  index_t const at = column - g.width;
  if (at < ups) {
    index_t const j = at / g.rank, r = at % g.rank;
    float const slope = own_slope(term, dl, j);
    grad.up[at] += slope * state.activated[r];
    if (r == 0 && grad.up_bias != nullptr) grad.up_bias[j] += slope;
  } else if (at < ups + g.rank * g.width) {
    index_t const k = at - ups;
    grad.down[k] += state.slope[k / g.width] * state.h[k % g.width];
  }
}

inline constexpr int generator_rows_per_block = 16;

/// The prompt's rows: a thread per column, blockIdx.y counts pieces of the prompt.
template <class X, class D>
__global__ void generator_rows(VectorGenerator<float> g, MatrixView<X const, DeviceSpace> x,
                               MatrixView<D, DeviceSpace> dx, GeneratorState state) {
  using Pooling = VectorGenerator<float>::Pooling;
  index_t const k = index_t{blockIdx.x} * blockDim.x + threadIdx.x, p = x.rows;
  if (k >= g.width) return;
  index_t const first = index_t{blockIdx.y} * generator_rows_per_block;
  index_t const last = first + generator_rows_per_block < p ? first + generator_rows_per_block : p;
  float const dh = state.dh[k];
  auto const add = [&](index_t t, float value) { dx(t, k) = from_real<D>(to_real(dx(t, k)) + value); };
  if (g.pooling == Pooling::last) {
    if (last == p) add(p - 1, dh);
  } else if (g.pooling == Pooling::mean) {
    for (index_t t = first; t < last; ++t) add(t, dh / static_cast<float>(p));
  } else if (g.pooling == Pooling::max) {  // the first row that has what was pooled
    if (first != 0) return;
    float const pooled = state.h[k];
    index_t highest = p - 1;
#pragma unroll 8
    for (index_t t = p - 2; t >= 0; --t)
      highest = to_real(x(t, k)) == pooled ? t : highest;  // no load waits for another
    add(highest, dh);
  } else {
    for (index_t t = first; t < last; ++t) add(t, state.share[t] * dh + state.along[t] * g.pool[k]);
  }
}

}  // namespace cuda

/// The backward of one term of one request's vectors: dl, dL/d(the request's sum), becomes gradients of the generator,
/// which are added to (all null: it is frozen), and of the prompt's rows it reads, dnormalized or draw [p, d], +=.
/// normalized, raw [p, d] are what make_vectors saw. Pointers inside the structs are device memory.
template <class Act>
void generator_backward(CudaBackend<Act>& be, GeneratorTerm<float> const& term, GeneratorGradient<float> const& grad,
                        VectorView<float const, DeviceSpace> dl, MatrixView<Act const, DeviceSpace> normalized,
                        MatrixView<Act const, DeviceSpace> raw, MatrixView<Act, DeviceSpace> dnormalized,
                        MatrixView<Act, DeviceSpace> draw) {
  auto const scope = be.scope();
  auto const& g = term.generator;
  auto const take = [&](index_t size) { return be.arena().template allocate<float>(size); };
  auto const x = g.raw ? raw : normalized;
  index_t const h_pieces = ceil_div(g.width, cuda::bottleneck_piece);
  index_t const vector_pieces = ceil_div(g.vectors, cuda::bottleneck_piece);
  cuda::GeneratorState const state{take(g.width),
                                   take(g.width),
                                   take(g.rank),
                                   take(g.rank),
                                   take(x.rows),
                                   take(x.rows),
                                   take((h_pieces + vector_pieces) * g.rank),
                                   h_pieces,
                                   vector_pieces};
  bool const attends = g.pooling == VectorGenerator<float>::Pooling::attention, whole = cuda::aligned16(x);
  auto const run = [&](auto* kernel, index_t blocks, auto const&... arguments) {
    cuda::launch(kernel, cuda::grid_of(blocks), cuda::make_vectors_threads, 0, be.stream(), arguments...);
  };
  index_t const columns = ceil_div(g.width, cuda::pooled_columns);
  if (attends) run(cuda::generator_scores<Act>, cuda::make_vectors_blocks, g, x, state);
  run(cuda::generator_pool<Act>, columns, g, x, whole, state);
  cuda::launch(cuda::generator_parts<float>, cuda::grid_of(h_pieces + vector_pieces, g.rank),
               cuda::make_vectors_threads, 0, be.stream(), term, dl.data, state);
  run(cuda::generator_bottleneck<float>, 1, g, grad, state);
  index_t const trained = grad.up != nullptr ? g.rank * (g.vectors + g.width) : 0;
  run(cuda::generator_factors<float>, ceil_div(g.width + trained, cuda::make_vectors_threads), term, grad, dl.data,
      state);
  if (attends) {
    run(cuda::generator_along<Act>, cuda::make_vectors_blocks, g, x, state);
    run(cuda::generator_shares<float>, 1, x.rows, state);
    if (grad.pool != nullptr) run(cuda::generator_pool_gradient<Act>, columns, x, whole, state, grad.pool);
  }
  cuda::launch(cuda::generator_rows<Act, Act>,
               cuda::grid_of(ceil_div(g.width, 128), ceil_div(x.rows, cuda::generator_rows_per_block)), 128, 0,
               be.stream(), g, x, g.raw ? draw : dnormalized, state);
}

}  // namespace graft
