// SPDX-License-Identifier: Apache-2.0
// expected-error: graft: modules of different methods cannot be added; a request that lists both applies one around
#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/arithmetic/expression.hpp>
#include <graft/backend/cpu/cpu_backend.hpp>

using Backend = graft::CpuBackend<>;
#ifdef GRAFT_EXPECT_FAIL
using Other = graft::IA3Scaling;
#else
using Other = graft::LoRADelta;
#endif

void sum(graft::Module<graft::LoRADelta, Backend> const& chat, graft::Module<Other, Backend> const& style) {
  [[maybe_unused]] auto const both = chat + 0.5f * style;
}
