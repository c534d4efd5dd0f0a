// SPDX-License-Identifier: Apache-2.0
// The arena: aligned, never overlapping, and silent once it is warm.
#include <graft/core/arena.hpp>
#include <tests/catch.hpp>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

namespace {

using graft::Arena;
using graft::ArenaScope;
using graft::index_t;

struct Piece {
  std::byte* data;
  index_t size;
};

/// A reproducible mixture of sizes, some larger than a block.
std::vector<Piece> take_many(Arena& arena, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<Piece> pieces;
  for (int k = 0; k < 200; ++k) {
    index_t const size = k % 50 == 49 ? 200'000 : static_cast<index_t>(random() % 3000);
    pieces.push_back({arena.allocate<std::byte>(size), size});
  }
  return pieces;
}

TEST_CASE("what an arena hands out is aligned and does not overlap") {
  Arena arena;
  ArenaScope const scope(arena);
  auto pieces = take_many(arena, 1);
  for (auto const& piece : pieces) REQUIRE(reinterpret_cast<std::uintptr_t>(piece.data) % Arena::alignment == 0);

  std::erase_if(pieces, [](Piece const& piece) { return piece.size == 0; });
  std::sort(pieces.begin(), pieces.end(), [](Piece const& a, Piece const& b) { return a.data < b.data; });
  for (std::size_t k = 1; k < pieces.size(); ++k) REQUIRE(pieces[k - 1].data + pieces[k - 1].size <= pieces[k].data);
  for (auto const& piece : pieces) std::fill_n(piece.data, piece.size, std::byte{1});  // a sanitizer watches
}

TEST_CASE("the same work a second time takes the same memory and no more") {
  Arena arena;
  std::vector<std::byte*> first;
  for (int warming = 0; warming < 2; ++warming) {  // blocks are joined behind the first round
    ArenaScope const scope(arena);
    first.clear();
    for (auto const& piece : take_many(arena, 2)) first.push_back(piece.data);
  }
  auto const warm = arena.capacity();
  for (int round = 0; round < 3; ++round) {
    ArenaScope const scope(arena);
    auto const pieces = take_many(arena, 2);
    for (std::size_t k = 0; k < first.size(); ++k) REQUIRE(pieces[k].data == first[k]);
  }
  CHECK(arena.capacity() == warm);
}

TEST_CASE("an inner scope gives back only its own") {
  Arena arena;
  ArenaScope const outer(arena);
  auto const kept = arena.vector<float>(1000);
  std::fill(kept.begin(), kept.end(), 3.f);
  float* inner_data = nullptr;
  {
    ArenaScope const inner(arena);
    auto const lost = arena.vector<float>(50'000);
    inner_data = lost.data;
    std::fill(lost.begin(), lost.end(), 4.f);
  }
  CHECK(arena.vector<float>(50'000).data == inner_data);
  CHECK(std::all_of(kept.begin(), kept.end(), [](float x) { return x == 3.f; }));
}

TEST_CASE("work of changing sizes does not grow the arena beyond its largest") {
  Arena arena;
  index_t largest = 0;
  for (index_t round = 0; round < 200; ++round) {
    index_t const rows = 500 + round * 37 % 500;
    largest = std::max(largest, rows);
    ArenaScope const scope(arena);
    for (int buffer = 0; buffer < 10; ++buffer) arena.matrix<float>(rows, 64);
  }
  // ten buffers of the largest size, and what a round that did not fit added before its blocks were joined
  CHECK(arena.capacity() <= 2 * 10 * static_cast<std::size_t>(largest) * 64 * sizeof(float));
}

TEST_CASE("vectors and matrices come with their shape") {
  Arena arena;
  ArenaScope const scope(arena);
  auto const m = arena.matrix<double>(3, 7);
  CHECK(m.rows == 3);
  CHECK(m.cols == 7);
  CHECK(m.stride == 7);
  m(2, 6) = 1;
  auto const v = arena.vector<double>(5);
  CHECK(v.size == 5);
  CHECK(v.data >= m.data + 21);
}

TEST_CASE("a fresh arena holds nothing") { CHECK(Arena().capacity() == 0); }

TEST_CASE("what was reserved is handed out from memory the arena holds") {
  Arena arena;
  for (int round = 0; round < 3; ++round) {
    ArenaScope const scope(arena);
    arena.allocate<std::byte>(round * 50'000);  // reserved is what comes on top
    std::mt19937 random(7);
    std::vector<index_t> counts;
    std::size_t bytes = 0;
    for (int k = 0; k < 60; ++k) {
      counts.push_back(static_cast<index_t>(random() % 9000));
      bytes += Arena::bytes_of<double>(counts.back());
    }
    arena.reserve(bytes);
    auto const held = arena.capacity();
    for (index_t const count : counts) arena.allocate<double>(count);
    CHECK(arena.capacity() == held);
    arena.reserve(0);
    CHECK(arena.capacity() == held);
  }
}

}  // namespace
