// SPDX-License-Identifier: Apache-2.0
// expected-error: graft: the headers of the CUDA backend ..cuh. need nvcc
// A header of kernels in a file for the C++ compiler.
#ifdef GRAFT_EXPECT_FAIL
#include <graft/backend/cuda/cuda.cuh>
#else
#include <graft/backend/cpu/cpu_backend.hpp>
#endif
