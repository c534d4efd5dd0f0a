// SPDX-License-Identifier: Apache-2.0
// Vectors from prompts: one block per request pools the prompt's rows, runs the small network of each of its modules,
// and composes the weighted sum with the request's other maps. Requests may use different modules.
#pragma once

#include <graft/backend/cuda/runtime.cuh>

#include <graft/backend/activation.hpp>
#include <graft/backend/cuda/cuda_backend.cuh>
#include <graft/backend/generator.hpp>
#include <graft/backend/rational.hpp>
#include <graft/core/view.hpp>

#include <span>

namespace graft {
namespace cuda {

inline constexpr int make_vectors_threads = 256;

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

/// h [d] = pool(x [p, d]), by all threads of the block; share: [p] of scratch.
template <class R, class X>
__device__ void pool_rows(VectorGenerator<R> const& g, X const* x, index_t stride, index_t p, R* share, R* h) {
  using Pooling = typename VectorGenerator<R>::Pooling;
  index_t const d = g.width, first = threadIdx.x, step = blockDim.x;
  auto const at = [&](index_t t, index_t k) { return static_cast<R>(to_real(x[t * stride + k])); };
  if (g.pooling == Pooling::attention) {  // a softmax over the rows' scores
    index_t const lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    for (index_t t = warp; t < p; t += warps) {
      R score = 0;
      for (index_t k = lane; k < d; k += 32) score += at(t, k) * g.pool[k];
      score = warp_sum(score);
      if (lane == 0) share[t] = score;
    }
    __syncthreads();
    R highest = share[0], sum = 0;
    for (index_t t = 1; t < p; ++t) highest = share[t] > highest ? share[t] : highest;
    for (index_t t = 0; t < p; ++t) sum += exp_of(share[t] - highest);
    for (index_t k = first; k < d; k += step) {
      R value = 0;
      for (index_t t = 0; t < p; ++t) value += exp_of(share[t] - highest) / sum * at(t, k);
      h[k] = value;
    }
    return;
  }
  for (index_t k = first; k < d; k += step) {
    R value = at(g.pooling == Pooling::last ? p - 1 : 0, k);
    if (g.pooling == Pooling::mean) {
      for (index_t t = 1; t < p; ++t) value += at(t, k);
      value /= static_cast<R>(p);
    } else if (g.pooling == Pooling::max) {
      for (index_t t = 1; t < p; ++t) value = at(t, k) > value ? at(t, k) : value;
    }
    h[k] = value;
  }
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

template <class R, class X, class H>
__global__ void __launch_bounds__(make_vectors_threads)
    make_vectors_kernel(GeneratedPrompt<R> const* prompts, index_t layer, X const* normalized,
                        index_t normalized_stride, H const* raw, index_t raw_stride, R* shares) {
  R* const h = dynamic_shared<R>();  // [d]
  GeneratedPrompt<R> const prompt = prompts[blockIdx.x];
  GeneratedMaps<R> const request = prompt.layers[layer];
  index_t const first = threadIdx.x, step = blockDim.x;
  index_t const lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  for (index_t j = first; j < request.vectors; j += step) request.sum[j] = 0;
  for (index_t k = 0; k < request.term_count; ++k) {
    GeneratorTerm<R> const& term = request.terms[k];
    VectorGenerator<R> const& g = term.generator;
    R* const share = shares + prompt.first_row;
    __syncthreads();  // the previous term has been read
    if (g.raw)
      pool_rows(g, raw + prompt.first_row * raw_stride, raw_stride, prompt.rows, share, h);
    else
      pool_rows(g, normalized + prompt.first_row * normalized_stride, normalized_stride, prompt.rows, share, h);
    __syncthreads();
    for (index_t r = warp; r < g.rank; r += warps) {
      R z = 0;
      for (index_t i = lane; i < g.width; i += 32) z += g.down[r * g.width + i] * h[i];
      z = warp_sum(z);
      if (lane == 0) request.bottleneck[r] = generator_function(g, z);
    }
    __syncthreads();
    for (index_t j = first; j < g.vectors; j += step) {
      R value = g.start + (g.up_bias != nullptr ? g.up_bias[j] : R{0});
      for (index_t r = 0; r < g.rank; ++r) value += g.up[j * g.rank + r] * request.bottleneck[r];
      // a query behind RoPE is kept behind all others; either way no other thread touches this element
      request.sum[j < term.query && term.rotated_query ? g.vectors + j : j] += term.weight * value;
    }
  }
  __syncthreads();
  for (index_t t = 0; t < request.target_count; ++t)
    for (index_t j = first; j < request.targets[t].map.size; j += step)
      compose_generated(request.targets[t], request.sum, j);
}

}  // namespace cuda

/// Makes one layer's vectors of every listed request. prompts: in device memory; normalized [n, d]: what q_proj sees,
/// raw [n, d]: the residual stream, of the whole batch.
template <class Act, class X, class H>
void make_vectors(CudaBackend<Act>& be, index_t layer, std::span<GeneratedPrompt<float> const> prompts,
                  MatrixView<X const, DeviceSpace> normalized, MatrixView<H const, DeviceSpace> raw) noexcept {
  auto const scope = be.scope();
  auto const shares = be.arena().template vector<float>(normalized.rows);
  cuda::launch(cuda::make_vectors_kernel<float, X, H>, dim3(static_cast<unsigned>(prompts.size())),
               dim3(cuda::make_vectors_threads), static_cast<std::size_t>(normalized.cols) * sizeof(float), be.stream(),
               prompts.data(), layer, normalized.data, normalized.stride, raw.data, raw.stride, shares.data);
}

}  // namespace graft
