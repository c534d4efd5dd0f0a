// SPDX-License-Identifier: Apache-2.0
// expected-error: graft: a type in Adapters<\.\.\.> is not a Policy
// A bank says so too, for engines that have layers of their own.
#include <graft/adapter/bank.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/backend/cpu/cpu_backend.hpp>

struct Prefix {
  int length = 8;
};

#ifdef GRAFT_EXPECT_FAIL
using Bank = graft::Bank<graft::Adapters<Prefix>, graft::CpuBackend<>>;
#else
using Bank = graft::Bank<graft::Adapters<graft::LoRADelta>, graft::CpuBackend<>>;
#endif
static_assert(sizeof(Bank) > 0);
