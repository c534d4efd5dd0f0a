// SPDX-License-Identifier: Apache-2.0
// Compact forms of weights in bf16, which products read instead of the weights: the same results, bit for bit, from 70
// or 75 % of the memory. See graft/backend/compact_weight.hpp.
#pragma once

#include <graft/backend/cpu/cpu_backend.hpp>
#include <graft/backend/weight.hpp>
#include <graft/core/memory.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
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
inline CompactCodes most_common_codes(Weight const& w) {
  std::array<index_t, 256> exponents{}, upper{};
  for_some_numbers(w, [&](std::uint16_t bits) { ++exponents[bits >> 7 & 255], ++upper[bits >> 8]; });
  CompactCodes codes;
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

/// compact, by pieces of a layout.
template <class Layout, class Act>
std::shared_ptr<Storage<std::byte, HostSpace> const> compact_as(CpuBackend<Act>& be, std::span<Weight* const> weights,
                                                                CompactKernels const& kernels) {
  constexpr index_t line = CompactWeight::line;
  struct Planned {
    Weight* weight;
    CompactCodes codes;
    std::vector<std::uint32_t> pieces;  // where they begin, in lines
    index_t lines;
  };
  std::vector<Planned> planned;
  index_t lines = 0;
  auto const round_to_lines = [](index_t bytes) { return ceil_div(bytes, line); };
  for (Weight* const w : weights) {
    if (w->format != Format::bf16 || w->rows == 0 || w->cols == 0 || w->cols > Layout::max_inputs) continue;
    index_t const strips = ceil_div(w->rows, Layout::outputs), count = strips * Layout::slices(w->cols);
    Planned plan{w, most_common_codes(*w), std::vector<std::uint32_t>(static_cast<std::size_t>(count + 1)),
                 round_to_lines(Layout::head_bytes)};
    be.executor().run(strips, [&](index_t strip) {
      for_pieces<Layout>(*w, strip, [&](index_t piece, bf16 const* const* row, index_t inputs) {
        index_t const steps = ceil_div(inputs, Layout::step_inputs), listed = kernels.count(row, inputs, plan.codes);
        plan.pieces[static_cast<std::size_t>(piece)] = static_cast<std::uint32_t>(
            round_to_lines(steps * Layout::step_bytes + listed * Layout::listed_bytes + Layout::end_bytes));
      });
    });
    for (auto& begin : plan.pieces) {
      auto const size = begin;
      begin = static_cast<std::uint32_t>(plan.lines);
      plan.lines += size;
    }
    if (plan.lines * line * 8 > w->bytes() * 7 || plan.lines > std::numeric_limits<std::uint32_t>::max()) continue;
    lines += plan.lines + round_to_lines((count + 1) * static_cast<index_t>(sizeof(std::uint32_t)));
    planned.push_back(std::move(plan));
  }
  if (planned.empty()) return nullptr;
  // exponents are read a line at a time, from any byte on
  auto const memory =
      std::make_shared<Storage<std::byte, HostSpace>>(Storage<std::byte, HostSpace>::attempt((lines + 1) * line));
  if (memory->size() == 0) return nullptr;
  std::byte* at = memory->data();
  for (auto const& plan : planned) {
    Weight& w = *plan.weight;
    auto* const index = reinterpret_cast<std::uint32_t*>(at + plan.lines * line);
    std::copy(plan.pieces.begin(), plan.pieces.end(), index);
    std::memcpy(at, plan.codes.table.data(), Layout::head_bytes);
    be.executor().run(ceil_div(w.rows, Layout::outputs), [&](index_t strip) {
      for_pieces<Layout>(w, strip, [&](index_t piece, bf16 const* const* row, index_t inputs) {
        kernels.write(row, inputs, plan.codes, at + static_cast<std::size_t>(index[piece]) * line);
      });
    });
    w.compact = {kernels.form, plan.codes.base, at, index};
    at += (plan.lines + round_to_lines(static_cast<index_t>(plan.pieces.size() * sizeof(std::uint32_t)))) * line;
  }
  return memory;
}

}  // namespace cpu

/// Gives weights in bf16 a compact form where the backend's products read one, at its level and in its precision, and
/// it is smaller by an eighth at least; leaves others alone. What it returns keeps the forms; null where there are
/// none, or no memory for them. The weights themselves stay as they are, and are read by everything else. ContractError
/// where the backend's executor does not wait: a slice of a foreign pool would make a part of the forms.
template <class Act>
std::shared_ptr<Storage<std::byte, HostSpace> const> compact(CpuBackend<Act>& be, std::span<Weight* const> weights) {
  expects(be.executor().waits(), "graft: weights are made compact by all threads together; the backend's executor is ",
          "one slice of several");
  auto const kernels = cpu::compact_kernels<Act>(be.isa(), be.precision());
  switch (kernels.form) {
    case CompactForm::none:
      break;
    case CompactForm::exponents:
      return cpu::compact_as<CompactExponents>(be, weights, kernels);
    case CompactForm::high_bytes:
      return cpu::compact_as<CompactHighBytes>(be, weights, kernels);
  }
  return nullptr;
}

}  // namespace graft
