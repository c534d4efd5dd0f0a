// SPDX-License-Identifier: Apache-2.0
// CUDA's bfloat16, as far as graft uses it.
#pragma once

#include <graft/core/scalar.hpp>

struct __nv_bfloat16 : graft::bf16 {
  __nv_bfloat16() = default;
  __nv_bfloat16(float value) : graft::bf16(value) {}
  operator float() const { return static_cast<float>(static_cast<graft::bf16 const&>(*this)); }
};
using nv_bfloat16 = __nv_bfloat16;
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
inline __nv_bfloat16 __float2bfloat16(float value) { return value; }
inline float __bfloat162float(__nv_bfloat16 value) { return value; }
