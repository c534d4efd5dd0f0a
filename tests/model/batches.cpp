// SPDX-License-Identifier: Apache-2.0
// What a request answers does not depend, bit for bit, on who stands beside it, on chunks, or on threads.
#include <tests/catch.hpp>
#include <tests/model/model_under_test.hpp>

#include <graft/testing/close.hpp>
#include <graft/testing/random.hpp>

#include <algorithm>

using namespace graft_test;
using graft::testing::alone_bound;
using graft::testing::relative_l2;
using graft::testing::same_bits;

namespace {

bool same_bits(Answers<float> const& a, Answers<float> const& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t k = 0; k < a.size(); ++k)
    if (!graft::testing::same_bits(a[k].view(), b[k].view())) return false;
  return true;
}

double worst(Answers<float> const& a, Answers<float> const& b) {
  double result = 0;
  for (std::size_t k = 0; k < a.size(); ++k) result = std::max(result, relative_l2(a[k].view(), b[k].view()));
  return result;
}

}  // namespace

TEST_CASE("rows without adapters have the bits of a batch that never had any") {
  int compared = 0;
  for (auto const& c : cases()) {
    auto bare = c.requests;
    for (auto& request : bare) request.adapters.clear();
    auto const model = open<float>(c);
    auto const mixed = answer(*model, c.requests), without = answer(*model, bare);
    for (std::size_t k = 0; k < mixed.size(); ++k) {
      INFO(c.name << ", request " << k);
      if (c.requests[k].adapters.empty()) {
        CHECK(same_bits(mixed[k].view(), without[k].view()));
        ++compared;
      } else {
        CHECK(relative_l2(mixed[k].view(), without[k].view()) > 0.01);
      }
    }
  }
  CHECK(compared > 20);
}

TEST_CASE("other rows' adapters may change without a bit of this row changing") {
  for (auto const& c : cases()) {
    std::vector<std::size_t> adapted;
    for (std::size_t k = 0; k < c.requests.size(); ++k)
      if (!c.requests[k].adapters.empty()) adapted.push_back(k);
    if (adapted.size() < 3) continue;
    INFO(c.name);
    auto const model = open<float>(c);
    auto const before = answer(*model, c.requests);
    auto requests = c.requests;  // every request but the first adapted one takes its neighbour's adapters
    for (std::size_t k = 1; k + 1 < adapted.size(); ++k)
      std::swap(requests[adapted[k]].adapters, requests[adapted[k + 1]].adapters);
    auto const after = answer(*model, requests);
    CHECK(worst(before, after) > 0.01);
    for (std::size_t k = 0; k < before.size(); ++k)
      if (c.requests[k].adapters.empty() || k == adapted[0]) CHECK(same_bits(before[k].view(), after[k].view()));
  }
}

TEST_CASE("the order of requests does not matter") {
  Random random(7);
  for (auto const& c : cases()) {
    INFO(c.name);
    auto const model = open<float>(c);
    auto const straight = answer(*model, c.requests);
    auto const order = graft::testing::permutation(static_cast<index_t>(c.requests.size()), random);
    std::vector<Request> permuted;
    Answers<float> expected;
    for (index_t k : order) {
      permuted.push_back(c.requests[static_cast<std::size_t>(k)]);
      expected.push_back(straight[static_cast<std::size_t>(k)]);
    }
    CHECK(same_bits(answer(*model, permuted), expected));
  }
}

TEST_CASE("chunks bound memory, not results") {
  for (auto const& c : cases()) {
    INFO(c.name);
    auto const model = open<float>(c);
    auto const whole = answer(*model, c.requests);
    for (index_t rows : {1, 3, 16}) CHECK(same_bits(answer(*model, c.requests, {32, rows}), whole));
  }
}

TEST_CASE("the size of pages moves results by rounding only") {
  for (auto const& c : cases()) {
    INFO(c.name);
    auto const model = open<float>(c);
    auto const usual = answer(*model, c.requests);
    // the softmax is rescaled at each page, so pages of another size round elsewhere
    for (index_t tokens : {1, 3, 64}) CHECK(worst(answer(*model, c.requests, {tokens}), usual) <= alone_bound);
  }
}

// A key or a value moves by at most 2^-8 of itself, and a logit by some times that, most where a classifier's two
// nearly cancel. What a page held before, or a place too far, would move it by itself.
TEST_CASE("keys and values in bf16 move results by their rounding, and depend on no other request") {
  for (auto const& c : cases()) {
    INFO(c.name);
    auto const model = open<float>(c);
    auto const full = answer(*model, c.requests), narrow = answer(*model, c.requests, {.kv_storage = KvStorage::bf16});
    auto const moved = worst(narrow, full);
    CHECK(moved > 0);
    CHECK(moved <= 0.05);
    for (std::size_t k = 0; k < c.requests.size(); ++k) {
      auto const alone = answer(*model, std::span(&c.requests[k], 1), {.kv_storage = KvStorage::bf16});
      CHECK(worst(alone, {narrow[k]}) <= alone_bound);
    }
  }
}

TEST_CASE("threads do not change a bit", "[threads]") {
  for (auto const& c : cases()) {
    INFO(c.name);
    auto const model = open<float>(c);
    auto const serial = answer(*model, c.requests);
    for (index_t threads : {1, 2, 3}) {
      ThreadPool pool(threads);
      auto const context = model->context(pool);
      CHECK(same_bits(answer(*model, *context, c.requests), serial));
    }
  }
}
