// SPDX-License-Identifier: Apache-2.0
// A case's requests as one batch.
#pragma once

#include <tests/model/cases.hpp>

#include <graft/model/context.hpp>
#include <graft/model/sequence.hpp>

#include <span>
#include <vector>

namespace graft_test {

/// A fresh sequence for each request, and the rows they are asked for: all tokens, or a classifier's answers.
template <class B>
struct Batch {
  std::vector<Sequence<B>> sequences;
  std::vector<SequenceInput<B>> inputs;
  std::vector<index_t> wanted;

  Batch(auto& context, std::span<Request const> requests, bool classifier) {
    sequences.reserve(requests.size());
    index_t row = 0;
    for (auto const& request : requests) {
      sequences.push_back(context.start(request.adapters));
      inputs.push_back({&sequences.back(), request.tokens, request.prompt_tokens, {}, {}, request.token_types});
      auto const count = static_cast<index_t>(request.tokens.size());
      if (classifier)
        wanted.push_back(row + context.answer_row(request.tokens));
      else
        for (index_t k = 0; k < count; ++k) wanted.push_back(row + k);
      row += count;
    }
  }
  Batch(Batch const&) = delete;  // inputs point to sequences
  Batch& operator=(Batch const&) = delete;
};

}  // namespace graft_test
