// SPDX-License-Identifier: Apache-2.0
// expected-error: graft: this model's backend cannot train: it is not a TrainingBackend
#include <graft/arch/llama.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/model/model.hpp>
#include <graft/train/training_pass.hpp>

/// Computes, but does not know one way back.
struct Unfinished : graft::CpuBackend<> {};
void product_transposed(Unfinished&, auto&&...) = delete;

#ifdef GRAFT_EXPECT_FAIL
using B = Unfinished;
#else
using B = graft::CpuBackend<>;
#endif
using Pass = graft::TrainingPass<graft::Model<graft::Llama, graft::Adapters<>, B>>;
static_assert(sizeof(Pass) > 0);
