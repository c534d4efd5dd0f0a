// SPDX-License-Identifier: Apache-2.0
// graft train on the processor.
#include <examples/cli/cpu_owner.hpp>
#include <examples/cli/train_of.hpp>

#include <graft/arch/architectures.hpp>

namespace graft::cli {
nlohmann::ordered_json train(TrainCommand const& command) {
  if (command.model.device == "cuda") return train_on_cuda(command);
  auto const files = open_model(command.model.model);
  return with_architecture(files.config.architecture,
                           [&]<class Arch>() { return train_of<Arch, CpuOwner>(command, files); });
}

#if !GRAFT_WITH_CUDA
nlohmann::ordered_json train_on_cuda(TrainCommand const&) {
  raise<ContractError>("this build of graft has no CUDA backend (cmake -D GRAFT_WITH_CUDA=ON); use --device cpu");
}
#endif

}  // namespace graft::cli
