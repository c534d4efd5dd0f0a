// SPDX-License-Identifier: Apache-2.0
// The CPU backend with all its operations.
#pragma once

#include <graft/backend/backend.hpp>
#include <graft/backend/cpu/attention.hpp>
#include <graft/backend/cpu/attention_backward.hpp>
#include <graft/backend/cpu/cpu_backend.hpp>
#include <graft/backend/cpu/elementwise.hpp>
#include <graft/backend/cpu/elementwise_backward.hpp>
#include <graft/backend/cpu/fused_product.hpp>
#include <graft/backend/cpu/fused_rows.hpp>
#include <graft/backend/cpu/loss.hpp>
#include <graft/backend/cpu/low_rank.hpp>
#include <graft/backend/cpu/low_rank_backward.hpp>
#include <graft/backend/cpu/maps_and_deltas.hpp>
#include <graft/backend/cpu/pack.hpp>
#include <graft/backend/cpu/product.hpp>
#include <graft/backend/cpu/product_transposed.hpp>
#include <graft/backend/cpu/row_map.hpp>
#include <graft/backend/cpu/row_map_backward.hpp>
#include <graft/backend/cpu/rows.hpp>
#include <graft/backend/cpu/weight_backward.hpp>

namespace graft {

static_assert(TrainingBackend<CpuBackend<float>> && TrainingBackend<CpuBackend<double>>);

}  // namespace graft
