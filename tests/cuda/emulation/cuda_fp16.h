// SPDX-License-Identifier: Apache-2.0
// CUDA's half, as far as graft uses it.
#pragma once

#include <graft/core/scalar.hpp>

struct __half : graft::f16 {
  __half() = default;
  __half(float value) : graft::f16(value) {}
  operator float() const { return static_cast<float>(static_cast<graft::f16 const&>(*this)); }
};
struct alignas(4) __half2 {
  __half x, y;
};
inline __half __float2half(float value) { return value; }
inline float __half2float(__half value) { return value; }
