// SPDX-License-Identifier: Apache-2.0
// Gradients of a low-rank delta on the device against matrix products in double.
#include <graft/backend/cuda/low_rank_backward.cuh>
#include <tests/catch.hpp>
#include <tests/cuda/on_device.hpp>

#include <cmath>

namespace {

using namespace graft_test;

template <class T>
Buffer<T> random_buffer(Random& random, index_t rows, index_t cols, index_t gap, double deviation = 1) {
  Buffer<T> result(rows, cols, gap);
  fill_normal(result.view(), random, 0, deviation);
  return result;
}

/// Rows that are not listed become zero.
Matrix listed(Matrix m, std::vector<std::int32_t> const& rows) {
  Matrix result(m.rows, m.cols);
  for (auto const n : rows) std::copy_n(m.view().row(n), m.cols, result.view().row(n));
  return result;
}

template <class T>
void check(index_t rank, index_t inputs, index_t outputs, bool embedding, index_t count = 37) {
  Random random(static_cast<std::uint64_t>(rank));
  std::vector<std::int32_t> rows, tokens;
  for (std::int32_t n = 1; n < count; n += 1 + n % 2) rows.push_back(n);
  Matrix one_hot(count, inputs);
  for (index_t n = 0; n < count; ++n) {  // few tokens, so that rows share them
    tokens.push_back(static_cast<std::int32_t>(pick(random, 0, 8)));
    one_hot(n, tokens.back()) = 1;
  }
  auto const x = random_buffer<T>(random, count, inputs, 8), dy = random_buffer<T>(random, count, outputs, 3),
             dx = random_buffer<T>(random, count, inputs, 5);
  auto const a = random_buffer<float>(random, rank, inputs, 0), b = random_buffer<float>(random, rank, outputs, 0);
  auto const da = random_buffer<float>(random, rank, inputs, 0), db = random_buffer<float>(random, rank, outputs, 0);
  float const scale = 1.5f, weight = -0.75f;
  Matrix const slopes = listed(Matrix(dy.view()), rows);
  Matrix const inputs64 = embedding ? one_hot : Matrix(x.view());
  Matrix const g = double{scale * weight} * (slopes * transposed(Matrix(b.view())));
  Matrix const t = double{scale * weight} * (inputs64 * transposed(Matrix(a.view())));
  Matrix const da64 = Matrix(da.view()) + transposed(g) * inputs64;
  Matrix const db64 = Matrix(db.view()) + transposed(t) * slopes;
  Matrix const dx64 = Matrix(dx.view()) + g * Matrix(a.view());

  Device<T> device;
  LowRankFactors<float> const factors{device.put(a).data, device.put(b).data, rank, scale};
  std::span<std::int32_t const> const on_device(device.put(rows), rows.size());
  auto const dy1 = MatrixView<T const, DeviceSpace>(device.put(dy));
  auto const dx1 = device.put(dx);
  auto const da1 = device.put(da), db1 = device.put(db);
  if (embedding)
    low_rank_embedding_backward(device.be, factors, weight, on_device, device.put(tokens), inputs, dy1, da1.data,
                                db1.data);
  else
    low_rank_backward(device.be, factors, weight, on_device, MatrixView<T const, DeviceSpace>(device.put(x)), dy1, dx1,
                      da1.data, db1.data);
  INFO("rank " << rank << ", embedding " << embedding);
  // sums of f32 over columns, then over rows; what is added to is f32, dx is rounded to T once
  double const limit = sum_bound(std::max(inputs, outputs)) + sum_bound(count);
  CHECK(worst_row(device.get(da1).view(), da64) <= limit);
  CHECK(worst_row(device.get(db1).view(), db64) <= limit);
  auto const result = device.get(dx1);
  CHECK(worst_row(result.view(), embedding ? Matrix(dx.view()) : dx64) <= unit_roundoff<T>() + limit);
  CHECK(result.gaps_untouched());
  for (index_t n = 0; n < count; ++n)
    if (std::find(rows.begin(), rows.end(), n) == rows.end()) CHECK(same_bits(result.row(n), dx.row(n), inputs));
}

TEMPLATE_TEST_CASE("device: gradients of a low-rank delta", "", float, bf16, f16) {
  for (bool const embedding : {false, true}) {
    check<TestType>(1, 40, 130, embedding);
    check<TestType>(7, 192, 64, embedding);
    check<TestType>(16, 96, 96, embedding);
  }
  check<TestType>(18, 20, 150, false, 250);  // more rows and ranks than a block sums
  check<TestType>(2, 24, 40, false, 3300);   // and more than the fewest of a piece
}

}  // namespace
