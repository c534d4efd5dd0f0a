// SPDX-License-Identifier: Apache-2.0
// Several steps of a layer in one operation have the bits of the steps one after the other.
#include <graft/backend/cpu/fused_rows.hpp>
#include <graft/testing/buffer.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/maps.hpp>
#include <graft/testing/random.hpp>
#include <tests/catch.hpp>

#include <deque>
#include <vector>

namespace {

using namespace graft;
using namespace graft::testing;

/// Rows of three requests with maps of pairs, of chunks and none.
struct Maps {
  Maps(index_t rows, index_t size, Random& random) {
    for (index_t const group : {2, 16}) {
      owned.push_back(OwnedMap<float>::random(random, size, group, true, group == 2));
      maps.push_back(owned.back().row());
    }
    tables = {&maps[0], nullptr, &maps[1]};
    for (index_t n = 0; n < rows; ++n) request.push_back(static_cast<std::int32_t>(pick(random, 0, 2)));
  }
  RowMapBatch<float> batch() const { return {tables.data(), request.data(), 3, 0}; }

  std::deque<OwnedMap<float>> owned;
  std::deque<RowMapRow<float const>> maps;
  std::vector<RowMapRow<float const> const*> tables;
  std::vector<std::int32_t> request;
};

Buffer<float> random_buffer(index_t rows, index_t cols, Random& random) {
  Buffer<float> result(rows, cols, 3);
  fill_normal(result.view(), random);
  return result;
}
template <class T>
MatrixView<T const> read_only(Buffer<T> const& buffer) {
  return buffer.view();
}

TEST_CASE("a residual sum with the norm behind it", "[isa]") {
  Random random(1);
  index_t const rows = 19, width = 48;
  Maps const maps(rows, width, random);
  auto const weight = random_buffer(1, width, random);
  VectorView<float const> const norm{weight.row(0), width};
  for (index_t const threads : {1, 3})
    for (bool const mapped : {false, true}) {
      ThreadPool pool(threads);
      CpuBackend<> be(pool);
      auto const x = random_buffer(rows, width, random), before = random_buffer(rows, width, random);
      auto x1 = x, h1 = before, y1 = before, x2 = x, h2 = before, y2 = before;
      add_mapped_norm(be, Unmapped<CpuBackend<>>{x1.view(), mapped ? maps.batch() : RowMapBatch<float>{}}, h1.view(),
                      norm, 1e-5, y1.view());
      if (mapped) apply_row_map(be, maps.batch(), x2.view());
      add(be, read_only(x2), h2.view());
      rms_norm(be, read_only(h2), norm, 1e-5, y2.view());
      CHECK(same_bits(read_only(h1), read_only(h2)));
      CHECK(same_bits(read_only(y1), read_only(y2)));
    }
}

TEST_CASE("norms of heads, rotation, and keys and values into their pages", "[isa]") {
  Random random(2);
  index_t const head_dim = 16, heads = 4, kv_heads = 2, angles = 8, width = kv_heads * head_dim, page_tokens = 4;
  index_t const sequences = 11, pages = 3;  // several sequences to a task, the last ones a task of their own
  std::vector<AttentionSpan> spans;
  std::vector<std::int32_t> page_of(static_cast<std::size_t>(sequences * pages));
  for (std::size_t k = 0; k < page_of.size(); ++k) page_of[k] = static_cast<std::int32_t>(k);
  index_t rows = 0;
  for (index_t s = 0; s < sequences; ++s) {
    index_t const count = pick(random, 1, 5), past = pick(random, 0, 6);
    spans.push_back({page_of.data() + s * pages, rows, count, past, past + count, nullptr});
    rows += count;
  }
  Maps const q_maps(rows, heads * head_dim, random), v_maps(rows, width, random);
  auto const norms = random_buffer(2, head_dim, random);
  auto const cosine = random_buffer(rows, angles, random), sine = random_buffer(rows, angles, random);

  struct Cache {
    explicit Cache(index_t page_count, index_t size)
        : values(static_cast<std::size_t>(page_count * 2 * size)), data(static_cast<std::size_t>(page_count)) {
      for (index_t k = 0; k < page_count; ++k) data[static_cast<std::size_t>(k)] = values.data() + k * 2 * size;
    }
    std::vector<float> values;
    std::vector<float*> data;
  };
  auto const view_of = [&](Cache& cache) {
    return KvView<float>{cache.data.data(), 0, page_tokens * width, page_tokens, width};
  };
  for (index_t const threads : {1, 3})
    for (bool const normed : {false, true}) {
      ThreadPool pool(threads);
      CpuBackend<> be(pool);
      VectorView<float const> const q_norm{norms.row(0), normed ? head_dim : 0},
          k_norm{norms.row(1), normed ? head_dim : 0};
      auto q1 = random_buffer(rows, heads * head_dim, random), k1 = random_buffer(rows, width, random),
           v1 = random_buffer(rows, width, random);
      auto q2 = q1, k2 = k1, v2 = v1;
      Cache cache1(sequences * pages, page_tokens * width), cache2 = cache1;
      for (index_t k = 0; k < sequences * pages; ++k)
        cache2.data[static_cast<std::size_t>(k)] = cache2.values.data() + k * 2 * page_tokens * width;
      using Some = Unmapped<CpuBackend<>>;
      norm_rotate_store(be, q_norm, k_norm, 1e-6, read_only(cosine), read_only(sine), head_dim, view_of(cache1),
                        AttentionSpans(spans), Some{q1.view(), q_maps.batch()}, Some{k1.view()},
                        Some{v1.view(), v_maps.batch()});
      apply_row_map(be, q_maps.batch(), q2.view());
      apply_row_map(be, v_maps.batch(), v2.view());
      if (normed) rms_norm_heads(be, q2.view(), q_norm, 1e-6), rms_norm_heads(be, k2.view(), k_norm, 1e-6);
      rotate(be, read_only(cosine), read_only(sine), head_dim, q2.view());
      rotate(be, read_only(cosine), read_only(sine), head_dim, k2.view());
      for (auto const& span : spans)
        for (index_t r = 0; r < span.rows; ++r) {
          index_t const token = span.first_token + r, n = span.first_row + r;
          auto const kv = view_of(cache2);
          std::copy_n(k2.row(n), width, kv.key(span.pages[token / page_tokens], token % page_tokens));
          std::copy_n(v2.row(n), width, kv.value(span.pages[token / page_tokens], token % page_tokens));
        }
      CHECK(same_bits(read_only(q1), read_only(q2)));
      CHECK(cache1.values == cache2.values);
    }
}

}  // namespace
