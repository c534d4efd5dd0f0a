// SPDX-License-Identifier: Apache-2.0
// Core to model, which need nothing but Eigen. Module arithmetic, files, text and the training loop have headers of
// their own.
#pragma once

#include <graft/config.hpp>
#include <graft/version.hpp>

#include <graft/core/arena.hpp>
#include <graft/core/error.hpp>
#include <graft/core/executor.hpp>
#include <graft/core/format.hpp>
#include <graft/core/format_blocks.hpp>
#include <graft/core/format_quantize.hpp>
#include <graft/core/memory.hpp>
#include <graft/core/parcel.hpp>
#include <graft/core/random.hpp>
#include <graft/core/ranges.hpp>
#include <graft/core/scalar.hpp>
#include <graft/core/types.hpp>
#include <graft/core/view.hpp>

#include <graft/backend/activation.hpp>
#include <graft/backend/attention.hpp>
#include <graft/backend/backend.hpp>
#include <graft/backend/cpu/amx.hpp>
#include <graft/backend/cpu/attention.hpp>
#include <graft/backend/cpu/attention_backward.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/backend/cpu/cpu_backend.hpp>
#include <graft/backend/cpu/elementwise.hpp>
#include <graft/backend/cpu/elementwise_backward.hpp>
#include <graft/backend/cpu/fused_product.hpp>
#include <graft/backend/cpu/fused_rows.hpp>
#include <graft/backend/cpu/isa.hpp>
#include <graft/backend/cpu/kernels.hpp>
#include <graft/backend/cpu/loss.hpp>
#include <graft/backend/cpu/low_rank.hpp>
#include <graft/backend/cpu/low_rank_backward.hpp>
#include <graft/backend/cpu/maps_and_deltas.hpp>
#include <graft/backend/cpu/outer_products.hpp>
#include <graft/backend/cpu/product.hpp>
#include <graft/backend/cpu/product_transposed.hpp>
#include <graft/backend/cpu/row_map.hpp>
#include <graft/backend/cpu/row_map_backward.hpp>
#include <graft/backend/cpu/rows.hpp>
#include <graft/backend/cpu/weight_backward.hpp>
#include <graft/backend/delivery.hpp>
#include <graft/backend/dropout.hpp>
#include <graft/backend/fused_rows.hpp>
#include <graft/backend/generator.hpp>
#include <graft/backend/loss.hpp>
#include <graft/backend/low_rank.hpp>
#include <graft/backend/numbers.hpp>
#include <graft/backend/optimizer.hpp>
#include <graft/backend/rational.hpp>
#include <graft/backend/readback.hpp>
#include <graft/backend/resident_weight.hpp>
#include <graft/backend/row_map.hpp>
#include <graft/backend/sampling.hpp>
#include <graft/backend/weight.hpp>

#include <graft/adapter/adapter_set.hpp>
#include <graft/adapter/apply.hpp>
#include <graft/adapter/apply_backward.hpp>
#include <graft/adapter/backpropagation.hpp>
#include <graft/adapter/bank.hpp>
#include <graft/adapter/compose.hpp>
#include <graft/adapter/gradients.hpp>
#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/module.hpp>
#include <graft/adapter/number_storage.hpp>
#include <graft/adapter/parameter_group.hpp>
#include <graft/adapter/pedro.hpp>
#include <graft/adapter/plan.hpp>
#include <graft/adapter/policy.hpp>
#include <graft/adapter/positions.hpp>
#include <graft/adapter/published_gradients.hpp>
#include <graft/adapter/resident_maps.hpp>
#include <graft/adapter/resident_plan.hpp>
#include <graft/adapter/resident_vectors.hpp>
#include <graft/adapter/road.hpp>
#include <graft/adapter/sequence_state.hpp>
#include <graft/adapter/site.hpp>

#include <graft/layer/linear.hpp>
#include <graft/layer/rope.hpp>
#include <graft/layer/step.hpp>
#include <graft/layer/transformer_layer.hpp>

#include <graft/arch/architectures.hpp>
#include <graft/arch/bert.hpp>
#include <graft/arch/bert_ends.hpp>
#include <graft/arch/config.hpp>
#include <graft/arch/decoder_ends.hpp>
#include <graft/arch/ends.hpp>
#include <graft/arch/gpt2.hpp>
#include <graft/arch/llama.hpp>
#include <graft/arch/weights.hpp>

#include <graft/model/context.hpp>
#include <graft/model/decode_graphs.hpp>
#include <graft/model/generate.hpp>
#include <graft/model/kv_cache.hpp>
#include <graft/model/model.hpp>
#include <graft/model/sampling.hpp>
#include <graft/model/sequence.hpp>
