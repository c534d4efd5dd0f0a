// SPDX-License-Identifier: Apache-2.0
// Views: which element an index means, parts of views, and which conversions exist.
#include <graft/core/view.hpp>
#include <tests/catch.hpp>

#include <numeric>
#include <type_traits>
#include <vector>

namespace {

using graft::DeviceSpace;
using graft::MatrixView;
using graft::VectorView;

template <template <class, class> class View>
constexpr bool conversions_are_right() {
  using Mutable = View<float, graft::HostSpace>;
  using ReadOnly = View<float const, graft::HostSpace>;
  using Device = View<float, DeviceSpace>;
  return std::is_convertible_v<Mutable, ReadOnly> && !std::is_convertible_v<ReadOnly, Mutable> &&
         !std::is_convertible_v<Device, Mutable> && !std::is_convertible_v<Device, ReadOnly> &&
         !std::is_convertible_v<Mutable, View<double const, graft::HostSpace>> &&
         std::is_trivially_copyable_v<Mutable> && std::is_trivially_copyable_v<Device>;
}
static_assert(conversions_are_right<MatrixView>());
static_assert(conversions_are_right<VectorView>());
static_assert(graft::ceil_div(0, 4) == 0 && graft::ceil_div(1, 4) == 1 && graft::ceil_div(8, 4) == 2);
static_assert(graft::round_up(0, 16) == 0 && graft::round_up(17, 16) == 32 && graft::round_up(32, 16) == 32);

std::vector<int> counting(std::size_t size) {
  std::vector<int> numbers(size);
  std::iota(numbers.begin(), numbers.end(), 0);
  return numbers;
}

TEST_CASE("element (r, c) of a matrix view is data[r * stride + c]") {
  auto numbers = counting(3 * 7);
  auto const m = graft::matrix_view(numbers.data(), 3, 5, 7);
  for (int r = 0; r < 3; ++r)
    for (int c = 0; c < 5; ++c) {
      REQUIRE(m(r, c) == 7 * r + c);
      REQUIRE(&m(r, c) == m.row(r) + c);
    }
  CHECK(m.size() == 15);

  auto const contiguous = graft::matrix_view(numbers.data(), 3, 5);
  CHECK(contiguous.stride == 5);
  CHECK(contiguous(2, 4) == 14);
}

TEST_CASE("ranges of rows and columns are views of the same memory") {
  auto numbers = counting(4 * 6);
  auto const m = graft::matrix_view(numbers.data(), 4, 6);
  auto const part = m.row_range(1, 2).col_range(2, 3);
  REQUIRE(part.rows == 2);
  REQUIRE(part.cols == 3);
  REQUIRE(part.stride == 6);
  for (int r = 0; r < 2; ++r)
    for (int c = 0; c < 3; ++c) REQUIRE(&part(r, c) == &m(r + 1, c + 2));
  part(1, 2) = -1;
  CHECK(m(2, 4) == -1);
}

TEST_CASE("a view without rows or without columns is empty") {
  int number = 0;
  CHECK(graft::matrix_view(&number, 0, 5).empty());
  CHECK(graft::matrix_view(&number, 5, 0).empty());
  CHECK_FALSE(graft::matrix_view(&number, 1, 1).empty());
  CHECK(MatrixView<float>{}.empty());
  CHECK(VectorView<float>{}.empty());
}

TEST_CASE("vector views index, iterate and split") {
  auto numbers = counting(10);
  auto const v = graft::vector_view(numbers.data(), 10);
  CHECK(std::accumulate(v.begin(), v.end(), 0) == 45);
  auto const part = v.part(3, 4);
  REQUIRE(part.size == 4);
  CHECK(part[0] == 3);
  CHECK(part.end() - part.begin() == 4);
  VectorView<int const> const read_only = part;
  CHECK(&read_only[3] == &v[6]);
}

}  // namespace
