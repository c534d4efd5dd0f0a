// SPDX-License-Identifier: Apache-2.0
// The CUDA backend with all its operations.
#pragma once

#include <graft/backend/cuda/runtime.cuh>

#include <graft/backend/backend.hpp>
#include <graft/backend/cuda/attention.cuh>
#include <graft/backend/cuda/attention_backward.cuh>
#include <graft/backend/cuda/elementwise.cuh>
#include <graft/backend/cuda/elementwise_backward.cuh>
#include <graft/backend/cuda/fused_product.cuh>
#include <graft/backend/cuda/fused_rows.cuh>
#include <graft/backend/cuda/generator_backward.cuh>
#include <graft/backend/cuda/loss.cuh>
#include <graft/backend/cuda/low_rank_backward.cuh>
#include <graft/backend/cuda/make_vectors.cuh>
#include <graft/backend/cuda/maps_and_deltas.cuh>
#include <graft/backend/cuda/optimizer.cuh>
#include <graft/backend/cuda/product.cuh>
#include <graft/backend/cuda/product_transposed.cuh>
#include <graft/backend/cuda/readback.cuh>
#include <graft/backend/cuda/row_map.cuh>
#include <graft/backend/cuda/rows.cuh>
#include <graft/backend/cuda/sample.cuh>
#include <graft/backend/cuda/weight_backward.cuh>

namespace graft {

static_assert(Backend<CudaBackend<float>>, "graft: CudaBackend<float> lacks an operation of Backend");
static_assert(Backend<CudaBackend<bf16>>, "graft: CudaBackend<bf16> lacks an operation of Backend");
static_assert(Backend<CudaBackend<f16>>, "graft: CudaBackend<f16> lacks an operation of Backend");
static_assert(TrainingBackend<CudaBackend<float>> && TrainingBackend<CudaBackend<bf16>> &&
                  TrainingBackend<CudaBackend<f16>>,
              "graft: CudaBackend lacks an operation of TrainingBackend");

}  // namespace graft
