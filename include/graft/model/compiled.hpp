// SPDX-License-Identifier: Apache-2.0
// What of models depends on the CPU's backend but on no program's own list of adapters. It is compiled in every
// unit that uses it, or once, beside the kernels (backend/cpu/kernels.hpp): under GRAFT_EXTERN_KERNELS the names below
// are declared to be compiled elsewhere, and the unit that defines GRAFT_DEFINE_KERNELS holds them.
#pragma once

#include <graft/adapter/compiled.hpp>
#include <graft/arch/bert.hpp>
#include <graft/arch/gpt2.hpp>
#include <graft/arch/llama.hpp>
#include <graft/model/context.hpp>
#include <graft/model/model.hpp>

#if defined(GRAFT_EXTERN_KERNELS)

namespace graft {

GRAFT_ONCE_WITH_KERNELS class Backbone<Bert, CpuBackend<>>;
GRAFT_ONCE_WITH_KERNELS class Backbone<Gpt2, CpuBackend<>>;
GRAFT_ONCE_WITH_KERNELS class Backbone<Llama, CpuBackend<>>;
GRAFT_ONCE_WITH_KERNELS class BackboneContext<Bert, CpuBackend<>>;
GRAFT_ONCE_WITH_KERNELS class BackboneContext<Gpt2, CpuBackend<>>;
GRAFT_ONCE_WITH_KERNELS class BackboneContext<Llama, CpuBackend<>>;

}  // namespace graft

#endif
