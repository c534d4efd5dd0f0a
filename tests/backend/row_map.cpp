// SPDX-License-Identifier: Apache-2.0
// Affine row maps against dense matrices in double, on every buffer type, and what they must leave alone.
#include <graft/backend/cpu/row_map.hpp>
#include <graft/testing/buffer.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/maps.hpp>
#include <graft/testing/reference.hpp>
#include <tests/catch.hpp>

#include <bit>
#include <cstdint>
#include <cstring>
#include <deque>
#include <vector>

namespace {

using namespace graft;
using namespace graft::testing;

/// A batch whose rows have maps of their own (one request per row); null: untouched.
template <class R>
struct MapBatch {
  explicit MapBatch(std::vector<RowMapRow<R const> const*> maps) : tables(std::move(maps)) {
    for (std::size_t k = 0; k < tables.size(); ++k) rows.push_back(static_cast<std::int32_t>(k));
  }
  RowMapBatch<R> batch() const { return {tables.data(), rows.data(), static_cast<index_t>(tables.size()), 0}; }
  std::vector<RowMapRow<R const> const*> tables;
  std::vector<std::int32_t> rows;
};

/// y' of every row by the dense maps.
template <class T, class R>
Matrix expected(Buffer<T> const& y, std::vector<RowMapRow<R const> const*> const& maps) {
  Matrix const before(y.view());
  Matrix result = before;
  for (index_t n = 0; n < before.rows; ++n)
    if (auto const* map = maps[static_cast<std::size_t>(n)]) {
      Vector const row = dense(*map)(before.row(n));
      std::copy(row.begin(), row.end(), result.view().row(n));
    }
  return result;
}

/// One rounding to T per map, and in R at most 5 of sums that cancel little (coefficients of size 0.5): 16 covers them.
template <class T, class R>
double bound(int maps) {
  return maps * (unit_roundoff<T>() + 16 * unit_roundoff<R>());
}

template <class R, class T>
void check_maps(Random& random) {
  for (index_t const size : {12, 64, 130, 576})
    for (index_t const group : {index_t{0}, index_t{2}, index_t{6}, index_t{64}, size}) {
      if (group != 0 && size % group != 0) continue;
      for (int form = 1; form < 8; ++form) {
        bool const c = form & 1, d = form & 2, e = form & 4;
        if (d != (group != 0)) continue;
        std::deque<OwnedMap<R>> owned;
        std::deque<RowMapRow<R const>> rows;
        std::vector<RowMapRow<R const> const*> maps;
        for (int n = 0; n < 11; ++n) {
          owned.push_back(OwnedMap<R>::random(random, size, group, c, e));
          if (n % 2 == 1) owned.back().narrow();
          rows.push_back(owned.back().row());
          maps.push_back(n % 4 == 2 ? nullptr : &rows.back());
        }
        Buffer<T> y(11, size, 7);
        fill_normal(y.view(), random);
        Matrix const correct = expected(y, maps);
        CpuBackend<R> be;
        apply_row_map(be, MapBatch<R>(maps).batch(), y.view());
        INFO("size " << size << ", g " << group << ", c " << c << ", d " << d << ", e " << e);
        CHECK(worst_row(y.view(), correct) <= bound<T, R>(1));
        REQUIRE(y.gaps_untouched());
      }
    }
}

TEST_CASE("row maps equal dense matrices on buffers of every type", "[isa]") {
  Random random(1);
  SECTION("f32") { check_maps<float, float>(random); }
  SECTION("bf16") { check_maps<float, bf16>(random); }
  SECTION("f16") { check_maps<float, f16>(random); }
  SECTION("f64") { check_maps<double, double>(random); }
  SECTION("f64 parameters, f32 buffer") { check_maps<double, float>(random); }
}

TEMPLATE_TEST_CASE("coefficients in bf16 give the bits of the same numbers in f32", "[isa]", float, bf16, f16, double) {
  using T = TestType;
  using R = real_of<T>;
  Random random(6);
  for (index_t const size : {12, 130, 576})
    for (index_t const group : {index_t{0}, index_t{2}, size})
      for (bool const c : {false, true})
        for (bool const e : {false, true}) {
          if (!c && !e && group == 0) continue;
          auto const map = OwnedMap<R>::random(random, size, group, c, e).narrow();
          RowMapRow<R const> const narrow = map.row(), full = map.full_row();
          REQUIRE((narrow.narrow() && !full.narrow()));
          Buffer<T> y(1, size), other(1, size);
          fill_normal(y.view(), random);
          other = y;
          Buffer<T> const before = y;
          CpuBackend<R> be;
          apply_row_map(be, MapBatch<R>({&narrow}).batch(), y.view());
          apply_row_map(be, MapBatch<R>({&full}).batch(), other.view());
          CHECK(same_bits(y.view(), other.view()));
          CHECK_FALSE(same_bits(y.view(), std::as_const(before).view()));
        }
}

TEMPLATE_TEST_CASE("a chain of maps with unequal groups applies them in order", "", float, bf16, f16) {
  using T = TestType;
  Random random(2);
  for (int trial = 0; trial < 20; ++trial) {
    index_t const size = 192, length = pick(random, 2, 4);
    std::deque<OwnedMap<float>> owned;
    std::deque<RowMapRow<float const>> rows;
    for (index_t k = 0; k < length; ++k) {
      index_t const group = pick(random, {0, 2, 6, 64, 192});
      owned.push_back(OwnedMap<float>::random(random, size, group, pick(random, 0, 1) == 1, group == 0, 0.3));
      if (trial % 2 == 1) owned.back().narrow();
      rows.push_back(owned.back().row());
      if (k > 0) rows[static_cast<std::size_t>(k - 1)].next = &rows.back();
    }
    Buffer<T> y(1, size);
    fill_normal(y.view(), random);
    std::vector<RowMapRow<float const> const*> const maps{&rows.front()};
    Matrix const correct = expected(y, maps);
    CpuBackend<> be;
    apply_row_map(be, MapBatch<float>(maps).batch(), y.view());
    // an error made in one map passes through at most three more, each of norm below 2
    CHECK(worst_row(y.view(), correct) <= 8 * bound<T, float>(static_cast<int>(length)));
  }
}

/// Bit patterns that arithmetic would change: NaNs with payloads (quiet and signalling), -0, subnormals, infinities.
template <class T>
std::vector<T> fragile() {
  std::vector<std::uint64_t> bits;
  if constexpr (sizeof(T) == 8)
    bits = {0x7ff8000000001234u, 0xfff0000000000001u, 0x8000000000000000u, 1u, 0x7ff0000000000000u};
  else if constexpr (sizeof(T) == 4)
    bits = {0x7fc01234u, 0xff800001u, 0x80000000u, 1u, 0x7f800000u};
  else if constexpr (std::same_as<T, bf16>)
    bits = {0x7fc5u, 0xff81u, 0x8000u, 1u, 0x7f80u};
  else
    bits = {0x7e15u, 0xfc01u, 0x8000u, 1u, 0x7c00u};
  std::vector<T> values(bits.size());
  for (std::size_t k = 0; k < bits.size(); ++k)
    std::memcpy(static_cast<void*>(&values[k]), &bits[k], sizeof(T));  // little-endian
  return values;
}

TEMPLATE_TEST_CASE("rows without a map keep their bits", "", float, double, bf16, f16) {
  using T = TestType;
  using R = real_of<T>;
  static_assert(std::endian::native == std::endian::little);
  Random random(3);
  index_t const size = 64, rows = 40;
  auto const map = OwnedMap<R>::random(random, size, 2, true, true);
  RowMapRow<R const> const present = map.row(), identity{nullptr, nullptr, nullptr, size, 0, nullptr};
  // request 0 has a map, 1 the identity, 2 no table at all; some rows have no request
  std::vector<RowMapRow<R const> const*> const tables{&present, &identity, nullptr};
  std::vector<std::int32_t> request;
  for (index_t n = 0; n < rows; ++n) request.push_back(static_cast<std::int32_t>(pick(random, -1, 2)));
  auto const special = fragile<T>();
  Buffer<T> y(rows, size, 3);
  for (index_t n = 0; n < rows; ++n)
    for (index_t k = 0; k < size; ++k)
      y.row(n)[k] =
          request[static_cast<std::size_t>(n)] == 0 ? static_cast<T>(1.0f) : special[static_cast<std::size_t>(k % 5)];
  Buffer<T> const before = y;
  CpuBackend<R> be;
  apply_row_map(be, RowMapBatch<R>{tables.data(), request.data(), 3, 0}, y.view());
  for (index_t n = 0; n < rows; ++n) {
    INFO("row " << n << " of request " << request[static_cast<std::size_t>(n)]);
    CHECK(same_bits(y.row(n), before.row(n), size) == (request[static_cast<std::size_t>(n)] != 0));
  }
}

TEMPLATE_TEST_CASE("a map's bits depend on its row alone: not on place, neighbours, chunks or executor", "", float,
                   bf16, double) {
  using T = TestType;
  using R = real_of<T>;
  Random random(4);
  for (index_t const group : {0, 2, 6, 64})
    for (bool const e : {false, true}) {
      index_t const size = group == 6 ? 198 : 320, count = 20;
      std::deque<OwnedMap<R>> owned;
      std::deque<RowMapRow<R const>> rows;
      std::vector<RowMapRow<R const> const*> maps;
      for (index_t n = 0; n < count; ++n) {
        owned.push_back(OwnedMap<R>::random(random, size, group, true, e));
        rows.push_back(owned.back().row());
        maps.push_back(&rows.back());
      }
      Buffer<T> start(count, size), y(count, size);
      fill_normal(start.view(), random);
      y = start;
      CpuBackend<R> be;
      apply_row_map(be, MapBatch<R>(maps).batch(), y.view());

      // alone, at another address, and in chunks as behind a product
      index_t const step = group == 6 ? 66 : 64;
      for (index_t n = 0; n < count; ++n) {
        Buffer<T> alone(1, size + 1);
        T* const row = alone.row(0) + 1;
        std::copy_n(start.row(n), size, row);
        apply_row_map(be, MapBatch<R>({maps[static_cast<std::size_t>(n)]}).batch(), matrix_view(row, 1, size));
        CHECK(same_bits(row, y.row(n), size));
        std::copy_n(start.row(n), size, row);
        for (index_t first = 0; first < size; first += step)
          cpu::map_columns(be, *maps[static_cast<std::size_t>(n)], matrix_view(row, 1, size), first,
                           std::min(size, first + step));
        CHECK(same_bits(row, y.row(n), size));
      }
      // rows of one request that follow each other, some of them across tasks, and rows that no request has
      MapBatch<R> shared(maps);
      for (index_t n = 0; n < count; ++n)
        shared.rows[static_cast<std::size_t>(n)] = n < 2 ? -1 : static_cast<std::int32_t>(n / 5);
      Buffer<T> runs = start;
      apply_row_map(be, shared.batch(), runs.view());
      for (index_t n = 0; n < count; ++n) {
        Buffer<T> alone(1, size);
        std::copy_n(start.row(n), size, alone.row(0));
        if (n >= 2) apply_row_map(be, MapBatch<R>({maps[static_cast<std::size_t>(n / 5)]}).batch(), alone.view());
        CHECK(same_bits(runs.row(n), alone.row(0), size));
      }
      // another executor
      ThreadPool pool(3);
      CpuBackend<R> threaded(pool);
      Buffer<T> parallel = start, sliced = start;
      apply_row_map(threaded, MapBatch<R>(maps).batch(), parallel.view());
      CHECK(same_bits(parallel.view(), y.view()));
      for (index_t slice = 0; slice < 2; ++slice) {
        SliceExecutor executor(slice, 2);
        CpuBackend<R> part(executor);
        apply_row_map(part, MapBatch<R>(maps).batch(), sliced.view());
      }
      CHECK(same_bits(sliced.view(), y.view()));
    }
}

TEST_CASE("a batch knows whether it has maps and whether they fit a chunk") {
  Random random(5);
  auto const fine = OwnedMap<float>::random(random, 384, 64, true, false);
  auto wide = OwnedMap<float>::random(random, 384, 128, true, false);
  auto const diagonal = OwnedMap<float>::random(random, 384, 0, true, false);
  RowMapRow<float const> const a = fine.row(), b = wide.row(), c = diagonal.row(),
                               none{nullptr, nullptr, nullptr, 384, 0, nullptr};
  CHECK_FALSE(MapBatch<float>({nullptr, &none}).batch().any());
  CHECK(MapBatch<float>({nullptr, &none, &c}).batch().any());
  CHECK(MapBatch<float>({&a, &c, &none, nullptr}).batch().fits(64));
  CHECK_FALSE(MapBatch<float>({&a, &b}).batch().fits(64));
  CHECK(MapBatch<float>({&a, &b}).batch().fits(128));
  RowMapRow<float const> chain = c;
  chain.next = &b;
  CHECK_FALSE(MapBatch<float>({&chain}).batch().fits(64));
  CHECK(MapBatch<float>({nullptr, &a}).batch().row(0) == nullptr);
  CHECK(MapBatch<float>({nullptr, &a}).batch().row(1) == &a);
}

TEST_CASE("partners are half a group apart, each the other's") {
  static_assert(partner(0, 2) == 1 && partner(1, 2) == 0 && partner(4, 2) == 5);
  static_assert(partner(0, 6) == 3 && partner(4, 6) == 1 && partner(6, 6) == 9);
  for (index_t const group : {2, 6, 64})
    for (index_t j = 0; j < 3 * group; ++j) {
      REQUIRE(partner(partner(j, group), group) == j);
      REQUIRE(partner(j, group) / group == j / group);
    }
}

}  // namespace
