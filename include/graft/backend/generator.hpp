// SPDX-License-Identifier: Apache-2.0
// Row maps that are made from a prompt, as kernels see them: a small network per module and layer turns the prompt's
// rows into a diagonal, which is composed with the request's other maps. A backend whose memory the host cannot read
// offers `make_vectors`, and `generator_backward` for training; on the host policies make their vectors themselves.
#pragma once

#include <graft/backend/row_map.hpp>
#include <graft/core/types.hpp>

#include <cstdint>

namespace graft {

/// vectors = start + W_up f(W_down pool(x)) (+ b), x the prompt's rows [p, d].
template <class R>
struct VectorGenerator {
  enum class Pooling : std::uint8_t { last, mean, max, attention };
  enum class Function : std::uint8_t { rational_a, rational_b, gelu, silu, relu };
  R const* down = nullptr;         ///< W_down [r, d]
  R const* up = nullptr;           ///< W_up [vectors, r]
  R const* up_bias = nullptr;      ///< b [vectors] or null
  R const* numerator = nullptr;    ///< [numerator_degree + 1], of a rational
  R const* denominator = nullptr;  ///< [denominator_degree]
  R const* pool = nullptr;         ///< [d], of attention pooling: scores are x . pool
  index_t rank = 0, width = 0, vectors = 0;
  index_t numerator_degree = 0, denominator_degree = 0;
  Pooling pooling = Pooling::last;
  Function function = Function::gelu;
  bool raw = false;  ///< x is the residual stream, not what q_proj sees
  R start = 0;
};

/// Gradients of a generator's tensors, added to; null where it has none.
template <class R>
struct GeneratorGradient {
  R *down = nullptr, *up = nullptr, *up_bias = nullptr, *numerator = nullptr, *denominator = nullptr, *pool = nullptr;
};

/// One generator of a request; what it makes is added to the request's sum with a weight.
template <class R>
struct GeneratorTerm {
  VectorGenerator<R> generator;
  R weight = 0;
  index_t query = 0;           ///< the first `query` vectors
  bool rotated_query = false;  ///< go behind all others
};

/// Where a part of the sum acts: map = after . (1 + diagonal) . before.
template <class R>
struct GeneratedTarget {
  struct Part {
    index_t offset = 0, size = 0;  ///< of the site's outputs
    index_t from = 0;              ///< in the sum
  };
  RowMapRow<R const> before, after;
  RowMapRow<R> map;       ///< written
  R* diagonal = nullptr;  ///< written too, for training, where map.c1 is not the same
  Part parts[3] = {};
  index_t part_count = 0;
};

/// What one request makes at one layer.
template <class R>
struct GeneratedMaps {
  GeneratorTerm<R> const* terms = nullptr;
  index_t term_count = 0;
  GeneratedTarget<R> const* targets = nullptr;
  index_t target_count = 0;
  R* sum = nullptr;         ///< [vectors] of scratch
  R* bottleneck = nullptr;  ///< [r] of scratch, for one term after the other
  R* pooled = nullptr;      ///< [term_count, d] of scratch
  index_t vectors = 0;
};

/// The prompt of one request in a batch.
template <class R>
struct GeneratedPrompt {
  GeneratedMaps<R> const* layers = nullptr;  ///< [layers]
  index_t first_row = 0, rows = 0;
};

/// Those of a batch, in a backend's memory.
template <class R>
struct GeneratedPrompts {
  GeneratedPrompt<R> const* data = nullptr;
  index_t size = 0;
  index_t scored_terms = 0;  ///< the most terms of a request one of which pools by attention; 0: none does
  bool empty() const { return size == 0; }
};

}  // namespace graft
