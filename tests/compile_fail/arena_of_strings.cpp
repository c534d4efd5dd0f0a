// SPDX-License-Identifier: Apache-2.0
// expected-error: graft: an Arena holds plain data only; its elements are never destroyed
#include <graft/core/arena.hpp>

#include <string>

#ifdef GRAFT_EXPECT_FAIL
std::string* use(graft::Arena& arena) { return arena.allocate<std::string>(3); }
#else
double* use(graft::Arena& arena) { return arena.allocate<double>(3); }
#endif
