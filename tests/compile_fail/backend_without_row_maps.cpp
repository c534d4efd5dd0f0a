// SPDX-License-Identifier: Apache-2.0
// expected-error: graft: adapters cannot be applied by this type, which is not an AdapterBackend
#include <graft/adapter/apply.hpp>
#include <graft/backend/cpu/cpu.hpp>

/// Cannot promise that a row map does not throw.
struct Unfinished : graft::CpuBackend<> {};
void apply_row_map(Unfinished&, graft::RowMapBatch<float> const&, auto) {}

#ifdef GRAFT_EXPECT_FAIL
using B = Unfinished;
#else
using B = graft::CpuBackend<>;
#endif
void call(B& be, graft::Plan<B> const& plan, graft::MatrixView<float> x) {
  graft::apply_output(be, graft::Site{}, plan, x, x);
}
