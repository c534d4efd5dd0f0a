// SPDX-License-Identifier: Apache-2.0
// The CPU backend: an executor to run chunks on and an arena for scratch. Its operations are in this folder.
#pragma once

#include <graft/backend/cpu/kernels.hpp>
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
  ArenaScope<HostSpace> scope() { return ArenaScope(arena_); }

  /// The instruction-set level in use: the processor's best, or what GRAFT_ISA names, unless changed here. Results are
  /// bit-equal only between backends of one level.
  Isa isa() const { return isa_; }
  void set_isa(Isa isa) {
    expects(isa <= detected_isa(), "graft: this processor has no ", isa_name(isa), "; its best is ",
            isa_name(detected_isa()));
    isa_ = isa;
    adapter_kernels_ = &cpu::adapter_kernels<Act>(isa);
    if (precision_ == Precision::native) native_ = cpu::native_kernels<Act>(isa);
  }
  cpu::AdapterKernels<Act> const& adapter_kernels() const { return *adapter_kernels_; }
  cpu::LayerKernels<Act> const& layer_kernels() const { return cpu::layer_kernels<Act>(isa_); }
  cpu::BackwardKernels<Act> const& backward_kernels() const { return cpu::backward_kernels<Act>(isa_); }

  /// How products treat activations: `exact` unless changed here.
  Precision precision() const { return precision_; }
  void set_precision(Precision precision) {
    precision_ = precision;
    native_ = cpu::native_kernels<Act>(isa_);
  }
  cpu::NativeKernels const& native_kernels() const { return native_; }

 private:
  std::unique_ptr<Executor> own_;
  Executor* executor_;
  Arena arena_;
  Isa isa_ = default_isa();
  cpu::AdapterKernels<Act> const* adapter_kernels_ = &cpu::adapter_kernels<Act>(isa_);
  Precision precision_ = Precision::exact;
  cpu::NativeKernels native_;
};

template <class T>
inline constexpr bool is_cpu_backend = false;
template <class Act>
inline constexpr bool is_cpu_backend<CpuBackend<Act>> = true;

}  // namespace graft
