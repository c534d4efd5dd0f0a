// SPDX-License-Identifier: Apache-2.0
// The emulation runs what is right and says what is wrong: each kind of mistake it is there for is made once.
#include <mma.h>
#include <graft/backend/cuda/cuda_backend.cuh>
#include <tests/catch.hpp>

#include <cmath>
#include <cstdio>
#include <ctime>
#include <set>
#include <vector>

namespace {

using graft::index_t;
using graft::cuda::launch;

template <class T>
struct Array {
  explicit Array(std::size_t count) : size(count) {
    graft::cuda::check(cudaMalloc(&data, count * sizeof(T)), "cudaMalloc");
  }
  ~Array() { cudaFree(data); }
  Array(Array const&) = delete;
  std::vector<T> host() const {
    std::vector<T> values(size);
    graft::cuda::check(cudaMemcpy(values.data(), data, size * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return values;
  }
  T* data = nullptr;
  std::size_t size;
};

void finished() { REQUIRE(emulation::finish() == ""); }

__global__ void write_indices(int* to) {
  unsigned const block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  unsigned const thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  unsigned const k = block * blockDim.x * blockDim.y * blockDim.z + thread;
  to[k] = static_cast<int>(k);
}

TEST_CASE("every thread of every block runs once and knows its place") {
  Array<int> out(3 * 2 * 2 * 4 * 5 * 2);
  launch(write_indices, dim3(3, 2, 2), dim3(4, 5, 2), 0, nullptr, out.data);
  auto const values = out.host();
  for (std::size_t k = 0; k < values.size(); ++k) REQUIRE(values[k] == static_cast<int>(k));
  launch(write_indices, dim3(0, 2, 2), dim3(4), 0, nullptr, out.data);  // nothing to do is no launch
  finished();
}

// Each thread needs what another one wrote.
__global__ void reverse(float* values, bool wait) {
  __shared__ float copy[128];
  copy[threadIdx.x] = values[threadIdx.x];
  if (wait) __syncthreads();
  values[threadIdx.x] = copy[127 - threadIdx.x];
}

TEST_CASE("a missing barrier shows") {
  std::vector<float> start(128);
  for (std::size_t k = 0; k < 128; ++k) start[k] = static_cast<float>(k);
  for (bool const wait : {true, false}) {
    std::set<std::vector<float>> results;
    for (unsigned seed = 0; seed < 8; ++seed) {
      emulation::Device::get().seed(seed);
      Array<float> values(128);
      cudaMemcpy(values.data, start.data(), 512, cudaMemcpyHostToDevice);
      for (auto& x : start) x += 1;  // what the block before left in shared memory is not the answer
      launch(reverse, 1, 128, 0, nullptr, values.data, wait);
      auto result = values.host();
      for (auto& x : result) x -= static_cast<float>(seed + (wait ? 0 : 8));
      results.insert(result);
    }
    if (wait) {
      CHECK(results.size() == 1);
      CHECK((*results.begin())[0] == 127);
    } else {
      CHECK(results.size() > 1);
    }
  }
  finished();
}

__global__ void barrier_for_some() {
  if (threadIdx.x < 31) __syncthreads();
}
__global__ void barriers_apart() {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}
__global__ void shuffle_for_some(float* out) {
  if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.f, 1);
}
__global__ void shuffle_from_outside(float* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(0xffffu, 1.f, 16);
}

template <class... P, class... A>
std::string error_of(void (*kernel)(P...), dim3 grid, dim3 block, A... arguments) {
  try {
    launch(kernel, grid, block, 0, nullptr, arguments...);
    graft::cuda::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  } catch (graft::CudaError const& error) {
    cudaGetLastError();
    return error.what();
  }
  return "";
}

TEST_CASE("a barrier or an exchange that not all reach is an error that says where") {
  using Catch::Contains;
  Array<float> out(64);
  CHECK_THAT(error_of(barrier_for_some, 1, 64), Contains("model.cpp:") && Contains("31 of 64"));
  CHECK_THAT(error_of(barriers_apart, 1, 64), Contains("two barriers"));
  CHECK_THAT(error_of(shuffle_for_some, 1, 32, out.data), Contains("not by all lanes of its mask"));
  CHECK_THAT(error_of(shuffle_from_outside, 1, 32, out.data), Contains("which is not in its mask, at model.cpp:"));
  finished();
}

__global__ void write_at(float* to, int k) { to[k] = 1; }
__global__ void write_shared(int k) { graft::cuda::dynamic_shared<float>()[k] = 1; }

TEST_CASE("what is written around an allocation is found behind the kernel") {
  using Catch::Contains;
  Array<float> small(10);
  CHECK_THAT(error_of(write_at, 1, 1, small.data, 10), Contains("behind the end of an allocation of 40 bytes"));
  CHECK_THAT(error_of(write_at, 1, 1, small.data, -1), Contains("before an allocation of 40 bytes"));
  CHECK_THAT(error_of(write_shared, 1, 1, 0), Contains("dynamic shared memory"));
  finished();
}

__global__ void write_then_read(float* to, bool writes) {
  __shared__ float shared[32];
  if (writes) shared[threadIdx.x] = 1;
  to[threadIdx.x] = shared[threadIdx.x];
}

TEST_CASE("shared variables do not always hold what the kernel before left") {
  Array<float> values(32);
  bool poisoned = false;
  for (int k = 0; k < 100 && !poisoned; ++k) {
    REQUIRE(error_of(write_then_read, 1, 32, values.data, true) == "");
    REQUIRE(values.host()[31] == 1);
    REQUIRE(error_of(write_then_read, 1, 32, values.data, false) == "");
    poisoned = std::isnan(values.host()[31]);
  }
  CHECK(poisoned);
  finished();
}

__global__ void load_four(float const* from, float* to) {
  graft::cuda::store_pack(to, graft::cuda::load_pack<4>(from));
}

TEST_CASE("vectors are loaded and stored where they are aligned") {
  using Catch::Contains;
  Array<float> values(8);
  CHECK(error_of(load_four, 1, 1, values.data, values.data + 4) == "");
  CHECK_THAT(error_of(load_four, 1, 1, values.data + 1, values.data + 4), Contains("16 bytes"));
  CHECK_THAT(error_of(load_four, 1, 1, values.data, values.data + 2), Contains("16 bytes"));
  finished();
}

struct Table {
  int size;
  float const* data;
};
__global__ void read_table(Table table, float* to) { to[0] = table.data[0]; }

#if __has_builtin(__builtin_clear_padding)
TEST_CASE("a pointer to host memory does not reach a kernel") {
  using Catch::Contains;
  Array<float> values(4);
  std::vector<float> const host(4);
  CHECK(error_of(read_table, 1, 1, Table{4, values.data}, values.data) == "");
  CHECK_THAT(error_of(read_table, 1, 1, Table{4, host.data()}, values.data), Contains("pointer to host memory"));
  finished();
}
#endif

TEST_CASE("fresh memory is not a number, copies stay inside, and nothing is lost") {
  auto const live = emulation::Memory::get().live();
  {
    Array<float> fresh(100);
    for (float const x : fresh.host()) REQUIRE(std::isnan(x));
    Array<graft::bf16> narrow(100);
    for (auto const x : narrow.host()) REQUIRE(std::isnan(static_cast<float>(x)));
    std::vector<float> host(101);
    CHECK(cudaMemcpy(fresh.data, host.data(), 404, cudaMemcpyHostToDevice) != cudaSuccess);
    CHECK(cudaMemcpy(fresh.data, host.data(), 400, cudaMemcpyDeviceToDevice) != cudaSuccess);
    cudaGetLastError();
    CHECK(emulation::Memory::get().live() == live + 2);
  }
  CHECK(emulation::Memory::get().live() == live);
  finished();
}

__global__ void reductions(float const* x, float* sums, float* highest, unsigned* votes) {
  float const value = x[blockIdx.x * blockDim.x + threadIdx.x];
  float const sum = graft::cuda::block_sum(value), high = graft::cuda::block_max(value);
  float const twice = graft::cuda::block_sum(2 * value);
  unsigned const vote = __ballot_sync(0xffffffffu, value > 0);
  unsigned const k = blockIdx.x * blockDim.x + threadIdx.x;
  sums[k] = sum + twice;
  highest[k] = high;
  votes[k] = vote;
}

TEST_CASE("sums, maxima and votes over warps and blocks") {
  for (unsigned const threads : {32u, 64u, 256u, 1024u}) {
    emulation::Device::get().seed(threads);
    unsigned const n = 3 * threads;
    std::vector<float> x(n);
    for (unsigned k = 0; k < n; ++k) x[k] = static_cast<float>(static_cast<int>(k * 37 % 101) - 50);
    Array<float> in(n), sums(n), highest(n);
    Array<unsigned> votes(n);
    cudaMemcpy(in.data, x.data(), n * sizeof(float), cudaMemcpyHostToDevice);
    launch(reductions, 3, threads, 0, nullptr, in.data, sums.data, highest.data, votes.data);
    auto const got_sums = sums.host(), got_highest = highest.host();
    auto const got_votes = votes.host();
    for (unsigned block = 0; block < 3; ++block) {
      float sum = 0, high = -1e9f;  // small integers: exact in any order
      for (unsigned t = 0; t < threads; ++t) {
        sum += 3 * x[block * threads + t];
        high = std::max(high, x[block * threads + t]);
      }
      for (unsigned t = 0; t < threads; ++t) {
        unsigned const k = block * threads + t;
        REQUIRE(got_sums[k] == sum);
        REQUIRE(got_highest[k] == high);
        REQUIRE((got_votes[k] >> (k % 32) & 1) == (x[k] > 0));
      }
    }
  }
  finished();
}

__global__ void shuffles(int* out) {
  int const lane = static_cast<int>(threadIdx.x % 32);
  out[lane] = __shfl_sync(0xffffffffu, lane, 5);
  out[32 + lane] = __shfl_up_sync(0xffffffffu, lane, 3);
  out[64 + lane] = __shfl_down_sync(0xffffffffu, lane, 3);
  out[96 + lane] = __shfl_xor_sync(0xffffffffu, lane, 6);
  out[128 + lane] = __shfl_sync(0xffffffffu, lane, 1, 8);
  out[160 + lane] = __shfl_down_sync(0xffffffffu, lane, 3, 8);
}

TEST_CASE("shuffles move as the programming guide says") {
  Array<int> out(192);
  launch(shuffles, 1, 32, 0, nullptr, out.data);
  auto const values = out.host();
  for (int lane = 0; lane < 32; ++lane) {
    auto const at = [&](int k) { return values[static_cast<std::size_t>(32 * k + lane)]; };
    REQUIRE(at(0) == 5);
    REQUIRE(at(1) == (lane < 3 ? lane : lane - 3));
    REQUIRE(at(2) == (lane + 3 > 31 ? lane : lane + 3));
    REQUIRE(at(3) == (lane ^ 6));
    REQUIRE(at(4) == lane / 8 * 8 + 1);
    REQUIRE(at(5) == (lane % 8 + 3 > 7 ? lane : lane + 3));
  }
  finished();
}

template <class T>
__global__ void tile_product(T const* a, T const* b, float* c) {
  using namespace nvcuda;
  wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major> left;
  wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::col_major> right;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
  wmma::fill_fragment(sum, 0.f);
  for (int k = 0; k < 2; ++k) {
    wmma::load_matrix_sync(left, a + 16 * k, 32);
    wmma::load_matrix_sync(right, b + 16 * k, 32);
    wmma::mma_sync(sum, left, right, sum);
  }
  for (int e = 0; e < sum.num_elements; ++e) sum.x[e] *= 2;
  wmma::store_matrix_sync(c, sum, 16, wmma::mem_row_major);
}

TEST_CASE("a warp multiplies tiles") {
  std::vector<__half> a(16 * 32), b(16 * 32);
  for (std::size_t k = 0; k < a.size(); ++k) {
    a[k] = static_cast<float>(static_cast<int>(k * 7 % 13) - 6);
    b[k] = static_cast<float>(static_cast<int>(k * 5 % 11) - 5);
  }
  Array<__half> left(a.size()), right(b.size());
  Array<float> out(256);
  cudaMemcpy(left.data, a.data(), a.size() * 2, cudaMemcpyHostToDevice);
  cudaMemcpy(right.data, b.data(), b.size() * 2, cudaMemcpyHostToDevice);
  launch(tile_product<__half>, 1, 32, 0, nullptr, left.data, right.data, out.data);
  auto const values = out.host();
  for (std::size_t r = 0; r < 16; ++r)
    for (std::size_t c = 0; c < 16; ++c) {
      float sum = 0;
      for (std::size_t k = 0; k < 32; ++k) sum += static_cast<float>(a[r * 32 + k]) * static_cast<float>(b[c * 32 + k]);
      REQUIRE(values[r * 16 + c] == 2 * sum);
    }
  finished();
}

__global__ void add_one(float* x) { x[threadIdx.x] += 1; }

TEST_CASE("work is done in a stream's order, late, and waits for events of others") {
  bool late = false;
  for (unsigned seed = 0; seed < 20; ++seed) {
    emulation::Device::get().seed(seed);
    Array<float> x(32);
    cudaStream_t one, two;
    cudaEvent_t set;
    cudaStreamCreateWithFlags(&one, cudaStreamNonBlocking);
    cudaStreamCreateWithFlags(&two, cudaStreamNonBlocking);
    cudaEventCreateWithFlags(&set, cudaEventDisableTiming);
    cudaMemsetAsync(x.data, 0, 128, one);
    for (int k = 0; k < 5; ++k) launch(add_one, 1, 32, 0, one, x.data);
    cudaEventRecord(set, one);
    late = late || cudaEventQuery(set) == cudaErrorNotReady;
    cudaStreamWaitEvent(two, set);
    launch(add_one, 1, 32, 0, two, x.data);
    std::vector<float> values(32);
    cudaMemcpyAsync(values.data(), x.data, 128, cudaMemcpyDeviceToHost, two);
    cudaStreamSynchronize(two);
    for (float const v : values) REQUIRE(v == 6);
    cudaEventDestroy(set);
    cudaStreamDestroy(one);
    cudaStreamDestroy(two);
  }
  CHECK(late);
  finished();
}

TEST_CASE("a captured graph runs again with what memory holds then") {
  Array<float> x(32);
  cudaMemset(x.data, 0, 128);
  cudaStream_t stream;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  cudaDeviceSynchronize();
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  launch(add_one, 1, 32, 0, stream, x.data);
  launch(add_one, 1, 32, 0, stream, x.data);
  cudaGraph_t graph;
  cudaStreamEndCapture(stream, &graph);
  cudaGraphExec_t executable;
  cudaGraphInstantiate(&executable, graph, 0);
  for (int k = 0; k < 3; ++k) cudaGraphLaunch(executable, stream);
  cudaStreamSynchronize(stream);
  CHECK(x.host()[7] == 6);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  finished();
}

TEST_CASE("what must not be asked for during a capture is refused, and the capture is lost") {
  Array<float> x(32);
  std::vector<float> host(32);
  void *memory = nullptr, *pinned = nullptr;
  REQUIRE(cudaHostAlloc(&pinned, 128, cudaHostAllocDefault) == cudaSuccess);
  cudaStream_t stream, blocking;
  cudaEvent_t event;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  cudaStreamCreate(&blocking);
  cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  auto const ends_with = [&](cudaStream_t on, auto const& ask) {
    REQUIRE(cudaStreamBeginCapture(on, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    launch(add_one, 1, 32, 0, on, x.data);
    ask();
    cudaGetLastError();
    cudaGraph_t graph = nullptr;
    cudaError_t const end = cudaStreamEndCapture(on, &graph);
    cudaGraphDestroy(graph);
    return end;
  };
  auto const refused = [&](auto const& ask) {
    CHECK(ends_with(stream, [&] { CHECK(ask() == cudaErrorStreamCaptureUnsupported); }) ==
          cudaErrorStreamCaptureInvalidated);
  };
  refused([&] { return cudaMalloc(&memory, 10); });
  refused([&] { return cudaFree(x.data); });
  refused([&] { return cudaHostAlloc(&memory, 10, cudaHostAllocDefault); });
  refused([&] { return cudaStreamSynchronize(stream); });
  refused([&] { return cudaEventSynchronize(event); });
  refused([&] { return cudaEventQuery(event); });
  refused([&] { return cudaMemset(x.data, 0, 128); });
  refused([&] { return cudaMemcpy(x.data, host.data(), 128, cudaMemcpyHostToDevice); });
  refused([&] { return cudaMemcpyAsync(x.data, host.data(), 128, cudaMemcpyHostToDevice, stream); });
  refused([&] { return cudaMemcpyAsync(host.data(), x.data, 128, cudaMemcpyDeviceToHost, stream); });
  auto const copies = [&] {
    CHECK(cudaMemcpyAsync(x.data, pinned, 128, cudaMemcpyHostToDevice, stream) == cudaSuccess);
  };
  CHECK(ends_with(stream, copies) == cudaSuccess);
  auto const on_default = [&] { cudaMemsetAsync(x.data, 0, 128, nullptr); };
  CHECK(ends_with(stream, on_default) == cudaSuccess);
  CHECK(ends_with(blocking, on_default) == cudaErrorStreamCaptureInvalidated);
  cudaEventDestroy(event);
  cudaStreamDestroy(blocking);
  cudaStreamDestroy(stream);
  cudaFreeHost(pinned);
  finished();
}

TEST_CASE("a product at addresses that are aligned to less than its algorithm was chosen for is refused") {
  graft::BasicArena<graft::DeviceSpace> arena;
  Array<float> x(8 * 8), y(8 * 8 + 8);
  cublasLtHandle_t handle = nullptr;
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t layout = nullptr;
  cublasLtMatmulPreference_t preference = nullptr;
  cublasLtCreate(&handle);
  cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  cublasLtMatrixLayoutCreate(&layout, CUDA_R_32F, 8, 8, 8);
  cublasLtMatmulPreferenceCreate(&preference);
  float const one = 1, zero = 0;
  auto const multiply = [&](std::uint32_t promised, float* to) {
    for (auto const name : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
      cublasLtMatmulPreferenceSetAttribute(preference, name, &promised, sizeof promised);
    cublasLtMatmulHeuristicResult_t result;
    int found = 0;
    REQUIRE(cublasLtMatmulAlgoGetHeuristic(handle, desc, layout, layout, layout, layout, preference, 1, &result,
                                           &found) == CUBLAS_STATUS_SUCCESS);
    auto const status = cublasLtMatmul(handle, desc, &one, x.data, layout, x.data, layout, &zero, to, layout, to,
                                       layout, &result.algo, nullptr, 0, nullptr);
    cudaDeviceSynchronize();
    return status;
  };
  CHECK(multiply(256, y.data) == CUBLAS_STATUS_SUCCESS);
  CHECK(multiply(4, y.data + 1) == CUBLAS_STATUS_SUCCESS);
  CHECK(multiply(16, y.data + 1) == CUBLAS_STATUS_INVALID_VALUE);
  cublasLtMatmulPreferenceDestroy(preference);
  cublasLtMatrixLayoutDestroy(layout);
  cublasLtMatmulDescDestroy(desc);
  cublasLtDestroy(handle);
  finished();
}

TEST_CASE("what a capture forks must be joined, and runs in any order that the joins allow") {
  cudaStream_t stream, side;
  cudaEvent_t fork, join;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking);
  cudaEventCreateWithFlags(&fork, cudaEventDisableTiming);
  cudaEventCreateWithFlags(&join, cudaEventDisableTiming);
  Array<float> x(32), y(32);
  std::set<float> seen;  // of y when the fork copies x, before or after the main stream adds to it
  auto const capture = [&](bool joined, cudaGraph_t& graph) {
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    launch(add_one, 1, 32, 0, stream, x.data);
    cudaEventRecord(fork, stream);
    cudaStreamWaitEvent(side, fork);
    cudaMemcpyAsync(y.data, x.data, 128, cudaMemcpyDeviceToDevice, side);
    launch(add_one, 1, 32, 0, stream, x.data);
    cudaEventRecord(join, side);
    if (joined) cudaStreamWaitEvent(stream, join);
    launch(add_one, 1, 32, 0, stream, y.data);
    return cudaStreamEndCapture(stream, &graph);
  };
  cudaGraph_t graph;
  CHECK(capture(false, graph) == cudaErrorStreamCaptureUnjoined);
  REQUIRE(capture(true, graph) == cudaSuccess);
  cudaGraphExec_t executable;
  cudaGraphInstantiate(&executable, graph, 0);
  for (unsigned seed = 0; seed < 20; ++seed) {
    emulation::Device::get().seed(seed);
    cudaMemsetAsync(x.data, 0, 128, stream);
    cudaGraphLaunch(executable, stream);
    cudaStreamSynchronize(stream);
    CHECK(x.host()[3] == 2);
    seen.insert(y.host()[3]);
  }
  CHECK(seen == std::set<float>{2, 3});
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaEventDestroy(fork);
  cudaEventDestroy(join);
  cudaStreamDestroy(side);
  cudaStreamDestroy(stream);
  finished();
}

TEST_CASE("a block of 256 threads costs microseconds") {
  Array<float> x(256 * 1000), y(256 * 1000), z(256 * 1000);
  Array<unsigned> votes(256 * 1000);
  cudaMemset(x.data, 0, 256 * 1000 * sizeof(float));
  auto const time = [](auto work) {  // of the processor: others may want it too
    std::clock_t const start = std::clock();
    work();
    cudaDeviceSynchronize();
    return static_cast<double>(std::clock() - start) * 1e6 / CLOCKS_PER_SEC / 1000;
  };
  double const plain = time([&] { launch(write_indices, 1000, 256, 0, nullptr, reinterpret_cast<int*>(y.data)); });
  double const waiting = time([&] { launch(reductions, 1000, 256, 0, nullptr, x.data, y.data, z.data, votes.data); });
  std::printf("a block of 256 threads: %.1f us without barriers, %.1f us with 36 exchanges and barriers\n", plain,
              waiting);
  CHECK(waiting < 20'000);  // milliseconds would make the tests of kernels useless; far above what a sanitizer needs
  finished();
}

}  // namespace
