// SPDX-License-Identifier: Apache-2.0
// Operations of the CUDA backend on a GPU, timed by its own events, next to the bandwidth of a plain copy measured in
// the same run. Weights are rotated, so that no cache holds them. Never run so far: no number of it is known.
#include <graft/backend/cuda/cuda.cuh>

#include <benchmark/benchmark.h>

#include <bench/shapes.hpp>

#include <string>

namespace {

using namespace graft;

/// Runs `work(k)` for k = 0, 1, ... and notes the device's own time.
template <class Act, class Work>
void time_on_device(benchmark::State& state, CudaBackend<Act>& be, Work work) {
  cudaEvent_t start, stop;
  cuda::check(cudaEventCreate(&start), "cudaEventCreate");
  cuda::check(cudaEventCreate(&stop), "cudaEventCreate");
  index_t k = 0;
  for (; k < 4; ++k) work(k);  // memory is taken, algorithms are chosen
  for (auto _ : state) {
    cuda::check(cudaEventRecord(start, be.stream()), "cudaEventRecord");
    work(k++);
    cuda::check(cudaEventRecord(stop, be.stream()), "cudaEventRecord");
    cuda::check(cudaEventSynchronize(stop), "cudaEventSynchronize");
    float milliseconds = 0;
    cuda::check(cudaEventElapsedTime(&milliseconds, start, stop), "cudaEventElapsedTime");
    state.SetIterationTime(static_cast<double>(milliseconds) * 1e-3);
  }
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
}

/// Memory of the device, zeros.
template <class T>
T* zeros(CudaBackend<bf16>& be, index_t n) {
  T* const data = be.arena().template allocate<T>(n);
  cuda::check(cudaMemsetAsync(data, 0, static_cast<std::size_t>(n) * sizeof(T), be.stream()), "cudaMemsetAsync");
  return data;
}

void rate(benchmark::State& state, char const* name, double per_iteration) {
  state.counters[name] = benchmark::Counter(per_iteration, benchmark::Counter::kIsIterationInvariantRate);
}

/// Bytes read and written per second by the driver's own copy.
void copy_bandwidth(benchmark::State& state) {
  CudaBackend<bf16> be;
  auto const scope = be.scope();
  index_t const bytes = index_t{1} << 30;
  auto* const from = zeros<std::byte>(be, bytes);
  auto* const to = zeros<std::byte>(be, bytes);
  time_on_device(state, be, [&](index_t) {
    cuda::check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice, be.stream()),
                "cudaMemcpyAsync");
  });
  rate(state, "bytes", 2.0 * static_cast<double>(bytes));
}

void products(benchmark::State& state, bench::Shape const& shape, Format format, index_t rows) {
  CudaBackend<bf16> be;
  auto const scope = be.scope();
  index_t const size = round_up(shape.out * row_bytes(format, shape.in), 256);
  index_t const copies = (index_t{512} << 20) / size + 1;  // more than any cache holds
  auto* const weights = zeros<std::byte>(be, copies * size);
  MatrixView<bf16, DeviceSpace> const x{zeros<bf16>(be, rows * shape.in), rows, shape.in, shape.in};
  MatrixView<bf16, DeviceSpace> const y{zeros<bf16>(be, rows * shape.out), rows, shape.out, shape.out};
  time_on_device(state, be, [&](index_t k) {
    Weight const w{weights + k % copies * size, format, shape.out, shape.in, nullptr};
    product(be, MatrixView<bf16 const, DeviceSpace>(x), w, VectorView<float const, DeviceSpace>{}, y);
  });
  rate(state, "bytes",
       static_cast<double>(shape.out * row_bytes(format, shape.in) + 2 * rows * (shape.in + shape.out)));
  rate(state, "flops", 2.0 * static_cast<double>(rows * shape.in * shape.out));
}

void norms(benchmark::State& state, index_t rows, index_t d) {
  CudaBackend<bf16> be;
  auto const scope = be.scope();
  MatrixView<bf16, DeviceSpace> const x{zeros<bf16>(be, rows * d), rows, d, d};
  MatrixView<bf16, DeviceSpace> const y{zeros<bf16>(be, rows * d), rows, d, d};
  VectorView<float const, DeviceSpace> const weight{zeros<float>(be, d), d};
  time_on_device(state, be, [&](index_t) { rms_norm(be, MatrixView<bf16 const, DeviceSpace>(x), weight, 1e-5, y); });
  rate(state, "bytes", 4.0 * static_cast<double>(rows * d));
}

void gates(benchmark::State& state, index_t rows, index_t f) {
  CudaBackend<bf16> be;
  auto const scope = be.scope();
  MatrixView<bf16, DeviceSpace> const gate{zeros<bf16>(be, rows * f), rows, f, f};
  MatrixView<bf16, DeviceSpace> const up{zeros<bf16>(be, rows * f), rows, f, f};
  time_on_device(state, be,
                 [&](index_t) { activate_gated(be, Activation::silu, gate, MatrixView<bf16 const, DeviceSpace>(up)); });
  rate(state, "bytes", 6.0 * static_cast<double>(rows * f));
}

benchmark::internal::Benchmark* on_device(benchmark::internal::Benchmark* b) {
  return b->UseManualTime()->Unit(benchmark::kMicrosecond);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  on_device(benchmark::RegisterBenchmark("copy", copy_bandwidth));
  for (auto const& shape : bench::shapes)
    for (Format const format : {Format::bf16, Format::q8_0, Format::q4_0})
      for (index_t const rows : {1, 8, 32, 256, 4096})
        on_device(benchmark::RegisterBenchmark(
            text("product/", shape.name, "/", format_info(format).name, "/rows:", rows).c_str(),
            [&shape, format, rows](benchmark::State& state) { products(state, shape, format, rows); }));
  for (index_t const rows : {1, 32, 4096}) {
    on_device(benchmark::RegisterBenchmark(text("rms_norm/4096/rows:", rows).c_str(),
                                           [rows](benchmark::State& state) { norms(state, rows, 4096); }));
    on_device(benchmark::RegisterBenchmark(text("activate_gated/11008/rows:", rows).c_str(),
                                           [rows](benchmark::State& state) { gates(state, rows, 11008); }));
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
