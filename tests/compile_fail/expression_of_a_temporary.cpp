// SPDX-License-Identifier: Apache-2.0
// expected-error: graft: an expression refers to its modules; give the module a name first
#include <graft/adapter/lora.hpp>
#include <graft/arithmetic/expression.hpp>
#include <graft/backend/cpu/cpu_backend.hpp>

using Module = graft::Module<graft::LoRADelta, graft::CpuBackend<>>;
Module load();

void scale() {
#ifdef GRAFT_EXPECT_FAIL
  [[maybe_unused]] auto const half = 0.5f * load();
#else
  Module const chat = load();
  [[maybe_unused]] auto const half = 0.5f * chat;
#endif
}
