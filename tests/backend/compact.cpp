// SPDX-License-Identifier: Apache-2.0
// Compact weights: their layout, read by plain loops; products by them, which are those of the weights bit for bit; and
// what is left as it is.
#include <graft/backend/cpu/cpu.hpp>
#include <graft/testing/buffer.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/random.hpp>
#include <tests/backend/stored_weight.hpp>
#include <tests/catch.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

namespace {

using namespace graft;
using namespace graft::testing;
using graft_test::StoredWeight;

CompactForm form_of(Isa isa) { return cpu::compact_kernels<float>(isa, Precision::native).form; }
/// Levels of this processor whose products read a form.
std::vector<Isa> levels() {
  std::vector<Isa> some;
  for (int level = 0; level <= static_cast<int>(default_isa()); ++level)
    if (form_of(static_cast<Isa>(level)) != CompactForm::none) some.push_back(static_cast<Isa>(level));
  return some;
}
#define NEEDS_COMPACT_KERNELS() \
  if (levels().empty()) GRAFT_SKIP("compact weights are for level avx2, and vnni of processors with AVX512-VBMI2")

CpuBackend<> native(Executor& executor, Isa isa) {
  CpuBackend<> be(executor);
  be.set_isa(isa);
  be.set_precision(Precision::native);
  return be;
}
/// `weight` with its compact form, or without where there is none.
struct Compact {
  Weight weight;
  std::shared_ptr<void const> keep;
  Compact(CpuBackend<>& be, Weight const& of) : weight(of) {
    std::array const list{&weight};
    keep = compact(be, list);
  }
};

void set_bits(StoredWeight& stored, index_t k, std::uint16_t bits) {
  std::memcpy(stored.bytes.data() + 1 + 2 * k, &bits, sizeof bits);
}
/// Numbers whose exponents are no neighbours: zeros, infinities, NaN, and a stretch of nothing else.
void add_rare_exponents(StoredWeight& stored, Random& random) {
  index_t const count = stored.weight.rows * stored.weight.cols;
  for (std::uint16_t const rare : {0x0000, 0x8000, 0x0001, 0x7f7f, 0xff80, 0x7fc1})
    set_bits(stored, static_cast<index_t>(random.next() % static_cast<std::uint64_t>(count)), rare);
  for (index_t k = count / 2; k < std::min(count, count / 2 + 90); ++k) set_bits(stored, k, 0);
}

/// Row k of a weight in CompactExponents, as compact_weight.hpp says that it lies in memory.
std::vector<std::uint16_t> row_by_exponents(CompactWeight const& w, index_t inputs, index_t k) {
  std::vector<std::uint16_t> row;
  index_t piece = k / 16 * CompactExponents::slices(inputs);
  for (index_t first = 0, last = 0; first < inputs; first = last, ++piece) {
    last = CompactExponents::slice_end(first, inputs);
    index_t const steps = (last - first + 31) / 32;
    auto const* const at = reinterpret_cast<std::uint8_t const*>(w.piece(piece));
    auto const* escaped = at + steps * 704;
    for (index_t s = 0; s < steps; ++s)
      for (index_t u = 0; u < 8; ++u)
        for (index_t b = 0; b < 64; ++b) {
          auto const line = [&](index_t n) { return int{at[s * 704 + 64 * n + b]}; };
          int const code = u < 6    ? line(u / 2) >> 3 * (u % 2) & 7
                           : u == 6 ? line(0) >> 6 | (line(2) >> 6 & 1) << 2
                                    : line(1) >> 6 | line(2) >> 7 << 2;
          int const exponent = code == 0 ? *escaped++ : w.base + code, rest = at[s * 704 + 192 + 64 * u + b];
          index_t const output = u % 4 + b / 16 * 4, input = first + 32 * s + u / 4 * 16 + b % 16;
          if (output == k % 16 && input < last)
            row.push_back(static_cast<std::uint16_t>((rest & 1) << 15 | exponent << 7 | rest >> 1));
        }
  }
  return row;
}
/// The same in CompactHighBytes.
std::vector<std::uint16_t> row_by_high_bytes(CompactWeight const& w, index_t inputs, index_t k) {
  std::vector<std::uint16_t> row(static_cast<std::size_t>(inputs));
  auto const* const table = reinterpret_cast<std::uint8_t const*>(w.data);
  auto const* const at = reinterpret_cast<std::uint8_t const*>(w.piece(k / 8));
  index_t const p = k % 8 / 4, n = k % 4;
  for (index_t i = 0; i < inputs; ++i) {
    auto const* const step = at + i / 8 * 96;
    index_t const q = i % 8 / 4, byte = 16 * p + 8 * (i % 4 / 2) + 2 * n + i % 2;
    row[static_cast<std::size_t>(i)] =
        static_cast<std::uint16_t>(table[step[byte] >> 4 * q & 15] << 8 | step[32 + 32 * q + byte]);
  }
  std::uint32_t before = 0;
  for (auto const* list = at + (inputs + 7) / 8 * 96;; list += 4) {
    std::uint32_t entry = 0;
    std::memcpy(&entry, list, 4);
    if (entry == 0xffffffff) return row;
    CHECK(entry >> 8 >= before);
    before = entry >> 8;
    REQUIRE(before / 8 < static_cast<std::uint32_t>(inputs));
    if (before % 8 != k % 8) continue;
    auto& number = row[before / 8];
    number = static_cast<std::uint16_t>((entry & 255) << 8 | (number & 255));
  }
}
std::vector<std::uint16_t> row_of(CompactWeight const& w, index_t inputs, index_t k) {
  return w.form == CompactForm::exponents ? row_by_exponents(w, inputs, k) : row_by_high_bytes(w, inputs, k);
}

}  // namespace

TEST_CASE("a compact weight lies in memory as its header says, and has every bit of the weight") {
  NEEDS_COMPACT_KERNELS();
  Random random(1);
  ThreadPool pool(3);
  for (Isa const isa : levels())
    for (auto const& [o, i] : std::vector<std::pair<index_t, index_t>>{
             {16, 64}, {17, 576}, {48, 40}, {130, 767}, {33, 768}, {20, 1111}, {16, 2048}}) {
      INFO(isa_name(isa) << ", " << o << " x " << i);
      auto be = native(pool, isa);
      for (bool const reordered : {false, true}) {
        StoredWeight stored(Format::bf16, o, i, random, reordered);
        add_rare_exponents(stored, random);
        Compact const compact(be, stored.weight);
        if (o % 16 == 0 && i % 32 == 0 && o * i > 1024) REQUIRE(!compact.weight.compact.empty());
        if (compact.weight.compact.empty()) continue;  // what fills strips and steps up may outweigh it
        for (index_t k = 0; k < o; ++k) {
          std::vector<std::uint16_t> expected(static_cast<std::size_t>(i));
          std::memcpy(expected.data(), stored.weight.row_data(k), expected.size() * 2);
          REQUIRE(row_of(compact.weight.compact, i, k) == expected);
        }
      }
    }
}

TEST_CASE("normal numbers take 70 or 75 % of their bytes") {
  NEEDS_COMPACT_KERNELS();
  Random random(2);
  SerialExecutor serial;
  for (Isa const isa : levels()) {
    INFO(isa_name(isa));
    auto be = native(serial, isa);
    StoredWeight const stored(Format::bf16, 1024, 576, random);
    Weight weight = stored.weight;
    std::array const list{&weight};
    auto const forms = compact(be, list);
    REQUIRE(forms != nullptr);
    double const share = static_cast<double>(forms->size()) / static_cast<double>(weight.bytes());
    // exponents: 11 bits, 8 more for the 3 numbers of 100 that are 2^-5 of the spread or less, and ends of lines: 11.3
    // of 16 bits; high bytes: 12 bits, a table, a list's end and the end of a line of 108 for each strip
    CHECK(share < (form_of(isa) == CompactForm::exponents ? 0.72 : 0.77));
  }
}

TEST_CASE("products by compact weights are those by the weights, bit for bit") {
  NEEDS_COMPACT_KERNELS();
  Random random(3);
  for (Isa const isa : levels())
    for (index_t const threads : {1, 2, 3}) {
      ThreadPool pool(threads);
      auto be = native(pool, isa);
      for (index_t const n : {1, 2, 3, 4, 5, 6, 8, 13, 33, 64, 65, 130}) {
        index_t const o = std::vector<index_t>{16, 48, 64, 208, 331}[random.next() % 5];
        index_t const i = std::vector<index_t>{64, 96, 576, 767, 1056, 1555}[random.next() % 6];
        INFO(isa_name(isa) << ", " << n << " rows, " << o << " x " << i << ", " << threads << " threads");
        StoredWeight stored(Format::bf16, o, i, random, n % 2 == 0);
        for (index_t k = 0; k < 40; ++k)
          set_bits(stored, 3 * k, static_cast<std::uint16_t>(k % 2 == 0 ? 0 : 0x4f00 + k));
        Compact const compact(be, stored.weight);
        REQUIRE((!compact.weight.compact.empty() || o == 331));
        Buffer<float> x(n, i, 3), expected(n, o, 5), y(n, o, 5);
        fill_normal(x.view(), random);
        std::vector<float> bias(static_cast<std::size_t>(n % 3 == 0 ? o : 0));
        fill_normal(VectorView<float>{bias.data(), static_cast<index_t>(bias.size())}, random);
        VectorView<float const> const b{bias.data(), static_cast<index_t>(bias.size())};
        product(be, std::as_const(x).view(), stored.weight, b, expected.view());
        product(be, std::as_const(x).view(), compact.weight, b, y.view());
        CHECK(same_bits(y.view(), expected.view()));
        CHECK(y.gaps_untouched());
      }
    }
}

TEST_CASE("rows of a compact weight are compact where a strip begins, and read from the weight elsewhere") {
  NEEDS_COMPACT_KERNELS();
  Random random(4);
  SerialExecutor serial;
  index_t const o = 96, i = 1555;
  StoredWeight const stored(Format::bf16, o, i, random);
  Buffer<float> x(3, i), expected(3, o), y(3, o);
  fill_normal(x.view(), random);
  for (Isa const isa : levels()) {
    auto be = native(serial, isa);
    Compact const compact(be, stored.weight);
    index_t const strip = form_of(isa) == CompactForm::exponents ? 16 : 8;
    product(be, std::as_const(x).view(), stored.weight, {}, expected.view());
    for (index_t const first : {0, 7, 8, 16, 32, 40}) {
      INFO(isa_name(isa) << ", from row " << first);
      Weight const part = compact.weight.row_range(first, 41);
      CHECK(part.compact.empty() == (first % strip != 0));
      product(be, std::as_const(x).view(), part, {}, y.view().col_range(first, 41));
      CHECK(same_bits(y.view().col_range(first, 41), expected.view().col_range(first, 41)));
    }
  }
}

TEST_CASE("weights that would not be smaller, or that no kernel would read so, stay as they are") {
  Random random(5);
  SerialExecutor serial;
  StoredWeight noise(Format::bf16, 64, 64, random);
  for (index_t k = 0; k < 64 * 64; ++k) set_bits(noise, k, static_cast<std::uint16_t>(random.next()));
  for (Isa const isa : levels()) {
    INFO(isa_name(isa));
    auto be = native(serial, isa);
    CHECK(Compact(be, noise.weight).weight.compact.empty());
    for (Format const format : {Format::f32, Format::f16, Format::q8_0, Format::q4_1}) {
      StoredWeight const other(format, 64, 64, random);
      Compact const compact(be, other.weight);
      CHECK(compact.weight.compact.empty());
      CHECK(compact.keep == nullptr);
    }
  }
  StoredWeight const stored(Format::bf16, 64, 64, random);
  auto baseline = native(serial, Isa::baseline);
  CHECK(Compact(baseline, stored.weight).weight.compact.empty());
  SliceExecutor slice(0, 2);
  auto part = native(slice, default_isa());
  CHECK_THROWS_WITH(Compact(part, stored.weight), Catch::Contains("one slice of several"));
  CpuBackend<double> wide;
  Weight weight = stored.weight;
  std::array const list{&weight};
  CHECK(compact(wide, list) == nullptr);
}

TEST_CASE("products in the other precision, and at other levels, read the weight itself where they read no such form") {
  NEEDS_COMPACT_KERNELS();
  Random random(6);
  SerialExecutor serial;
  StoredWeight const stored(Format::bf16, 64, 96, random);
  for (Isa const made : levels()) {
    auto be = native(serial, made);
    Compact const compact(be, stored.weight);
    REQUIRE(!compact.weight.compact.empty());
    for (index_t const n : {1, 2, 4}) {
      Buffer<float> x(n, 96), expected(n, 64), y(n, 64);
      fill_normal(x.view(), random);
      for (int level = 0; level <= static_cast<int>(default_isa()); ++level)
        for (Precision const precision : {Precision::exact, Precision::native}) {
          be.set_isa(static_cast<Isa>(level));
          be.set_precision(precision);
          product(be, std::as_const(x).view(), stored.weight, {}, expected.view());
          product(be, std::as_const(x).view(), compact.weight, {}, y.view());
          CHECK(same_bits(y.view(), expected.view()));
        }
    }
  }
}

TEST_CASE("numbers that no code is for may stand anywhere") {
  NEEDS_COMPACT_KERNELS();
  Random random(7);
  SerialExecutor serial;
  index_t const o = 72, i = 1100;
  for (Isa const isa : levels()) {
    INFO(isa_name(isa));
    auto be = native(serial, isa);
    StoredWeight stored(Format::bf16, o, i, random);
    for (index_t k = 0; k < o; ++k) {  // a first and a last input, both sides of panels and steps, whole steps of them
      for (index_t const input : {index_t{0}, index_t{7}, index_t{8}, index_t{127}, index_t{128}, i - 1})
        if ((k + input) % 3 == 0) set_bits(stored, k * i + input, static_cast<std::uint16_t>(0x6000 + k));
      if (k % 16 == 5)
        for (index_t input = 504; input < 520; ++input) set_bits(stored, k * i + input, 0x7001);
    }
    Compact const compact(be, stored.weight);
    REQUIRE(!compact.weight.compact.empty());
    for (index_t k = 0; k < o; ++k) {
      std::vector<std::uint16_t> expected(static_cast<std::size_t>(i));
      std::memcpy(expected.data(), stored.weight.row_data(k), expected.size() * 2);
      REQUIRE(row_of(compact.weight.compact, i, k) == expected);
    }
    for (index_t const n : {1, 2, 3, 8}) {
      INFO(n << " rows");
      Buffer<float> x(n, i), expected(n, o), y(n, o);
      fill_normal(x.view(), random);
      product(be, std::as_const(x).view(), stored.weight, {}, expected.view());
      product(be, std::as_const(x).view(), compact.weight, {}, y.view());
      CHECK(same_bits(y.view(), expected.view()));
    }
  }
}
