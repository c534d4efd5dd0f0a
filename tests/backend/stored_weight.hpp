// SPDX-License-Identifier: Apache-2.0
// Weights in any storage format for tests.
#pragma once

#include <graft/backend/weight.hpp>
#include <graft/testing/random.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace graft_test {

/// A weight with memory of its own, quantised from normal numbers. Starts one byte off any alignment, as a tensor in a
/// mapped file may; rows are stored in random order on request.
struct StoredWeight {
  StoredWeight(graft::Format format, graft::index_t o, graft::index_t i, graft::Random& random, bool reordered = false)
      : bytes(static_cast<std::size_t>(o * graft::row_bytes(format, i) + 1)) {
    std::vector<float> row(static_cast<std::size_t>(i));
    for (graft::index_t k = 0; k < o; ++k) {
      graft::testing::fill_normal(graft::VectorView<float>{row.data(), i}, random, 0, 0.1);
      graft::encode_row(format, row.data(), i, bytes.data() + 1 + k * graft::row_bytes(format, i));
    }
    if (reordered)
      for (graft::index_t const k : graft::testing::permutation(o, random))
        order.push_back(static_cast<std::int32_t>(k));
    weight = {bytes.data() + 1, format, o, i, reordered ? order.data() : nullptr};
  }
  StoredWeight(StoredWeight const&) = delete;
  StoredWeight& operator=(StoredWeight const&) = delete;

  std::vector<std::byte> bytes;
  std::vector<std::int32_t> order;
  graft::Weight weight;
};

inline std::vector<graft::Format> weight_formats() {
  std::vector<graft::Format> formats;
  for (int k = 0; k < graft::format_count; ++k)
    if (graft::format_info(static_cast<graft::Format>(k)).weight) formats.push_back(static_cast<graft::Format>(k));
  return formats;
}

}  // namespace graft_test
