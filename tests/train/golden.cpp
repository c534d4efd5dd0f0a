// SPDX-License-Identifier: Apache-2.0
// Gradients of adapters on the CPU against torch's autograd.
#include <tests/catch.hpp>
#include <tests/train/golden_gradients.hpp>

#include <graft/backend/cpu/cpu.hpp>

#include <cstdio>

TEST_CASE("gradients of adapters equal torch's autograd through transformers and peft") {
  // f32 through a few layers of width 32 to 64; torch ran in double
  auto const [adapters, worst] = graft_test::check_gradients<graft::CpuBackend<>>(1e-4);
  CHECK(adapters >= 20);
  std::printf("%d adapters, worst relative L2 of a tensor's gradient %.1e\n", adapters, worst);
}
