// SPDX-License-Identifier: Apache-2.0
// The engines on a GPU, which are compiled one by one (engine_cuda_unit.cu.in).
#include <examples/cli/cuda_owner.cuh>

#include <graft/arch/architectures.hpp>

namespace graft::cli {

std::unique_ptr<Engine> make_cuda_engine(ModelFiles files, EngineOptions const& options) {
  std::string const architecture = files.config.architecture;
  return with_architecture(architecture, [&]<class Arch>() {
    if (options.precision == Precision::exact) return make_engine_of<Arch, CudaOwner<float>>(std::move(files), options);
    return make_engine_of<Arch, CudaOwner<bf16>>(std::move(files), options);
  });
}

}  // namespace graft::cli
