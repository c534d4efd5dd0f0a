// SPDX-License-Identifier: Apache-2.0
// graft train on the processor.
#include <examples/cli/train_of.hpp>

#include <graft/core/executor.hpp>

namespace graft::cli {
namespace train_run_parts {

class Processor {
 public:
  explicit Processor(EngineOptions const& options) : pool_(options.threads), backend_(pool_) {}
  CommandBackend& backend() { return backend_; }

 private:
  ThreadPool pool_;
  CommandBackend backend_;
};

}  // namespace train_run_parts

nlohmann::ordered_json train(TrainCommand const& command) {
  return command.model.device == "cuda" ? train_on_cuda(command) : train_of<train_run_parts::Processor>(command);
}

#if !GRAFT_WITH_CUDA
nlohmann::ordered_json train_on_cuda(TrainCommand const&) {
  raise<ContractError>("this build of graft has no CUDA backend (cmake -D GRAFT_WITH_CUDA=ON); use --device cpu");
}
#endif

}  // namespace graft::cli
