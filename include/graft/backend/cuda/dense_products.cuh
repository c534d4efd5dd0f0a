// SPDX-License-Identifier: Apache-2.0
// Products of dense matrices through cuBLASLt, its answer to every shape kept.
#pragma once

#include <graft/backend/cuda/runtime.cuh>

#include <graft/core/arena.hpp>
#include <graft/core/view.hpp>

#include <cublasLt.h>

#include <array>
#include <concepts>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

namespace graft::cuda {

inline void check(cublasStatus_t status, char const* call) {
  if (status != CUBLAS_STATUS_SUCCESS)
    raise<CudaError>(call, ": ", cublasLtGetStatusName(status), " (", cublasLtGetStatusString(status), ")");
}

template <class T>
constexpr cudaDataType data_type() {
  if constexpr (std::same_as<T, bf16>) return CUDA_R_16BF;
  if constexpr (std::same_as<T, f16>) return CUDA_R_16F;
  return CUDA_R_32F;
}

enum class Transpose : std::uint8_t { no, yes };

/// A handle of cuBLASLt with, for every shape it has met, how cuBLASLt multiplies that shape.
class DenseProducts {
 public:
  DenseProducts() {
    std::lock_guard const lock(whole_device());
    check(cublasLtCreate(&handle_), "cublasLtCreate");
  }
  ~DenseProducts() {
    plans_.clear();
    std::lock_guard const lock(whole_device());  // "will implicitly call cudaDeviceSynchronize()", says its manual
    cublasLtDestroy(handle_);
  }
  DenseProducts(DenseProducts const&) = delete;
  DenseProducts& operator=(DenseProducts const&) = delete;

  /// c = op(a) op(b) + bias, or += with `accumulate` (then without bias). Sums are in float, rounded to Out once at the
  /// end; scratch comes from the arena. a [m, k] or its transpose, b [k, n] or its transpose, bias [n] aligned to 16
  /// bytes or null, c [m, n], none empty. CudaError when cuBLASLt has no way to do it.
  template <class Act, class Out>
  void multiply(cudaStream_t stream, BasicArena<DeviceSpace>& arena, MatrixView<Act const, DeviceSpace> a,
                Transpose transpose_a, MatrixView<Act const, DeviceSpace> b, Transpose transpose_b, Out const* bias,
                MatrixView<Out, DeviceSpace> c, bool accumulate = false) {
    index_t const inner = transpose_a == Transpose::no ? a.cols : a.rows;
    Key const key{c.rows,
                  c.cols,
                  inner,
                  a.stride,
                  b.stride,
                  c.stride,
                  int{transpose_a == Transpose::yes} | int{transpose_b == Transpose::yes} << 1 |
                      int{bias != nullptr} << 2 | int{accumulate} << 3 | int{data_type<Act>()} << 4 |
                      int{data_type<Out>()} << 9,
                  alignment_of(a.data) | alignment_of(b.data) << 8 | alignment_of(c.data) << 16,
                  bias != nullptr ? alignment_of(bias, 256) : 0};
    auto found = plans_.find(key);
    if (found == plans_.end()) {
      auto plan = std::make_unique<Plan>();
      // cuBLASLt's matrices are column-major, so it computes c^T = op(b)^T op(a)^T
      plan->a = layout<Act>(b);
      plan->b = layout<Act>(a);
      plan->c = layout<Out>(c);
      cublasLtMatmulDesc_t desc = nullptr;
      check(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
      plan->desc.reset(desc);
      set(*plan, CUBLASLT_MATMUL_DESC_TRANSA, transpose_b == Transpose::yes ? CUBLAS_OP_T : CUBLAS_OP_N);
      set(*plan, CUBLASLT_MATMUL_DESC_TRANSB, transpose_a == Transpose::yes ? CUBLAS_OP_T : CUBLAS_OP_N);
      set(*plan, CUBLASLT_MATMUL_DESC_EPILOGUE, bias != nullptr ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT);
      // cuBLASLt looks at its address, for which it has no preference of its own: hence a part of the key
      if (bias != nullptr) set(*plan, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
      choose(*plan, key);
      found = plans_.emplace(key, std::move(plan)).first;
    }
    Plan const& plan = *found->second;
    if (bias != nullptr) set(plan, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    ArenaScope scope(arena);
    std::byte* const workspace = arena.allocate<std::byte>(static_cast<index_t>(plan.workspace_bytes));
    float const one = 1, keep = accumulate ? 1.f : 0.f;
    check(cublasLtMatmul(handle_, plan.desc.get(), &one, b.data, plan.a.get(), a.data, plan.b.get(), &keep, c.data,
                         plan.c.get(), c.data, plan.c.get(), &plan.algorithm,
                         plan.workspace_bytes != 0 ? workspace : nullptr, plan.workspace_bytes, stream),
          "cublasLtMatmul");
  }

  /// Shapes met so far.
  index_t shapes() const { return static_cast<index_t>(plans_.size()); }

 private:
  // m, n, k, three strides, kinds, alignments of the matrices and of the bias
  using Key = std::array<std::int64_t, 9>;

  struct DestroyDesc {
    using pointer = cublasLtMatmulDesc_t;
    void operator()(pointer p) const { cublasLtMatmulDescDestroy(p); }
  };
  struct DestroyLayout {
    using pointer = cublasLtMatrixLayout_t;
    void operator()(pointer p) const { cublasLtMatrixLayoutDestroy(p); }
  };
  struct DestroyPreference {
    using pointer = cublasLtMatmulPreference_t;
    void operator()(pointer p) const { cublasLtMatmulPreferenceDestroy(p); }
  };
  using Layout = std::unique_ptr<cublasLtMatrixLayout_t, DestroyLayout>;

  struct Plan {
    std::unique_ptr<cublasLtMatmulDesc_t, DestroyDesc> desc;
    Layout a, b, c;
    cublasLtMatmulAlgo_t algorithm;
    std::size_t workspace_bytes;
  };

  // NVIDIA's advice for Hopper; other chips' kernels ask for less, and what is not asked for is not taken
  static constexpr std::size_t most_workspace = std::size_t{32} << 20;

  // Up to `most`; of matrices no kernel asks for more than 16 bytes.
  static std::int64_t alignment_of(void const* data, std::int64_t most = 16) {
    auto const address = reinterpret_cast<std::uintptr_t>(data);
    std::int64_t alignment = most;
    while (address % static_cast<std::uintptr_t>(alignment) != 0) alignment /= 2;
    return alignment;
  }

  // A row-major matrix is its own transpose in column-major words.
  template <class T, class M>
  static Layout layout(M const& matrix) {
    cublasLtMatrixLayout_t result = nullptr;
    check(cublasLtMatrixLayoutCreate(&result, data_type<T>(), static_cast<std::uint64_t>(matrix.cols),
                                     static_cast<std::uint64_t>(matrix.rows), matrix.stride),
          "cublasLtMatrixLayoutCreate");
    return Layout(result);
  }

  template <class V>
  static void set(Plan const& plan, cublasLtMatmulDescAttributes_t attribute, V value) {
    check(cublasLtMatmulDescSetAttribute(plan.desc.get(), attribute, &value, sizeof value),
          "cublasLtMatmulDescSetAttribute");
  }

  void choose(Plan& plan, Key const& key) const {
    cublasLtMatmulPreference_t created = nullptr;
    check(cublasLtMatmulPreferenceCreate(&created), "cublasLtMatmulPreferenceCreate");
    std::unique_ptr<cublasLtMatmulPreference_t, DestroyPreference> const preference(created);
    auto const prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      check(cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof value),
            "cublasLtMatmulPreferenceSetAttribute");
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{most_workspace});
    // where the inner dimension is split, partial sums stay in float: CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, std::uint32_t{2});
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<std::uint32_t>(key[7] >> 8 & 255));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<std::uint32_t>(key[7] & 255));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<std::uint32_t>(key[7] >> 16));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<std::uint32_t>(key[7] >> 16));
    cublasLtMatmulHeuristicResult_t result{};
    int found = 0;
    cublasStatus_t const status =
        cublasLtMatmulAlgoGetHeuristic(handle_, plan.desc.get(), plan.a.get(), plan.b.get(), plan.c.get(), plan.c.get(),
                                       preference.get(), 1, &result, &found);
    if (status != CUBLAS_STATUS_SUCCESS || found == 0 || result.state != CUBLAS_STATUS_SUCCESS)
      raise<CudaError>("cublasLtMatmulAlgoGetHeuristic: ", cublasLtGetStatusName(status), " for a product of ", key[0],
                       " x ", key[2], " and ", key[2], " x ", key[1]);
    plan.algorithm = result.algo;
    plan.workspace_bytes = result.workspaceSize;
  }

  cublasLtHandle_t handle_ = nullptr;
  std::map<Key, std::unique_ptr<Plan>> plans_;
};

}  // namespace graft::cuda
