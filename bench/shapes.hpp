// SPDX-License-Identifier: Apache-2.0
// The shapes every benchmark uses: linear layers of real models, and batch sizes.
#pragma once

#include <graft/core/types.hpp>

#include <array>

namespace bench {

struct Shape {
  char const* name;
  graft::index_t in, out;
};

inline constexpr std::array shapes{
    Shape{"SmolLM2-135M q_proj", 576, 576},     Shape{"SmolLM2-135M up_proj", 576, 1536},
    Shape{"SmolLM2-135M down_proj", 1536, 576}, Shape{"Llama-3.2-1B up_proj", 2048, 8192},
    Shape{"LLaMA-2-7B q_proj", 4096, 4096},     Shape{"LLaMA-2-7B down_proj", 11008, 4096},
};
/// A layer of a model: what its seven linear sites take and give.
struct LayerShape {
  char const* name;
  graft::index_t width, kv_width, ffn;
};
inline constexpr std::array layer_shapes{LayerShape{"SmolLM2-135M", 576, 192, 1536},
                                         LayerShape{"Llama-3.2-1B", 2048, 512, 8192},
                                         LayerShape{"LLaMA-2-7B", 4096, 4096, 11008}};
inline constexpr std::array<graft::index_t, 5> layer_batches{1, 8, 32, 64, 256};
inline constexpr std::array<graft::index_t, 4> batches{1, 8, 32, 256};
inline constexpr std::array<graft::index_t, 8> product_rows{1, 2, 4, 8, 16, 32, 64, 512};

}  // namespace bench
