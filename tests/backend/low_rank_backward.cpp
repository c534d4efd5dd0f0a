// SPDX-License-Identifier: Apache-2.0
// Gradients of low-rank deltas against differences of y += w s (x A^T) B^T in double, on linear layers and embeddings;
// other buffer types against double; rows that are not listed; any number of threads.
#include <graft/backend/cpu/low_rank_backward.hpp>
#include <graft/testing/buffer.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/gradient_check.hpp>
#include <graft/testing/random.hpp>
#include <tests/backend/poison.hpp>
#include <tests/catch.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

namespace {

using namespace graft;
using namespace graft::testing;
using D = CpuBackend<double>;

constexpr double weight = 0.75, scale = 1.5;

/// One delta, its input and what its output's gradient is; the same numbers for every type.
template <class R, class X = R, class G = R>
struct Problem {
  Problem(index_t rows, index_t i, index_t o, index_t r, std::uint64_t seed)
      : a(r, i), b(r, o), x(rows, i, 3), dy(rows, o, 1), dx(rows, i, 2), da(r, i), db(r, o) {
    Random random(seed);
    fill(a, random, 0.3), fill(b, random, 0.3), fill(x, random), fill(dy, random), fill(dx, random);
    fill(da, random), fill(db, random);
    for (index_t n = 0; n < rows; ++n) tokens.push_back(static_cast<std::int32_t>(pick(random, 0, i - 1)));
  }
  template <class T>
  static void fill(Buffer<T>& to, Random& random, double deviation = 1) {
    for (index_t r = 0; r < to.view().rows; ++r)
      for (index_t c = 0; c < to.view().cols; ++c)  // numbers every type holds
        to.row(r)[c] = static_cast<T>(static_cast<float>(bf16(static_cast<float>(deviation * random.normal()))));
  }
  LowRankFactors<R> factors() const { return {a.row(0), b.row(0), a.view().rows, static_cast<R>(scale)}; }
  void run(CpuBackend<R>& be, std::vector<std::int32_t> const& rows) {
    graft_test::poison(be);
    low_rank_backward(be, factors(), static_cast<R>(weight), rows, std::as_const(x).view(), std::as_const(dy).view(),
                      dx.view(), da.row(0), db.row(0));
    REQUIRE((dx.gaps_untouched() && x.gaps_untouched() && dy.gaps_untouched()));
  }
  void run_embedding(CpuBackend<R>& be, std::vector<std::int32_t> const& rows) {
    graft_test::poison(be);
    low_rank_embedding_backward(be, factors(), static_cast<R>(weight), rows, tokens.data(), x.view().cols,
                                std::as_const(dy).view(), da.row(0), db.row(0));
  }
  Buffer<R> a, b;
  Buffer<X> x;
  Buffer<G> dy, dx;
  Buffer<R> da, db;
  std::vector<std::int32_t> tokens;
};

/// sum over the listed rows of dy . delta(x), in plain loops
double loss(Problem<double> const& p, std::vector<std::int32_t> const& rows, bool embedding) {
  double sum = 0;
  for (auto const n : rows)
    for (index_t r = 0; r < p.a.view().rows; ++r) {
      double t = 0, g = 0;
      if (embedding)
        t = p.a.row(r)[p.tokens[static_cast<std::size_t>(n)]];
      else
        for (index_t k = 0; k < p.x.view().cols; ++k) t += p.x.row(n)[k] * p.a.row(r)[k];
      for (index_t k = 0; k < p.dy.view().cols; ++k) g += p.dy.row(n)[k] * p.b.row(r)[k];
      sum += weight * scale * t * g;
    }
  return sum;
}
Matrix added(Buffer<double> const& after, Buffer<double> const& before) {
  return Matrix(after.view()) - Matrix(before.view());
}

std::vector<std::int32_t> const row_lists[] = {{0, 1, 2, 3, 4, 5}, {2, 3, 4}, {5, 0, 3}, {4}};

TEST_CASE("gradients of low-rank deltas equal differences") {
  D be;
  for (auto const& rows : row_lists)
    for (index_t const r : {1, 4, 7})
      for (auto const& [i, o] : {std::pair<index_t, index_t>{1, 1}, {9, 33}, {70, 8}}) {
        INFO("rank " << r << ", " << i << " -> " << o << ", " << rows.size() << " rows");
        Problem<double> p(6, i, o, r, 1);
        for (index_t n = 0; n < 6; ++n)
          if (std::find(rows.begin(), rows.end(), n) == rows.end())  // what is not listed is not read
            std::fill_n(p.x.row(n), i, NAN), std::fill_n(p.dy.row(n), o, NAN);
        auto const before = p;
        p.run(be, rows);
        auto const f = [&] { return loss(p, rows, false); };
        for (auto const n : rows)
          CHECK(gradient_error(f, p.x.view().row_range(n, 1), added(p.dx, before.dx).view().row_range(n, 1)) <= 1);
        CHECK(gradient_error(f, p.a.view(), added(p.da, before.da).view()) <= 1);
        CHECK(gradient_error(f, p.b.view(), added(p.db, before.db).view()) <= 1);
        for (index_t n = 0; n < 6; ++n)
          if (std::find(rows.begin(), rows.end(), n) == rows.end()) CHECK(same_bits(p.dx.row(n), before.dx.row(n), i));

        // each gradient alone
        auto alone = before;
        low_rank_backward(be, p.factors(), weight, rows, std::as_const(p.x).view(), std::as_const(p.dy).view(),
                          alone.dx.view(), nullptr, nullptr);
        low_rank_backward(be, p.factors(), weight, rows, std::as_const(p.x).view(), std::as_const(p.dy).view(),
                          MatrixView<double>{}, alone.da.row(0), nullptr);
        low_rank_backward(be, p.factors(), weight, rows, std::as_const(p.x).view(), std::as_const(p.dy).view(),
                          MatrixView<double>{}, nullptr, alone.db.row(0));
        CHECK((same_bits(alone.dx.view(), p.dx.view()) && same_bits(alone.da.view(), p.da.view())));
        CHECK(same_bits(alone.db.view(), p.db.view()));
      }
}

TEST_CASE("gradients of an embedding's delta equal differences") {
  D be;
  for (auto const& rows : row_lists)
    for (index_t const r : {1, 6}) {
      Problem<double> p(6, 5, 33, r, 2);  // 5 tokens: some rows share one
      auto const before = p;
      p.run_embedding(be, rows);
      auto const f = [&] { return loss(p, rows, true); };
      CHECK(gradient_error(f, p.a.view(), added(p.da, before.da).view()) <= 1);
      CHECK(gradient_error(f, p.b.view(), added(p.db, before.db).view()) <= 1);
      CHECK(same_bits(p.dx.view(), before.dx.view()));
    }
}

TEST_CASE("no rows and no rank mean no gradient") {
  D be;
  Problem<double> p(6, 9, 8, 3, 3);
  auto const before = p;
  p.run(be, {});
  p.run_embedding(be, {});
  low_rank_backward(be, LowRankFactors<double>{}, weight, std::vector<std::int32_t>{0}, std::as_const(p.x).view(),
                    std::as_const(p.dy).view(), p.dx.view(), nullptr, nullptr);
  CHECK((same_bits(p.dx.view(), before.dx.view()) && same_bits(p.da.view(), before.da.view())));
  CHECK(same_bits(p.db.view(), before.db.view()));
}

TEST_CASE("gradients do not depend on where a module's rows stand") {
  CpuBackend<float> be;
  index_t const i = 70, o = 33;
  for (index_t const rank : {5, 200}) {
    Problem<float> together(6, i, o, rank, 6);
    auto apart = together;
    for (index_t n = 0; n < 3; ++n) {
      std::copy_n(together.x.row(n), i, apart.x.row(2 * n));
      std::copy_n(together.dy.row(n), o, apart.dy.row(2 * n));
      std::copy_n(together.dx.row(n), i, apart.dx.row(2 * n));
    }
    together.run(be, {0, 1, 2});
    apart.run(be, {0, 2, 4});
    INFO("rank " << rank);
    for (index_t n = 0; n < 3; ++n) CHECK(same_bits(together.dx.row(n), apart.dx.row(2 * n), i));
    CHECK((same_bits(together.da.view(), apart.da.view()) && same_bits(together.db.view(), apart.db.view())));
  }
}

std::vector<std::int32_t> scattered(index_t rows) {
  std::vector<std::int32_t> list;
  for (index_t n = 0; n < rows; ++n)
    if (n % 3 != 1) list.push_back(static_cast<std::int32_t>(n));
  return list;
}

template <class R, class X, class G>
void check_type() {
  for (bool const together : {true, false}) {
    index_t const rows = 150, i = 130, o = 70;
    Problem<R, X, G> p(rows, i, o, 5, 4);
    Problem<double> exact(rows, i, o, 5, 4);
    auto list = scattered(rows);
    if (together)
      for (std::size_t k = 0; k < list.size(); ++k) list[k] = static_cast<std::int32_t>(k + 7);
    CpuBackend<R> be;
    D exact_be;
    p.run(be, list);
    exact.run(exact_be, list);
    // dx: one rounding to G; otherwise sums of up to 130 terms and of 5: in lanes and panels fewer than 100 roundings
    double const bound = 100 * unit_roundoff<R>();
    CHECK(relative_l2(p.dx.view(), exact.dx.view()) <= unit_roundoff<G>() + bound);
    CHECK(relative_l2(p.da.view(), exact.da.view()) <= bound);
    CHECK(relative_l2(p.db.view(), exact.db.view()) <= bound);
    p.run_embedding(be, list);
    exact.run_embedding(exact_be, list);
    CHECK(relative_l2(p.da.view(), exact.da.view()) <= bound);
    CHECK(relative_l2(p.db.view(), exact.db.view()) <= bound);
  }
}

TEST_CASE("gradients of deltas on buffers of every type", "[isa]") {
  SECTION("f32") { check_type<float, float, float>(); }
  SECTION("bf16") { check_type<float, bf16, bf16>(); }
  SECTION("f16") { check_type<float, f16, f16>(); }
  SECTION("bf16 inputs, f32 gradients") { check_type<float, bf16, float>(); }
  SECTION("f64 factors, f32 buffers") { check_type<double, float, float>(); }
}

TEST_CASE("the bits of a delta's gradients do not depend on the number of threads", "[many_threads]") {
  auto const list = scattered(150);
  CpuBackend<float> serial;
  Problem<float> expected(150, 130, 200, 5, 5), expected_embedding = expected;
  expected.run(serial, list);
  expected_embedding.run_embedding(serial, list);
  for (index_t const threads : {2, 3}) {
    ThreadPool pool(threads);
    CpuBackend<float> be(pool);
    Problem<float> p(150, 130, 200, 5, 5), embedding = p;
    p.run(be, list);
    embedding.run_embedding(be, list);
    CHECK((same_bits(p.dx.view(), expected.dx.view()) && same_bits(p.da.view(), expected.da.view())));
    CHECK(same_bits(p.db.view(), expected.db.view()));
    CHECK(same_bits(embedding.da.view(), expected_embedding.da.view()));
    CHECK(same_bits(embedding.db.view(), expected_embedding.db.view()));
  }
}

}  // namespace
