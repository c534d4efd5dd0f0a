// SPDX-License-Identifier: Apache-2.0
// The part of cuBLASLt that graft calls, as plain loops with its rules: column-major matrices with a leading dimension,
// each transposed or not, sums in float, a bias of the result's type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

enum cublasStatus_t {
  CUBLAS_STATUS_SUCCESS = 0,
  CUBLAS_STATUS_NOT_INITIALIZED = 1,
  CUBLAS_STATUS_ALLOC_FAILED = 3,
  CUBLAS_STATUS_INVALID_VALUE = 7,
  CUBLAS_STATUS_EXECUTION_FAILED = 13,
  CUBLAS_STATUS_NOT_SUPPORTED = 15
};
enum cublasComputeType_t { CUBLAS_COMPUTE_32F = 68, CUBLAS_COMPUTE_32F_FAST_TF32 = 77 };
enum cublasOperation_t { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1 };
enum cublasLtEpilogue_t { CUBLASLT_EPILOGUE_DEFAULT = 1, CUBLASLT_EPILOGUE_BIAS = 4 };
enum cublasLtMatmulDescAttributes_t {
  CUBLASLT_MATMUL_DESC_TRANSA = 3,
  CUBLASLT_MATMUL_DESC_TRANSB = 4,
  CUBLASLT_MATMUL_DESC_EPILOGUE = 7,
  CUBLASLT_MATMUL_DESC_BIAS_POINTER = 8,
  CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE = 26
};
enum cublasLtMatmulPreferenceAttributes_t {
  CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1,
  CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK = 3,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 6,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES = 7,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 8
};

inline char const* cublasLtGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
  }
  return "unknown";
}
inline char const* cublasLtGetStatusString(cublasStatus_t status) { return cublasLtGetStatusName(status); }

namespace emulation {

struct MatmulDesc {
  cublasOperation_t a = CUBLAS_OP_N, b = CUBLAS_OP_N;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  void const* bias = nullptr;
  int bias_type = -1;  // the result's
};
struct MatrixLayout {
  cudaDataType type;
  std::uint64_t rows, cols;
  std::int64_t ld;
};
struct Preference {
  std::uint64_t workspace = 0;
  std::uint32_t alignment[4] = {256, 256, 256, 256};  // of A, B, C and D
};
struct Lt {
  std::size_t heuristics = 0;  // asked for
};
inline Lt& lt() {
  static Lt lt;
  return lt;
}

inline std::size_t size_of(cudaDataType type) { return type == CUDA_R_32F ? 4 : type == CUDA_R_64F ? 8 : 2; }
inline float read(void const* data, cudaDataType type, std::int64_t k) {
  if (type == CUDA_R_32F) return static_cast<float const*>(data)[k];
  if (type == CUDA_R_16F) return static_cast<__half const*>(data)[k];
  return static_cast<__nv_bfloat16 const*>(data)[k];
}
inline void write(void* data, cudaDataType type, std::int64_t k, float value) {
  if (type == CUDA_R_32F)
    static_cast<float*>(data)[k] = value;
  else if (type == CUDA_R_16F)
    static_cast<__half*>(data)[k] = value;
  else
    static_cast<__nv_bfloat16*>(data)[k] = value;
}

/// The combinations of cublasLtMatmul's table that have 32-bit sums: A and B of one type, C and D of another or the
/// same.
inline bool supported(MatmulDesc const& desc, MatrixLayout const& a, MatrixLayout const& b, MatrixLayout const& c,
                      MatrixLayout const& d) {
  bool const types = a.type == b.type && c.type == d.type && (d.type == a.type || d.type == CUDA_R_32F) &&
                     (a.type == CUDA_R_32F || a.type == CUDA_R_16F || a.type == CUDA_R_16BF);
  bool const bias = desc.epilogue == CUBLASLT_EPILOGUE_DEFAULT || desc.bias_type == -1 || desc.bias_type == d.type;
  return types && bias;
}
inline bool shapes_match(MatmulDesc const& desc, MatrixLayout const& a, MatrixLayout const& b, MatrixLayout const& c,
                         MatrixLayout const& d) {
  std::uint64_t const m = desc.a == CUBLAS_OP_N ? a.rows : a.cols, k = desc.a == CUBLAS_OP_N ? a.cols : a.rows;
  std::uint64_t const n = desc.b == CUBLAS_OP_N ? b.cols : b.rows, k_b = desc.b == CUBLAS_OP_N ? b.rows : b.cols;
  bool ld = true;
  for (auto const* layout : {&a, &b, &c, &d})
    ld = ld && layout->ld >= static_cast<std::int64_t>(layout->rows) && layout->rows > 0 && layout->cols > 0;
  return ld && k == k_b && d.rows == m && d.cols == n && c.rows == m && c.cols == n;
}

/// What an address is aligned to, up to what memory of the device is; of null as much.
inline std::uint64_t alignment_of(void const* data) {
  std::uint64_t alignment = 256;
  while (reinterpret_cast<std::uintptr_t>(data) % alignment != 0) alignment /= 2;
  return alignment;
}

}  // namespace emulation

using cublasLtHandle_t = emulation::Lt*;
using cublasLtMatmulDesc_t = emulation::MatmulDesc*;
using cublasLtMatrixLayout_t = emulation::MatrixLayout*;
using cublasLtMatmulPreference_t = emulation::Preference*;
struct cublasLtMatmulAlgo_t {
  std::uint64_t data[8];
};
struct cublasLtMatmulHeuristicResult_t {
  cublasLtMatmulAlgo_t algo;
  std::size_t workspaceSize;
  cublasStatus_t state;
  float wavesCount;
  int reserved[4];
};

/// Takes memory of the device.
inline cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  if (emulation::not_in_capture() != cudaSuccess) return CUBLAS_STATUS_NOT_INITIALIZED;
  return *handle = &emulation::lt(), CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtDestroy(cublasLtHandle_t) { return CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t, cudaDataType_t scale) {
  if (scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
  return *desc = new emulation::MatmulDesc, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  delete desc;
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t name,
                                                     void const* value, std::size_t bytes) {
  auto const take = [&](auto& to) {
    if (bytes != sizeof to) return CUBLAS_STATUS_INVALID_VALUE;
    std::memcpy(&to, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
  };
  switch (name) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return take(desc->a);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return take(desc->b);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return take(desc->epilogue);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return take(desc->bias);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
      return take(desc->bias_type);
  }
  return CUBLAS_STATUS_NOT_SUPPORTED;
}
inline cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type, std::uint64_t rows,
                                                 std::uint64_t cols, std::int64_t ld) {
  return *layout = new emulation::MatrixLayout{type, rows, cols, ld}, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  return *preference = new emulation::Preference, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                           cublasLtMatmulPreferenceAttributes_t name, void const* value,
                                                           std::size_t bytes) {
  if (name == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) {
    if (bytes != sizeof preference->workspace) return CUBLAS_STATUS_INVALID_VALUE;
    std::memcpy(&preference->workspace, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
  }
  if (bytes != sizeof(std::uint32_t)) return CUBLAS_STATUS_INVALID_VALUE;
  if (name >= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES && name <= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES)
    std::memcpy(&preference->alignment[name - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                                     cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                                     cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                                     cublasLtMatmulPreference_t preference, int wanted,
                                                     cublasLtMatmulHeuristicResult_t results[], int* found) {
  *found = 0;
  ++handle->heuristics;
  if (wanted < 1 || !emulation::shapes_match(*desc, *a, *b, *c, *d)) return CUBLAS_STATUS_INVALID_VALUE;
  if (!emulation::supported(*desc, *a, *b, *c, *d)) return CUBLAS_STATUS_NOT_SUPPORTED;
  results[0] = {};
  results[0].algo.data[0] = 0x67726166;
  // what was promised to be aligned may be read as such: kept with the algorithm, asked for with every product
  for (int k = 0; k < 4; ++k) results[0].algo.data[1 + k] = preference->alignment[k];
  results[0].algo.data[5] = desc->epilogue == CUBLASLT_EPILOGUE_BIAS ? emulation::alignment_of(desc->bias) : 1;
  results[0].workspaceSize = std::min<std::uint64_t>(preference->workspace, 1024);
  return *found = 1, CUBLAS_STATUS_SUCCESS;
}

/// D = alpha op(A) op(B) + beta C (+ bias along D's rows); alpha and beta are the host's.
inline cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t desc, void const* alpha, void const* a,
                                     cublasLtMatrixLayout_t a_layout, void const* b, cublasLtMatrixLayout_t b_layout,
                                     void const* beta, void const* c, cublasLtMatrixLayout_t c_layout, void* d,
                                     cublasLtMatrixLayout_t d_layout, cublasLtMatmulAlgo_t const* algo, void* workspace,
                                     std::size_t workspace_bytes, cudaStream_t stream) {
  if (!emulation::shapes_match(*desc, *a_layout, *b_layout, *c_layout, *d_layout)) return CUBLAS_STATUS_INVALID_VALUE;
  if (!emulation::supported(*desc, *a_layout, *b_layout, *c_layout, *d_layout)) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (algo != nullptr && algo->data[0] != 0x67726166) return CUBLAS_STATUS_INVALID_VALUE;
  if (desc->epilogue == CUBLASLT_EPILOGUE_BIAS && desc->bias == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  auto const& memory = emulation::Memory::get();
  auto const inside = [&](void const* data, emulation::MatrixLayout const& l) {
    std::size_t const elements = static_cast<std::size_t>(l.ld) * (l.cols - 1) + l.rows,
                      size = emulation::size_of(l.type);
    return memory.holds(data, elements * size) && reinterpret_cast<std::uintptr_t>(data) % size == 0;
  };
  float const scale = *static_cast<float const*>(alpha), keep = *static_cast<float const*>(beta);
  std::size_t const bias_bytes = d_layout->rows * emulation::size_of(d_layout->type);
  void const* const addresses[] = {a, b, c, d, desc->epilogue == CUBLASLT_EPILOGUE_BIAS ? desc->bias : nullptr};
  for (int k = 0; algo != nullptr && k < 5; ++k)
    if (emulation::alignment_of(addresses[k]) < algo->data[1 + k]) {
      emulation::Device::get().fail("cublasLtMatmul: an address is aligned to less than the algorithm was chosen for");
      return CUBLAS_STATUS_INVALID_VALUE;
    }
  if (workspace_bytes != 0 && emulation::alignment_of(workspace) < 256) {
    emulation::Device::get().fail("cublasLtMatmul: the workspace is not aligned to 256 bytes");
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (!inside(a, *a_layout) || !inside(b, *b_layout) || !inside(d, *d_layout) || (keep != 0 && !inside(c, *c_layout)) ||
      (desc->epilogue == CUBLASLT_EPILOGUE_BIAS && !memory.holds(desc->bias, bias_bytes)) ||
      (workspace_bytes != 0 && !memory.holds(workspace, workspace_bytes)))
    return CUBLAS_STATUS_INVALID_VALUE;
  emulation::Device::get().calls.kernels += emulation::Device::get().stream(stream).capture == nullptr;
  emulation::Device::get().enqueue(stream, [desc = *desc, scale, keep, a, b, c, d, la = *a_layout, lb = *b_layout,
                                            lc = *c_layout, ld = *d_layout, workspace, workspace_bytes] {
    auto const m = static_cast<std::int64_t>(ld.rows), n = static_cast<std::int64_t>(ld.cols);
    auto const inner = static_cast<std::int64_t>(desc.a == CUBLAS_OP_N ? la.cols : la.rows);
    std::vector<float> left(static_cast<std::size_t>(m * inner));  // op(A) by rows
    for (std::int64_t r = 0; r < m; ++r)
      for (std::int64_t k = 0; k < inner; ++k)
        left[static_cast<std::size_t>(r * inner + k)] =
            emulation::read(a, la.type, desc.a == CUBLAS_OP_N ? k * la.ld + r : r * la.ld + k);
    std::vector<float> right(static_cast<std::size_t>(inner));
    for (std::int64_t col = 0; col < n; ++col) {
      for (std::int64_t k = 0; k < inner; ++k)
        right[static_cast<std::size_t>(k)] =
            emulation::read(b, lb.type, desc.b == CUBLAS_OP_N ? col * lb.ld + k : k * lb.ld + col);
      for (std::int64_t r = 0; r < m; ++r) {
        float partial[8] = {};  // as kernels do, not one long chain
        float const* const row = left.data() + r * inner;
        for (std::int64_t k = 0; k < inner; ++k) partial[k % 8] += row[k] * right[static_cast<std::size_t>(k)];
        float sum = 0;
        for (float const p : partial) sum += p;
        sum *= scale;
        if (keep != 0) sum += keep * emulation::read(c, lc.type, col * lc.ld + r);
        if (desc.epilogue == CUBLASLT_EPILOGUE_BIAS) sum += emulation::read(desc.bias, ld.type, r);
        emulation::write(d, ld.type, col * ld.ld + r, sum);
      }
    }
    if (workspace_bytes != 0) std::memset(workspace, emulation::poison_byte, workspace_bytes);
    return std::string();
  });
  return CUBLAS_STATUS_SUCCESS;
}
