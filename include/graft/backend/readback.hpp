// SPDX-License-Identifier: Apache-2.0
// Numbers that a backend hands to the host later, without making it wait for what comes behind them.
#pragma once

#include <graft/core/types.hpp>

#include <vector>

namespace graft {

/// put() takes numbers as they are in the order of the backend's queue; get() waits until they are there. On the host
/// that is a copy; for CudaBackend see backend/cuda/readback.cuh.
template <class T, class B>
class Readback {
 public:
  void put(B&, T const* from, index_t count) { values_.assign(from, from + count); }
  T const* get(B&) { return values_.data(); }

 private:
  std::vector<T> values_;
};

}  // namespace graft
