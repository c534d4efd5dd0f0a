// SPDX-License-Identifier: Apache-2.0
// expected-error: (could not convert|cannot convert|no viable conversion|no matching function)
// Memory of a GPU is not handed to a function for the CPU.
#include <graft/core/view.hpp>

float first(graft::MatrixView<float const> m) { return m(0, 0); }

#ifdef GRAFT_EXPECT_FAIL
float use(graft::MatrixView<float const, graft::DeviceSpace> m) { return first(m); }
#else
float use(graft::MatrixView<float const, graft::HostSpace> m) { return first(m); }
#endif
