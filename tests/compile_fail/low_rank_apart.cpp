// SPDX-License-Identifier: Apache-2.0
// expected-error: graft: low-rank policies must stand next to each other in Adapters<\.\.\.>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/policy.hpp>
#include <graft/adapter/road.hpp>
#include <graft/arch/llama.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/layer/transformer_layer.hpp>

struct SecondLoRA : graft::LoRADelta {};

#ifdef GRAFT_EXPECT_FAIL
using Policies = graft::Adapters<graft::LoRADelta, graft::RoAdRotation, SecondLoRA>;
#else
using Policies = graft::Adapters<graft::RoAdRotation, graft::LoRADelta, SecondLoRA>;
#endif
template class graft::TransformerLayer<graft::Llama, Policies, graft::CpuBackend<>>;
