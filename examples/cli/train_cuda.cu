// SPDX-License-Identifier: Apache-2.0
// graft train on a GPU.
#include <examples/cli/cuda_owner.cuh>
#include <examples/cli/train_of.hpp>

namespace graft::cli {

nlohmann::ordered_json train_on_cuda(TrainCommand const& command) {
  if (command.model.precision == "exact") return train_of<CudaOwner<float>>(command);
  return train_of<CudaOwner<bf16>>(command);
}

}  // namespace graft::cli
