// SPDX-License-Identifier: Apache-2.0
// Low-rank deltas of mixed ranks and weighted lists against plain loops in double, on every buffer type; rows without
// one keep their bits, and a row's bits do not depend on its batch.
#include <graft/backend/cpu/low_rank.hpp>
#include <graft/testing/buffer.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/random.hpp>
#include <tests/catch.hpp>

#include <cmath>
#include <deque>
#include <vector>

namespace {

using namespace graft;
using namespace graft::testing;

/// A module with factors at one of two sites; the other site is empty (rank 0).
template <class R>
struct Factors {
  Factors(index_t rank, index_t inputs, index_t outputs, Random& random)
      : a(rank, inputs), b_transposed(rank, outputs) {
    fill_normal(a.view(), random, 0, 0.1);
    fill_normal(b_transposed.view(), random, 0, 0.1);
    table[1] = {a.row(0), b_transposed.row(0), rank, static_cast<R>(random.uniform(0.25, 4))};
  }
  /// Rounds to bf16: `table` has the rounded numbers in R, `narrow_table` in bf16.
  void round() {
    auto const round_all = [](Buffer<R>& from, std::vector<bf16>& to) {
      for (index_t r = 0; r < from.view().rows; ++r)
        for (index_t k = 0; k < from.view().cols; ++k)
          from.row(r)[k] = static_cast<R>(static_cast<float>(to.emplace_back(static_cast<float>(from.row(r)[k]))));
    };
    round_all(a, narrow_a), round_all(b_transposed, narrow_b);
    narrow_table[1] = {narrow_a.data(), narrow_b.data(), table[1].rank, table[1].scale};
  }
  Buffer<R> a, b_transposed;
  std::vector<bf16> narrow_a, narrow_b;
  LowRankFactors<R> table[2], narrow_table[2];
};

/// A batch of row lists over a pool of modules, cut into tiles as a plan does it.
template <class R>
struct Batch {
  using Terms = std::vector<LowRankTerm<R>>;

  /// list[n]: which of `lists` batch row n uses, -1: none.
  Batch(std::deque<Terms> const& lists, std::vector<index_t> const& list, index_t tile_rows) : row_count(list.size()) {
    for (std::size_t k = 0; k < lists.size(); ++k) {
      index_t ranks = 0;
      for (auto const& term : lists[k]) ranks += term.table[1].rank;
      max_rank = std::max(max_rank, ranks);
      rows.emplace_back();
      for (std::size_t n = 0; n < list.size(); ++n)
        if (list[n] == static_cast<index_t>(k)) rows.back().push_back(static_cast<std::int32_t>(n));
      auto const count = static_cast<index_t>(rows.back().size());
      for (index_t first = 0; first < count; first += tile_rows)
        tiles.push_back({lists[k].data(), static_cast<index_t>(lists[k].size()), rows.back().data() + first,
                         std::min(tile_rows, count - first)});
    }
  }
  LowRankBatch<R> at(index_t site) const {
    return {tiles.data(), static_cast<index_t>(tiles.size()), static_cast<index_t>(row_count), max_rank, site};
  }
  std::size_t row_count;
  std::deque<std::vector<std::int32_t>> rows;
  std::vector<LowRankTile<R>> tiles;
  index_t max_rank = 0;
};

/// Largest error of y against plain loops, in units of what rounding explains: |x| |A^T| |B^T| is the size of the
/// terms, each meets i / lanes + rank + 8 roundings in R, and the sum one rounding to y's type.
template <class R, class X, class Y>
double worst_error(Buffer<X> const& x, Buffer<Y> const& before, Buffer<Y> const& after,
                   std::deque<typename Batch<R>::Terms> const& lists, std::vector<index_t> const& list) {
  index_t const inputs = x.view().cols, outputs = before.view().cols;
  double worst = 0;
  for (std::size_t n = 0; n < list.size(); ++n) {
    if (list[n] < 0) continue;
    X const* const row = x.row(static_cast<index_t>(n));
    Vector sum(static_cast<std::size_t>(outputs)), magnitude(static_cast<std::size_t>(outputs));
    double ranks = 0;
    for (auto const& term : lists[static_cast<std::size_t>(list[n])]) {
      auto const& f = term.table[1];
      ranks += static_cast<double>(f.rank);
      double const scale = to_double(term.weight) * to_double(f.scale);
      for (index_t r = 0; r < f.rank; ++r) {
        double t = 0, size = 0;
        for (index_t k = 0; k < inputs; ++k) {
          double const product = to_double(row[k]) * to_double(f.a[r * inputs + k]);
          t += product, size += std::fabs(product);
        }
        for (index_t o = 0; o < outputs; ++o) {
          double const b = to_double(f.b_transposed[r * outputs + o]);
          sum[static_cast<std::size_t>(o)] += scale * t * b;
          magnitude[static_cast<std::size_t>(o)] += std::fabs(scale * size * b);
        }
      }
    }
    double const steps = static_cast<double>(inputs) / static_cast<double>(cpu::lane_count<R>) + ranks + 8;
    for (index_t o = 0; o < outputs; ++o) {
      double const y = to_double(before.row(static_cast<index_t>(n))[o]);
      double const right = y + sum[static_cast<std::size_t>(o)];
      double const allowed = steps * unit_roundoff<R>() * (magnitude[static_cast<std::size_t>(o)] + std::fabs(y)) +
                             1.01 * unit_roundoff<Y>() * std::fabs(right) + 1e-7 * unit_roundoff<Y>();
      worst = worse(worst, std::fabs(to_double(after.row(static_cast<index_t>(n))[o]) - right) / allowed);
    }
  }
  return worst;
}

/// Modules and lists of them.
template <class R>
struct Pool {
  Pool(index_t inputs, index_t outputs, Random& random) {
    for (index_t const rank : {1, 2, 3, 4, 5, 8, 16, 31, 64, 100, 256})
      modules.emplace_back(rank, inputs, outputs, random);
    for (int k = 0; k < 9; ++k) {
      typename Batch<R>::Terms terms;
      for (index_t count = pick(random, 0, 3); count > 0; --count)
        terms.push_back(
            {modules[static_cast<std::size_t>(pick(random, 0, 10))].table, static_cast<R>(random.uniform(-2, 2))});
      lists.push_back(terms);
    }
  }
  /// Rounds all modules to bf16; the lists with those where `narrow`, else with the same numbers in R.
  std::deque<typename Batch<R>::Terms> rounded_lists(bool narrow) {
    auto result = lists;
    for (auto& module : modules) {
      if (module.narrow_a.empty()) module.round();
      for (auto& terms : result)
        for (auto& term : terms)
          if (narrow && term.table == module.table) term.table = module.narrow_table;
    }
    return result;
  }
  std::deque<Factors<R>> modules;
  std::deque<typename Batch<R>::Terms> lists;
};

template <class R, class X, class Y>
void check(index_t inputs, index_t outputs, Random& random) {
  Pool<R> const pool(inputs, outputs, random);
  index_t const rows = 29;
  std::vector<index_t> list;
  for (index_t n = 0; n < rows; ++n) list.push_back(pick(random, -1, 8));
  Batch<R> const batch(pool.lists, list, LowRankTile<R>::max_rows);
  Buffer<X> x(rows, inputs, 5);
  Buffer<Y> y(rows, outputs, 3);
  fill_normal(x.view(), random);
  fill_normal(y.view(), random);
  Buffer<Y> const before = y;
  CpuBackend<R> be;
  apply_low_rank(be, batch.at(1), std::as_const(x).view(), y.view());
  INFO(inputs << " -> " << outputs);
  CHECK(worst_error<R>(x, before, y, pool.lists, list) <= 1);
  REQUIRE(y.gaps_untouched());
  index_t changed = 0;
  for (index_t n = 0; n < rows; ++n)
    if (list[static_cast<std::size_t>(n)] < 0) changed += !same_bits(y.row(n), before.row(n), outputs);
  CHECK(changed == 0);
}

TEST_CASE("mixed ranks and weighted lists equal plain loops on buffers of every type", "[isa]") {
  Random random(1);
  for (auto const& [inputs, outputs] : {std::pair<index_t, index_t>{1, 1}, {7, 65}, {96, 64}, {130, 200}, {1100, 33}}) {
    check<float, float, float>(inputs, outputs, random);
    check<float, bf16, bf16>(inputs, outputs, random);
    check<float, f16, f16>(inputs, outputs, random);
    check<float, bf16, float>(inputs, outputs, random);
    check<float, float, double>(inputs, outputs, random);
    check<double, double, double>(inputs, outputs, random);
    check<double, float, float>(inputs, outputs, random);
  }
}

/// Batches in which some requests' factors are in bf16, others in R.
template <class R, class X, class Y>
void check_narrow(index_t inputs, index_t outputs, Random& random) {
  Pool<R> pool(inputs, outputs, random);
  auto const full = pool.rounded_lists(false), narrow = pool.rounded_lists(true);
  auto mixed = narrow;
  for (std::size_t k = 0; k < mixed.size(); k += 2) mixed[k] = full[k];
  index_t const rows = 29;
  std::vector<index_t> list;
  for (index_t n = 0; n < rows; ++n) list.push_back(pick(random, -1, 8));
  Buffer<X> x(rows, inputs, 5);
  Buffer<Y> start(rows, outputs, 3);
  fill_normal(x.view(), random);
  fill_normal(start.view(), random);
  ThreadPool threads(3);
  CpuBackend<R> be, threaded(threads);
  auto const run = [&](CpuBackend<R>& backend, auto const& lists) -> Buffer<Y> const {
    Buffer<Y> y = start;
    apply_low_rank(backend, Batch<R>(lists, list, LowRankTile<R>::max_rows).at(1), std::as_const(x).view(), y.view());
    REQUIRE(y.gaps_untouched());
    return y;
  };
  INFO(inputs << " -> " << outputs);
  auto const expected = run(be, full);
  CHECK(worst_error<R>(x, start, expected, full, list) <= 1);
  for (auto* backend : {&be, &threaded}) {
    CHECK(same_bits(run(*backend, narrow).view(), expected.view()));
    CHECK(same_bits(run(*backend, mixed).view(), expected.view()));
  }
}

TEST_CASE("factors in bf16 give the bits of the same numbers in f32", "[isa]") {
  Random random(4);
  for (auto const& [inputs, outputs] : {std::pair<index_t, index_t>{1, 1}, {7, 65}, {96, 64}, {130, 200}, {1100, 33}}) {
    check_narrow<float, float, float>(inputs, outputs, random);
    check_narrow<float, bf16, bf16>(inputs, outputs, random);
    check_narrow<float, f16, float>(inputs, outputs, random);
    check_narrow<double, double, double>(inputs, outputs, random);
  }
}

TEMPLATE_TEST_CASE("a delta's bits do not depend on the tiles, the order of rows, or the executor", "", float, double) {
  using R = TestType;
  Random random(2);
  index_t const inputs = 1100, outputs = 200, rows = 23;
  Pool<R> const pool(inputs, outputs, random);
  std::vector<index_t> list;
  for (index_t n = 0; n < rows; ++n) list.push_back(pick(random, -1, 8));
  Buffer<R> x(rows, inputs), start(rows, outputs);
  fill_normal(x.view(), random);
  fill_normal(start.view(), random);

  auto const run = [&](CpuBackend<R>& be, index_t tile_rows, Buffer<R>& y) {
    Batch<R> const batch(pool.lists, list, tile_rows);
    apply_low_rank(be, batch.at(1), std::as_const(x).view(), y.view());
  };
  CpuBackend<R> be;
  Buffer<R> expected = start;
  run(be, 8, expected);
  for (index_t const tile_rows : {1, 3, 5}) {
    Buffer<R> y = start;
    run(be, tile_rows, y);
    CHECK(same_bits(y.view(), expected.view()));
  }
  {
    ThreadPool pool_of_threads(3);
    CpuBackend<R> threaded(pool_of_threads);
    Buffer<R> y = start;
    run(threaded, 8, y);
    CHECK(same_bits(y.view(), expected.view()));
  }
  {
    Buffer<R> y = start;
    for (index_t slice = 0; slice < 3; ++slice) {
      SliceExecutor executor(slice, 3);
      CpuBackend<R> part(executor);
      run(part, 8, y);
    }
    CHECK(same_bits(y.view(), expected.view()));
  }
  // some of the rows, in another order, among others
  auto const order = permutation(rows, random);
  for (index_t const count : {1, 9, 23}) {
    Buffer<R> xs(count, inputs, 1), y(count, outputs, 2);
    std::vector<index_t> lists_of_rows;
    for (index_t n = 0; n < count; ++n) {
      index_t const from = order[static_cast<std::size_t>(n)];
      std::copy_n(x.row(from), inputs, xs.row(n));
      std::copy_n(start.row(from), outputs, y.row(n));
      lists_of_rows.push_back(list[static_cast<std::size_t>(from)]);
    }
    Batch<R> const batch(pool.lists, lists_of_rows, 8);
    apply_low_rank(be, batch.at(1), std::as_const(xs).view(), y.view());
    for (index_t n = 0; n < count; ++n)
      REQUIRE(same_bits(y.row(n), expected.row(order[static_cast<std::size_t>(n)]), outputs));
  }
}

TEST_CASE("a site where no module of the batch has factors is left alone") {
  Random random(3);
  Pool<float> const pool(40, 30, random);
  std::vector<index_t> const list{0, 1, 2, 3, 4, 5, 6, 7, 8};
  Batch<float> const batch(pool.lists, list, 8);
  CHECK(batch.at(1).any());
  CHECK_FALSE(batch.at(0).any());
  Buffer<float> x(9, 40), y(9, 30);
  fill_normal(x.view(), random);
  fill_normal(y.view(), random);
  y.row(0)[0] = -0.0f;
  Buffer<float> const before = y;
  CpuBackend<> be;
  apply_low_rank(be, batch.at(0), std::as_const(x).view(), y.view());
  CHECK(same_bits(std::as_const(y).view(), before.view()));
}

}  // namespace
