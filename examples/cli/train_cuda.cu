// SPDX-License-Identifier: Apache-2.0
// graft train on a GPU, whose trainers are compiled architecture by architecture (train_cuda_unit.cu.in).
#include <examples/cli/cuda_owner.cuh>
#include <examples/cli/train.hpp>

#include <graft/arch/architectures.hpp>

namespace graft::cli {

nlohmann::ordered_json train_on_cuda(TrainCommand const& command) {
  auto const files = open_model(command.model.model);
  return with_architecture(files.config.architecture, [&]<class Arch>() {
    if (command.model.precision == "exact") return train_of<Arch, CudaOwner<float>>(command, files);
    return train_of<Arch, CudaOwner<bf16>>(command, files);
  });
}

}  // namespace graft::cli
