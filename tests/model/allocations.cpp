// SPDX-License-Identifier: Apache-2.0
// Decoding takes no memory once it is under way.
#include <tests/catch.hpp>
#include <tests/model/model_under_test.hpp>

#include <atomic>
#include <cstdlib>
#include <new>

namespace {
std::atomic<bool> counting{false};
std::atomic<long> allocations{0};

void* take(std::size_t bytes, std::size_t alignment) {
  if (counting.load(std::memory_order_relaxed)) allocations.fetch_add(1, std::memory_order_relaxed);
  void* const memory = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
}  // namespace

void* operator new(std::size_t bytes) { return take(bytes, alignof(std::max_align_t)); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return take(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

using namespace graft_test;

TEST_CASE("a decode step allocates nothing after warm-up") {
  using B = CpuBackend<float>;
  for (auto const& c : cases()) {
    auto const model = open<float>(c);
    if (!model->config().language_model) continue;
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

    allocations = 0, counting = true;
    for (index_t k = 0; k < steps; ++k) context->forward_last(inputs, view);
    counting = false;
    CHECK(allocations == 0);
    CHECK(sequences[0].length() > 12);
  }
  counting = true;
  std::vector<int> const probe(100);  // the counter counts
  counting = false;
  CHECK(allocations > 0);
}
