// SPDX-License-Identifier: Apache-2.0
#include <examples/cli/cuda_owner.cuh>
#include <examples/cli/engine_of.hpp>

namespace graft::cli {

std::unique_ptr<Engine> make_cuda_engine(ModelFiles files, EngineOptions const& options) {
  if (options.precision == Precision::exact) return make_engine_of<CudaOwner<float>>(std::move(files), options);
  return make_engine_of<CudaOwner<bf16>>(std::move(files), options);
}

}  // namespace graft::cli
