// SPDX-License-Identifier: Apache-2.0
// Vectors from prompts: the prompt's rows are pooled, go through the small network of each of the request's modules,
// and the weighted sum is composed with the request's other maps. Each of these steps is one kernel for all requests,
// which may use different modules, and has many blocks per request; every element has one owner, and sums run in one
// order.
#pragma once

#include <graft/backend/cuda/runtime.cuh>

#include <graft/backend/activation.hpp>
#include <graft/backend/cuda/columns.cuh>
#include <graft/backend/cuda/cuda_backend.cuh>
#include <graft/backend/generator.hpp>
#include <graft/backend/rational.hpp>
#include <graft/core/view.hpp>

#include <cmath>

namespace graft {
namespace cuda {

inline constexpr int make_vectors_threads = 256;
inline constexpr int make_vectors_blocks = 32;  ///< per request, where they deal out what there is
/// A block that sums rows owns this many columns, 8 per thread, and deals out the rows to this many groups of threads.
inline constexpr int pooled_columns = 64, pooled_groups = make_vectors_threads / (pooled_columns / 8);

template <class R>
__device__ R generator_function(VectorGenerator<R> const& g, R x) {
  using Function = typename VectorGenerator<R>::Function;
  switch (g.function) {
    case Function::rational_a:
      return rational(RationalForm::a, g.numerator, g.numerator_degree, g.denominator, g.denominator_degree, x);
    case Function::rational_b:
      return rational(RationalForm::b, g.numerator, g.numerator_degree, g.denominator, g.denominator_degree, x);
    case Function::gelu:
      return activate(Activation::gelu, x);
    case Function::silu:
      return activate(Activation::silu, x);
    default:
      return activate(Activation::relu, x);
  }
}

/// to(column, sum over t of weight(t) * x(t, column)) for the columns of block blockIdx.x, by all its threads; the
/// highest weight(t) * x(t, column) instead where `highest`. x [p, d]
template <class X, class Weight, class To>
__device__ void sum_rows(MatrixView<X const, DeviceSpace> x, bool whole, bool highest, Weight const& weight,
                         To const& to) {
  constexpr int n = 8;
  __shared__ float part[pooled_groups][pooled_columns];
  int const thread = static_cast<int>(threadIdx.x), group = thread / (pooled_columns / n);
  int const own = thread % (pooled_columns / n) * n;
  index_t const first = index_t{blockIdx.x} * pooled_columns;
  auto const join = [highest](float a, float b) { return highest ? (b > a ? b : a) : a + b; };
  float sum[n], v[n];
  for (float& each : sum) each = highest ? -INFINITY : 0.f;
  for (index_t t = group; t < x.rows; t += pooled_groups) {
    load_columns(x.row(t), first + own, x.cols, whole, v);
    float const w = weight(t);
    for (int j = 0; j < n; ++j) sum[j] = join(sum[j], w * v[j]);
  }
  __syncthreads();  // the sums before these have been read
  for (int j = 0; j < n; ++j) part[group][own + j] = sum[j];
  __syncthreads();
  if (thread >= pooled_columns || first + thread >= x.cols) return;
  float all = part[0][thread];
  for (int k = 1; k < pooled_groups; ++k) all = join(all, part[k][thread]);
  to(first + thread, all);
}

/// scores [p] = x . g.pool, of attention pooling: a warp per row, rows dealt out to the grid's blocks.
template <class X>
__device__ void score_rows(VectorGenerator<float> const& g, MatrixView<X const, DeviceSpace> x, float* scores) {
  index_t const lane = threadIdx.x % 32, warps = blockDim.x / 32;
  for (index_t t = blockIdx.x * warps + threadIdx.x / 32; t < x.rows; t += gridDim.x * warps) {
    float score = 0;
    for (index_t k = lane; k < g.width; k += 32) score += to_real(x(t, k)) * g.pool[k];
    score = warp_sum(score);
    if (lane == 0) scores[t] = score;
  }
}

/// The columns of h [d] = pool(x [p, d]) of block blockIdx.x.
template <class X>
__device__ void pool_rows(VectorGenerator<float> const& g, MatrixView<X const, DeviceSpace> x, bool whole,
                          float const* scores, float* h) {
  using Pooling = VectorGenerator<float>::Pooling;
  float highest = -INFINITY, total = 0;
  if (g.pooling == Pooling::attention) {  // a softmax over the rows' scores
    for (index_t t = threadIdx.x; t < x.rows; t += blockDim.x) highest = scores[t] > highest ? scores[t] : highest;
    highest = block_max(highest);
    for (index_t t = threadIdx.x; t < x.rows; t += blockDim.x) total += exp_of(scores[t] - highest);
    total = block_sum(total);
  }
  auto const weight = [&](index_t t) {
    return g.pooling == Pooling::attention ? exp_of(scores[t] - highest) / total : 1.f;
  };
  auto const rows = g.pooling == Pooling::last ? x.row_range(x.rows - 1, 1) : x;
  float const divisor = g.pooling == Pooling::mean ? static_cast<float>(x.rows) : 1.f;
  sum_rows(rows, whole, g.pooling == Pooling::max, weight, [&](index_t k, float sum) { h[k] = sum / divisor; });
}

/// target.map = after . (1 + diagonal) . before at output j.
template <class R>
__device__ void compose_generated(GeneratedTarget<R> const& target, R const* sum, index_t j) {
  auto const value = [](Numbers<R> const& v, index_t k) { return v != nullptr ? v[k] : R{0}; };
  auto const diagonal = [&](index_t k) {
    for (index_t part = 0; part < target.part_count; ++part) {
      auto const& slice = target.parts[part];
      if (k >= slice.offset && k < slice.offset + slice.size) return sum[slice.from + k - slice.offset];
    }
    return R{0};
  };
  struct Element {
    R c1, d, e;
  };
  auto const inner = [&](index_t k) {
    R const a = value(target.before.c1, k), b = diagonal(k);
    return Element{a + b + a * b, (1 + b) * value(target.before.d, k), (1 + b) * value(target.before.e, k)};
  };
  auto const& map = target.map;
  if (target.diagonal != nullptr) target.diagonal[j] = diagonal(j);
  Element const own = inner(j);
  R const c1 = value(target.after.c1, j), d = value(target.after.d, j);
  Element const other = d != 0 ? inner(partner(j, map.group)) : Element{};
  map.c1[j] = own.c1 + c1 + own.c1 * c1 + d * other.d;
  if (map.d != nullptr) map.d[j] = (1 + c1) * own.d + d * (1 + other.c1);
  if (map.e != nullptr) map.e[j] = (1 + c1) * own.e + d * other.e + value(target.after.e, j);
}

/// A batch's requests and what they pool. Grids of the kernels below: (blocks of a request, request).
template <class X, class H>
struct PromptRows {
  GeneratedPrompt<float> const* prompts;
  index_t layer;
  MatrixView<X const, DeviceSpace> normalized;  ///< [n, d]
  MatrixView<H const, DeviceSpace> raw;
  float* scores;  ///< [term, n] or null
  bool whole;

  __device__ GeneratedMaps<float> const& request() const { return prompts[blockIdx.y].layers[layer]; }
  /// f(rows of the prompt that term k pools, their scores)
  template <class F>
  __device__ void with_rows(index_t k, F const& f) const {
    auto const& prompt = prompts[blockIdx.y];
    float* const own = scores != nullptr ? scores + k * normalized.rows + prompt.first_row : nullptr;
    if (request().terms[k].generator.raw) return f(raw.row_range(prompt.first_row, prompt.rows), own);
    f(normalized.row_range(prompt.first_row, prompt.rows), own);
  }
};

template <class X, class H>
__global__ void __launch_bounds__(make_vectors_threads) score_prompts(PromptRows<X, H> in) {
  auto const& request = in.request();
  for (index_t k = 0; k < request.term_count; ++k) {
    auto const& g = request.terms[k].generator;
    if (g.pooling != VectorGenerator<float>::Pooling::attention) continue;
    in.with_rows(k, [&](auto const& x, float* scores) { score_rows(g, x, scores); });
  }
}

template <class X, class H>
__global__ void __launch_bounds__(make_vectors_threads) pool_prompts(PromptRows<X, H> in) {
  auto const& request = in.request();
  for (index_t k = 0; k < request.term_count; ++k) {
    auto const& g = request.terms[k].generator;
    in.with_rows(
        k, [&](auto const& x, float* scores) { pool_rows(g, x, in.whole, scores, request.pooled + k * g.width); });
  }
}

/// f(W_down h) of every term, a warp per element; clears what the next kernel adds to.
template <class X, class H>
__global__ void __launch_bounds__(make_vectors_threads) make_bottlenecks(PromptRows<X, H> in) {
  auto const& request = in.request();
  index_t const lane = threadIdx.x % 32, warps = blockDim.x / 32, step = gridDim.x * warps;
  float* bottleneck = request.bottleneck;
  for (index_t k = 0; k < request.term_count; ++k) {
    auto const& g = request.terms[k].generator;
    float const* const h = request.pooled + k * g.width;
    for (index_t r = blockIdx.x * warps + threadIdx.x / 32; r < g.rank; r += step) {
      float z = 0;
      for (index_t i = lane; i < g.width; i += 32) z += g.down[r * g.width + i] * h[i];
      z = warp_sum(z);
      if (lane == 0) bottleneck[r] = generator_function(g, z);
    }
    bottleneck += g.rank;
  }
  for (index_t j = index_t{blockIdx.x} * blockDim.x + threadIdx.x; j < request.vectors; j += gridDim.x * blockDim.x)
    request.sum[j] = 0;
}

template <class X, class H>
__global__ void __launch_bounds__(make_vectors_threads) sum_vectors(PromptRows<X, H> in) {
  auto const& request = in.request();
  float const* bottleneck = request.bottleneck;
  for (index_t k = 0; k < request.term_count; ++k) {
    auto const& term = request.terms[k];
    auto const& g = term.generator;
    for (index_t j = index_t{blockIdx.x} * blockDim.x + threadIdx.x; j < g.vectors; j += gridDim.x * blockDim.x) {
      float value = g.start + (g.up_bias != nullptr ? g.up_bias[j] : 0.f);
      for (index_t r = 0; r < g.rank; ++r) value += g.up[j * g.rank + r] * bottleneck[r];
      // a query behind RoPE is kept behind all others; either way no other thread touches this element
      request.sum[j < term.query && term.rotated_query ? g.vectors + j : j] += term.weight * value;
    }
    bottleneck += g.rank;
  }
}

template <class X, class H>
__global__ void __launch_bounds__(make_vectors_threads) compose_vectors(PromptRows<X, H> in) {
  auto const& request = in.request();
  for (index_t t = 0; t < request.target_count; ++t) {
    index_t const size = request.targets[t].map.size;
    for (index_t j = index_t{blockIdx.x} * blockDim.x + threadIdx.x; j < size; j += gridDim.x * blockDim.x)
      compose_generated(request.targets[t], request.sum, j);
  }
}

}  // namespace cuda

/// Makes one layer's vectors of every listed request. normalized [n, d]: what q_proj sees, raw [n, d]: the residual
/// stream, of the whole batch.
template <class Act, class X, class H>
void make_vectors(CudaBackend<Act>& be, index_t layer, GeneratedPrompts<float> const& prompts,
                  MatrixView<X const, DeviceSpace> normalized, MatrixView<H const, DeviceSpace> raw) noexcept {
  auto const scope = be.scope();
  auto const scores = be.arena().template vector<float>(prompts.scored_terms * normalized.rows);
  cuda::PromptRows<X, H> const in{prompts.data,
                                  layer,
                                  normalized,
                                  raw,
                                  prompts.scored_terms > 0 ? scores.data : nullptr,
                                  cuda::aligned16(normalized) && cuda::aligned16(raw)};
  auto const run = [&](void (*kernel)(cuda::PromptRows<X, H>), index_t blocks) {
    cuda::launch(kernel, cuda::grid_of(blocks, prompts.size), cuda::make_vectors_threads, 0, be.stream(), in);
  };
  if (prompts.scored_terms > 0) run(cuda::score_prompts<X, H>, cuda::make_vectors_blocks);
  run(cuda::pool_prompts<X, H>, ceil_div(normalized.cols, cuda::pooled_columns));
  run(cuda::make_bottlenecks<X, H>, cuda::make_vectors_blocks);
  run(cuda::sum_vectors<X, H>, cuda::make_vectors_blocks);
  run(cuda::compose_vectors<X, H>, cuda::make_vectors_blocks);
}

}  // namespace graft
