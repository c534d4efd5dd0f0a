// SPDX-License-Identifier: Apache-2.0
// Weights where a backend's kernels read them.
#pragma once

#include <graft/backend/weight.hpp>
#include <graft/core/memory.hpp>
#include <graft/core/scalar.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
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

namespace detail {

/// How a weight is stored outside the host: in logical row order; quantised rows keep their bytes, others become the
/// backend's activations, because that is what they are multiplied with.
template <class B>
Weight stored_as(Weight weight) {
  if (format_info(weight.format).block == 1) weight.format = format_of<typename B::Act>;
  weight.row_order = nullptr;
  weight.packed = {};
  return weight;
}

/// Fills memory of B's space with `host` as it is stored there.
template <class B>
Weight copy_weight(Weight const& host, std::byte* memory) {
  Weight copy = stored_as<B>(host);
  index_t const bytes = row_bytes(copy.format, copy.cols);
  copy.data = memory;
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
    Memory<typename B::Space>::copy_from_host(memory + first * bytes, part.data(),
                                              static_cast<std::size_t>(count * bytes));
  }
  return copy;
}

}  // namespace detail

/// Weights in B's memory space, and what keeps them there. On the host they are the weights themselves. Elsewhere they
/// are copies in one piece of memory, each aligned, and so one behind the other where the sizes allow it.
template <class B, std::size_t N>
std::pair<std::array<Weight, N>, std::shared_ptr<void const>> resident_weights(std::array<Weight, N> weights) {
  using Space = typename B::Space;
  if constexpr (std::same_as<Space, HostSpace>) {
    return {weights, nullptr};
  } else {
    auto const room = [](Weight const& weight) {
      return round_up(detail::stored_as<B>(weight).bytes(), static_cast<index_t>(Memory<Space>::alignment));
    };
    index_t bytes = 0;
    for (auto const& weight : weights) bytes += room(weight);
    auto const memory = std::make_shared<Storage<std::byte, Space> const>(bytes);
    std::byte* to = memory->data();
    for (auto& weight : weights) {
      auto const host = weight;
      weight = detail::copy_weight<B>(host, to);
      to += room(host);
    }
    return {weights, memory};
  }
}

/// One of them.
template <class B>
std::pair<Weight, std::shared_ptr<void const>> resident_weight(Weight const& weight) {
  auto [weights, keep] = resident_weights<B>(std::array{weight});
  return {weights[0], std::move(keep)};
}

}  // namespace graft
