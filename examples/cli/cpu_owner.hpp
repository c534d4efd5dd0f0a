// SPDX-License-Identifier: Apache-2.0
// The processor's backend as engine_of.hpp and train_of.hpp make it.
#pragma once

#include <examples/cli/engine.hpp>

#include <graft/core/executor.hpp>

namespace graft::cli {

class CpuOwner {
 public:
  explicit CpuOwner(EngineOptions const& options) : pool_(options.threads), backend_(pool_) {
    backend_.set_precision(options.precision);
  }
  CommandBackend& backend() { return backend_; }

 private:
  ThreadPool pool_;
  CommandBackend backend_;
};

}  // namespace graft::cli
