// SPDX-License-Identifier: Apache-2.0
// Which elements dropout hits, shared by all backends: a hash of (row's key, site, column), so that a mask depends
// neither on the batch nor on who computes it, and the way back makes it again.
#pragma once

#include <graft/core/random.hpp>
#include <graft/core/types.hpp>

#include <cstdint>

namespace graft {

/// The hash of a row at a site, and whether `rate` of its columns, this one among them, are dropped.
GRAFT_HOST_DEVICE constexpr std::uint64_t dropout_row(std::uint64_t key, index_t site) {
  return split_mix(key + static_cast<std::uint64_t>(site));
}
GRAFT_HOST_DEVICE constexpr bool drops(std::uint64_t row, index_t column, double rate) {
  return unit_interval(split_mix(row + static_cast<std::uint64_t>(column))) < rate;
}

}  // namespace graft
