// SPDX-License-Identifier: Apache-2.0
// The CUDA backend's object: uploads in the stream's order, memory for scopes, errors as CudaError.
#include <graft/backend/cuda/cuda.cuh>
#include <graft/model/kv_cache.hpp>
#include <tests/catch.hpp>
#include <tests/cuda/device.hpp>

#include <algorithm>
#include <numeric>
#include <vector>

// A name of its own: nvcc confuses a kernel's unnamed namespace with those inside TEST_CASE.
namespace cuda_backend_test {

__global__ void add_up(std::int32_t const* values, graft::index_t count, std::int64_t* sum) {
  if (threadIdx.x != 0) return;
  std::int64_t total = 0;
  for (graft::index_t k = 0; k < count; ++k) total += values[k];
  *sum = total;
}

}  // namespace cuda_backend_test

namespace {

using namespace graft;
using cuda_backend_test::add_up;
using graft_test::DeviceArray;

TEST_CASE("what is uploaded is what the host held at that moment, however far the device is behind") {
  CudaBackend<float> be;
  DeviceArray<std::int64_t> const sums(400);
  std::vector<std::int64_t> expected;
  std::vector<std::int32_t> values;
  for (int round = 0; round < 400; ++round) {
    auto const scope = be.scope();
    // some larger than the ring's pieces are at first
    values.resize(round % 100 == 50 ? 100'000 : static_cast<std::size_t>(1 + round * 37 % 5000));
    std::iota(values.begin(), values.end(), round);
    expected.push_back(std::accumulate(values.begin(), values.end(), std::int64_t{0}));
    auto const* const device = upload(be, std::span<std::int32_t const>(values));
    cuda::launch(add_up, 1, 32, 0, be.stream(), device, static_cast<index_t>(values.size()), sums.data() + round);
    std::fill(values.begin(), values.end(), -1);  // ours again
  }
  std::vector<std::int64_t> got(400);
  copy_to_host(be, sums.data(), got.data(), 400);
  CHECK(got == expected);
  CHECK(upload(be, std::span<std::int32_t const>()) == nullptr);
  REQUIRE(graft_test::finish() == "");
}

TEST_CASE("uploads and scratch take no memory and do not wait once they are warm") {
  CudaBackend<bf16> be;
  std::vector<float> const values(5000, 1.f);
  auto const work = [&] {
    auto const scope = be.scope();
    for (int k = 0; k < 10; ++k) upload(be, std::span<float const>(values));
    be.arena().matrix<bf16>(300, 300);
  };
  for (int round = 0; round < 3; ++round) work();
  be.synchronize();
  auto const held = be.arena().capacity();
#if defined(GRAFT_CUDA_EMULATION)
  auto& device = emulation::Device::get();
  auto const allocations = emulation::Memory::get().allocations + device.pinned_allocations;
#endif
  for (int round = 0; round < 50; ++round) work();
  CHECK(be.arena().capacity() == held);
#if defined(GRAFT_CUDA_EMULATION)
  CHECK(emulation::Memory::get().allocations + device.pinned_allocations == allocations);
#endif
  REQUIRE(graft_test::finish() == "");
}

TEST_CASE("large arrays go both ways") {
  CudaBackend<float> be;
  std::vector<float> values((std::size_t{17} << 20) / 4 + 3), back(values.size());
  std::iota(values.begin(), values.end(), 0.f);
  DeviceArray<float> const device(static_cast<index_t>(values.size()));
  copy_to_device(be, values.data(), device.data(), device.size());
  copy_to_host(be, device.data(), back.data(), device.size());
  CHECK(values == back);
  REQUIRE(graft_test::finish() == "");
}

TEST_CASE("a backend works on somebody else's stream and leaves it alone") {
  cudaStream_t stream = nullptr;
  cuda::check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  std::vector<std::int32_t> const values{1, 2, 3};
  DeviceArray<std::int64_t> const sum(1);
  {
    CudaBackend<f16> be(stream);
    CHECK(be.stream() == stream);
    CHECK(be.sm_count() > 0);
    auto const scope = be.scope();
    cuda::launch(add_up, 1, 32, 0, stream, upload(be, std::span<std::int32_t const>(values)), index_t{3}, sum.data());
  }
  cuda::check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  CHECK(sum.host()[0] == 6);
  cuda::check(cudaStreamDestroy(stream), "cudaStreamDestroy");
  REQUIRE(graft_test::finish() == "");
}

TEST_CASE("a refused call is a CudaError that names it") {
  using Catch::Contains;
  CudaBackend<float> be;
  CHECK_THROWS_AS(cuda::launch(add_up, 1, 2000, 0, be.stream(), nullptr, index_t{0}, nullptr), CudaError);
  CHECK_THROWS_WITH(cuda::launch(add_up, 1, 2000, 0, be.stream(), nullptr, index_t{0}, nullptr),
                    Contains("cudaLaunchKernelEx: cudaErrorInvalid"));
  CHECK_THROWS_WITH(Memory<DeviceSpace>::allocate(std::size_t{1} << 50),
                    Contains("cudaMalloc of 1125899906842624 bytes: cudaErrorMemoryAllocation"));
  CHECK(Memory<DeviceSpace>::try_allocate(std::size_t{1} << 50) == nullptr);
  CHECK_THROWS_AS(cuda::grid_of(1, 70'000), ContractError);
  CHECK(cudaGetLastError() == cudaSuccess);  // what was told is not found again
  REQUIRE(graft_test::finish() == "");
}

TEST_CASE("a cache of keys and values that grows takes memory rarely, and little that it does not need") {
  CudaBackend<bf16> be;
  KvCache<CudaBackend<bf16>> cache(1, 24, 1);
  KvSequence sequence;
  int growths = 0;
  for (std::size_t bytes = 0; sequence.length < 400;) {
    cache.extend(be, sequence, 1);
    ++sequence.length;
    if (cache.bytes() == bytes) continue;
    ++growths;
    bytes = cache.bytes();
  }
  CHECK(growths < 30);
  KvCache<CudaBackend<bf16>> exact(1, 24, 1);
  exact.reserve(399);  // and a page of its own for a fork
  CHECK(cache.bytes() >= exact.bytes());
  CHECK(4 * cache.bytes() <= 5 * exact.bytes());
  std::vector<std::int32_t> pages = sequence.pages;
  std::sort(pages.begin(), pages.end());
  CHECK(std::unique(pages.begin(), pages.end()) == pages.end());
  CHECK(pages.size() == 400);
  REQUIRE(graft_test::finish() == "");
}

#if defined(GRAFT_CUDA_EMULATION)
TEST_CASE("a machine without a GPU is told so") {
  emulation::Device::get().properties.devices = 0;
  CHECK_THROWS_AS(CudaBackend<float>(), CudaError);
  CHECK_THROWS_WITH(CudaBackend<float>(),
                    Catch::Contains("there is no GPU to compute on: CUDA ") && Catch::Contains("cudaErrorNoDevice"));
  emulation::Device::get().properties.devices = 1;
}

TEST_CASE("a backend gives back all it took") {
  auto const live = emulation::Memory::get().live();
  auto const pinned = emulation::Device::get().pinned.size();
  {
    CudaBackend<float> be;
    auto const scope = be.scope();
    std::vector<float> const values(100, 1.f);
    upload(be, std::span<float const>(values));
    CHECK(emulation::Memory::get().live() > live);
  }
  CHECK(emulation::Memory::get().live() == live);
  CHECK(emulation::Device::get().pinned.size() == pinned);
}
#endif

}  // namespace
