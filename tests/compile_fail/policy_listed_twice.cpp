// SPDX-License-Identifier: Apache-2.0
// expected-error: graft: Adapters<\.\.\.> lists a policy twice
#include <graft/adapter/bank.hpp>
#include <graft/adapter/ia3.hpp>
#include <graft/adapter/road.hpp>
#include <graft/backend/cpu/cpu_backend.hpp>

#ifdef GRAFT_EXPECT_FAIL
using Policies = graft::Adapters<graft::IA3Scaling, graft::RoAdRotation, graft::IA3Scaling>;
#else
using Policies = graft::Adapters<graft::IA3Scaling, graft::RoAdRotation>;
#endif
template class graft::Bank<Policies, graft::CpuBackend<>>;
