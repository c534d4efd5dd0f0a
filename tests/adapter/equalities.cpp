// SPDX-License-Identifier: Apache-2.0
// What "equal" means in a mixed batch, on random mixes of kinds, ranks, weights and row counts, through the calls a
// host engine makes:
//   (i)   rows without adapters are bit-equal to the same batch with all adapters removed;
//   (ii)  exchanging other requests' adapters or permuting requests changes nothing, bit for bit;
//   (iii) against the request alone, relative L2 at most 1e-5 in f32;
// and the executor, slices of a foreign pool included, changes nothing either.
#include <tests/adapter/loaded.hpp>
#include <tests/catch.hpp>

#include <algorithm>
#include <deque>

namespace {

using namespace graft_test;
using List = Adapters<IA3Scaling, RoAdRotation, LoRADelta, PedroGenerator>;
using Other = Adapters<LoRADelta, PedroGenerator, RoAdRotation, IA3Scaling>;

template <class T>
std::vector<Request<T> const*> pointers(std::vector<Request<T>> const& requests) {
  std::vector<Request<T> const*> result;
  for (auto const& request : requests) result.push_back(&request);
  return result;
}

/// Requests of 1 to 11 rows; every third has no adapters.
template <class T, class E>
std::vector<Request<T>> mix(E& engine) {
  std::vector<Request<T>> requests;
  for (index_t q = 0, count = testing::pick(engine.random, 3, 9); q < count; ++q)
    requests.push_back(engine.template random_request<T>(q % 3 == 1 ? 0 : 0.4, testing::pick(engine.random, 1, 11)));
  return requests;
}

template <class T>
bool equal(Outputs<T> const& a, Outputs<T> const& b) {
  for (std::size_t s = 0; s < a.size(); ++s)
    if (!testing::same_bits(a[s].view(), b[s].view())) return false;
  return a.size() == b.size();
}

template <class L, class T>
void check_removed(Shape shape, std::uint64_t seed) {
  Loaded<L, real_of<T>> engine(shape, seed);
  for (int trial = 0; trial < 8; ++trial) {
    auto const requests = mix<T>(engine);
    auto without = requests;
    for (auto& request : without) request.uses.clear();
    auto const mixed = engine.run({&engine.backend}, pointers(requests));
    auto const plain = engine.run({&engine.backend}, pointers(without));
    for (std::size_t q = 0; q < requests.size(); ++q)
      CHECK(equal(mixed[q], plain[q]) == requests[q].uses.empty());  // an adapter, on the other hand, changes its rows
  }
}

TEST_CASE("(i) rows without adapters have the bits of a batch without adapters") {
  check_removed<List, float>(Shape::separate, 1);
  check_removed<List, bf16>(Shape::separate, 2);
  check_removed<Other, float>(Shape::fused, 3);
  check_removed<Other, double>(Shape::separate, 4);
}

template <class L, class T>
void check_exchanged(Shape shape, std::uint64_t seed) {
  Loaded<L, real_of<T>> engine(shape, seed);
  for (int trial = 0; trial < 8; ++trial) {
    auto const requests = mix<T>(engine);
    auto const expected = engine.run({&engine.backend}, pointers(requests));
    // other adapters for all but one
    auto const kept =
        static_cast<std::size_t>(testing::pick(engine.random, 0, static_cast<index_t>(requests.size()) - 1));
    auto exchanged = requests;
    for (std::size_t q = 0; q < exchanged.size(); ++q)
      if (q != kept) exchanged[q].uses = engine.random_request(0.5, 1).uses;
    CHECK(equal(engine.run({&engine.backend}, pointers(exchanged))[kept], expected[kept]));
    // other places
    auto const order = testing::permutation(static_cast<index_t>(requests.size()), engine.random);
    std::vector<Request<T> const*> permuted;
    for (index_t const q : order) permuted.push_back(&requests[static_cast<std::size_t>(q)]);
    auto const results = engine.run({&engine.backend}, permuted);
    for (std::size_t k = 0; k < order.size(); ++k)
      CHECK(equal(results[k], expected[static_cast<std::size_t>(order[k])]));
    // the order of names in a request's list
    auto shuffled = requests;
    for (auto& request : shuffled) std::reverse(request.uses.begin(), request.uses.end());
    auto const reversed = engine.run({&engine.backend}, pointers(shuffled));
    for (std::size_t q = 0; q < requests.size(); ++q) CHECK(equal(reversed[q], expected[q]));
  }
}

TEST_CASE("(ii) other requests' adapters and the order of requests change no bit") {
  check_exchanged<List, float>(Shape::fused, 5);
  check_exchanged<List, bf16>(Shape::separate, 6);
  check_exchanged<Other, float>(Shape::separate, 7);
  check_exchanged<Other, double>(Shape::fused, 8);
}

TEST_CASE("(iii) a request in a batch is the request alone") {
  Loaded<List, float> engine(Shape::separate, 9);
  for (int trial = 0; trial < 8; ++trial) {
    auto const requests = mix<float>(engine);
    auto const together = engine.run({&engine.backend}, pointers(requests));
    for (std::size_t q = 0; q < requests.size(); ++q) {
      auto const alone = engine.run({&engine.backend}, std::vector<Request<float> const*>{&requests[q]});
      for (std::size_t s = 0; s < alone[0].size(); ++s)
        CHECK(testing::worst_row(together[q][s].view(), alone[0][s].view()) <= testing::alone_bound);
    }
  }
}

template <class L, class T>
void check_executors(Shape shape, std::uint64_t seed) {
  using B = CpuBackend<real_of<T>>;
  Loaded<L, real_of<T>> engine(shape, seed);
  for (int trial = 0; trial < 5; ++trial) {
    auto const requests = mix<T>(engine);
    auto const expected = engine.run({&engine.backend}, pointers(requests));
    auto const check = [&](std::vector<B*> const& backends) {
      auto const results = engine.run(backends, pointers(requests));
      for (std::size_t q = 0; q < requests.size(); ++q) CHECK(equal(results[q], expected[q]));
    };
    ThreadPool pool(3);
    B threaded(pool);
    check({&threaded});
    for (index_t const count : {2, 3, 5}) {
      std::deque<SliceExecutor> slices;
      std::deque<B> backends;
      std::vector<B*> order;
      for (index_t k = 0; k < count; ++k) {
        slices.emplace_back(k, count);
        order.push_back(&backends.emplace_back(slices.back()));
      }
      check(order);
      // within a call the slices may run in any order
      std::reverse(order.begin(), order.end());
      check(order);
    }
  }
}

TEST_CASE("a pool, or slices of a foreign one in any order, change no bit") {
  check_executors<List, float>(Shape::separate, 10);
  check_executors<List, bf16>(Shape::fused, 11);
  check_executors<Other, float>(Shape::fused, 12);
  check_executors<Other, double>(Shape::separate, 13);
}

}  // namespace
