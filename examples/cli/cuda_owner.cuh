// SPDX-License-Identifier: Apache-2.0
// The GPU's backend as engine_of.hpp and train_of.hpp make it.
#pragma once

#include <examples/cli/engine.hpp>

#include <graft/backend/cuda/cuda.cuh>

namespace graft::cli {

template <class Act>
class CudaOwner {
 public:
  explicit CudaOwner(EngineOptions const&) {}
  CudaBackend<Act>& backend() { return backend_; }

 private:
  CudaBackend<Act> backend_;
};

}  // namespace graft::cli
