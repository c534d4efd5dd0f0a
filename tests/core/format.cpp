// SPDX-License-Identifier: Apache-2.0
// Stored rows against the gguf Python package (tests/golden/make_formats.py), the dispatch, and the quantisers.
#include <tests/catch.hpp>

#include <graft/core/format.hpp>
#include <graft/io/safetensors.hpp>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

using graft::Format;
using graft::index_t;

namespace {

graft::TensorFile const& golden() {
  static auto const file = graft::read_safetensors(GRAFT_TEST_DATA "/formats.safetensors");
  return file;
}

constexpr Format block_formats[] = {Format::q8_0, Format::q4_0, Format::q4_1, Format::q5_0,
                                    Format::q5_1, Format::q4_k, Format::q5_k, Format::q6_k};

// Equal as numbers: the package gives -0 where a product of zero and a negative scale does, and so must we.
template <class T>
index_t different(const std::vector<T>& values, const float* expected) {
  index_t count = 0;
  for (std::size_t k = 0; k < values.size(); ++k) {
    T const e = static_cast<T>(expected[k]);
    count += std::memcmp(&values[k], &e, sizeof e) != 0;
  }
  return count;
}

template <class T>
void rows_equal_those_of_the_package(Format format) {
  std::string const name = graft::format_info(format).name;
  auto const& stored = golden().at(name + ".stored");
  auto const& decoded = golden().at(name + ".decoded");
  index_t const rows = decoded.shape.at(0), cols = decoded.shape.at(1);
  REQUIRE(stored.shape == std::vector<index_t>{rows, graft::row_bytes(format, cols)});
  for (index_t r = 0; r < rows; ++r) {
    const std::byte* const row = stored.data + r * stored.shape[1];
    const float* const expected = reinterpret_cast<const float*>(decoded.data) + r * cols;
    std::vector<T> out(static_cast<std::size_t>(cols));
    graft::decode_row(format, row, 0, cols, out.data());
    CHECK(different(out, expected) == 0);

    // any run of whole blocks, and a row that lies at an odd address
    index_t const block = graft::format_info(format).block;
    index_t const first = block, count = cols - block;
    std::vector<std::byte> moved(static_cast<std::size_t>(stored.shape[1]) + 1);
    std::memcpy(moved.data() + 1, row, moved.size() - 1);
    std::vector<T> part(static_cast<std::size_t>(count));
    graft::decode_row(format, moved.data() + 1, first, count, part.data());
    CHECK(different(part, expected + first) == 0);
  }
}

std::vector<float> normal_row(index_t cols, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> row(static_cast<std::size_t>(cols));
  for (auto& x : row) x = normal(random);
  return row;
}

double relative_error_after(Format format, const std::vector<float>& row) {
  auto const cols = static_cast<index_t>(row.size());
  std::vector<std::byte> stored(static_cast<std::size_t>(graft::row_bytes(format, cols)));
  std::vector<float> back(row.size());
  graft::encode_row(format, row.data(), cols, stored.data());
  graft::decode_row(format, stored.data(), 0, cols, back.data());
  double error = 0, norm = 0;
  for (std::size_t k = 0; k < row.size(); ++k) {
    error += std::pow(static_cast<double>(back[k]) - row[k], 2);
    norm += std::pow(static_cast<double>(row[k]), 2);
  }
  return std::sqrt(error / norm);
}

}  // namespace

TEST_CASE("stored rows decode to exactly what the gguf package decodes them to") {
  for (Format const format : block_formats) {
    INFO(graft::format_info(format).name);
    rows_equal_those_of_the_package<float>(format);
    rows_equal_those_of_the_package<double>(format);
  }
  for (Format const format : {Format::f16, Format::bf16}) {
    INFO(graft::format_info(format).name);
    rows_equal_those_of_the_package<float>(format);
    rows_equal_those_of_the_package<double>(format);
  }
}

TEST_CASE("quantisers give the bytes of the gguf package's") {
  for (Format const format :
       {Format::f16, Format::bf16, Format::q8_0, Format::q4_0, Format::q4_1, Format::q5_0, Format::q5_1}) {
    std::string const name = graft::format_info(format).name;
    auto const& source = golden().at(name + ".source");
    auto const& encoded = golden().at(name + ".encoded");
    index_t const cols = source.shape.at(1);
    for (index_t r = 0; r < source.shape[0]; ++r) {
      INFO(name << ", row " << r);
      std::vector<std::byte> stored(static_cast<std::size_t>(graft::row_bytes(format, cols)));
      REQUIRE(encoded.shape.at(1) == static_cast<index_t>(stored.size()));
      graft::encode_row(format, reinterpret_cast<const float*>(source.data) + r * cols, cols, stored.data());
      CHECK(std::memcmp(stored.data(), encoded.data + r * encoded.shape[1], stored.size()) == 0);
    }
  }
}

TEST_CASE("F32 and F64 rows come back as they are") {
  auto const row = normal_row(100, 1);
  std::vector<double> wide(row.begin(), row.end());
  wide[3] = 1.0 / 3;
  std::vector<float> out(100);
  std::vector<double> wide_out(100);
  graft::decode_row(Format::f32, reinterpret_cast<const std::byte*>(row.data()), 0, 100, out.data());
  CHECK(out == row);
  graft::decode_row(Format::f64, reinterpret_cast<const std::byte*>(wide.data()), 0, 100, wide_out.data());
  CHECK(wide_out == wide);
}

TEST_CASE("quantisation errors are those the number of bits allows") {
  auto const row = normal_row(64 * 256, 2);
  // Standard normal values. A uniform step h has error h / sqrt(12). The plain formats' steps follow the extremes of 32
  // values (about +-2.07 on average, so range / levels); the K formats add scale search and pay for 6-bit scales.
  // Bounds are the measured errors of this seed plus a tenth.
  CHECK(relative_error_after(Format::q8_0, row) < 0.00536 * 1.1);
  CHECK(relative_error_after(Format::q4_0, row) < 0.0863 * 1.1);
  CHECK(relative_error_after(Format::q4_1, row) < 0.0788 * 1.1);
  CHECK(relative_error_after(Format::q5_0, row) < 0.0428 * 1.1);
  CHECK(relative_error_after(Format::q5_1, row) < 0.0381 * 1.1);
  CHECK(relative_error_after(Format::q4_k, row) < 0.0722 * 1.1);
  CHECK(relative_error_after(Format::q5_k, row) < 0.0361 * 1.1);
  CHECK(relative_error_after(Format::q6_k, row) < 0.0177 * 1.1);
}

TEST_CASE("a quantised row is a fixed point of its plain format") {
  // The extreme value of a decoded block is the stored scale times -8, -16 or +-127, exact in float, so a second
  // quantisation finds that scale again and the values must not move.
  for (Format const format : {Format::q8_0, Format::q4_0, Format::q5_0}) {
    auto const row = normal_row(1024, 3);
    std::vector<std::byte> stored(static_cast<std::size_t>(graft::row_bytes(format, 1024))), again = stored;
    std::vector<float> once(1024), twice(1024);
    graft::encode_row(format, row.data(), 1024, stored.data());
    graft::decode_row(format, stored.data(), 0, 1024, once.data());
    graft::encode_row(format, once.data(), 1024, again.data());
    graft::decode_row(format, again.data(), 0, 1024, twice.data());
    INFO(graft::format_info(format).name);
    CHECK(once == twice);
  }
}

TEST_CASE("wild values quantise to something without undefined behaviour") {
  float const infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  float const huge = std::numeric_limits<float>::max(), tiny = std::numeric_limits<float>::denorm_min();
  for (float const wild : {infinity, -infinity, nan, huge, -huge, tiny, -tiny, 0.0f}) {
    for (Format const format : block_formats) {
      auto row = normal_row(256, 4);
      row[0] = row[77] = wild;
      std::vector<std::byte> stored(static_cast<std::size_t>(graft::row_bytes(format, 256)));
      graft::encode_row(format, row.data(), 256, stored.data());  // the sanitizers watch
      row.assign(256, wild);
      graft::encode_row(format, row.data(), 256, stored.data());
      if (wild == 0.0f) {
        std::vector<float> back(256, 1.0f);
        graft::decode_row(format, stored.data(), 0, 256, back.data());
        CHECK(back == row);
      }
    }
  }
}

TEST_CASE("every format has a name, a size and a static type or a refusal") {
  for (int k = 0; k < graft::format_count; ++k) {
    auto const format = static_cast<Format>(k);
    auto const info = graft::format_info(format);
    INFO(info.name);
    if (info.weight) {
      auto const sizes = graft::with_format(format, [](auto tag) {
        using Block = decltype(tag);
        return std::pair<index_t, index_t>(Block::block, Block::bytes);
      });
      CHECK(sizes == std::pair<index_t, index_t>(info.block, info.bytes));
      CHECK(graft::row_bytes(format, 512) == 512 / info.block * info.bytes);
    } else {
      CHECK_THROWS_AS(graft::with_format(format, [](auto) { return 0; }), graft::ContractError);
    }
  }
  CHECK_THROWS_WITH(graft::encode_row(Format::i32, nullptr, 0, nullptr),
                    "a tensor of format I32 cannot be used as a weight");
}
