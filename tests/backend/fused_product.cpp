// SPDX-License-Identifier: Apache-2.0
// Maps and deltas fused with the product, or applied together behind it, have the bits of the operations one by one.
#include <graft/backend/cpu/fused_product.hpp>
#include <graft/backend/cpu/maps_and_deltas.hpp>
#include <graft/testing/buffer.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/maps.hpp>
#include <tests/backend/stored_weight.hpp>
#include <tests/catch.hpp>

#include <deque>
#include <vector>

namespace {

using namespace graft;
using namespace graft::testing;
using graft_test::StoredWeight;

/// Rows of five requests: none, maps on one side, deltas alone, and everything.
struct Mix {
  static constexpr index_t rows = 21, inputs = 100, outputs = 192;

  /// narrow: the numbers of some adapters are in bf16.
  Mix(index_t group, bool narrow, Random& random)
      : w(outputs, inputs), bias(1, outputs), x(rows, inputs, 4), x_delta(rows, inputs), a(12, inputs), b(12, outputs) {
    for (auto* buffer : {&w, &bias, &x, &x_delta, &a, &b}) fill_normal(buffer->view(), random, 0, 0.2);
    for (int k = 0; k < 4; ++k) {
      owned.push_back(OwnedMap<float>::random(random, outputs, k % 2 == 0 ? group : 2, true, k > 1));
      if (narrow && k % 3 != 0) owned.back().narrow();
      maps.push_back(owned.back().row());
    }
    inner_tables = {nullptr, &maps[0], nullptr, nullptr, &maps[1]};
    outer_tables = {nullptr, nullptr, &maps[2], nullptr, &maps[3]};
    factors[0] = {a.row(0), b.row(0), 5, 0.5f};
    factors[1] = {a.row(5), b.row(5), 7, 2};
    if (narrow) {
      for (index_t k = 0; k < 7 * inputs; ++k) narrow_a.emplace_back(a.row(5)[k]);
      for (index_t k = 0; k < 7 * outputs; ++k) narrow_b.emplace_back(b.row(5)[k]);
      factors[1] = {narrow_a.data(), narrow_b.data(), 7, 2};
    }
    terms = {{&factors[0], 1}, {&factors[1], -0.5f}};
    std::vector<std::vector<std::int32_t>> members(5);
    for (index_t n = 0; n < rows; ++n) {
      auto const q = static_cast<std::size_t>(pick(random, 0, 4));
      request.push_back(static_cast<std::int32_t>(q));
      members[q].push_back(static_cast<std::int32_t>(n));
    }
    for (std::size_t q = 1; q < 5; ++q) {
      bool const deltas = q >= 3;
      in_tiles.push_back(members[q]);
      auto const& rows_of = in_tiles.back();
      for (std::size_t k = 0; k < rows_of.size(); k += 8)
        tiles.push_back({deltas ? terms.data() : nullptr, deltas ? 2 : 0, rows_of.data() + k,
                         static_cast<index_t>(std::min<std::size_t>(8, rows_of.size() - k))});
    }
  }

  RowMapBatch<float> inner() const { return {inner_tables.data(), request.data(), 5, 0}; }
  RowMapBatch<float> outer() const { return {outer_tables.data(), request.data(), 5, 0}; }
  LowRankBatch<float> deltas() const { return {tiles.data(), static_cast<index_t>(tiles.size()), rows, 12, 0}; }
  VectorView<float const> b_view() const { return {bias.row(0), outputs}; }

  /// The operations one by one.
  Buffer<float> expected(CpuBackend<>& be) const {
    Buffer<float> y(rows, outputs);
    product(be, x.view(), dense_weight(w.view()), b_view(), y.view());
    apply_row_map(be, inner(), y.view());
    apply_low_rank(be, deltas(), x_delta.view(), y.view());
    apply_row_map(be, outer(), y.view());
    return y;
  }

  Buffer<float> w, bias, x, x_delta, a, b;
  std::vector<bf16> narrow_a, narrow_b;
  std::deque<OwnedMap<float>> owned;
  std::deque<RowMapRow<float const>> maps;
  std::vector<RowMapRow<float const> const*> inner_tables, outer_tables;
  LowRankFactors<float> factors[2];
  std::vector<LowRankTerm<float>> terms;
  std::vector<std::int32_t> request;
  std::deque<std::vector<std::int32_t>> in_tiles;
  std::vector<LowRankTile<float>> tiles;
};

TEST_CASE("a fused product has the bits of its parts, whether maps fit the chunks or not", "[isa]") {
  Random random(1);
  for (index_t const group : {2, 6, 64, 192}) {  // 6 and 192 do not divide a chunk of 64
    Mix const mix(group, group >= 64, random);
    CpuBackend<> be;
    auto const expected = mix.expected(be);
    auto const inner = mix.inner(), outer = mix.outer();
    auto const deltas = mix.deltas();
    ThreadPool pool(3);
    CpuBackend<> threaded(pool);
    for (auto* backend : {&be, &threaded}) {
      Buffer<float> y(Mix::rows, Mix::outputs);
      fused_product(*backend, dense_weight(mix.w.view()), mix.b_view(), mix.x.view(), mix.x_delta.view(), &inner,
                    &deltas, &outer, y.view());
      CHECK(same_bits(y.view(), std::as_const(expected).view()));
    }
    Buffer<float> bare(Mix::rows, Mix::outputs), y(Mix::rows, Mix::outputs);
    product(be, mix.x.view(), dense_weight(mix.w.view()), mix.b_view(), bare.view());
    fused_product<float>(be, dense_weight(mix.w.view()), mix.b_view(), mix.x.view(), mix.x_delta.view(), nullptr,
                         nullptr, nullptr, y.view());
    CHECK(same_bits(y.view(), bare.view()));
  }
}

TEST_CASE("products side by side have the bits of each alone, whatever is on them and whoever runs them", "[isa]") {
  Random random(3);
  Mix const small(2, false, random), chunk(64, true, random), wide(192, true, random);
  index_t const inputs = 96;
  Buffer<float> x(Mix::rows, inputs);
  fill_normal(x.view(), random);
  OwnedMap<float> const input_map = OwnedMap<float>::random(random, inputs, 6, true, true);
  auto const input_row = input_map.row();
  std::vector<RowMapRow<float const> const*> const input_tables{nullptr, &input_row, nullptr, &input_row, nullptr};
  struct Part {
    Mix const* mix;
    bool input, maps, deltas;
    StoredWeight stored;
  };
  Part const parts[] = {{&small, false, true, false, {Format::q4_1, Mix::outputs, inputs, random}},
                        {&wide, false, true, true, {Format::bf16, Mix::outputs, inputs, random}},
                        {&chunk, true, true, true, {Format::q8_0, Mix::outputs, inputs, random, true}},
                        {&small, true, false, false, {Format::f32, Mix::outputs, inputs, random}},
                        {&wide, true, false, false, {Format::bf16, Mix::outputs, inputs, random}},
                        {&small, false, false, false, {Format::f32, Mix::outputs, inputs, random}},
                        {&chunk, false, false, true, {Format::bf16, Mix::outputs, inputs, random}}};
  for (Precision const precision : {Precision::exact, Precision::native})
    for (index_t const threads : {1, 2, 3}) {
      ThreadPool pool(threads);
      CpuBackend<> be(pool);
      be.set_precision(precision);
      std::deque<Buffer<float>> together, alone;
      std::vector<AdaptedProduct<CpuBackend<>>> products;
      for (auto const& [mix, maps_input, maps, deltas, stored] : parts) {
        together.emplace_back(Mix::rows, Mix::outputs, 3), alone.emplace_back(Mix::rows, Mix::outputs, 3);
        auto const inner = maps ? mix->inner() : RowMapBatch<float>{};
        auto const outer = maps ? mix->outer() : RowMapBatch<float>{};
        auto const delta = deltas ? mix->deltas() : LowRankBatch<float>{};
        RowMapBatch<float> const input{maps_input ? input_tables.data() : nullptr, mix->request.data(),
                                       maps_input ? 5 : 0, 0};
        products.push_back({&stored.weight, mix->b_view(), std::as_const(x).view(), mix->x_delta.view(), inner, delta,
                            outer, together.back().view(), input});
        auto const y = alone.back().view();
        auto mapped = x;
        if (maps_input) apply_row_map(be, input, mapped.view());
        product(be, std::as_const(mapped).view(), stored.weight, mix->b_view(), y);
        if (maps) apply_row_map(be, inner, y);
        if (deltas) apply_low_rank(be, delta, mix->x_delta.view(), y);
        if (maps) apply_row_map(be, outer, y);
      }
      fused_products<float>(be, products);
      for (std::size_t k = 0; k < std::size(parts); ++k) {
        INFO("part " << k << ", " << threads << " threads");
        CHECK(same_bits(together[k].view(), std::as_const(alone[k]).view()));
        CHECK(together[k].gaps_untouched());
      }
    }
}

TEST_CASE("maps and deltas behind a product are applied row by row, so slices may run in any order") {
  Random random(2);
  Mix const mix(64, true, random);
  CpuBackend<> be;
  auto const expected = mix.expected(be);
  for (bool const backwards : {false, true}) {
    Buffer<float> y(Mix::rows, Mix::outputs);
    product(be, mix.x.view(), dense_weight(mix.w.view()), mix.b_view(), y.view());
    for (index_t k = 0; k < 3; ++k) {
      SliceExecutor executor(backwards ? 2 - k : k, 3);
      CpuBackend<> slice(executor);
      apply_maps_and_deltas(slice, mix.inner(), mix.deltas(), mix.outer(), mix.x_delta.view(), y.view());
    }
    CHECK(same_bits(std::as_const(y).view(), expected.view()));
  }
}

}  // namespace
