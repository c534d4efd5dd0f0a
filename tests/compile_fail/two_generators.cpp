// SPDX-License-Identifier: Apache-2.0
// expected-error: graft: Adapters<\.\.\.> may list one policy that makes its maps from the prompt
#include <graft/adapter/pedro.hpp>
#include <graft/adapter/policy.hpp>
#include <graft/arch/llama.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/layer/transformer_layer.hpp>

struct SecondPedro : graft::PedroGenerator {};

#ifdef GRAFT_EXPECT_FAIL
using Policies = graft::Adapters<graft::PedroGenerator, SecondPedro>;
#else
using Policies = graft::Adapters<graft::PedroGenerator>;
#endif
template class graft::TransformerLayer<graft::Llama, Policies, graft::CpuBackend<>>;
