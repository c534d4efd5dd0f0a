// SPDX-License-Identifier: Apache-2.0
// Products of the CUDA backend with weights in every format it takes, against plain loops in double.
#include <graft/backend/cuda/product.cuh>
#include <graft/testing/buffer.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/random.hpp>
#include <tests/backend/stored_weight.hpp>
#include <tests/catch.hpp>
#include <tests/cuda/device.hpp>

#include <cmath>
#include <vector>

namespace {

using namespace graft;
using namespace graft::testing;
using graft_test::DeviceArray;
using graft_test::DeviceBuffer;

template <class T>
Format format_of() {
  return std::same_as<T, float> ? Format::f32 : std::same_as<T, f16> ? Format::f16 : Format::bf16;
}

/// A stored weight and its copy on the device.
struct ResidentWeight {
  ResidentWeight(Format format, index_t o, index_t i, Random& random)
      : host(format, o, i, random),
        memory(std::span<std::byte const>(host.weight.data, static_cast<std::size_t>(host.weight.bytes()))),
        weight{memory.data(), format, o, i, nullptr} {}
  graft_test::StoredWeight host;
  DeviceArray<std::byte> memory;
  Weight weight;
};

/// x W^T + b in double, from what is stored.
template <class T>
Matrix exact(Buffer<T> const& x, Weight const& weight, Buffer<float> const* bias) {
  index_t const n = x.view().rows;
  Matrix y(n, weight.rows);
  std::vector<double> row(static_cast<std::size_t>(weight.cols));
  for (index_t o = 0; o < weight.rows; ++o) {
    weight.row(o, row.data());
    for (index_t r = 0; r < n; ++r) {
      double sum = bias != nullptr ? to_double(bias->row(0)[o]) : 0;
      for (index_t k = 0; k < weight.cols; ++k) sum += to_double(x.row(r)[k]) * row[static_cast<std::size_t>(k)];
      y(r, o) = sum;
    }
  }
  return y;
}

/// Relative L2 distance allowed of a row: sums of k products in float differ by about sqrt(k) roundings of their size
/// (k < 2000 here), then the result is rounded to T. Where T is narrow, weights of another format and biases are
/// rounded to T before: of random signs, they weigh as much as a rounding of the result each.
template <class T>
double allowed(bool rounded_weight, bool rounded_bias) {
  double const narrow = std::same_as<T, float> ? 0 : unit_roundoff<T>();
  return 1e-5 + narrow * (1 + int{rounded_weight} + int{rounded_bias});
}

template <class T>
void check_product(CudaBackend<T>& be, Format format, index_t n, index_t o, index_t i, bool with_bias, Random& random) {
  INFO(format_info(format).name << ": " << n << " rows, " << o << " outputs, " << i << " inputs, bias " << with_bias);
  ResidentWeight const w(format, o, i, random);
  Buffer<T> x(n, i, i % 8 == 0 ? 8 : 3);
  fill_normal(x.view(), random);
  Buffer<float> bias(1, o);
  fill_normal(bias.view(), random);
  DeviceBuffer<T> const from(x), y(n, o, o % 8 == 0 ? 8 : 1);
  DeviceBuffer<float> const offset(bias);
  VectorView<float const, DeviceSpace> const none{};
  product(be, from.const_view(), w.weight,
          with_bias ? VectorView<float const, DeviceSpace>{offset.view().data, o} : none, y.view());
  bool const rounded_weight = format != format_of<T>();
  CHECK(worst_row(y.host().view(), exact(x, w.host.weight, with_bias ? &bias : nullptr)) <=
        allowed<T>(rounded_weight, with_bias));
  REQUIRE(y.host().gaps_untouched());
}

TEMPLATE_TEST_CASE("dense products on the device equal plain loops", "", float, bf16, f16) {
  using T = TestType;
  Random random(1);
  CudaBackend<T> be;
  for (auto const& [n, o, i] : {std::array<index_t, 3>{1, 64, 64},
                                {1, 7, 5},
                                {3, 100, 31},
                                {8, 64, 96},
                                {9, 65, 64},
                                {64, 40, 576},
                                {256, 24, 33}})
    for (bool const with_bias : {false, true})
      for (Format const format : {Format::f32, Format::f16, Format::bf16})
        check_product(be, format, n, o, i, with_bias, random);
  DeviceBuffer<T> const none(0, 64), nothing(0, 8);
  ResidentWeight const w(format_of<T>(), 8, 64, random);
  product(be, none.const_view(), w.weight, {}, nothing.view());
  REQUIRE(graft_test::finish() == "");
}

TEMPLATE_TEST_CASE("products with quantised weights equal plain loops, for few rows and for many", "", float, bf16) {
  using T = TestType;
  Random random(2);
  CudaBackend<T> be;
  for (Format const format : {Format::q8_0, Format::q4_0, Format::q4_1, Format::q6_k})
    for (auto const& [n, o, i] :
         {std::array<index_t, 3>{1, 64, 256}, {2, 9, 512}, {5, 33, 1536}, {8, 16, 256}, {9, 70, 256}, {33, 20, 512}})
      for (bool const with_bias : {false, true}) check_product(be, format, n, o, i, with_bias, random);
  REQUIRE(graft_test::finish() == "");
}

TEST_CASE("a bias may lie anywhere") {
  Random random(6);
  CudaBackend<float> be;
  ResidentWeight const w(Format::f32, 40, 64, random);
  Buffer<float> x(5, 64), bias(1, 41);
  fill_normal(x.view(), random), fill_normal(bias.view(), random);
  DeviceBuffer<float> const from(x), offset(bias), y(5, 40);
  for (index_t const first : {0, 1}) {
    Buffer<float> part(1, 40);
    std::copy_n(bias.row(0) + first, 40, part.row(0));
    product(be, from.const_view(), w.weight, {offset.view().data + first, 40}, y.view());
    CHECK(worst_row(y.host().view(), exact(x, w.host.weight, &part)) <= allowed<float>(false, true));
  }
  REQUIRE(graft_test::finish() == "");
}

TEST_CASE("weights larger than a slice are decoded slice by slice") {
  Random random(3);
  CudaBackend<float> be;
  // 65536 floats a row: 64 outputs make a slice of 16 MiB
  CHECK(cuda::slice_outputs<float>(65536) == 64);
  ResidentWeight const w(Format::q8_0, 130, 65536, random);
  Buffer<float> x(9, 65536), bias(1, 130);
  fill_normal(x.view(), random);
  fill_normal(bias.view(), random);
  DeviceBuffer<float> const from(x), offset(bias), y(9, 130);
  product(be, from.const_view(), w.weight, {offset.view().data, 130}, y.view());
  CHECK(worst_row(y.host().view(), exact(x, w.host.weight, &bias)) <= 2e-5);  // sums of 65536
  REQUIRE(graft_test::finish() == "");
}

TEST_CASE("formats the device does not multiply are refused by name, with what to do") {
  Random random(4);
  CudaBackend<bf16> be;
  DeviceBuffer<bf16> const one(1, 256), many(20, 256), y(1, 8), ys(20, 8);
  for (Format const format : {Format::f64, Format::q5_0, Format::q5_1, Format::q4_k, Format::q5_k}) {
    ResidentWeight const w(format, 8, 256, random);
    using Catch::Contains;
    for (bool const few : {true, false})
      CHECK_THROWS_WITH(product(be, (few ? one : many).const_view(), w.weight, {}, (few ? y : ys).view()),
                        Contains(format_info(format).name) && Contains("graft convert --type"));
  }
  REQUIRE(graft_test::finish() == "");
}

TEST_CASE("cuBLASLt is asked once for every shape, and memory is taken while warming up only") {
  Random random(5);
  CudaBackend<bf16> be;
  ResidentWeight const dense(Format::bf16, 64, 128, random), stored(Format::q4_0, 64, 128, random);
  DeviceArray<float> const bias(std::vector<float>(64, 1.f));
  DeviceBuffer<bf16> const x(20, 128), y(20, 64);
  auto const work = [&] {
    for (index_t const n : {1, 20})
      for (auto const* w : {&dense, &stored})
        product(be, x.const_view().row_range(0, n), w->weight, bias.view(), y.view().row_range(0, n));
  };
  work();
  work();  // the arena joins its blocks behind the first round
  auto const shapes = be.dense_products().shapes();
  auto const held = be.arena().capacity();
  CHECK(shapes == 2);  // one row of the dense weight; twenty of either, the decoded one being dense by then
#if defined(GRAFT_CUDA_EMULATION)
  auto const allocations = emulation::Memory::get().allocations, asked = emulation::lt().heuristics;
  auto const waits = emulation::Device::get().synchronizations;
#endif
  for (int round = 0; round < 5; ++round) work();
  CHECK(be.dense_products().shapes() == shapes);
  CHECK(be.arena().capacity() == held);
#if defined(GRAFT_CUDA_EMULATION)
  CHECK(emulation::Memory::get().allocations == allocations);
  CHECK(emulation::lt().heuristics == asked);
  CHECK(emulation::Device::get().synchronizations == waits);
#endif
  REQUIRE(graft_test::finish() == "");
}

TEMPLATE_TEST_CASE("dense products multiply transposes, and add to what is there", "", float, bf16) {
  using T = TestType;
  using cuda::Transpose;
  Random random(6);
  CudaBackend<T> be;
  index_t const m = 5, n = 6, k = 7;
  for (bool const turn_a : {false, true})
    for (bool const turn_b : {false, true})
      for (bool const accumulate : {false, true}) {
        Buffer<T> a(turn_a ? k : m, turn_a ? m : k, 1), b(turn_b ? n : k, turn_b ? k : n, 2);
        Buffer<float> c(m, n, 3);
        fill_normal(a.view(), random);
        fill_normal(b.view(), random);
        fill_normal(c.view(), random);
        Matrix const left = turn_a ? transposed(Matrix(a.view())) : Matrix(a.view());
        Matrix const right = turn_b ? transposed(Matrix(b.view())) : Matrix(b.view());
        Matrix expected = left * right;
        if (accumulate) expected = expected + Matrix(c.view());
        DeviceBuffer<T> const da(a), db(b);
        DeviceBuffer<float> const dc(c);
        be.dense_products().template multiply<T, float>(
            be.stream(), be.arena(), da.const_view(), turn_a ? Transpose::yes : Transpose::no, db.const_view(),
            turn_b ? Transpose::yes : Transpose::no, nullptr, dc.view(), accumulate);
        CHECK(worst_row(dc.host().view(), expected) <= 1e-6);  // factors exact, seven products in float
        REQUIRE(dc.host().gaps_untouched());
      }
  REQUIRE(graft_test::finish() == "");
}

}  // namespace
