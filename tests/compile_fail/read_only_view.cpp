// SPDX-License-Identifier: Apache-2.0
// expected-error: (could not convert|cannot convert|no viable conversion|no matching function|conversion from)
// A view may become read-only, but never writable again.
#include <graft/core/view.hpp>

#ifdef GRAFT_EXPECT_FAIL
graft::VectorView<float> use(graft::VectorView<float const> v) { return v; }
#else
graft::VectorView<float const> use(graft::VectorView<float> v) { return v; }
#endif
