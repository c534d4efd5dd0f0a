// SPDX-License-Identifier: Apache-2.0
// What sequences bring to a step, and whether a step can be made of it.
#pragma once

#include <graft/model/kv_cache.hpp>
#include <graft/model/model.hpp>
#include <graft/model/sequence.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

namespace graft {

/// What one sequence brings to a step. An encoder takes a whole input at once, into an empty sequence.
template <class B>
struct SequenceInput {
  Sequence<B>* sequence = nullptr;
  std::span<std::int32_t const> tokens;            ///< at least one
  index_t prompt_tokens = -1;                      ///< of the whole sequence; -1: everything in its first step
  std::span<index_t const> positions = {};         ///< [tokens] or empty: counting on from the sequence's length
  std::span<std::uint8_t const> mask = {};         ///< [tokens, length + tokens] or empty; 0 hides a key
  std::span<std::int32_t const> token_types = {};  ///< [tokens] or empty: all 0
  bool regenerate = false;                         ///< make PEDRO's vectors anew from this step's tokens
};

namespace detail {

/// One past the last prompt token, counted from the sequence's start.
template <class Arch, class B>
index_t prompt_end(SequenceInput<B> const& in) {
  index_t const all = in.sequence->length() + static_cast<index_t>(in.tokens.size());
  return !Arch::causal || in.regenerate || in.prompt_tokens < 0 ? all : in.prompt_tokens;
}

/// ContractError where a classifier is asked for another row than those it answers in.
template <class Arch, class B>
void check_answer_rows(ModelConfig const& config, std::span<SequenceInput<B> const> inputs,
                       std::span<index_t const> wanted) {
  std::size_t next = 0;
  index_t row = 0;
  for (auto const& in : inputs) {
    if (next < wanted.size() && wanted[next] == row + config.answer_row(in.tokens, Arch::causal)) ++next;
    row += static_cast<index_t>(in.tokens.size());
  }
  expects(next == wanted.size(), "graft: a classifier answers in one row of each input (see answer_row); wanted row ",
          next < wanted.size() ? wanted[next] : 0, " is not one");
}

/// ContractError unless a step over these inputs can give these rows as [rows, cols]; see BackboneContext::forward.
template <class Arch, class B>
void check_inputs(Backbone<Arch, B> const& model, KvCache<B> const& cache, std::span<SequenceInput<B> const> inputs,
                  std::span<index_t const> wanted, index_t out_rows, index_t out_cols) {
  ModelConfig const& config = model.config();
  index_t rows = 0;
  for (std::size_t k = 0; k < inputs.size(); ++k) {
    auto const& in = inputs[k];
    auto const count = static_cast<index_t>(in.tokens.size());
    expects(in.sequence != nullptr && count > 0, "graft: input ", k, " has no sequence or no tokens");
    expects(in.sequence->is_of(cache), "graft: input ", k, " is a sequence that another context started");
    for (std::size_t j = 0; j < k; ++j)
      expects(inputs[j].sequence != in.sequence, "graft: inputs ", j, " and ", k, " are the same sequence");
    check_tokens(config, "input", k, in.tokens, in.token_types);
    index_t const length = in.sequence->length();
    expects(in.positions.empty() || static_cast<index_t>(in.positions.size()) == count, "graft: input ", k, " has ",
            count, " tokens but ", in.positions.size(), " positions");
    expects(in.mask.empty() || static_cast<index_t>(in.mask.size()) == count * (length + count),
            "graft: the mask of input ", k, " should have ", count * (length + count), " entries, it has ",
            in.mask.size());
    if constexpr (requires { Arch::learned_positions; }) {
      index_t const last =
          in.positions.empty() ? length + count - 1 : *std::max_element(in.positions.begin(), in.positions.end());
      index_t const most = config.positions - config.position_offset;
      expects(last < most, "graft: input ", k, " reaches position ", last, ", the model has ", most);
      for (index_t position : in.positions) expects(position >= 0, "graft: input ", k, " has a position of ", position);
    }
    if (!Arch::causal)
      expects(length == 0, "graft: input ", k, " continues a sequence; an encoder sees the whole input at once");
    auto const& state = in.sequence->state();
    if (state.generates() && (!state.ready() || in.regenerate)) {
      index_t const prompt = prompt_end<Arch>(in);
      expects(in.regenerate || length == 0, "graft: input ", k, " continues a prompt its vectors were not made from");
      expects(prompt > length && prompt <= length + count, "graft: the prompt of input ", k, " has ", prompt,
              " tokens but this step holds ", length, " to ", length + count,
              "; a prompt PEDRO reads cannot be split over calls");
    }
    rows += count;
  }
  index_t before = -1;
  for (index_t row : wanted) {
    expects(row > before && row < rows, "graft: wanted row ", row, " is out of order or outside the batch of ", rows);
    before = row;
  }
  if (config.classifier) check_answer_rows<Arch>(config, inputs, wanted);
  expects(
      out_rows == static_cast<index_t>(wanted.size()) && (wanted.empty() || out_cols == model.ends().output_width()),
      "graft: logits should be [", wanted.size(), ", ", model.ends().output_width(), "], they are [", out_rows, ", ",
      out_cols, "]");
}

}  // namespace detail

}  // namespace graft
