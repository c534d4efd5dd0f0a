// SPDX-License-Identifier: Apache-2.0
// Decoding takes no memory once it is under way.
#include <tests/catch.hpp>
#include <tests/model/model_under_test.hpp>

#include <graft/testing/counting_allocator.hpp>

#include <algorithm>

using namespace graft_test;

TEST_CASE("a decode step allocates nothing after warm-up") {
  using B = CpuBackend<float>;
  for (auto const& c : cases()) {
    if (!is_decoder(c)) continue;
    auto const model = open<float>(c);
    INFO(c.name);
    ThreadPool pool(2);
    auto const context = model->context(pool, {2, 5});  // a new page every other step, several chunks
    index_t longest = 0;
    for (auto const& request : c.requests)
      longest = std::max(longest, static_cast<index_t>(std::min<std::size_t>(request.tokens.size(), 20)));
    index_t const steps = 12, warm = 2;
    context->cache().reserve(longest + warm + steps, static_cast<index_t>(c.requests.size()));
    std::vector<Sequence<B>> sequences;
    std::vector<SequenceInput<B>> inputs;
    for (auto const& request : c.requests) sequences.push_back(context->start(request.adapters));
    for (std::size_t q = 0; q < sequences.size(); ++q) {
      std::span<std::int32_t const> const tokens(c.requests[q].tokens);
      inputs.push_back({&sequences[q], tokens.first(std::min<std::size_t>(tokens.size(), 20))});
    }
    auto const width = model->output_width();
    std::vector<float> out(inputs.size() * static_cast<std::size_t>(width));
    auto const view = matrix_view(out.data(), static_cast<index_t>(inputs.size()), width);
    context->forward_last(inputs, view);
    std::vector<std::int32_t> const next{5};
    for (auto& input : inputs) input.tokens = next, input.prompt_tokens = -1;
    for (index_t k = 0; k < warm; ++k) context->forward_last(inputs, view);

    auto const before = testing::allocation_count();
    for (index_t k = 0; k < steps; ++k) context->forward_last(inputs, view);
    auto const during = testing::allocation_count() - before;
    CHECK(during == 0);
    CHECK(sequences[0].length() > 12);
  }
}
