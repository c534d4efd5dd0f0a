// SPDX-License-Identifier: Apache-2.0
// Packed weights: their layouts, read by plain loops; products by them, which are those of the weights bit for bit; and
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

PackedForm form_of(Isa isa, Format format = Format::bf16) {
  return cpu::pack_kernels<float>(isa, Precision::native, format).form;
}
/// Levels of this processor whose products read a form.
std::vector<Isa> levels(Format format = Format::bf16) {
  std::vector<Isa> some;
  for (int level = 0; level <= static_cast<int>(default_isa()); ++level)
    if (form_of(static_cast<Isa>(level), format) != PackedForm::none) some.push_back(static_cast<Isa>(level));
  return some;
}
#define NEEDS_PACK_KERNELS() \
  if (levels().empty()) GRAFT_SKIP("packed bf16 is for level avx2, and vnni and amx of processors with AVX512-VBMI2")
#define NEEDS_STRIPS() \
  if (levels(Format::q8_0).empty()) GRAFT_SKIP("integers in strips are for levels avx2 and avx512")
std::vector<Format> formats_in_integers() {
  std::vector<Format> some;
  for (Format const format : graft_test::weight_formats())
    if (cpu::in_integers(format)) some.push_back(format);
  return some;
}

CpuBackend<> native(Executor& executor, Isa isa) {
  CpuBackend<> be(executor);
  be.set_isa(isa);
  be.set_precision(Precision::native);
  return be;
}
/// `weight` with its packed form, or without where there is none.
struct Packed {
  Weight weight;
  std::shared_ptr<void const> keep;
  Packed(CpuBackend<>& be, Weight const& of) : weight(of) {
    std::array const list{&weight};
    keep = pack(be, list);
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

/// Row k of a weight in PackedExponents, as packed_weight.hpp says that it lies in memory.
std::vector<std::uint16_t> row_by_exponents(PackedWeight const& w, index_t inputs, index_t k) {
  std::vector<std::uint16_t> row;
  index_t piece = k / 16 * PackedExponents::slices(inputs);
  for (index_t first = 0, last = 0; first < inputs; first = last, ++piece) {
    last = PackedExponents::slice_end(first, inputs);
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
/// The same in PackedHighBytes.
std::vector<std::uint16_t> row_by_high_bytes(PackedWeight const& w, index_t inputs, index_t k) {
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
std::vector<std::uint16_t> row_of(PackedWeight const& w, index_t inputs, index_t k) {
  return w.form == PackedForm::exponents ? row_by_exponents(w, inputs, k) : row_by_high_bytes(w, inputs, k);
}

}  // namespace

TEST_CASE("a packed weight lies in memory as its header says, and has every bit of the weight") {
  NEEDS_PACK_KERNELS();
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
        Packed const packed(be, stored.weight);
        if (o % 16 == 0 && i % 32 == 0 && o * i > 1024) REQUIRE(!packed.weight.packed.empty());
        if (packed.weight.packed.empty()) continue;  // what fills strips and steps up may outweigh it
        for (index_t k = 0; k < o; ++k) {
          std::vector<std::uint16_t> expected(static_cast<std::size_t>(i));
          std::memcpy(expected.data(), stored.weight.row_data(k), expected.size() * 2);
          REQUIRE(row_of(packed.weight.packed, i, k) == expected);
        }
      }
    }
}

TEST_CASE("normal numbers take 70 or 75 % of their bytes") {
  NEEDS_PACK_KERNELS();
  Random random(2);
  SerialExecutor serial;
  for (Isa const isa : levels()) {
    INFO(isa_name(isa));
    auto be = native(serial, isa);
    StoredWeight const stored(Format::bf16, 1024, 576, random);
    Weight weight = stored.weight;
    std::array const list{&weight};
    auto const forms = pack(be, list);
    REQUIRE(forms != nullptr);
    double const share = static_cast<double>(forms->size()) / static_cast<double>(weight.bytes());
    // exponents: 11 bits, 8 more for the 3 numbers of 100 that are 2^-5 of the spread or less, and ends of lines: 11.3
    // of 16 bits; high bytes: 12 bits, a table, a list's end and the end of a line of 108 for each strip
    CHECK(share < (form_of(isa) == PackedForm::exponents ? 0.72 : 0.77));
  }
}

TEST_CASE("products by packed weights are those by the weights, bit for bit") {
  NEEDS_PACK_KERNELS();
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
        Packed const packed(be, stored.weight);
        REQUIRE((!packed.weight.packed.empty() || o == 331));
        Buffer<float> x(n, i, 3), expected(n, o, 5), y(n, o, 5);
        fill_normal(x.view(), random);
        std::vector<float> bias(static_cast<std::size_t>(n % 3 == 0 ? o : 0));
        fill_normal(VectorView<float>{bias.data(), static_cast<index_t>(bias.size())}, random);
        VectorView<float const> const b{bias.data(), static_cast<index_t>(bias.size())};
        product(be, std::as_const(x).view(), stored.weight, b, expected.view());
        product(be, std::as_const(x).view(), packed.weight, b, y.view());
        CHECK(same_bits(y.view(), expected.view()));
        CHECK(y.gaps_untouched());
      }
    }
}

TEST_CASE("rows of a packed weight are packed where a strip begins, and read from the weight elsewhere") {
  NEEDS_PACK_KERNELS();
  Random random(4);
  SerialExecutor serial;
  index_t const o = 96, i = 1555;
  StoredWeight const stored(Format::bf16, o, i, random);
  Buffer<float> x(3, i), expected(3, o), y(3, o);
  fill_normal(x.view(), random);
  for (Isa const isa : levels()) {
    auto be = native(serial, isa);
    Packed const packed(be, stored.weight);
    index_t const strip = form_of(isa) == PackedForm::exponents ? 16 : 8;
    product(be, std::as_const(x).view(), stored.weight, {}, expected.view());
    for (index_t const first : {0, 7, 8, 16, 32, 40}) {
      INFO(isa_name(isa) << ", from row " << first);
      Weight const part = packed.weight.row_range(first, 41);
      CHECK(part.packed.empty() == (first % strip != 0));
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
    CHECK(Packed(be, noise.weight).weight.packed.empty());
    for (Format const format : {Format::f32, Format::f16, Format::f64}) {
      StoredWeight const other(format, 64, 64, random);
      Packed const packed(be, other.weight);
      CHECK(packed.weight.packed.empty());
      CHECK(packed.keep == nullptr);
    }
  }
  StoredWeight const stored(Format::bf16, 64, 64, random), integers(Format::q4_1, 64, 64, random);
  auto baseline = native(serial, Isa::baseline);
  CHECK(Packed(baseline, stored.weight).weight.packed.empty());
  CHECK(Packed(baseline, integers.weight).weight.packed.empty());
  auto exact = native(serial, default_isa());
  exact.set_precision(Precision::exact);
  CHECK(Packed(exact, integers.weight).weight.packed.empty());
  CHECK(Packed(exact, StoredWeight(Format::q4_1, 0, 64, random).weight).weight.packed.empty());
  SliceExecutor slice(0, 2);
  auto part = native(slice, default_isa());
  CHECK_THROWS_WITH(Packed(part, stored.weight), Catch::Contains("one slice of several"));
  CpuBackend<double> wide;
  Weight weight = stored.weight;
  std::array const list{&weight};
  CHECK(pack(wide, list) == nullptr);
}

TEST_CASE("products in the other precision, and at other levels, read the weight itself where they read no such form") {
  NEEDS_PACK_KERNELS();
  Random random(6);
  SerialExecutor serial;
  for (Format const format : {Format::bf16, Format::q8_0, Format::q4_1, Format::q5_0})
    for (Isa const made : levels(format)) {
      INFO(format_info(format).name << ", " << isa_name(made));
      StoredWeight const stored(format, 64, 96, random);
      auto be = native(serial, made);
      Packed const packed(be, stored.weight);
      REQUIRE(!packed.weight.packed.empty());
      for (index_t const n : {1, 2, 4, 9}) {
        Buffer<float> x(n, 96), expected(n, 64), y(n, 64);
        fill_normal(x.view(), random);
        for (int level = 0; level <= static_cast<int>(default_isa()); ++level)
          for (Precision const precision : {Precision::exact, Precision::native}) {
            be.set_isa(static_cast<Isa>(level));
            be.set_precision(precision);
            product(be, std::as_const(x).view(), stored.weight, {}, expected.view());
            product(be, std::as_const(x).view(), packed.weight, {}, y.view());
            CHECK(same_bits(y.view(), expected.view()));
          }
      }
    }
}

TEST_CASE("numbers that no code is for may stand anywhere") {
  NEEDS_PACK_KERNELS();
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
    Packed const packed(be, stored.weight);
    REQUIRE(!packed.weight.packed.empty());
    for (index_t k = 0; k < o; ++k) {
      std::vector<std::uint16_t> expected(static_cast<std::size_t>(i));
      std::memcpy(expected.data(), stored.weight.row_data(k), expected.size() * 2);
      REQUIRE(row_of(packed.weight.packed, i, k) == expected);
    }
    for (index_t const n : {1, 2, 3, 8}) {
      INFO(n << " rows");
      Buffer<float> x(n, i), expected(n, o), y(n, o);
      fill_normal(x.view(), random);
      product(be, std::as_const(x).view(), stored.weight, {}, expected.view());
      product(be, std::as_const(x).view(), packed.weight, {}, y.view());
      CHECK(same_bits(y.view(), expected.view()));
    }
  }
}

TEST_CASE("integers in strips lie in memory as their header says, and have every byte of the weight") {
  NEEDS_STRIPS();
  Random random(8);
  ThreadPool pool(3);
  for (Format const format : formats_in_integers()) {
    index_t const block = format_info(format).block, bytes = format_info(format).bytes;
    index_t const head = bytes % 4 == 0 ? 4 : 2, head_at = format == Format::q6_k ? bytes - head : 0;
    for (auto const& [o, blocks] : std::vector<std::pair<index_t, index_t>>{{8, 1}, {17, 3}, {130, 2}, {3, 18}})
      for (bool const reordered : {false, true}) {
        INFO(format_info(format).name << ", " << o << " x " << blocks << " blocks");
        auto be = native(pool, levels(format).back());
        StoredWeight const stored(format, o, block * blocks, random, reordered);
        Packed const packed(be, stored.weight);
        REQUIRE(packed.weight.packed.form == PackedForm::strips);
        for (index_t k = 0; k < o; ++k) {
          auto const* const piece = packed.weight.packed.piece(k / 8);
          CHECK(reinterpret_cast<std::uintptr_t>(piece) % 64 == 0);
          std::vector<std::byte> row;
          for (index_t b = 0; b < blocks; ++b) {
            auto const* const at = piece + b * 8 * bytes;
            std::vector<std::byte> numbers, rest;
            for (index_t h = 0; h < head; h += 2)
              for (index_t c = 0; c < 2; ++c) numbers.push_back(at[8 * h + 2 * (k % 8) + c]);
            for (index_t w = 0; w < bytes - head; w += 4)
              for (index_t c = 0; c < 4; ++c) rest.push_back(at[8 * (head + w) + 4 * (k % 8) + c]);
            rest.insert(rest.begin() + head_at, numbers.begin(), numbers.end());
            row.insert(row.end(), rest.begin(), rest.end());
          }
          std::byte const* const expected = stored.weight.row_data(k);
          REQUIRE(std::equal(row.begin(), row.end(), expected));
        }
        index_t const strips = (o + 7) / 8, used = blocks * 8 * bytes;
        for (index_t s = 0; s < strips; ++s) {  // zeros to a whole line
          auto const *const from = packed.weight.packed.piece(s), *const to = packed.weight.packed.piece(s + 1);
          CHECK(to - from == (used + 63) / 64 * 64);
          CHECK(std::all_of(from + used, to, [](std::byte b) { return b == std::byte{}; }));
        }
      }
  }
}

TEST_CASE("products by integers in strips are those by the weights, bit for bit") {
  NEEDS_STRIPS();
  Random random(9);
  for (Format const format : formats_in_integers())
    for (Isa const isa : levels(format))
      for (index_t const threads : {1, 2, 3}) {
        ThreadPool pool(threads);
        auto be = native(pool, isa);
        for (index_t const n : {1, 2, 3, 4, 5, 6, 8, 13, 17, 33, 65}) {
          index_t const o = std::vector<index_t>{1, 8, 48, 64, 200, 208, 331}[random.next() % 7];
          index_t const i = format_info(format).block * std::vector<index_t>{1, 2, 3, 5, 18}[random.next() % 5];
          INFO(format_info(format).name << ", " << isa_name(isa) << ", " << n << " rows, " << o << " x " << i << ", "
                                        << threads << " threads");
          StoredWeight const stored(format, o, i, random, n % 2 == 0);
          Packed const packed(be, stored.weight);
          REQUIRE(!packed.weight.packed.empty());
          Buffer<float> x(n, i, 3), expected(n, o, 5), y(n, o, 5);
          fill_normal(x.view(), random);
          std::vector<float> bias(static_cast<std::size_t>(n % 3 == 0 ? o : 0));
          fill_normal(VectorView<float>{bias.data(), static_cast<index_t>(bias.size())}, random);
          VectorView<float const> const b{bias.data(), static_cast<index_t>(bias.size())};
          product(be, std::as_const(x).view(), stored.weight, b, expected.view());
          product(be, std::as_const(x).view(), packed.weight, b, y.view());
          CHECK(same_bits(y.view(), expected.view()));
          CHECK(y.gaps_untouched());
        }
      }
}

TEST_CASE("rows of a weight in strips are strips where one begins, and read from the weight elsewhere") {
  NEEDS_STRIPS();
  Random random(10);
  SerialExecutor serial;
  index_t const o = 96, i = 512;
  for (Format const format : {Format::q4_0, Format::q6_k}) {
    StoredWeight const stored(format, o, i, random);
    auto be = native(serial, levels(format).back());
    Packed const packed(be, stored.weight);
    for (index_t const n : {1, 3}) {
      Buffer<float> x(n, i), expected(n, o), y(n, o);
      fill_normal(x.view(), random);
      product(be, std::as_const(x).view(), stored.weight, {}, expected.view());
      for (index_t const first : {0, 7, 8, 16, 32, 40}) {
        INFO(format_info(format).name << ", from row " << first);
        Weight const part = packed.weight.row_range(first, 41);
        CHECK(part.packed.empty() == (first % 8 != 0));
        product(be, std::as_const(x).view(), part, {}, y.view().col_range(first, 41));
        CHECK(same_bits(y.view().col_range(first, 41), expected.view().col_range(first, 41)));
      }
    }
  }
}
