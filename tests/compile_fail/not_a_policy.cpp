// SPDX-License-Identifier: Apache-2.0
// expected-error: graft: a type in Adapters<\.\.\.> is not a Policy
#include <graft/adapter/lora.hpp>
#include <graft/adapter/policy.hpp>
#include <graft/arch/llama.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/layer/transformer_layer.hpp>

struct Prefix {
  int length = 8;
};

#ifdef GRAFT_EXPECT_FAIL
using Policies = graft::Adapters<graft::LoRADelta, Prefix>;
#else
using Policies = graft::Adapters<graft::LoRADelta>;
#endif
template class graft::TransformerLayer<graft::Llama, Policies, graft::CpuBackend<>>;
