// SPDX-License-Identifier: Apache-2.0
// What of adapters depends on the CPU's backend but on no program's own list of adapters. It is compiled in every
// unit that uses it, or once, beside the kernels (backend/cpu/kernels.hpp): under GRAFT_EXTERN_KERNELS the names below
// are declared to be compiled elsewhere, and the unit that defines GRAFT_DEFINE_KERNELS holds them.
#pragma once

#include <graft/adapter/bank.hpp>
#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/module.hpp>
#include <graft/adapter/pedro.hpp>
#include <graft/adapter/plan.hpp>
#include <graft/adapter/road.hpp>
#include <graft/adapter/sequence_state.hpp>
#include <graft/backend/cpu/cpu.hpp>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#if defined(GRAFT_EXTERN_KERNELS)

namespace graft {

GRAFT_ONCE_WITH_KERNELS class ModuleBank<CpuBackend<>>;
GRAFT_ONCE_WITH_KERNELS void Plan<CpuBackend<>>::build(CpuBackend<>&, std::span<RequestRows<CpuBackend<>> const>,
                                                       PlanUse);
GRAFT_ONCE_WITH_KERNELS void Plan<CpuBackend<>>::build(std::span<RequestRows<CpuBackend<>> const>, PlanUse);
GRAFT_ONCE_WITH_KERNELS SequenceState<CpuBackend<>>::SequenceState(std::shared_ptr<AdapterSet<CpuBackend<>> const>,
                                                                   SiteTable const&);
GRAFT_ONCE_WITH_KERNELS void SequenceState<CpuBackend<>>::observe(CpuBackend<>&, index_t, MatrixView<float const>,
                                                                  MatrixView<float const>, VectorView<float>);

#define GRAFT_ONCE_PER_POLICY(P)                                                                           \
  GRAFT_ONCE_WITH_KERNELS Module<P, CpuBackend<>> make_module(std::string, P const&, SiteTable const&,     \
                                                              std::vector<index_t> const&, std::uint64_t); \
  GRAFT_ONCE_WITH_KERNELS std::uint64_t ModuleBank<CpuBackend<>>::publish(CpuBackend<>&, index_t,          \
                                                                          std::shared_ptr<Module<P, CpuBackend<>>>)
GRAFT_ONCE_PER_POLICY(IA3Scaling);
GRAFT_ONCE_PER_POLICY(LoRADelta);
GRAFT_ONCE_PER_POLICY(PedroGenerator);
GRAFT_ONCE_PER_POLICY(RoAdRotation);
#undef GRAFT_ONCE_PER_POLICY

}  // namespace graft

#endif
