// SPDX-License-Identifier: Apache-2.0
// Packed forms of weights, which products read sooner than the weights: the same results, bit for bit. See
// graft/backend/packed_weight.hpp.
#pragma once

#include <graft/backend/cpu/cpu_backend.hpp>
#include <graft/backend/weight.hpp>
#include <graft/core/memory.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace graft {
namespace cpu {

/// f(bits) of some thousand numbers all over a weight in bf16.
template <class F>
void for_some_numbers(Weight const& w, F const& f) {
  index_t const numbers = w.rows * w.cols, samples = std::min<index_t>(numbers, index_t{1} << 14);
  for (index_t k = 0; k < samples; ++k) {
    std::uint16_t bits = 0;
    // a golden section of the rest further each time, so that no column is met more often
    auto const at = static_cast<index_t>(static_cast<double>(k) * 0.6180339887498949 * static_cast<double>(numbers));
    std::memcpy(&bits, w.data + static_cast<std::size_t>(at % numbers) * sizeof bits, sizeof bits);
    f(bits);
  }
}

/// Codes that most of a weight's numbers have: seven exponents that follow each other, and 16 upper bytes.
inline PackedCodes most_common_codes(Weight const& w) {
  std::array<index_t, 256> exponents{}, upper{};
  for_some_numbers(w, [&](std::uint16_t bits) { ++exponents[bits >> 7 & 255], ++upper[bits >> 8]; });
  PackedCodes codes;
  index_t most = -1;
  for (std::size_t base = 0; base + 7 < exponents.size(); ++base) {
    index_t sum = 0;
    for (std::size_t code = 1; code <= 7; ++code) sum += exponents[base + code];
    if (sum > most) most = sum, codes.base = static_cast<std::uint8_t>(base);
  }
  std::array<std::uint8_t, 256> bytes;
  std::iota(bytes.begin(), bytes.end(), std::uint8_t{0});
  std::partial_sort_copy(
      bytes.begin(), bytes.end(), codes.table.begin(), codes.table.end(),
      [&](std::uint8_t a, std::uint8_t b) { return std::pair(-upper[a], a) < std::pair(-upper[b], b); });
  return codes;
}

/// f(piece, rows, inputs) for the pieces of a strip of a weight.
template <class Layout, class F>
void for_pieces(Weight const& w, index_t strip, F const& f) {
  index_t piece = strip * Layout::slices(w.cols);
  for (index_t first = 0, last = 0; first < w.cols; first = last, ++piece) {
    last = Layout::slice_end(first, w.cols);
    bf16 const* row[Layout::outputs];
    for (index_t r = 0; r < Layout::outputs; ++r)
      row[r] = reinterpret_cast<bf16 const*>(w.row_data(std::min(strip * Layout::outputs + r, w.rows - 1))) + first;
    f(piece, row, last - first);
  }
}

/// How a weight is going to be packed.
struct PackingPlan {
  Weight* weight;
  PackedForm form;
  PackedCodes codes;
  index_t head_bytes, strips;
  std::vector<std::uint32_t> pieces;  ///< their sizes in lines
  /// Writes the pieces of a strip, the first one to `data` + `begin`[0] lines.
  std::function<void(index_t strip, std::byte* data, std::uint32_t const* begin)> write;

  index_t lines() const {
    return std::accumulate(pieces.begin(), pieces.end(), ceil_div(head_bytes, PackedWeight::line));
  }
  index_t index_lines() const {
    return ceil_div(static_cast<index_t>((pieces.size() + 1) * sizeof(std::uint32_t)), PackedWeight::line);
  }
};
inline std::uint32_t in_lines(index_t bytes) { return static_cast<std::uint32_t>(ceil_div(bytes, PackedWeight::line)); }

/// Of a weight in bf16.
template <class Layout, class Act>
PackingPlan plan_codes(CpuBackend<Act>& be, Weight& w, PackKernels const& kernels) {
  index_t const strips = ceil_div(w.rows, Layout::outputs);
  PackingPlan plan{&w, kernels.form, most_common_codes(w), Layout::head_bytes, strips, {}, {}};
  plan.pieces.resize(static_cast<std::size_t>(strips * Layout::slices(w.cols)));
  be.executor().run(strips, [&](index_t strip) {
    for_pieces<Layout>(w, strip, [&](index_t piece, bf16 const* const* row, index_t inputs) {
      index_t const steps = ceil_div(inputs, Layout::step_inputs), listed = kernels.count(row, inputs, plan.codes);
      plan.pieces[static_cast<std::size_t>(piece)] =
          in_lines(steps * Layout::step_bytes + listed * Layout::listed_bytes + Layout::end_bytes);
    });
  });
  plan.write = [&w, write = kernels.write, codes = plan.codes](index_t strip, std::byte* data,
                                                               std::uint32_t const* begin) {
    index_t const first = strip * Layout::slices(w.cols);
    for_pieces<Layout>(w, strip, [&](index_t piece, bf16 const* const* row, index_t inputs) {
      write(row, inputs, codes, data + static_cast<std::size_t>(begin[piece - first]) * PackedWeight::line);
    });
  };
  return plan;
}

/// Blocks of as many rows as a strip has outputs, in PackedStrips.
template <class Block>
void write_strip(std::byte const* const* row, index_t blocks, std::byte* to) {
  constexpr index_t outputs = PackedStrips::outputs, head = PackedStrips::head_bytes<Block>;
  constexpr index_t head_at = PackedStrips::head_at<Block>, words_at = head_at == 0 ? head : 0;
  for (index_t b = 0; b < blocks; ++b, to += outputs * Block::bytes)
    for (index_t r = 0; r < outputs; ++r) {
      std::byte const* const from = row[r] + b * Block::bytes;
      for (index_t k = 0; k < head; k += 2) std::memcpy(to + k * outputs + 2 * r, from + head_at + k, 2);
      for (index_t k = 0; k < Block::bytes - head; k += 4)
        std::memcpy(to + (head + k) * outputs + 4 * r, from + words_at + k, 4);
    }
}
/// Of a weight in blocks of integers.
inline PackingPlan plan_strips(Weight& w) {
  constexpr index_t outputs = PackedStrips::outputs;
  index_t const strips = ceil_div(w.rows, outputs), bytes = outputs * row_bytes(w.format, w.cols);
  PackingPlan plan{&w, PackedForm::strips, {}, 0, strips, {}, {}};
  plan.pieces.assign(static_cast<std::size_t>(strips), in_lines(bytes));
  plan.write = [&w, bytes](index_t strip, std::byte* data, std::uint32_t const* begin) {
    std::byte const* row[outputs];
    for (index_t r = 0; r < outputs; ++r) row[r] = w.row_data(std::min(strip * outputs + r, w.rows - 1));
    std::byte* const to = data + static_cast<std::size_t>(*begin) * PackedWeight::line;
    with_format(w.format, [&]<class Block>(Block) {
      if constexpr (Block::block > 1) write_strip<Block>(row, w.cols / Block::block, to);
    });
    std::fill(to + bytes, to + in_lines(bytes) * PackedWeight::line, std::byte{});
  };
  return plan;
}

/// None where the backend's products read no form of the weight, or one that would not save them time.
template <class Act>
std::optional<PackingPlan> plan_packing(CpuBackend<Act>& be, Weight& w) {
  auto const kernels = pack_kernels<Act>(be.isa(), be.precision(), w.format);
  if (kernels.form == PackedForm::none || w.rows == 0 || w.cols == 0) return {};
  std::optional<PackingPlan> plan;
  if (kernels.form == PackedForm::strips)
    plan = plan_strips(w);
  else if (kernels.form == PackedForm::exponents)
    plan = plan_codes<PackedExponents>(be, w, kernels);
  else if (w.cols <= PackedHighBytes::max_inputs)
    plan = plan_codes<PackedHighBytes>(be, w, kernels);
  if (!plan || plan->lines() > std::numeric_limits<std::uint32_t>::max()) return {};
  // codes that most numbers do not have would be more bytes to read, not fewer
  bool const fewer = plan->lines() * PackedWeight::line * 8 <= w.bytes() * 7;
  return kernels.form == PackedForm::strips || fewer ? std::move(plan) : std::nullopt;
}

}  // namespace cpu

/// Gives weights a packed form where the backend's products read one, at its level and in its precision: those in bf16
/// where it is smaller by an eighth at least, those in blocks of integers at level avx2. Leaves others alone. What it
/// returns keeps the forms; null where there are none, or no memory for them. The weights themselves stay as they are,
/// and are read by everything else. ContractError where the backend's executor does not wait: a slice of a foreign pool
/// would make a part of the forms.
template <class Act>
std::shared_ptr<Storage<std::byte, HostSpace> const> pack(CpuBackend<Act>& be, std::span<Weight* const> weights) {
  constexpr index_t line = PackedWeight::line;
  expects(be.executor().waits(), "graft: weights are packed by all threads together; the backend's executor is one ",
          "slice of several");
  std::vector<cpu::PackingPlan> plans;
  index_t lines = 1;  // lists of exponents are read a line at a time, from any byte on
  for (Weight* const w : weights)
    if (auto plan = cpu::plan_packing(be, *w)) {
      lines += plan->lines() + plan->index_lines();
      plans.push_back(std::move(*plan));
    }
  if (plans.empty()) return nullptr;
  auto const memory =
      std::make_shared<Storage<std::byte, HostSpace>>(Storage<std::byte, HostSpace>::attempt(lines * line));
  if (memory->size() == 0) return nullptr;
  std::byte* at = memory->data();
  for (auto const& plan : plans) {
    auto* const begin = reinterpret_cast<std::uint32_t*>(at + plan.lines() * line);
    begin[0] = cpu::in_lines(plan.head_bytes);
    for (std::size_t k = 0; k < plan.pieces.size(); ++k) begin[k + 1] = begin[k] + plan.pieces[k];
    std::memcpy(at, plan.codes.table.data(), static_cast<std::size_t>(plan.head_bytes));
    index_t const pieces_of_strip = static_cast<index_t>(plan.pieces.size()) / plan.strips;
    be.executor().run(plan.strips, [&](index_t strip) { plan.write(strip, at, begin + strip * pieces_of_strip); });
    plan.weight->packed = {plan.form, plan.codes.base, at, begin};
    at += (plan.lines() + plan.index_lines()) * line;
  }
  return memory;
}

}  // namespace graft
