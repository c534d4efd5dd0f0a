// SPDX-License-Identifier: Apache-2.0
// Affine row maps on the device against dense matrices in double, and what they must leave alone.
#include <graft/backend/cuda/row_map.cuh>
#include <tests/catch.hpp>
#include <tests/cuda/on_device.hpp>

#include <cstring>
#include <deque>

namespace {

using namespace graft_test;

/// Maps of rows: every fourth row has none.
struct Maps {
  std::deque<OwnedMap<float>> owned;
  std::deque<RowMapRow<float const>> rows;
  std::vector<RowMapRow<float const> const*> of_row;

  RowMapRow<float const> const* add(Random& random, index_t size, index_t group, bool c, bool e,
                                    RowMapRow<float const> const* next = nullptr) {
    owned.push_back(OwnedMap<float>::random(random, size, group, c, e));
    if (owned.size() % 2 == 0) owned.back().narrow();
    owned.back().next = next;
    rows.push_back(owned.back().row());
    return &rows.back();
  }
};

template <class T>
Matrix expected(Buffer<T> const& y, std::vector<RowMapRow<float const> const*> const& maps) {
  Matrix result(y.view());
  for (index_t n = 0; n < result.rows; ++n)
    if (auto const* map = maps[static_cast<std::size_t>(n)]) {
      Vector const row = dense(*map)(result.row(n));
      std::copy(row.begin(), row.end(), result.view().row(n));
    }
  return result;
}

/// One rounding to T per map, and at most 5 in f32 of sums that cancel little: 16 covers them.
template <class T>
double bound(int maps) {
  return maps * (unit_roundoff<T>() + 16 * unit_roundoff<float>());
}

template <class T>
void check(Maps const& maps, index_t size, index_t gap, int in_chain, Random& random) {
  Device<T> device;
  Buffer<T> y(static_cast<index_t>(maps.of_row.size()), size, gap);
  fill_normal(y.view(), random);
  Matrix const correct = expected(y, maps.of_row);
  auto const on_device = device.put(y);
  apply_row_map(device.be, device.put_maps(maps.of_row), on_device);
  auto const result = device.get(on_device);
  CHECK(worst_row(result.view(), correct) <= bound<T>(in_chain));
  REQUIRE(result.gaps_untouched());
  for (index_t n = 0; n < y.view().rows; ++n)
    if (maps.of_row[static_cast<std::size_t>(n)] == nullptr) REQUIRE(same_bits(result.row(n), y.row(n), size));
}

TEMPLATE_TEST_CASE("device: row maps equal dense matrices", "", float, bf16, f16) {
  Random random(1);
  for (index_t const size : {12, 64, 130, 576, 2112})
    for (index_t const group : {index_t{0}, index_t{2}, index_t{4}, index_t{6}, index_t{8}, index_t{64}, size}) {
      if (group != 0 && size % group != 0) continue;
      if (size > 1000 && group == size) continue;  // dense matrices of this size take seconds
      for (int form = 1; form < 8; ++form) {
        bool const c = form & 1, d = form & 2, e = form & 4;
        if (d != (group != 0) || (size > 1000 && form != 7 && form != 5)) continue;
        Maps maps;
        for (int n = 0; n < (size > 1000 ? 3 : 7); ++n)
          maps.of_row.push_back(n % 4 == 2 ? nullptr : maps.add(random, size, group, c, e));
        INFO("size " << size << ", g " << group << ", c " << c << ", d " << d << ", e " << e);
        check<TestType>(maps, size, size % 16 == 0 ? 16 : 7, 1, random);
      }
    }
}

TEST_CASE("device: successors wait for the map before them") {
  Random random(2);
  Maps maps;
  for (int n = 0; n < 6; ++n) {
    auto const* const third = maps.add(random, 576, 2, true, true);
    auto const* const second = maps.add(random, 576, 192, false, false, third);
    maps.of_row.push_back(n == 3 ? nullptr : maps.add(random, 576, 64, true, false, n % 2 == 0 ? second : third));
  }
  check<float>(maps, 576, 0, 3, random);
  check<bf16>(maps, 576, 5, 3, random);
}

TEST_CASE("device: coefficients and rows of any alignment") {
  bool const narrow = GENERATE(false, true);
  Random random(3);
  Device<bf16> device;
  auto map = OwnedMap<float>::random(random, 64, 8, true, true);
  if (narrow) map.narrow();
  auto const row = map.row();
  // every vector one element behind a 16-byte boundary, every row of y too
  auto const shifted = [&](Numbers<float> const& from) -> Numbers<float> {
    auto const element = static_cast<std::size_t>(from.bytes(1));
    std::vector<std::byte> v(65 * element);
    std::memcpy(v.data() + element, from.data(), 64 * element);
    return from.moved_to(device.put(v) + element);
  };
  RowMapRow<float const> const on_device{shifted(row.c1), shifted(row.d), shifted(row.e), 64, 8, nullptr};
  std::vector<RowMapRow<float const> const*> tables{device.put(&on_device, 1)};
  std::vector<std::int32_t> const request{0, -1, 0};
  RowMapBatch<float> const batch{device.put(tables), device.put(request), 1, 0, 1};
  Buffer<bf16> y(3, 65, 0);
  fill_normal(y.view(), random);
  auto const all = device.put(y);
  apply_row_map(device.be, batch, all.col_range(1, 64));
  auto const result = device.get(all);
  Buffer<bf16> before(3, 64);
  for (index_t n = 0; n < 3; ++n) std::copy(y.row(n) + 1, y.row(n) + 65, before.row(n));
  Matrix const correct = expected(before, {&row, nullptr, &row});
  CHECK(worst_row(result.view().col_range(1, 64), correct) <= bound<bf16>(1));
  for (index_t n = 0; n < 3; ++n) CHECK(same_bits(result.row(n), y.row(n), 1));
}

}  // namespace
