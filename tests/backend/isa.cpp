// SPDX-License-Identifier: Apache-2.0
// Instruction-set levels: what is chosen, what is refused, and that every level decodes every weight format to the same
// values and agrees with the others within rounding.
#include <graft/backend/cpu/cpu.hpp>
#include <graft/testing/buffer.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/random.hpp>
#include <tests/backend/stored_weight.hpp>
#include <tests/catch.hpp>

#include <algorithm>
#include <cstdlib>
#include <string_view>
#include <vector>

namespace {

using namespace graft;
using namespace graft::testing;
using graft_test::weight_formats;

std::vector<Isa> levels() {
  std::vector<Isa> some;
  for (int k = 0; k <= static_cast<int>(detected_isa()); ++k) some.push_back(static_cast<Isa>(k));
  return some;
}

TEST_CASE("a backend starts with the best level, or with the one GRAFT_ISA names") {
  CpuBackend<> be;
  const char* const name = std::getenv("GRAFT_ISA");
  if (name == nullptr)
    CHECK(be.isa() == detected_isa());
  else
    CHECK(isa_name(be.isa()) == std::string_view(name));
}

TEST_CASE("a level the processor lacks is refused") {
  if (detected_isa() == Isa::amx) return graft_test::note_skip("this processor has every level");
  CpuBackend<> be;
  CHECK_THROWS_WITH(be.set_isa(Isa::amx), Catch::Contains("this processor has no amx"));
}

// A product with a row that is 1 at one place and 0 elsewhere picks out a weight: no rounding is involved.
TEST_CASE("every level decodes every format to the values of the format itself") {
  Random random(1);
  for (Format const format : weight_formats()) {
    index_t const o = 5, i = format_info(format).block == 1 ? 55 : 512;
    std::vector<std::byte> bytes(static_cast<std::size_t>(o * row_bytes(format, i) + 1));
    std::vector<float> row(static_cast<std::size_t>(i)), decoded(static_cast<std::size_t>(i));
    for (index_t k = 0; k < o; ++k) {
      fill_normal(VectorView<float>{row.data(), i}, random, 0.03, 0.1);
      encode_row(format, row.data(), i, bytes.data() + 1 + k * row_bytes(format, i));
    }
    Weight const weight{bytes.data() + 1, format, o, i, nullptr};
    for (Isa const isa : levels())
      for (index_t const rows : {1, 7}) {  // decoded in registers, and through a panel
        CpuBackend<> be;
        be.set_isa(isa);
        index_t different = 0;
        for (index_t k = 0; k < i; ++k) {
          Buffer<float> x(rows, i), y(rows, o);
          for (index_t n = 0; n < rows; ++n) std::fill_n(x.row(n), i, 0.f), x.row(n)[k] = 1;
          product(be, std::as_const(x).view(), weight, {}, y.view());
          for (index_t r = 0; r < o; ++r) {
            weight.row(r, decoded.data());
            for (index_t n = 0; n < rows; ++n) different += y.row(n)[r] != decoded[static_cast<std::size_t>(k)];
          }
        }
        INFO(format_info(format).name << " at " << isa_name(isa) << ", " << rows << " rows");
        CHECK(different == 0);
      }
  }
}

}  // namespace
