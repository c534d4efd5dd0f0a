// SPDX-License-Identifier: Apache-2.0
// From logits to tokens on the device. Nothing is sorted: filters and the draw ask for the place, in the order of the
// candidates, at which a count or a sum of shares reaches a number, and a descent over the bits of the sort key finds
// it.
#pragma once

#include <graft/backend/cuda/columns.cuh>
#include <graft/backend/cuda/cuda_backend.cuh>
#include <graft/backend/sampling.hpp>

namespace graft {
namespace cuda {

inline constexpr int sample_threads = 512, sample_warps = sample_threads / 32;
inline constexpr int key_digit = 4, key_buckets = 1 << key_digit;  ///< bits per step of the descent

/// Sorts as (logit, then the lower token): unsigned numbers in the order of likelihood. NaN is behind all others.
struct SampleKeys {
  int token_bits;    ///< of the lower part
  unsigned highest;  ///< V - 1

  __device__ std::uint64_t of(float logit, index_t token) const {
    auto const bits = __float_as_uint(logit + 0.f);  // -0 equals 0
    unsigned const ordered = logit != logit ? 0 : bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
    return static_cast<std::uint64_t>(ordered) << token_bits | (highest - static_cast<unsigned>(token));
  }
  __device__ std::int32_t token(std::uint64_t key) const {
    return static_cast<std::int32_t>(highest - static_cast<unsigned>(key & ((std::uint64_t{1} << token_bits) - 1)));
  }
  __device__ int bits() const { return 32 + token_bits; }
};

/// Sums over the block; every thread gets them. Of integers, so that no order matters.
template <class T, int Count>
__device__ void block_sums(T (&sum)[Count]) {
  __shared__ T of_warp[sample_warps][Count], total[Count];
  int const thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int k = 0; k < Count; ++k) {
    for (int distance = 16; distance > 0; distance /= 2) sum[k] += __shfl_xor_sync(0xffffffffu, sum[k], distance);
    if (thread % 32 == 0) of_warp[thread / 32][k] = sum[k];
  }
  __syncthreads();
  if (thread < Count) {
    T all = 0;
    for (int w = 0; w < sample_warps; ++w) all += of_warp[w][thread];
    total[thread] = all;
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < Count; ++k) sum[k] = total[k];
  __syncthreads();
}

/// The greatest key of the block; every thread gets it.
__device__ inline std::uint64_t block_highest(std::uint64_t key) {
  __shared__ unsigned long long of_warp[sample_warps];
  unsigned long long best = key;
  for (int distance = 16; distance > 0; distance /= 2) {
    auto const other = __shfl_xor_sync(0xffffffffu, best, distance);
    best = other > best ? other : best;
  }
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = best;
  __syncthreads();
  for (auto const other : of_warp) best = other > best ? other : best;
  __syncthreads();
  return best;
}

/// The first candidate, from the most likely on, with which the sum of `amount` is at least `target`; the last one
/// where none is. amount(token, key) is negative for those that are no candidates.
template <class Amount>
__device__ std::uint64_t descend(SampleKeys const& keys, float const* logits, index_t count, long long target,
                                 Amount const& amount) {
  std::uint64_t prefix = 0;
  long long before = 0;  // the sum of all above the prefix's range
  for (int shift = (keys.bits() + key_digit - 1) / key_digit * key_digit - key_digit; shift >= 0; shift -= key_digit) {
    long long sum[key_buckets] = {};
    int candidates[key_buckets] = {};
    for (index_t k = threadIdx.x; k < count; k += sample_threads) {
      std::uint64_t const key = keys.of(logits[k], k);
      if (key >> (shift + key_digit) != prefix) continue;
      long long const a = amount(k, key);
      if (a < 0) continue;
      int const digit = static_cast<int>(key >> shift) & (key_buckets - 1);
#pragma unroll
      for (int b = 0; b < key_buckets; ++b) {  // constant indices keep the sums in registers
        sum[b] += b == digit ? a : 0;
        candidates[b] += b == digit ? 1 : 0;
      }
    }
    block_sums(sum), block_sums(candidates);
    int chosen = 0, left = 0;
    bool found = false;
    long long passed = 0, passed_before_chosen = 0;
#pragma unroll
    for (int b = key_buckets - 1; b >= 0; --b) {
      if (candidates[b] == 0 || found) continue;
      chosen = b, left = candidates[b], passed_before_chosen = passed;
      passed += sum[b];
      found = before + passed >= target;
    }
    before += passed_before_chosen;
    prefix = prefix << key_digit | static_cast<unsigned>(chosen);
    if (left != 1 || shift == 0) continue;
    std::uint64_t only = 0;  // whose other digits need no descent
    for (index_t k = threadIdx.x; k < count; k += sample_threads) {
      std::uint64_t const key = keys.of(logits[k], k);
      if (key >> shift == prefix && amount(k, key) >= 0) only = key;
    }
    return block_highest(only);
  }
  return prefix;
}

/// One row per block. scratch [n, V]: penalised logits; shares [n, V]: likelihoods over that of the best token, as
/// multiples of 2^(b - 62) for V <= 2^b, so that all of them sum to less than 2^63. Rounding moves a sum by at most
/// 2^(2b - 63): one part in 2^29 for V = 128 Ki, where shares in float would be off by one in 2^24 each. Double is left
/// for what happens once per token, because many GPUs have a 64th of float's rate in it.
template <class T>
__global__ void __launch_bounds__(sample_threads)
    sample_rows(MatrixView<T const, DeviceSpace> logits, SamplingRow* rows, MatrixView<float, DeviceSpace> scratch,
                MatrixView<long long, DeviceSpace> shares, std::int32_t* tokens) {
  index_t const n = blockIdx.x, count = logits.cols;
  SamplingRow const options = rows[n];
  T const* const from = logits.row(n);
  float* const values = scratch.row(n);
  int token_bits = 0;
  while ((count - 1) >> token_bits != 0) ++token_bits;
  SampleKeys const keys{token_bits, static_cast<unsigned>(count - 1)};
  for (index_t k = threadIdx.x; k < count; k += sample_threads) values[k] = to_real(from[k]);
  __syncthreads();
  if (options.repeat_penalty != 1) {
    auto const penalty = static_cast<float>(options.repeat_penalty);
    for (index_t k = threadIdx.x; k < options.seen_count; k += sample_threads) {
      std::int32_t const token = options.seen[k];
      if (token < 0 || token >= count) continue;
      float const value = to_real(from[token]);  // as it was, so that a token seen twice is penalised once
      values[token] = value > 0 ? value / penalty : value * penalty;
    }
    __syncthreads();
  }
  std::uint64_t best = 0;
  for (index_t k = threadIdx.x; k < count; k += sample_threads) {
    auto const key = keys.of(values[k], k);
    best = key > best ? key : best;
  }
  best = block_highest(best);
  if (options.temperature == 0) {
    if (threadIdx.x == 0) tokens[n] = keys.token(best);
    return;
  }

  auto const scale = static_cast<double>(1LL << (62 - token_bits));
  long long* const share = shares.row(n);
  double const highest = values[keys.token(best)] / options.temperature;
  for (index_t k = threadIdx.x; k < count; k += sample_threads)
    share[k] = llrint(scale * exp(values[k] / options.temperature - highest));
  // every thread reads the shares it wrote
  auto const sum_of = [&](auto const& amount) {
    long long sum[1] = {};
    for (index_t k = threadIdx.x; k < count; k += sample_threads)
      if (long long const a = amount(k, keys.of(values[k], k)); a > 0) sum[0] += a;
    block_sums(sum);
    return sum[0];
  };
  std::uint64_t last = 0;  // candidates have at least this key
  if (options.top_k > 0 && options.top_k < count)
    last = descend(keys, values, count, options.top_k, [](index_t, std::uint64_t) { return 1LL; });
  if (options.top_p < 1) {
    auto const likely = [&](index_t k, std::uint64_t key) { return key >= last ? share[k] : -1LL; };
    auto const wanted = options.top_p * static_cast<double>(sum_of(likely));
    last = descend(keys, values, count, static_cast<long long>(ceil(wanted)), likely);
  }
  auto const least = llrint(scale * options.min_p);
  auto const kept = [&](index_t k, std::uint64_t key) { return key >= last && share[k] >= least ? share[k] : -1LL; };
  long long const sum = sum_of(kept);
  Random random = options.random;
  auto const point = static_cast<long long>(random.uniform() * static_cast<double>(sum));  // the first one behind it
  auto const drawn = descend(keys, values, count, point < sum ? point + 1 : sum, kept);
  if (threadIdx.x == 0) {
    tokens[n] = keys.token(drawn);
    rows[n].random = random;
  }
}

}  // namespace cuda

/// tokens[n] = a token for row n of the logits [n, V], f32, bf16 or f16. rows [n] and tokens [n] lie in device memory;
/// the rows' random streams move on. The filters, ties (the lower token first) and draws are those of Sampler
/// (model/sampling.hpp); shares are summed as integers here, as doubles there.
template <class Act, class T>
void sample(CudaBackend<Act>& be, MatrixView<T const, DeviceSpace> logits, SamplingRow* rows, std::int32_t* tokens) {
  auto const scope = be.scope();
  auto const scratch = be.arena().template matrix<float>(logits.rows, logits.cols);
  auto const shares = be.arena().template matrix<long long>(logits.rows, logits.cols);
  cuda::launch(cuda::sample_rows<T>, cuda::grid_of(logits.rows), cuda::sample_threads, 0, be.stream(), logits, rows,
               scratch, shares, tokens);
}

}  // namespace graft
