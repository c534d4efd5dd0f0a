// SPDX-License-Identifier: Apache-2.0
// Uses the CUDA backend from an installed graft: doubles a vector where there is a GPU.
#include <graft/backend/cuda/elementwise.cuh>

#include <cstdio>
#include <vector>

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("no GPU here; it compiles and links");
    return 0;
  }
  graft::CudaBackend<float> be;
  auto const scope = be.scope();
  std::vector<float> values(100, 1.5f);
  auto const y = be.arena().matrix<float>(1, 100);
  graft::copy_to_device(be, values.data(), y.data, 100);
  graft::add(be, graft::MatrixView<float const, graft::DeviceSpace>(y), y);
  graft::copy_to_host(be, static_cast<float const*>(y.data), values.data(), 100);
  return values[99] == 3.0f ? 0 : 1;
}
