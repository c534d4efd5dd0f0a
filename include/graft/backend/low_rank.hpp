// SPDX-License-Identifier: Apache-2.0
// The second mechanism: a low-rank delta.
//
//     y[n] += sum_k w_k s_k (x[n] A_k^T) B_k^T        over the (module, weight) list of row n
#pragma once

#include <graft/backend/numbers.hpp>
#include <graft/core/types.hpp>

namespace graft {

/// The factors of one module at one site; rank 0 means none.
template <class R>
struct LowRankFactors {
  Numbers<R> a;             ///< A [r, i]
  Numbers<R> b_transposed;  ///< B^T [r, o], stored as A is: the update then runs along the outputs
  index_t rank = 0;         ///< r
  R scale = 0;              ///< s
};

/// One entry of a request's weighted list.
template <class R>
struct LowRankTerm {
  LowRankFactors<R> const* table = nullptr;  ///< [sites] of the module
  R weight = 0;                              ///< w
};

/// Up to `max_rows` batch rows that share their adapters and so one weighted list; the unit of parallel work.
template <class R>
struct LowRankTile {
  static constexpr index_t max_rows = 8;
  LowRankTerm<R> const* terms = nullptr;  ///< [term_count] of one bank, in an order that does not depend on the batch
  index_t term_count = 0;                 ///< 0: adapters without deltas
  std::int32_t const* rows = nullptr;     ///< [row_count] batch rows
  index_t row_count = 0;
};

/// The deltas of a batch at one site.
template <class R>
struct LowRankBatch {
  LowRankTile<R> const* tiles = nullptr;  ///< [tile_count]; each batch row with adapters is in one tile
  index_t tile_count = 0;
  index_t rows = 0;      ///< rows of the batch, adapted or not
  index_t max_rank = 0;  ///< no row's ranks sum to more at any site
  index_t site = 0;
  signed char present = -1;  ///< whether any row has a delta here; -1: not known, `any` asks the tables

  /// Where the tables are not in host memory, `present` must say so.
  bool any() const {
    if (present >= 0) return present != 0;
    for (index_t t = 0; t < tile_count; ++t)
      for (index_t k = 0; k < tiles[t].term_count; ++k)
        if (tiles[t].terms[k].table[site].rank != 0) return true;
    return false;
  }
};

}  // namespace graft
