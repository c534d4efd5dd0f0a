// SPDX-License-Identifier: Apache-2.0
// After a first call, no gradient of the CPU backend touches the heap.
#include <graft/testing/counting_allocator.hpp>
//
#include <graft/backend/cpu/cpu.hpp>
#include <graft/testing/buffer.hpp>
#include <graft/testing/maps.hpp>
#include <graft/testing/random.hpp>
#include <tests/backend/stored_weight.hpp>
#include <tests/catch.hpp>

#include <utility>
#include <vector>

namespace {

using namespace graft;
using namespace graft::testing;

TEST_CASE("after a first call no gradient allocates") {
  Random random(1);
  index_t const n = 70, d = 96, r = 5;
  graft_test::StoredWeight const weight(Format::q4_1, d, d, random);
  Buffer<float> a(n, d), b(n, d), c(n, d), w(d, d), table(n, d), factor_a(r, d), factor_b(r, d), vector(1, d);
  Buffer<bf16> x16(n, d), y16(n, d);
  for (auto* buffer : {&a, &b, &c, &w, &table, &factor_a, &factor_b, &vector}) fill_normal(buffer->view(), random);
  fill_normal(x16.view(), random);
  fill_normal(y16.view(), random);
  std::vector<std::int32_t> rows, tokens;
  for (index_t k = 0; k < n; ++k) {
    if (k % 3 > 0) rows.push_back(static_cast<std::int32_t>(k));
    tokens.push_back(static_cast<std::int32_t>(k % 7));
  }
  auto const map = OwnedMap<float>::random(random, d, 8, true, true);
  LowRankFactors<float> const factors{factor_a.row(0), factor_b.row(0), r, 1};
  AttentionShape const shape{6, 6, 16, 0.25, true, 0};
  std::vector<AttentionSpan> const spans{{nullptr, 0, n, 0, n, nullptr}};
  MatrixView<float const> const x = std::as_const(a).view(), dy = std::as_const(b).view();
  MatrixView<bf16 const> const some = std::as_const(x16).view();
  VectorView<float> const v{vector.row(0), d};

  auto const all = [&](CpuBackend<>& be) {
    product_transposed(be, dy, weight.weight, c.view());
    weight_gradient(be, dy, x, w.view());
    bias_gradient(be, dy, v);
    gather_rows_backward(be, tokens.data(), dy, table.view());
    rms_norm_backward<float>(be, x, v, 1e-5, dy, c.view(), v);
    rms_norm_heads_backward<float>(be, x, v, 1e-5, c.view(), v);
    layer_norm_backward<float>(be, x, v, 1e-5, dy, c.view(), v, v);
    activate_backward(be, Activation::gelu, x, c.view());
    activate_gated_backward(be, Activation::silu, x, dy, c.view(), table.view());
    rotate_backward(be, x.col_range(0, 8), dy.col_range(0, 8), 16, c.view());
    attention_backward(be, shape, spans, x, x, x, x, dy, c.view(), c.view(), c.view());
    row_map_backward(be, map.row(), rows, some, y16.view(), RowMapRow<float>{v.data, v.data, v.data, d, 8, nullptr});
    low_rank_backward(be, factors, 1.0f, rows, some, dy, c.view(), factor_a.row(0), factor_b.row(0));
    low_rank_embedding_backward(be, factors, 1.0f, rows, tokens.data(), d, dy, factor_a.row(0), factor_b.row(0));
  };
  ThreadPool pool(2);
  CpuBackend<> serial, threaded(pool);
  for (auto* be : {&serial, &threaded}) {
    all(*be);
    auto const before = allocation_count();
    all(*be);
    auto const during = allocation_count() - before;
    CHECK(during == 0);
  }
}

}  // namespace
