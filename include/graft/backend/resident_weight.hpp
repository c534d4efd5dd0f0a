// SPDX-License-Identifier: Apache-2.0
// Weights where a backend's kernels read them.
#pragma once

#include <graft/backend/weight.hpp>
#include <graft/core/memory.hpp>
#include <graft/core/scalar.hpp>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

namespace graft {

template <Scalar T>
inline constexpr Format format_of = Format::f32;
template <>
inline constexpr Format format_of<double> = Format::f64;
template <>
inline constexpr Format format_of<bf16> = Format::bf16;
template <>
inline constexpr Format format_of<f16> = Format::f16;

/// A weight in B's memory space, and what keeps it there. On the host it is the weight itself. Elsewhere it is a copy
/// in logical row order; quantised rows keep their bytes, others become the backend's activations, because that is what
/// they are multiplied with.
template <class B>
std::pair<Weight, std::shared_ptr<void const>> resident_weight(Weight const& host) {
  using Space = typename B::Space;
  if constexpr (std::same_as<Space, HostSpace>) {
    return {host, nullptr};
  } else {
    bool const dense = format_info(host.format).block == 1;
    Weight copy = host;
    copy.format = dense ? format_of<typename B::Act> : host.format;
    copy.row_order = nullptr;
    index_t const bytes = row_bytes(copy.format, copy.cols);
    auto const memory = std::make_shared<Storage<std::byte, Space> const>(copy.rows * bytes);
    copy.data = memory->data();
    index_t const at_once = std::max<index_t>(1, (index_t{16} << 20) / std::max<index_t>(1, bytes));  // 16 MiB
    std::vector<std::byte> part(static_cast<std::size_t>(std::min(at_once, copy.rows) * bytes));
    std::vector<float> values(static_cast<std::size_t>(copy.cols));
    for (index_t first = 0; first < copy.rows; first += at_once) {
      index_t const count = std::min(at_once, copy.rows - first);
      for (index_t k = 0; k < count; ++k) {
        std::byte* const to = part.data() + k * bytes;
        if (copy.format == host.format) {
          std::copy_n(host.row_data(first + k), bytes, to);
        } else {
          host.row(first + k, values.data());
          encode_row(copy.format, values.data(), copy.cols, to);
        }
      }
      Memory<Space>::copy_from_host(memory->data() + first * bytes, part.data(),
                                    static_cast<std::size_t>(count * bytes));
    }
    return {copy, memory};
  }
}

}  // namespace graft
