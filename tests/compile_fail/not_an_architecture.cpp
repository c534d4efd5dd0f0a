// SPDX-License-Identifier: Apache-2.0
// expected-error: graft: the first argument of TransformerLayer is not an Architecture
#include <graft/adapter/lora.hpp>
#include <graft/adapter/policy.hpp>
#include <graft/arch/llama.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/layer/transformer_layer.hpp>

/// Has blocks but does not say in which order their pieces run.
struct Unfinished {
  template <class B>
  using Block = graft::Llama::Block<B>;
};

#ifdef GRAFT_EXPECT_FAIL
using Arch = Unfinished;
#else
using Arch = graft::Llama;
#endif
using Layer = graft::TransformerLayer<Arch, graft::Adapters<graft::LoRADelta>, graft::CpuBackend<>>;
static_assert(sizeof(Layer) > 0);
