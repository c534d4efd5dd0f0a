// SPDX-License-Identifier: Apache-2.0
// expected-error: graft: this bank's Adapters<\.\.\.> does not list the module's policy
#include <graft/adapter/bank.hpp>
#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/module.hpp>
#include <graft/backend/cpu/cpu_backend.hpp>

using Backend = graft::CpuBackend<>;
#ifdef GRAFT_EXPECT_FAIL
using Policies = graft::Adapters<graft::LoRADelta>;
#else
using Policies = graft::Adapters<graft::IA3Scaling, graft::LoRADelta>;
#endif

void load(graft::Bank<Policies, Backend>& bank, Backend& be, graft::Module<graft::IA3Scaling, Backend> module) {
  bank.load(be, std::move(module));
}
