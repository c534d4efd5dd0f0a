// SPDX-License-Identifier: Apache-2.0
// expected-error: graft: the third argument of TransformerLayer is not a Backend
#include <graft/adapter/lora.hpp>
#include <graft/adapter/policy.hpp>
#include <graft/arch/llama.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/layer/transformer_layer.hpp>

/// Has every operation but one.
struct Unfinished : graft::CpuBackend<> {};
void rotate(Unfinished&, auto&&...) = delete;

#ifdef GRAFT_EXPECT_FAIL
using B = Unfinished;
#else
using B = graft::CpuBackend<>;
#endif
using Layer = graft::TransformerLayer<graft::Llama, graft::Adapters<graft::LoRADelta>, B>;
static_assert(sizeof(Layer) > 0);
