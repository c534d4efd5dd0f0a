// SPDX-License-Identifier: Apache-2.0
// Products in native precision: X is rounded as documented, everything after that is f32, rows stay independent, and
// formats without an instruction of their own are exact.
#include <graft/backend/cpu/cpu.hpp>
#include <graft/testing/buffer.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/random.hpp>
#include <tests/backend/stored_weight.hpp>
#include <tests/catch.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace {

using namespace graft;
using namespace graft::testing;
using graft_test::StoredWeight;

constexpr Format in_blocks[] = {Format::q8_0, Format::q4_0, Format::q4_1, Format::q5_0,
                                Format::q5_1, Format::q4_k, Format::q5_k, Format::q6_k};
bool has_integers() { return default_isa() >= Isa::avx2; }
bool has_bf16() { return default_isa() >= Isa::vnni; }

void multiply(Executor& executor, MatrixView<float const> x, Weight const& w, VectorView<float const> bias,
              MatrixView<float> y, Precision precision = Precision::native) {
  CpuBackend<> be(executor);
  be.set_precision(precision);
  product(be, x, w, bias, y);
}
void multiply(MatrixView<float const> x, Weight const& w, VectorView<float const> bias, MatrixView<float> y,
              Precision precision = Precision::native) {
  SerialExecutor serial;
  multiply(serial, x, w, bias, y, precision);
}

/// Row x as the format's product sees it.
std::vector<double> rounded(Format format, float const* x, index_t count) {
  std::vector<double> out(static_cast<std::size_t>(count));
  for (index_t k = 0; k < count; ++k) {
    if (format == Format::bf16) {
      out[static_cast<std::size_t>(k)] = static_cast<float>(bf16(x[k]));
      continue;
    }
    float highest = 0;
    for (index_t j = k / 32 * 32; j < k / 32 * 32 + 32; ++j) highest = std::max(highest, std::fabs(x[j]));
    float const inverse = highest > 0 ? 127.f / highest : 0.f;
    out[static_cast<std::size_t>(k)] = static_cast<double>(highest / 127.f) * std::nearbyint(x[k] * inverse);
  }
  return out;
}

struct Errors {
  double of_sums = 0;      // against X as rounded, in units of what f32 explains
  double of_rounding = 0;  // against X itself, in units of what rounding X explains
};

// With X rounded, a sum meets one rounding per block of 32 for each of two terms (integers; the two halves of a block
// of Q6_K), and the scales' products three more; or (bf16) two in every 8 values of a slice, which has less than 768,
// two where its four lanes meet, one for each slice of 512 or more and one for the bias; of AMX's products amx.cpp says
// more. Magnitudes are those of the terms d q and m of a value d q + m: with a block's values within w, d q is up to
// 2 w, |m| up to w, and the six bits of a K format's scales move both by less than w together. An integer scale per 32
// moves each x by half a step, highest / 254; bf16 by 2^-8 of itself.
Errors errors(Format format, index_t n, index_t o, index_t i, bool with_bias, Random& random) {
  StoredWeight const stored(format, o, i, random);
  Buffer<float> x(n, i, 3), y(n, o, 5);
  fill_normal(x.view(), random);
  std::vector<float> bias(static_cast<std::size_t>(with_bias ? o : 0)), w(static_cast<std::size_t>(i));
  fill_normal(VectorView<float>{bias.data(), static_cast<index_t>(bias.size())}, random);
  multiply(std::as_const(x).view(), stored.weight, {bias.data(), static_cast<index_t>(bias.size())}, y.view());
  REQUIRE(y.gaps_untouched());
  bool const integers = format != Format::bf16;
  auto const terms = static_cast<double>(i);
  bool const tiles = !integers && default_isa() == Isa::amx;
  double const steps = tiles      ? std::ceil(terms / 32) + 18
                       : integers ? 2 * std::ceil(terms / 32) + 5
                                  : 2 * std::ceil(std::min(terms, 767.) / 8) + std::ceil(terms / 512) + 3;
  Errors worst;
  for (index_t r = 0; r < n; ++r) {
    auto const seen = rounded(format, x.row(r), i);
    for (index_t k = 0; k < o; ++k) {
      stored.weight.row(k, w.data());
      double right = with_bias ? to_double(bias[static_cast<std::size_t>(k)]) : 0, exact = right;
      double size = std::fabs(right), moved = 0;
      for (index_t j = 0; j < i; ++j) {
        double const weight = to_double(w[static_cast<std::size_t>(j)]), s = seen[static_cast<std::size_t>(j)];
        double const original = to_double(x.row(r)[j]);
        right += s * weight, exact += original * weight;
        // the parts d q and m of a value lie in the range of its block's values around 0 and its offset
        double widest = std::fabs(weight);
        if (integers)
          for (index_t b = j / 32 * 32; b < j / 32 * 32 + 32; ++b)
            widest = std::max(widest, std::fabs(to_double(w[static_cast<std::size_t>(b)])));
        size += std::fabs(s) * (integers ? 4 : 1) * widest;
        moved += std::fabs(s - original) * std::fabs(weight);
      }
      double const allowed = steps * unit_roundoff<float>() * size;
      double const result = to_double(y.row(r)[k]);
      worst.of_sums = worse(worst.of_sums, std::fabs(result - right) / allowed);
      worst.of_rounding = worse(worst.of_rounding, std::fabs(result - exact) / (moved + allowed));
    }
  }
  return worst;
}

TEST_CASE("native products round X as documented and nothing else", "[isa]") {
  Random random(1);
  std::vector<Format> formats;
  if (has_integers()) formats.assign(std::begin(in_blocks), std::end(in_blocks));
  if (has_bf16()) formats.push_back(Format::bf16);
  if (formats.empty()) return graft_test::note_skip("this level has no native products");
  for (Format const format : formats)
    for (index_t const width : {32, 96, 576, 1056, 2080, 4128})
      for (index_t const o : {1, 15, 67}) {
        index_t const i = round_up(width, format_info(format).block);
        auto const worst = errors(format, pick(random, 1, 33), o, i, o == 15, random);
        INFO(format_info(format).name << ", " << o << " x " << i);
        CHECK(worst.of_sums <= 1);
        CHECK(worst.of_rounding <= 1);
      }
}

TEST_CASE("native products take rows of any width, and any number of them", "[isa]") {
  if (!has_bf16()) return;  // the case before says so
  Random random(5);
  for (index_t const i : {1, 2, 31, 33, 100, 577, 767, 768, 1279, 1280})
    for (index_t const n : {1, 5, 6, 7, 64, 65}) {
      auto const worst = errors(Format::bf16, n, 70, i, true, random);
      INFO(n << " rows of " << i);
      CHECK(worst.of_sums <= 1);
      CHECK(worst.of_rounding <= 1);
    }
}

TEST_CASE("sums of the largest integers find room in their registers", "[isa]") {
  if (!has_integers()) return;  // the first case says so
  struct Case {
    Format format;
    float rare, most;  // numbers that make nearly all integers of a block the largest of the format
  };
  constexpr Case cases[] = {{Format::q8_0, 1, 1},          {Format::q4_0, -1, 7 / 8.f},  {Format::q4_1, 0, 1},
                            {Format::q5_0, -1, 15 / 16.f}, {Format::q5_1, 0, 1},         {Format::q4_k, 0, 1},
                            {Format::q5_k, 0, 1},          {Format::q6_k, -1, 31 / 32.f}};
  index_t const i = 512, o = 20;
  for (auto const [format, rare, most] : cases) {
    std::vector<float> row(static_cast<std::size_t>(i), most);
    for (index_t k = 0; k < i; k += 16) row[static_cast<std::size_t>(k)] = rare;
    std::vector<std::byte> bytes(static_cast<std::size_t>(o * row_bytes(format, i)));
    for (index_t k = 0; k < o; ++k) encode_row(format, row.data(), i, bytes.data() + k * row_bytes(format, i));
    Weight const w{bytes.data(), format, o, i, nullptr};
    w.row(0, row.data());
    double const right = std::accumulate(row.begin(), row.end(), 0.);
    for (index_t const n : {1, 5}) {
      Buffer<float> x(n, i), y(n, o);
      for (index_t r = 0; r < n; ++r) std::fill_n(x.row(r), i, r % 2 == 0 ? 1.f : -1.f);
      multiply(std::as_const(x).view(), w, {}, y.view());
      // as in errors(): 1 is rounded to itself, and no value is larger
      double const allowed = (2 * i / 32 + 5) * unit_roundoff<float>() * 4 * static_cast<double>(i);
      for (index_t r = 0; r < n; ++r)
        for (index_t k = 0; k < o; ++k) {
          INFO(format_info(format).name << ", row " << r << " of " << n);
          REQUIRE(std::fabs(to_double(y.row(r)[k]) - (r % 2 == 0 ? right : -right)) <= allowed);
        }
    }
  }
}

TEST_CASE("a row's native product depends on that row alone, whoever runs the chunks") {
  Random random(2);
  struct Case {
    Format format;
    index_t i;
  };
  std::vector<Case> cases{{Format::bf16, 1050}, {Format::bf16, 2080}};
  for (Format const format : in_blocks) cases.push_back({format, round_up(1056, format_info(format).block)});
  for (auto const [format, i] : cases) {
    index_t const o = 131, count = 71;
    StoredWeight const stored(format, o, i, random);
    Buffer<float> x(count, i), alone(count, o), y(count, o);
    fill_normal(x.view(), random);
    for (index_t n = 0; n < count; ++n)
      multiply(std::as_const(x).view().row_range(n, 1), stored.weight, {}, alone.view().row_range(n, 1));
    for (index_t const rows : {2, 3, 4, 7, 33, 64, 71}) {
      auto const part = y.view().row_range(0, rows);
      INFO(format_info(format).name << ", " << rows << " rows of " << i);
      multiply(std::as_const(x).view().row_range(count - rows, rows), stored.weight, {}, part);
      CHECK(same_bits(part, alone.view().row_range(count - rows, rows)));
    }
    ThreadPool pool(3);
    multiply(pool, std::as_const(x).view(), stored.weight, {}, y.view());
    CHECK(same_bits(y.view(), alone.view()));
    Buffer<float> sliced(count, o);
    for (index_t slice = 0; slice < 3; ++slice) {
      SliceExecutor executor(slice, 3);
      multiply(executor, std::as_const(x).view(), stored.weight, {}, sliced.view());
    }
    CHECK(same_bits(sliced.view(), alone.view()));
  }
}

TEST_CASE("a native product of no rows writes nothing") {
  Random random(5);
  for (Format const format : {Format::q8_0, Format::q4_1, Format::q5_0, Format::q6_k, Format::bf16}) {
    StoredWeight const stored(format, 20, 256, random);
    Buffer<float> x(1, 256), y(1, 20);
    fill_normal(x.view(), random);
    std::fill_n(y.row(0), 20, 7.f);
    multiply(std::as_const(x).view().row_range(0, 0), stored.weight, {}, y.view().row_range(0, 0));
    INFO(format_info(format).name);
    CHECK(std::all_of(y.row(0), y.row(0) + 20, [](float value) { return value == 7; }));
  }
}

TEST_CASE("formats and levels without native products are exact") {
  Random random(3);
  for (Format const format : {Format::f32, Format::f16, Format::f64, Format::bf16, Format::q8_0}) {
    bool const native = format == Format::bf16 ? has_bf16() : format == Format::q8_0 && has_integers();
    StoredWeight const stored(format, 20, 320, random);
    Buffer<float> x(5, 320), y(5, 20), exact(5, 20);
    fill_normal(x.view(), random);
    multiply(std::as_const(x).view(), stored.weight, {}, y.view());
    multiply(std::as_const(x).view(), stored.weight, {}, exact.view(), Precision::exact);
    INFO(format_info(format).name);
    CHECK(same_bits(y.view(), exact.view()) != native);
  }
}

TEST_CASE("rows of zeros and of extreme numbers survive rounding") {
  Random random(4);
  for (Format const format : {Format::q8_0, Format::q4_1, Format::q5_0, Format::q6_k, Format::bf16}) {
    StoredWeight const stored(format, 20, 256, random);
    Buffer<float> x(3, 256), y(3, 20);
    fill_normal(x.view(), random);
    std::fill_n(x.row(0), 256, 0.f);
    for (index_t k = 0; k < 256; ++k) x.row(1)[k] *= 1e-30f;
    for (index_t k = 0; k < 256; ++k) x.row(2)[k] *= 1e30f;
    multiply(std::as_const(x).view(), stored.weight, {}, y.view());
    for (index_t o = 0; o < 20; ++o) {
      CHECK(y.row(0)[o] == 0);
      CHECK(std::isfinite(y.row(1)[o]));
      CHECK(std::isfinite(y.row(2)[o]));
    }
  }
}

}  // namespace
