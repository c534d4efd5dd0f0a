// SPDX-License-Identifier: Apache-2.0
// expected-error: graft: CpuBackend's activations are float or double
#include <graft/backend/cpu/cpu_backend.hpp>
#include <graft/core/scalar.hpp>

#ifdef GRAFT_EXPECT_FAIL
using Backend = graft::CpuBackend<graft::bf16>;
#else
using Backend = graft::CpuBackend<double>;
#endif
static_assert(sizeof(Backend) > 0);
