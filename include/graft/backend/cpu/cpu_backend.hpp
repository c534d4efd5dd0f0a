// SPDX-License-Identifier: Apache-2.0
// The CPU backend: an executor to run chunks on and an arena for scratch. Its operations are in this folder.
#pragma once

#include <graft/core/arena.hpp>
#include <graft/core/executor.hpp>
#include <graft/core/scalar.hpp>
#include <graft/core/view.hpp>

#include <memory>

namespace graft {

/// Computes on the host; one object per calling thread. `Act` is the type of activations: float, or double for tests
/// and small research. Parameters and accumulators are `Real`.
template <class Act_ = float>
class CpuBackend {
  static_assert(
      std::same_as<Act_, float> || std::same_as<Act_, double>,
      "graft: CpuBackend's activations are float or double; 16-bit buffers are accepted by the host-engine calls");

 public:
  using Space = HostSpace;
  using Act = Act_;
  using Real = real_of<Act>;

  /// Runs everything on the calling thread.
  CpuBackend() : own_(std::make_unique<SerialExecutor>()), executor_(own_.get()) {}
  /// Runs the chunks of every operation on `executor`, which must outlive the backend.
  explicit CpuBackend(Executor& executor) : executor_(&executor) {}

  Executor& executor() { return *executor_; }
  Arena& arena() { return arena_; }
  /// What is taken from the arena from now on is given back when the scope ends.
  ArenaScope scope() { return ArenaScope(arena_); }

 private:
  std::unique_ptr<Executor> own_;
  Executor* executor_;
  Arena arena_;
};

template <class T>
inline constexpr bool is_cpu_backend = false;
template <class Act>
inline constexpr bool is_cpu_backend<CpuBackend<Act>> = true;

}  // namespace graft
