// SPDX-License-Identifier: Apache-2.0
#include <examples/cli/cpu_owner.hpp>
#include <examples/cli/engine_of.hpp>

#include <graft/arch/architectures.hpp>

namespace graft::cli {

std::unique_ptr<Engine> make_engine(ModelFiles files, EngineOptions const& options) {
  if (options.device == Device::cuda) return make_cuda_engine(std::move(files), options);
  std::string const architecture = files.config.architecture;
  return with_architecture(architecture,
                           [&]<class Arch>() { return make_engine_of<Arch, CpuOwner>(std::move(files), options); });
}

#if !GRAFT_WITH_CUDA
std::unique_ptr<Engine> make_cuda_engine(ModelFiles, EngineOptions const&) {
  raise<ContractError>("this build of graft has no CUDA backend (cmake -D GRAFT_WITH_CUDA=ON); use --device cpu");
}
#endif

}  // namespace graft::cli
