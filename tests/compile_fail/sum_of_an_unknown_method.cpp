// SPDX-License-Identifier: Apache-2.0
// expected-error: graft: no sum of this policy's modules is known; overload weighted_sum for it
#include <graft/arithmetic/materialize.hpp>
#include <graft/backend/cpu/cpu_backend.hpp>

using Backend = graft::CpuBackend<>;
#ifdef GRAFT_EXPECT_FAIL
struct Mine : graft::RoAdRotation {};
#else
using Mine = graft::RoAdRotation;
#endif

void sum(graft::Module<Mine, Backend> const& a, graft::Module<Mine, Backend> const& b, graft::SiteTable const& sites) {
  auto const made = graft::materialize(a + b, sites, "both");
}
