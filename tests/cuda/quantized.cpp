// SPDX-License-Identifier: Apache-2.0
// Products with weights in ggml's formats on the device against plain loops over the decoded weight in double.
#include <graft/backend/cuda/quantized.cuh>
#include <tests/catch.hpp>
#include <tests/cuda/on_device.hpp>

#include <utility>
#include <vector>

namespace {

using namespace graft_test;

struct Stored {
  Format format;
  index_t rows, cols;
  std::vector<std::byte> bytes;
  Weight host() const { return {bytes.data(), format, rows, cols, nullptr}; }
};

Stored random_weight(Format format, index_t rows, index_t cols, Random& random) {
  Stored w{format, rows, cols, std::vector<std::byte>(static_cast<std::size_t>(rows * row_bytes(format, cols)))};
  std::vector<float> row(static_cast<std::size_t>(cols));
  for (index_t r = 0; r < rows; ++r) {
    fill_normal(VectorView<float>{row.data(), cols}, random);
    encode_row(format, row.data(), cols, w.bytes.data() + r * row_bytes(format, cols));
  }
  return w;
}

/// The weight on the device, `shift` bytes behind an aligned address.
template <class Act>
Weight put(Device<Act>& device, Stored const& w, index_t shift) {
  std::vector<std::byte> all(static_cast<std::size_t>(shift));
  all.insert(all.end(), w.bytes.begin(), w.bytes.end());
  return {device.put(all) + shift, w.format, w.rows, w.cols, nullptr};
}

template <class Act>
void check_product(Format format, index_t rows, index_t outputs, index_t cols, index_t shift, bool biased) {
  Random random(static_cast<std::uint64_t>(cols + rows));
  Device<Act> device;
  auto const stored = random_weight(format, outputs, cols, random);
  Buffer<Act> x(rows, cols, 8), y(rows, outputs, 3);
  fill_normal(x.view(), random);
  for (index_t n = 0; n < rows; ++n) std::fill(y.row(n), y.row(n) + outputs, static_cast<Act>(std::nanf("")));
  std::vector<float> bias;
  if (biased) {
    bias.resize(static_cast<std::size_t>(outputs));
    fill_normal(VectorView<float>{bias.data(), outputs}, random);
  }
  Matrix correct = Matrix(x.view()) * transposed(dense(stored.host()));
  for (index_t n = 0; n < rows && biased; ++n)
    for (index_t o = 0; o < outputs; ++o) correct(n, o) += bias[static_cast<std::size_t>(o)];
  auto const y_device = device.put(y);
  cuda::multiply_few_rows(device.be, MatrixView<Act const, DeviceSpace>(device.put(x)), put(device, stored, shift),
                          VectorView<float const, DeviceSpace>{device.put(bias), static_cast<index_t>(bias.size())},
                          y_device);
  auto const result = device.get(y_device);
  INFO(format_info(format).name << ", n " << rows << ", o " << outputs << ", i " << cols << ", shift " << shift);
  // one rounding to Act; sums in f32
  CHECK(worst_row(result.view(), correct) <= 2 * unit_roundoff<Act>() + sum_bound(cols));
  REQUIRE(result.gaps_untouched());
}

TEMPLATE_TEST_CASE("device: few rows meet the blocks of a weight", "", float, bf16, f16) {
  for (auto const format : {Format::q8_0, Format::q4_0, Format::q4_1, Format::q6_k}) {
    index_t const block = format_info(format).block;
    check_product<TestType>(format, 1, 13, block, 0, false);
    check_product<TestType>(format, 1, 9, 5 * 256, 2, true);
    check_product<TestType>(format, 3, 8, 256 + block, 4, true);
    check_product<TestType>(format, 5, 17, 2 * 1024 + block, 6, false);
    check_product<TestType>(format, 8, 3, 1024, 0, true);
  }
}

TEMPLATE_TEST_CASE("device: weights are decoded exactly", "", float, bf16, f16) {
  Random random(1);
  constexpr index_t rows = 7, cols = 1024 + 256;  // a whole piece of a row and a part of one
  for (auto const format : {Format::q8_0, Format::q4_0, Format::q4_1, Format::q6_k})
    for (auto const& [shift, gap] : {std::pair<index_t, index_t>{0, 0}, {2, 0}, {2, 5}}) {
      Device<TestType> device;
      auto const stored = random_weight(format, rows, cols, random);
      Buffer<TestType> out(rows, cols, gap);
      auto const out_device = device.put(out);
      dequantize(device.be, put(device, stored, shift), out_device);
      auto const result = device.get(out_device);
      for (index_t r = 0; r < rows; ++r) {
        std::vector<float> row(static_cast<std::size_t>(cols));
        stored.host().row(r, row.data());
        for (index_t c = 0; c < cols; ++c) {
          auto const rounded = static_cast<TestType>(row[static_cast<std::size_t>(c)]);
          REQUIRE(same_bits(result.row(r) + c, &rounded, 1));
        }
      }
      REQUIRE(result.gaps_untouched());
    }
}

TEST_CASE("device: formats that the device does not multiply are refused by name") {
  Device<float> device;
  Weight const weight{nullptr, Format::q5_k, 1, 256, nullptr};
  MatrixView<float, DeviceSpace> y{nullptr, 1, 1, 1};
  MatrixView<float const, DeviceSpace> x{nullptr, 1, 256, 256};
  CHECK_THROWS_WITH(cuda::multiply_few_rows(device.be, x, weight, {}, y),
                    Catch::Contains("Q5_K") && Catch::Contains("graft convert --type"));
}

}  // namespace
