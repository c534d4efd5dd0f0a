// SPDX-License-Identifier: Apache-2.0
// graft inside somebody else's CUDA engine: its stream and its device buffers, bf16 rows with gaps between them, given
// as plain pointers and strides. graft applies the adapters of a mixed batch to what the engine computed.
#include <graft/adapter/apply.hpp>
#include <graft/adapter/bank.hpp>
#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/road.hpp>
#include <graft/backend/cuda/cuda.cuh>

#include <cmath>
#include <cstdio>
#include <vector>

using namespace graft;
using B = CudaBackend<bf16>;
using EngineAdapters = Adapters<IA3Scaling, RoAdRotation, LoRADelta>;

namespace {

constexpr index_t rows = 6, in = 96, out = 128, rank = 8;
constexpr index_t x_stride = 112, y_stride = 160;  // the engine pads its rows

// [engine]
/// What an engine calls behind its own y = x W^T: x, y and stream are the engine's, everything happens on its stream.
void apply_adapters(B& backend, Plan<B> const& plan, Site site, bf16 const* x, bf16* y) {
  apply_output(backend, site, plan, matrix_view<DeviceSpace>(x, rows, in, x_stride),
               matrix_view<DeviceSpace>(y, rows, out, y_stride));
}
// [/engine]

/// The engine's rows in host memory.
struct Rows {
  Rows(index_t count, index_t apart) : stride(apart), values(static_cast<std::size_t>(count * apart)) {}
  bf16& operator()(index_t n, index_t k) { return values[static_cast<std::size_t>(n * stride + k)]; }
  double at(index_t n, index_t k) const {
    return static_cast<double>(static_cast<float>(values[static_cast<std::size_t>(n * stride + k)]));
  }
  index_t stride;
  std::vector<bf16> values;
};

bf16* to_device(Rows const& host, cudaStream_t stream) {
  void* device = nullptr;
  cuda::check(cudaMalloc(&device, host.values.size() * sizeof(bf16)), "cudaMalloc");
  cuda::check(
      cudaMemcpyAsync(device, host.values.data(), host.values.size() * sizeof(bf16), cudaMemcpyHostToDevice, stream),
      "cudaMemcpyAsync");
  return static_cast<bf16*>(device);
}

}  // namespace

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("-- skipped: no CUDA device\n");
    return 0;
  }
  // The engine: a stream, x, and y = x W^T for some W; here y is just numbers.
  cudaStream_t stream;
  cuda::check(cudaStreamCreate(&stream), "cudaStreamCreate");
  Random random(7);
  Rows x(rows, x_stride), y(rows, y_stride);
  for (index_t n = 0; n < rows; ++n) {
    for (index_t k = 0; k < in; ++k) x(n, k) = bf16(static_cast<float>(random.normal()));
    for (index_t o = 0; o < out; ++o) y(n, o) = bf16(static_cast<float>(random.normal()));
  }
  bf16* const device_x = to_device(x, stream);
  bf16* const device_y = to_device(y, stream);

  // graft: the sites of the model, a backend on the engine's stream, a bank with three modules.
  SiteTable sites;
  Site const site = sites.add_linear(0, "up", "layers.0.up", in, out);
  Bank<EngineAdapters, B> bank(sites);
  B backend(stream);
  auto road = make_module<RoAdRotation, B>("road", RoAdRotation{}, bank.sites(), {site.index});
  auto ia3 = make_module<IA3Scaling, B>("ia3", IA3Scaling{}, bank.sites(), {site.index});
  auto lora = make_module<LoRADelta, B>("lora", LoRADelta{.rank = rank, .alpha = 2 * rank}, bank.sites(), {site.index});
  for (index_t k = 0; k < out / 2; ++k) road.parameters()[k] = static_cast<float>(random.normal());  // theta
  for (auto& value : ia3.parameters()) value = static_cast<float>(random.normal());
  for (auto& value : lora.parameters()) value = static_cast<float>(random.normal() / 10);
  std::vector<float> const theta(road.parameters().begin(), road.parameters().end());
  std::vector<float> const l(ia3.parameters().begin(), ia3.parameters().end());
  std::vector<float> const a(lora.parameters().begin(), lora.parameters().end());  // A [r, i], then B [o, r]
  bank.load(backend, std::move(road));
  bank.load(backend, std::move(ia3));
  bank.load(backend, std::move(lora));

  // Once per request: resolve its adapters. Once per step: say which rows belong to whom.
  SequenceState<B> rotated(bank.resolve({{"road", 1.0}}), bank.sites());
  SequenceState<B> scaled(bank.resolve({{"ia3", 1.0}}), bank.sites());
  SequenceState<B> low_rank(bank.resolve({{"lora", 1.0}}), bank.sites());
  std::vector<RequestRows<B>> const requests{{.state = &rotated, .rows = 2},
                                             {.state = nullptr, .rows = 1},
                                             {.state = &scaled, .rows = 1},
                                             {.state = &low_rank, .rows = 2}};
  Plan<B> plan;
  plan.build(backend, requests);
  apply_adapters(backend, plan, site, device_x, device_y);

  Rows result = y;
  cuda::check(cudaMemcpyAsync(result.values.data(), device_y, result.values.size() * sizeof(bf16),
                              cudaMemcpyDeviceToHost, stream),
              "cudaMemcpyAsync");
  cuda::check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");

  // By hand, in double: rows 0 and 1 are rotated in groups of 64, row 2 is untouched, row 3 is scaled, rows 4 and 5
  // have the delta, alpha / r = 2.
  auto const expected = [&](index_t n, index_t o) {
    double const base = y.at(n, o);
    if (n < 2) {
      double const t = static_cast<double>(theta[static_cast<std::size_t>(o / 64 * 32 + o % 32)]);
      return std::cos(t) * base + (o % 64 < 32 ? -1 : 1) * std::sin(t) * y.at(n, partner(o, 64));
    }
    if (n == 2) return base;
    if (n == 3) return static_cast<double>(l[static_cast<std::size_t>(o)]) * base;
    double sum = base;
    for (index_t r = 0; r < rank; ++r) {
      double t = 0;
      for (index_t k = 0; k < in; ++k) t += x.at(n, k) * static_cast<double>(a[static_cast<std::size_t>(r * in + k)]);
      sum += 2 * t * static_cast<double>(a[static_cast<std::size_t>(rank * in + o * rank + r)]);
    }
    return sum;
  };
  double worst = 0, largest = 0;
  bool untouched = true;
  for (index_t n = 0; n < rows; ++n)
    for (index_t o = 0; o < out; ++o) {
      worst = std::max(worst, std::abs(result.at(n, o) - expected(n, o)));
      largest = std::max(largest, std::abs(expected(n, o)));
      untouched = untouched && (n != 2 || result(n, o).bits == y(n, o).bits);
    }
  cudaFree(device_x), cudaFree(device_y);
  bool const good = worst / largest < 1.0 / 256 && untouched;  // bf16 keeps 8 bits of every result
  std::printf("bf16 %.1e, the row without adapters %s: %s\n", worst / largest, untouched ? "untouched" : "CHANGED",
              good ? "as computed by hand" : "WRONG");
  return good ? 0 : 1;
}
