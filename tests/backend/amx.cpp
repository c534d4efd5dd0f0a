// SPDX-License-Identifier: Apache-2.0
// Products of bf16 in AMX's tiles against plain loops in double, on shapes that fill no tile; where the processor has
// no AMX, its instructions are emulated.
#include <graft/backend/cpu/cpu.hpp>
#include <graft/testing/buffer.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/random.hpp>
#include <tests/backend/amx_emulation.hpp>
#include <tests/backend/stored_weight.hpp>
#include <tests/catch.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#if GRAFT_CAN_TARGET && defined(__linux__)

namespace {

using namespace graft;
using namespace graft::testing;
using graft_test::AmxEmulation;
using graft_test::StoredWeight;

/// AMX, the processor's or emulated; of a processor that cannot do the rest of the level either, nothing.
struct Amx {
  bool const there = detected_isa() >= Isa::vnni;
  std::optional<AmxEmulation> emulation;
  Amx() {
    if (there && detected_isa() < Isa::amx) emulation.emplace();
    if (!there) graft_test::note_skip("AMX is emulated on processors with AVX512-VNNI and AVX512-BF16");
  }
  ~Amx() {
    if (!emulation) return;
    CHECK(emulation->products > 0);
    CHECK(emulation->wrong == 0);
    CHECK(emulation->released());
  }
};

/// A product in native precision at level amx, which a backend refuses where the processor has none.
void multiply(Executor& executor, MatrixView<float const> x, Weight const& w, VectorView<float const> bias,
              MatrixView<float> y, bool packed = false) {
  auto const kernels = cpu::native_kernels<float>(Isa::amx);
  index_t const together = kernels.bf16_rows;
  Arena arena;
  auto const rounded = arena.matrix<bf16>(round_up(x.rows, together), cpu::padded<bf16>(x.cols));
  for (index_t n = 0; n < x.rows; n += together)
    kernels.round_to_bf16(x.row_range(n, std::min(together, x.rows - n)), rounded.row(n));
  cpu::OutputChunks const chunks{w.rows, cpu::last_chunk_outputs};
  executor.run(chunks.count(), [&](index_t k) {
    (packed ? kernels.packed_chunk : kernels.bf16_chunk)(rounded.row_range(0, x.rows), w, bias, chunks.begin(k),
                                                         chunks.begin(k + 1), {&w, 0, std::min<index_t>(w.rows, 32)},
                                                         y);
  });
}

// A term meets a rounding per value of its half of 32 inputs, one where the halves are added, one for each 32 inputs
// from there on, and one for the bias.
double error(index_t n, index_t o, index_t i, bool with_bias, bool reordered, Random& random) {
  StoredWeight const stored(Format::bf16, o, i, random, reordered);
  Buffer<float> x(n, i, 3), y(n, o, 5);
  fill_normal(x.view(), random);
  std::vector<float> bias(static_cast<std::size_t>(with_bias ? o : 0)), w(static_cast<std::size_t>(i));
  fill_normal(VectorView<float>{bias.data(), static_cast<index_t>(bias.size())}, random);
  SerialExecutor serial;
  multiply(serial, std::as_const(x).view(), stored.weight, {bias.data(), static_cast<index_t>(bias.size())}, y.view());
  REQUIRE(y.gaps_untouched());
  double const steps = 16 + 1 + std::ceil(static_cast<double>(i) / 32) + 1;
  double worst = 0;
  for (index_t k = 0; k < o; ++k) {
    stored.weight.row(k, w.data());
    for (index_t r = 0; r < n; ++r) {
      double right = with_bias ? to_double(bias[static_cast<std::size_t>(k)]) : 0, size = std::fabs(right);
      for (index_t j = 0; j < i; ++j) {
        double const term =
            to_double(static_cast<float>(bf16(x.row(r)[j]))) * to_double(w[static_cast<std::size_t>(j)]);
        right += term, size += std::fabs(term);
      }
      worst = worse(worst, std::fabs(to_double(y.row(r)[k]) - right) / (steps * unit_roundoff<float>() * size));
    }
  }
  return worst;
}

TEST_CASE("products in tiles are those of rows rounded to bf16, whatever does not fill a tile") {
  Amx const amx;
  if (!amx.there) return;
  Random random(1);
  for (index_t const n : {1, 2, 7, 15, 16, 17, 31, 32, 33, 65})
    for (index_t const o : {1, 16, 17, 40, 64, 67}) {
      index_t const i = std::vector<index_t>{1, 31, 32, 55, 96, 256, 257, 576}[random.next() % 8];
      INFO(n << " rows, " << o << " x " << i);
      CHECK(error(n, o, i, o % 2 == 1, n % 2 == 1, random) <= 1);
    }
  CHECK(error(33, 131, 1056, true, false, random) <= 1);
  CHECK(error(5, 576, 576, false, false, random) <= 1);
  CHECK(error(290, 67, 1061, true, true, random) <= 1);  // more than a block of rows, and parts of inputs
}

TEST_CASE("a row's product in tiles depends on that row alone, whoever runs the chunks", "[threads]") {
  Amx const amx;
  if (!amx.there) return;
  Random random(2);
  index_t const o = 131, i = 544, count = 290;
  StoredWeight const stored(Format::bf16, o, i, random);
  Buffer<float> x(count, i), alone(count, o), y(count, o);
  fill_normal(x.view(), random);
  SerialExecutor serial;
  for (index_t n = 0; n < count; ++n)
    multiply(serial, std::as_const(x).view().row_range(n, 1), stored.weight, {}, alone.view().row_range(n, 1));
  for (index_t const rows : {2, 15, 17, 33}) {
    INFO(rows << " rows");
    auto const part = y.view().row_range(0, rows);
    multiply(serial, std::as_const(x).view().row_range(count - rows, rows), stored.weight, {}, part);
    CHECK(same_bits(part, alone.view().row_range(count - rows, rows)));
  }
  ThreadPool pool(3);
  multiply(pool, std::as_const(x).view(), stored.weight, {}, y.view());
  CHECK(same_bits(y.view(), alone.view()));
}

TEST_CASE("products in tiles by a packed weight are those by the weight, bit for bit", "[packed]") {
  Amx const amx;
  if (!amx.there) return;
  ThreadPool pool(2);
  CpuBackend<> be(pool);
  be.set_isa(Isa::vnni);  // whose packed form this is too
  be.set_precision(Precision::native);
  Random random(3);
  for (index_t const n : {1, 2, 15, 16, 17, 31, 32, 33, 70})
    for (auto const& [o, i] : std::vector<std::pair<index_t, index_t>>{{64, 64}, {99, 576}, {48, 767}, {80, 1555}}) {
      INFO(n << " rows, " << o << " x " << i);
      StoredWeight const stored(Format::bf16, o, i, random, n % 2 == 0);
      Weight weight = stored.weight;
      std::array const list{&weight};
      auto const forms = pack(be, list);
      if (forms == nullptr) {
        REQUIRE(cpu::native_kernels<float>(Isa::amx).packed_chunk == nullptr);
        return graft_test::note_skip("packed bf16 is for processors with AVX512-VBMI2");
      }
      Buffer<float> x(n, i, 3), expected(n, o, 5), y(n, o, 5);
      fill_normal(x.view(), random);
      std::vector<float> bias(static_cast<std::size_t>(n % 3 == 0 ? o : 0));
      fill_normal(VectorView<float>{bias.data(), static_cast<index_t>(bias.size())}, random);
      VectorView<float const> const b{bias.data(), static_cast<index_t>(bias.size())};
      multiply(pool, std::as_const(x).view(), weight, b, expected.view());
      multiply(pool, std::as_const(x).view(), weight, b, y.view(), true);
      CHECK(same_bits(y.view(), expected.view()));
      CHECK(y.gaps_untouched());
    }
}

}  // namespace

#else

TEST_CASE("products in tiles are those of processors with AMX") {
  GRAFT_SKIP("AMX is emulated on Linux on x86-64, on processors with AVX512-VNNI and AVX512-BF16");
}

#endif
