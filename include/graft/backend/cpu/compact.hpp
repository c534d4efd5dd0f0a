// SPDX-License-Identifier: Apache-2.0
// Compact forms of weights in bf16, which products in native precision read instead of the weights: the same results,
// bit for bit, from 70 % of the memory. See graft/backend/compact_weight.hpp.
#pragma once

#include <graft/backend/cpu/cpu_backend.hpp>
#include <graft/backend/weight.hpp>
#include <graft/core/memory.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

namespace graft {
namespace cpu {

/// The base whose seven exponents most numbers have, of some thousand numbers all over the weight.
inline std::uint8_t most_common_exponents(Weight const& w) {
  std::array<index_t, 256> count{};
  index_t const numbers = w.rows * w.cols, samples = std::min<index_t>(numbers, index_t{1} << 14);
  for (index_t k = 0; k < samples; ++k) {
    std::uint16_t bits = 0;
    // a golden section of the rest further each time, so that no column is met more often
    auto const at = static_cast<index_t>(static_cast<double>(k) * 0.6180339887498949 * static_cast<double>(numbers));
    std::memcpy(&bits, w.data + static_cast<std::size_t>(at % numbers) * sizeof bits, sizeof bits);
    ++count[bits >> 7 & 255];
  }
  std::uint8_t best = 0;
  index_t most = -1;
  for (std::size_t base = 0; base + 7 < count.size(); ++base) {
    index_t sum = 0;
    for (std::size_t code = 1; code <= 7; ++code) sum += count[base + code];
    if (sum > most) most = sum, best = static_cast<std::uint8_t>(base);
  }
  return best;
}

/// f(piece, rows, inputs) for the pieces of strip `strip` of a weight.
template <class F>
void for_pieces(Weight const& w, index_t strip, F const& f) {
  index_t piece = strip * CompactWeight::slices(w.cols);
  for (index_t first = 0, last = 0; first < w.cols; first = last, ++piece) {
    last = CompactWeight::slice_end(first, w.cols);
    bf16 const* row[CompactWeight::outputs];
    for (index_t r = 0; r < CompactWeight::outputs; ++r)
      row[r] =
          reinterpret_cast<bf16 const*>(w.row_data(std::min(strip * CompactWeight::outputs + r, w.rows - 1))) + first;
    f(piece, row, last - first);
  }
}

}  // namespace cpu

/// Gives weights in bf16 a compact form where the backend's products can read it and it is smaller by an eighth at
/// least; leaves others alone. What it returns keeps the forms; null where there are none, or no memory for them. The
/// weights themselves stay as they are, and are read by everything else. ContractError where the backend's executor
/// does not wait: a slice of a foreign pool would make a part of the forms.
template <class Act>
std::shared_ptr<Storage<std::byte, HostSpace> const> compact(CpuBackend<Act>& be, std::span<Weight* const> weights) {
  expects(be.executor().waits(), "graft: weights are made compact by all threads together; the backend's executor is ",
          "one slice of several");
  auto const kernels = cpu::compact_kernels<Act>(be.isa());
  if (kernels.count == nullptr) return nullptr;
  constexpr index_t line = CompactWeight::line;
  // where pieces begin, in lines: of every weight, one behind the other
  struct Form {
    Weight* weight;
    std::uint8_t base;
    std::vector<std::uint32_t> pieces;
    index_t lines;
  };
  std::vector<Form> forms;
  index_t lines = 0;
  auto const round_to_lines = [](index_t bytes) { return ceil_div(bytes, line); };
  for (Weight* const w : weights) {
    if (w->format != Format::bf16 || w->rows == 0 || w->cols == 0) continue;
    index_t const strips = ceil_div(w->rows, CompactWeight::outputs), count = strips * CompactWeight::slices(w->cols);
    Form form{w, cpu::most_common_exponents(*w), std::vector<std::uint32_t>(static_cast<std::size_t>(count + 1)), 0};
    be.executor().run(strips, [&](index_t strip) {
      cpu::for_pieces(*w, strip, [&](index_t piece, bf16 const* const* row, index_t inputs) {
        index_t const steps = ceil_div(inputs, CompactWeight::step_inputs);
        form.pieces[static_cast<std::size_t>(piece)] = static_cast<std::uint32_t>(
            round_to_lines(steps * CompactWeight::step_bytes + kernels.count(row, inputs, form.base)));
      });
    });
    for (auto& begin : form.pieces) {
      auto const size = begin;
      begin = static_cast<std::uint32_t>(form.lines);
      form.lines += size;
    }
    if (form.lines * line * 8 > w->bytes() * 7 || form.lines > std::numeric_limits<std::uint32_t>::max()) continue;
    lines += form.lines + round_to_lines((count + 1) * static_cast<index_t>(sizeof(std::uint32_t)));
    forms.push_back(std::move(form));
  }
  if (forms.empty()) return nullptr;
  // exponents are read a line at a time, from any byte on
  auto const memory =
      std::make_shared<Storage<std::byte, HostSpace>>(Storage<std::byte, HostSpace>::attempt((lines + 1) * line));
  if (memory->size() == 0) return nullptr;
  std::byte* at = memory->data();
  for (auto const& [w, base, pieces, count] : forms) {
    auto* const index = reinterpret_cast<std::uint32_t*>(at + count * line);
    std::copy(pieces.begin(), pieces.end(), index);
    CompactWeight const form{at, index, base};
    be.executor().run(ceil_div(w->rows, CompactWeight::outputs), [&, w = w, base = base](index_t strip) {
      cpu::for_pieces(*w, strip, [&](index_t piece, bf16 const* const* row, index_t inputs) {
        kernels.write(row, inputs, base, at + (form.piece(piece) - at));
      });
    });
    at += (count + round_to_lines(static_cast<index_t>(pieces.size() * sizeof(std::uint32_t)))) * line;
    w->compact = form;
  }
  return memory;
}

}  // namespace graft
