// SPDX-License-Identifier: Apache-2.0
// Sums and products of row maps against sums and products of dense matrices.
#include <graft/adapter/compose.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/maps.hpp>
#include <graft/testing/reference.hpp>
#include <tests/catch.hpp>

#include <deque>
#include <vector>

namespace {

using namespace graft;
using namespace graft::testing;

/// m and e side by side, so that one distance covers both.
Matrix whole(AffineMap const& map) {
  Matrix result(map.m.rows, map.m.cols + 1);
  for (index_t r = 0; r < map.m.rows; ++r) {
    for (index_t c = 0; c < map.m.cols; ++c) result(r, c) = map.m(r, c);
    result(r, map.m.cols) = map.e[static_cast<std::size_t>(r)];
  }
  return result;
}
double distance(AffineMap const& a, AffineMap const& b) { return relative_l2(whole(a), whole(b)); }

/// Keeps what composing allocates.
template <class R>
struct Memory {
  NumberStorage<R> storage;
  std::vector<std::unique_ptr<RowMapRow<R const>[]>> chains;
  RowMapRow<R const> compose(RowMapRow<R const> const& a, RowMapRow<R const> const& b) {
    return graft::compose(a, b, storage, chains);
  }
};

/// A random map, every form included: without c, without d, without e, or nothing at all.
template <class R>
OwnedMap<R> any_map(Random& random, index_t size, std::initializer_list<index_t> groups) {
  return OwnedMap<R>::random(random, size, pick(random, groups), pick(random, 0, 1) == 1, pick(random, 0, 1) == 1);
}

index_t length(RowMapRow<double const> const& map) {
  index_t count = 0;
  for (auto const* m = &map; m != nullptr; m = m->next) count += !m->identity();
  return count;
}

TEST_CASE("maps of equal groups compose in closed form") {
  Random random(1);
  for (index_t const group : {2, 6, 24}) {
    for (int trial = 0; trial < 100; ++trial) {
      auto const a = any_map<double>(random, 24, {0, group}), b = any_map<double>(random, 24, {0, group}),
                 c = any_map<double>(random, 24, {0, group});
      Memory<double> memory;
      auto const ab = memory.compose(a.row(), b.row());
      CHECK(length(ab) <= 1);
      // a handful of roundings of 2^-53 in sums that may cancel tenfold
      if (!ab.identity()) CHECK(distance(dense(ab), then(dense(a.row()), dense(b.row()))) <= 1e-14);
      auto const left = memory.compose(ab, c.row()), right = memory.compose(a.row(), memory.compose(b.row(), c.row()));
      if (!left.identity()) CHECK(distance(dense(left), dense(right)) <= 1e-14);
    }
  }
}

TEST_CASE("maps of unequal groups stay an ordered list that means their product") {
  Random random(2);
  for (int trial = 0; trial < 300; ++trial) {
    std::deque<OwnedMap<double>> maps;
    AffineMap expected = identity_map(24);
    Memory<double> memory;
    RowMapRow<double const> all;
    all.size = 24;
    index_t changes = 0, group = 0;
    for (index_t count = pick(random, 1, 6); count > 0; --count) {
      maps.push_back(any_map<double>(random, 24, {0, 2, 6, 24}));
      auto const row = maps.back().row();
      expected = then(expected, dense(row));
      all = memory.compose(all, row);
      if (row.group != 0) changes += group != 0 && group != row.group, group = row.group;
    }
    if (all.identity()) continue;
    CHECK(distance(dense(all), expected) <= 1e-14);
    CHECK(length(all) <= changes + 1);  // no longer than the groups demand
  }
}

TEST_CASE("what is composed does not change what it was composed from") {
  Random random(3);
  auto const a = OwnedMap<double>::random(random, 24, 2, true, true),
             b = OwnedMap<double>::random(random, 24, 6, true, true),
             c = OwnedMap<double>::random(random, 24, 24, true, true);
  Memory<double> memory;
  auto const ab = memory.compose(a.row(), b.row());
  auto const before = dense(ab);
  auto const abc = memory.compose(ab, c.row());
  auto const abb = memory.compose(ab, b.row());
  CHECK(distance(dense(ab), before) == 0);
  CHECK(distance(dense(abc), then(before, dense(c.row()))) <= 1e-14);
  CHECK(distance(dense(abb), then(before, dense(b.row()))) <= 1e-14);
  CHECK(length(abb) == 2);
}

TEST_CASE("a weighted sum is I + sum w (M - I)") {
  Random random(4);
  for (index_t const group : {2, 6, 24})
    for (int trial = 0; trial < 50; ++trial) {
      std::deque<OwnedMap<double>> owned;
      std::deque<RowMapRow<double const>> rows;
      std::vector<RowMapRow<double const> const*> pointers;
      std::vector<AffineMap> maps;
      Vector weights;
      for (index_t count = pick(random, 1, 4); count > 0; --count) {
        owned.push_back(any_map<double>(random, 24, {0, group}));
        rows.push_back(owned.back().row());
        pointers.push_back(&rows.back());
        maps.push_back(dense(rows.back()));
        weights.push_back(random.uniform(-2, 2));
      }
      NumberStorage<double> storage;
      auto const sum_with = [&](Vector const& w) {
        return storage.keep_map(24, true, true, true, group, [&](RowMapRow<double> const& sum) {
          sum_maps(pointers.data(), w.data(), static_cast<index_t>(pointers.size()), sum);
        });
      };
      auto const sum = sum_with(weights);
      CHECK(distance(dense(sum), weighted_sum(maps, weights, 24)) <= 1e-14);
      // linear in w: halving every weight halves the departure from the identity
      Vector half = weights;
      for (double& w : half) w /= 2;
      CHECK(distance(dense(sum), weighted_sum({dense(sum_with(half))}, {2}, 24)) <= 1e-14);
    }
}

TEST_CASE("small departures from the identity keep their digits in f32") {
  Random random(5);
  auto a = OwnedMap<float>::random(random, 24, 6, true, true, 1e-5),
       b = OwnedMap<float>::random(random, 24, 6, true, true, 1e-5);
  Memory<float> memory;
  auto const ab = memory.compose(a.row(), b.row());
  AffineMap const exact = then(dense<float>(a.row()), dense<float>(b.row()));
  AffineMap const minus_one{dense(ab).m - identity(24), dense(ab).e}, expected{exact.m - identity(24), exact.e};
  CHECK(distance(minus_one, expected) <= 4 * unit_roundoff<float>());  // stored as c, 1 + 1e-5 would lose 2^-24 / 1e-5
}

}  // namespace
