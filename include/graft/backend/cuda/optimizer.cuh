// SPDX-License-Identifier: Apache-2.0
// Optimisers on the device: one launch moves all ranges of a vector of parameters. Norms are sums in a fixed order.
#pragma once

#include <graft/backend/cuda/elementwise.cuh>
#include <graft/backend/optimizer.hpp>
#include <graft/core/ranges.hpp>

#include <span>

namespace graft {
namespace cuda {

inline constexpr index_t norm_chunk = 8192;

/// parts[b] = the sum of the squares of chunk b of x.
template <class T>
__global__ void __launch_bounds__(total_threads) sum_squares(VectorView<T const, DeviceSpace> x, double* parts) {
  index_t const first = index_t{blockIdx.x} * norm_chunk;
  double sum = 0;
  for (index_t k = first + threadIdx.x; k < first + norm_chunk && k < x.size; k += total_threads)
    sum += static_cast<double>(x[k]) * static_cast<double>(x[k]);
  sum = block_total(sum);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

/// One block: norm = sqrt(sum parts).
template <class Sum>
__global__ void __launch_bounds__(total_threads) root_of_sum(VectorView<Sum const, DeviceSpace> parts, Sum* norm) {
  Sum sum = 0;
  for (index_t k = threadIdx.x; k < parts.size; k += total_threads) sum += parts[k];
  sum = block_total(sum);
  if (threadIdx.x == 0) *norm = sqrt(sum);
}

struct ClipElement {
  float* x;
  double const* norm;
  double most;
  __device__ void operator()(index_t k) const { x[k] = static_cast<float>(x[k] * clip_scale(*norm, most)); }
};

/// Element k of the parameters: the last range that begins at or in front of it moves it, unless it ends before.
template <class Step>
struct StepElement {
  RangeStep<Step> const* ranges;
  index_t count;
  float const* gradient;
  float* parameters;
  OptimizerState<float, Step::states> state;

  __device__ void operator()(index_t k) const {
    auto const* const range = last_not_behind(ranges, count, k);
    if (range != nullptr && k < range->first + range->size) range->step(gradient[k], parameters[k], state, k);
  }
};

}  // namespace cuda

/// Moves the parameters of all ranges, which are ascending. All views are in device memory, as the state's vectors.
template <class Act, class Step>
void step_ranges(CudaBackend<Act>& be, std::span<RangeStep<Step> const> ranges,
                 VectorView<float const, DeviceSpace> gradient, VectorView<float, DeviceSpace> parameters,
                 OptimizerState<float, Step::states> const& state) {
  if (ranges.empty()) return;
  auto const scope = be.scope();
  auto const* const resident = upload(be, ranges);
  for_each_element(
      be, ranges.back().first + ranges.back().size,
      cuda::StepElement<Step>{resident, static_cast<index_t>(ranges.size()), gradient.data, parameters.data, state});
}

/// *norm, in device memory, becomes the L2 norm of all buffers together.
template <class Act>
void global_norm(CudaBackend<Act>& be, std::span<VectorView<float, DeviceSpace> const> buffers, double* norm) {
  auto const scope = be.scope();
  index_t count = 0;
  for (auto const& buffer : buffers) count += ceil_div(buffer.size, cuda::norm_chunk);
  auto const parts = be.arena().template vector<double>(count);
  index_t first = 0;
  for (auto const& buffer : buffers) {
    index_t const chunks = ceil_div(buffer.size, cuda::norm_chunk);
    cuda::launch(cuda::sum_squares<float>, cuda::grid_of(chunks), cuda::total_threads, 0, be.stream(),
                 VectorView<float const, DeviceSpace>(buffer), parts.data + first);
    first += chunks;
  }
  cuda::launch(cuda::root_of_sum<double>, cuda::grid_of(1), cuda::total_threads, 0, be.stream(),
               VectorView<double const, DeviceSpace>(parts), norm);
}

/// Scales the buffers so that their global norm is at most `most` (clip_scale; 0: not at all); *norm becomes what it
/// was.
template <class Act>
void clip_gradient(CudaBackend<Act>& be, std::span<VectorView<float, DeviceSpace> const> buffers, double most,
                   double* norm) {
  global_norm(be, buffers, norm);
  if (most > 0)
    for (auto const& buffer : buffers) for_each_element(be, buffer.size, cuda::ClipElement{buffer.data, norm, most});
}

}  // namespace graft
