// SPDX-License-Identifier: Apache-2.0
// An engine shows prompts in its own element type: only what the type cannot hold is lost.
#include <graft/adapter/apply.hpp>
#include <graft/adapter/bank.hpp>
#include <graft/adapter/pedro.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/testing/buffer.hpp>
#include <graft/testing/matrix.hpp>
#include <graft/testing/random.hpp>
#include <tests/adapter/pedro_layer.hpp>
#include <tests/catch.hpp>

#include <cmath>
#include <vector>

namespace {

using namespace graft;
using testing::Buffer;
using B = CpuBackend<>;
constexpr index_t width = 44, query = 24, value = 12, up = 30, vectors = query + value + up, rank = 5, rows = 6;

/// A bank with one PEDRO module, whose factors the test keeps, and a prompt between the rows of other requests.
struct Fixture {
  explicit Fixture(PedroGenerator::Pooling pooling)
      : bank(graft_test::pedro_layer(width, query, value, up)), normalized(2 + rows, width, 3), raw(normalized) {
    PedroGenerator const policy{.rank = rank, .pooling = pooling, .activation = PedroGenerator::Activation::relu};
    auto module = make_module<PedroGenerator, B>("p", policy, bank.sites(), {bank.sites().find("layers.0")}, 1);
    testing::fill_normal(module.entries[0].state.up, random, 0, 0.3);
    down = testing::Matrix(module.entries[0].state.down), lift = testing::Matrix(module.entries[0].state.up);
    bank.load(backend, std::move(module));
    testing::fill_normal(normalized.view(), random);
    testing::fill_normal(raw.view(), random);
  }

  /// l - 1 [q+v+u] from prompts of T.
  template <class T>
  std::vector<float> see() {
    auto const as = [](Buffer<float> const& from) {
      Buffer<T> to(from.view().rows, width, 1);
      for (index_t n = 0; n < to.view().rows; ++n)
        for (index_t k = 0; k < width; ++k) to.row(n)[k] = static_cast<T>(from.row(n)[k]);
      return to;
    };
    SequenceState<B> state(bank.resolve({{"p", 1.0}}), bank.sites());
    RequestRows<B> const requests[] = {{nullptr, 1, 1}, {&state, rows, rows}, {nullptr, 1}};
    Plan<B> plan;
    plan.build(requests);
    Buffer<T> const x = as(normalized), h = as(raw);
    observe_prompt(backend, 0, plan, x.view(), h.view());
    std::vector<float> all;
    for (index_t s = 0; s < 3; ++s) {
      auto const& map = state.table(Stage::output_inner)[s];
      all.insert(all.end(), map.c1.full(), map.c1.full() + map.size);
    }
    return all;
  }

  void round_to_bf16() {
    for (auto* buffer : {&normalized, &raw})
      for (index_t n = 0; n < buffer->view().rows; ++n)
        for (index_t k = 0; k < width; ++k) buffer->row(n)[k] = static_cast<float>(bf16(buffer->row(n)[k]));
  }

  Bank<Adapters<PedroGenerator>, B> bank;
  B backend;
  Random random{3};
  Buffer<float> normalized, raw;
  testing::Matrix down, lift;
};

TEST_CASE("a prompt in 16 bits gives the vectors of its widened values, bit for bit") {
  Fixture f(PedroGenerator::Pooling::mean);
  auto const exact = f.see<float>();
  f.round_to_bf16();
  auto const rounded = f.see<float>();
  CHECK(rounded != exact);
  CHECK(f.see<bf16>() == rounded);
  CHECK(f.see<double>() == rounded);
  CHECK(f.see<f16>() == rounded);  // normal numbers of 8 bits fit into f16's 11
}

TEST_CASE("what bf16 loses of a prompt is bounded") {
  for (auto const pooling : {PedroGenerator::Pooling::last, PedroGenerator::Pooling::mean}) {
    Fixture f(pooling);
    auto const exact = f.see<float>(), rounded = f.see<bf16>();
    REQUIRE(exact.size() == static_cast<std::size_t>(vectors));
    CHECK(exact != rounded);
    // |bf16(x) - x| <= 2^-8 |x|, pooling keeps that, ReLU has slope at most 1: the bound goes through |W_up| |W_down|;
    // 1.01 for the roundings of the two runs in f32, which are 2^-15 of it
    testing::Vector h(static_cast<std::size_t>(width), 0.0);
    bool const last = pooling == PedroGenerator::Pooling::last;
    for (index_t t = last ? rows - 1 : 0; t < rows; ++t)
      for (index_t k = 0; k < width; ++k)
        h[static_cast<std::size_t>(k)] +=
            std::fabs(static_cast<double>(f.normalized.row(1 + t)[k])) / static_cast<double>(last ? 1 : rows);
    for (index_t j = 0; j < vectors; ++j) {
      double bound = 0;
      for (index_t r = 0; r < rank; ++r)
        for (index_t k = 0; k < width; ++k)
          bound += std::fabs(f.lift(j, r) * f.down(r, k)) * h[static_cast<std::size_t>(k)] / 256;
      auto const at = static_cast<std::size_t>(j);
      REQUIRE(std::fabs(static_cast<double>(exact[at]) - static_cast<double>(rounded[at])) <= 1.01 * bound);
    }
  }
}

}  // namespace
