// SPDX-License-Identifier: Apache-2.0
// Operations recorded once and done many times with one call: a CUDA graph.
#pragma once

#include <graft/backend/cuda/runtime.cuh>

#include <mutex>
#include <utility>

namespace graft::cuda {

/// What was put on a stream while it was recorded. Kernels get the arguments they got then; what may differ from one
/// launch to the next, they read from device memory.
class Graph {
 public:
  Graph() = default;
  /// Records what put() puts on the stream, without doing it. put() must neither wait nor take memory. CudaError when
  /// the driver refuses.
  template <class F>
  Graph(cudaStream_t stream, F&& put) {
    std::lock_guard const lock(whole_device());
    Capture capture(stream);
    put();
    capture.end();
    check(cudaGraphInstantiate(&executable_, capture.graph, 0), "cudaGraphInstantiate");
  }
  ~Graph() {
    if (executable_ != nullptr) cudaGraphExecDestroy(executable_);
  }
  Graph(Graph&& other) noexcept : executable_(std::exchange(other.executable_, nullptr)) {}
  Graph& operator=(Graph&& other) noexcept {
    std::swap(executable_, other.executable_);
    return *this;
  }

  bool empty() const { return executable_ == nullptr; }
  void launch(cudaStream_t stream) const { check(cudaGraphLaunch(executable_, stream), "cudaGraphLaunch"); }

 private:
  // Leaves the stream as it was, also when put() raises.
  struct Capture {
    explicit Capture(cudaStream_t on) : stream(on) {
      check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    }
    ~Capture() {
      if (open) cudaStreamEndCapture(stream, &graph);
      if (graph != nullptr) cudaGraphDestroy(graph);
    }
    void end() {
      open = false;
      check(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    }
    cudaStream_t stream;
    cudaGraph_t graph = nullptr;
    bool open = true;
  };

  cudaGraphExec_t executable_ = nullptr;
};

/// A stream that runs beside another while that is recorded, from fork to join.
class Branch {
 public:
  Branch() {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    for (auto* event : {&forked_, &done_})
      check(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  }
  ~Branch() {
    for (auto const event : {forked_, done_}) cudaEventDestroy(event);
    cudaStreamDestroy(stream_);
  }
  Branch(Branch const&) = delete;
  Branch& operator=(Branch const&) = delete;

  cudaStream_t stream() const { return stream_; }
  void fork(cudaStream_t from) { order(forked_, from, stream_); }
  void join(cudaStream_t to) { order(done_, stream_, to); }

 private:
  static void order(cudaEvent_t event, cudaStream_t before, cudaStream_t after) {
    check(cudaEventRecord(event, before), "cudaEventRecord");
    check(cudaStreamWaitEvent(after, event, 0), "cudaStreamWaitEvent");
  }
  cudaStream_t stream_ = nullptr;
  cudaEvent_t forked_ = nullptr, done_ = nullptr;
};

}  // namespace graft::cuda
