// SPDX-License-Identifier: Apache-2.0
// One golden model and one context, for tests that take a sequence step by step.
#pragma once

#include <tests/model/model_under_test.hpp>

namespace graft_test {

using Logits = std::vector<float>;

inline MatrixView<float const> row(Answer<float> const& answer, index_t n) { return answer.view().row_range(n, 1); }
inline MatrixView<float const> row(Logits const& logits) {
  return matrix_view(logits.data(), 1, static_cast<index_t>(logits.size()));
}

struct Session {
  using B = CpuBackend<float>;
  using Input = SequenceInput<B>;
  std::unique_ptr<AnyModel<float>> model;
  SerialExecutor executor;
  std::unique_ptr<AnyContext<float>> context;

  explicit Session(std::string const& name, ContextOptions options = {4})
      : model(open<float>(case_of(name))), context(model->context(executor, options)) {}

  Sequence<B> start(std::span<AdapterUse const> adapters = {}) { return context->start(adapters); }

  /// Logits of every token of one input.
  Answer<float> all(Input const& input) {
    auto const count = static_cast<index_t>(input.tokens.size());
    std::vector<index_t> wanted;
    for (index_t k = 0; k < count; ++k) wanted.push_back(k);
    Answer<float> answer{count, model->output_width(), {}};
    answer.values.resize(static_cast<std::size_t>(answer.rows * answer.cols));
    context->forward(std::span(&input, 1), wanted, matrix_view(answer.values.data(), answer.rows, answer.cols));
    return answer;
  }
  /// Logits of the last token.
  Logits step(Input const& input) {
    Logits logits(static_cast<std::size_t>(model->output_width()));
    context->forward_last(std::span(&input, 1), matrix_view(logits.data(), 1, model->output_width()));
    return logits;
  }
  Logits step(Sequence<B>& sequence, std::vector<std::int32_t> const& tokens, index_t prompt_tokens = -1,
              bool regenerate = false) {
    Input input{&sequence, tokens, prompt_tokens};
    input.regenerate = regenerate;
    return step(input);
  }
};

}  // namespace graft_test
