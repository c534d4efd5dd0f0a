// SPDX-License-Identifier: Apache-2.0
// Operations of several steps in one kernel equal the single steps one after the other.
#include <graft/backend/cuda/fused_rows.cuh>
#include <tests/catch.hpp>
#include <tests/cuda/on_device.hpp>

#include <cmath>
#include <deque>
#include <limits>

namespace {

using namespace graft_test;

/// Rounded less often than the steps, whose intermediate results are rounded too: three of them at most. f32 differs by
/// the order of the norm's sum alone.
template <class Act>
double bound() {
  return 4 * unit_roundoff<Act>() + 1e-6;
}

struct Maps {
  std::deque<OwnedMap<float>> owned;
  std::deque<RowMapRow<float const>> rows;
  std::vector<RowMapRow<float const> const*> of_row;

  /// Of many kinds: c alone, pairs near and far, chains, none.
  Maps(Random& random, index_t count, index_t size) {
    auto const add = [&](index_t group, bool c, bool e, RowMapRow<float const> const* next = nullptr) {
      owned.push_back(OwnedMap<float>::random(random, size, group, c, e));
      if (rows.size() >= 6) owned.back().narrow();
      owned.back().next = next;
      rows.push_back(owned.back().row());
      return static_cast<RowMapRow<float const> const*>(&rows.back());
    };
    for (index_t n = 0; n < count; ++n) switch (n % 6) {
        case 0:
          of_row.push_back(add(0, true, false));
          break;
        case 1:
          of_row.push_back(add(2, true, true));
          break;
        case 2:
          of_row.push_back(add(64, false, false));
          break;
        case 3:
          of_row.push_back(nullptr);
          break;
        case 4:
          of_row.push_back(add(6, true, false));
          break;
        default:
          of_row.push_back(add(64, true, true, add(2, true, false)));
      }
  }
};

template <class Act>
Buffer<Act> random_buffer(Random& random, index_t rows, index_t cols, index_t gap = 8) {
  Buffer<Act> result(rows, cols, gap);
  fill_normal(result.view(), random);
  return result;
}
template <class Act>
MatrixView<Act const, DeviceSpace> read_only(MatrixView<Act, DeviceSpace> view) {
  return view;
}

TEMPLATE_TEST_CASE("device: a mapped sum and its norm in one kernel", "", float, bf16, f16) {
  for (bool const mapped : {true, false}) {
    Random random(1);
    index_t const size = 960;  // more than a block's threads have at once
    Device<TestType> device;
    Maps const host_maps(random, 13, size);
    auto const maps = mapped ? device.put_maps(host_maps.of_row) : RowMapBatch<float>{};
    auto const x = random_buffer<TestType>(random, 13, size), h = random_buffer<TestType>(random, 13, size);
    auto const weight = device.put(random_buffer<float>(random, 1, size, 0));
    VectorView<float const, DeviceSpace> const weights{weight.data, size};
    auto const x1 = device.put(x), h1 = device.put(h), y1 = device.put(h), x2 = device.put(x), h2 = device.put(h),
               y2 = device.put(h), x3 = device.put(x), h3 = device.put(h);
    auto const scope = device.be.scope();
    using U = Unmapped<CudaBackend<TestType>>;
    add_mapped_norm(device.be, U{x1, maps}, h1, weights, 1e-5, y1);
    add_mapped(device.be, U{x3, maps}, h3);
    apply_row_map(device.be, maps, x2);
    add(device.be, read_only(x2), h2);
    rms_norm(device.be, read_only(h2), weights, 1e-5, y2);
    auto const h_result = device.get(h1), y_result = device.get(y1);
    CHECK(worst_row(h_result.view(), device.get(h2).view()) == 0);  // so that it does not matter which maps wait
    CHECK(worst_row(device.get(h3).view(), h_result.view()) == 0);
    CHECK(worst_row(y_result.view(), device.get(y2).view()) <= bound<TestType>());
    CHECK(h_result.gaps_untouched());
    CHECK(y_result.gaps_untouched());
  }
}

TEMPLATE_TEST_CASE("device: a mapped sum and its layer norm in one kernel", "", float, bf16, f16) {
  for (index_t const size : {960, 100}) {  // 100: columns that no load of 8 divides
    Random random(3);
    Device<TestType> device;
    Maps const host_maps(random, size == 960 ? 13 : 0, size);
    bool const mapped = size == 960, in_place = size == 100;
    auto const maps = mapped ? device.put_maps(host_maps.of_row) : RowMapBatch<float>{};
    auto const x = random_buffer<TestType>(random, 13, size), h = random_buffer<TestType>(random, 13, size);
    auto const weight = device.put(random_buffer<float>(random, 1, size, 0)),
               bias = device.put(random_buffer<float>(random, 1, size, 0));
    VectorView<float const, DeviceSpace> const weights{weight.data, size}, biases{bias.data, size};
    auto const x1 = device.put(x), h1 = device.put(h), x2 = device.put(x), h2 = device.put(h), y2 = device.put(h);
    auto const y1 = in_place ? h1 : device.put(h);
    auto const scope = device.be.scope();
    add_mapped_layer_norm(device.be, Unmapped<CudaBackend<TestType>>{x1, maps}, h1, weights, biases, 1e-5, y1);
    if (mapped) apply_row_map(device.be, maps, x2);
    add(device.be, read_only(x2), h2);
    layer_norm(device.be, read_only(h2), weights, biases, 1e-5, y2);
    auto const result = device.get(y1);
    CHECK(worst_row(result.view(), device.get(y2).view()) == 0);
    if (!in_place) CHECK(worst_row(device.get(h1).view(), device.get(h2).view()) == 0);
    CHECK(result.gaps_untouched());
  }
}

TEMPLATE_TEST_CASE("device: mapped and activated in one kernel", "", float, bf16, f16) {
  for (index_t const size : {1536, 192}) {
    Random random(4);
    Device<TestType> device;
    Maps const host_maps(random, 12, size);
    auto const maps = device.put_maps(host_maps.of_row);
    auto const x = random_buffer<TestType>(random, 12, size, 3);
    auto const x1 = device.put(x), x2 = device.put(x);
    auto const scope = device.be.scope();
    auto const out = activate_mapped(device.be, Activation::gelu_tanh, Unmapped<CudaBackend<TestType>>{x1, maps});
    apply_row_map(device.be, maps, x2);
    activate(device.be, Activation::gelu_tanh, x2);
    CHECK(worst_row(device.get(out).view(), device.get(x2).view()) == 0);
  }
}

TEMPLATE_TEST_CASE("device: mapped gates and inputs in one kernel", "", float, bf16, f16) {
  for (index_t const size : {1536, 192}) {
    Random random(2);
    Device<TestType> device;
    Maps const of_gate(random, 12, size);
    Maps of_up(random, 12, size);
    std::rotate(of_up.of_row.begin(), of_up.of_row.begin() + 5, of_up.of_row.end());
    auto const gate_maps = device.put_maps(of_gate.of_row), up_maps = device.put_maps(of_up.of_row);
    auto const gate = random_buffer<TestType>(random, 12, size, 3), up = random_buffer<TestType>(random, 12, size);
    auto const gate1 = device.put(gate), up1 = device.put(up);
    auto const gate2 = device.put(gate), up2 = device.put(up);
    auto const scope = device.be.scope();
    using U = Unmapped<CudaBackend<TestType>>;
    auto const out = activate_gated_mapped(device.be, Activation::silu, U{gate1, gate_maps}, U{up1, up_maps});
    apply_row_map(device.be, gate_maps, gate2);
    apply_row_map(device.be, up_maps, up2);
    activate_gated(device.be, Activation::silu, gate2, read_only(up2));
    CHECK(worst_row(device.get(out).view(), device.get(gate2).view()) <= bound<TestType>());
  }
}

template <class Act>
void check_heads(index_t head_dim, index_t angles, bool normed, bool mapped, index_t heads = 4) {
  Random random(static_cast<std::uint64_t>(head_dim));
  index_t const kv_heads = 2, page_tokens = 4, width = kv_heads * head_dim, rows = 9;
  Device<Act> device;
  auto const q = random_buffer<Act>(random, rows, heads * head_dim), k = random_buffer<Act>(random, rows, width),
             v = random_buffer<Act>(random, rows, width);
  auto const cosine = device.put(random_buffer<Act>(random, rows, angles, 0)),
             sine = device.put(random_buffer<Act>(random, rows, angles, 0));
  auto const weight = device.put(random_buffer<float>(random, 1, head_dim, 0));
  VectorView<float const, DeviceSpace> const weights{normed ? weight.data : nullptr, normed ? head_dim : 0};
  // spans of 6 rows from token 3 on and of 3 rows from token 0 on
  std::vector<std::int32_t> const pages[2] = {{4, 0, 2}, {3}};
  std::vector<AttentionSpan> const spans{{device.put(pages[0]), 0, 6, 3, 9, nullptr},
                                         {device.put(pages[1]), 6, 3, 0, 3, nullptr}};
  AttentionSpans const on_device(device.put(spans), AttentionSpans(std::span<AttentionSpan const>(spans)));
  index_t const page_size = 2 * width * page_tokens;
  auto const cache = [&] {
    Act* const all = device.put(Buffer<Act>(5, page_size)).data;
    std::vector<Act*> page_data;
    for (index_t p = 0; p < 5; ++p) page_data.push_back(all + p * page_size);
    return std::pair{all, KvView<Act>{device.put(page_data), 0, width * page_tokens, page_tokens, width}};
  };
  auto const [data1, kv1] = cache();
  auto const [data2, kv2] = cache();
  auto const q1 = device.put(q), q2 = device.put(q), k1 = device.put(k), k2 = device.put(k), v1 = device.put(v),
             v2 = device.put(v);
  Maps const of_q(random, mapped ? rows : 0, heads * head_dim), of_k(random, mapped ? rows : 0, width);
  Maps of_v(random, mapped ? rows : 0, width);
  std::rotate(of_v.of_row.begin(), of_v.of_row.begin() + (mapped ? 5 : 0), of_v.of_row.end());
  auto const maps_of = [&](Maps const& maps) { return mapped ? device.put_maps(maps.of_row) : RowMapBatch<float>{}; };
  auto const q_maps = maps_of(of_q), k_maps = maps_of(of_k), v_maps = maps_of(of_v);
  using U = Unmapped<CudaBackend<Act>>;
  auto const scope = device.be.scope();
  auto const rotated = norm_rotate_store(device.be, weights, weights, 1e-6, read_only(cosine), read_only(sine),
                                         head_dim, kv1, on_device, U{q1, q_maps}, U{k1, k_maps}, U{v1, v_maps});
  if (mapped)
    apply_row_map(device.be, q_maps, q2), apply_row_map(device.be, k_maps, k2), apply_row_map(device.be, v_maps, v2);
  if (normed) rms_norm_heads(device.be, q2, weights, 1e-6), rms_norm_heads(device.be, k2, weights, 1e-6);
  rotate(device.be, read_only(cosine), read_only(sine), head_dim, q2);
  rotate(device.be, read_only(cosine), read_only(sine), head_dim, k2);
  store_kv(device.be, kv2, on_device, read_only(k2), read_only(v2));
  INFO("heads " << heads << ", head_dim " << head_dim << ", angles " << angles << ", norms " << normed << ", maps "
                << mapped);
  CHECK(worst_row(device.get(rotated).view(), device.get(q2).view()) <= bound<Act>());
  auto const one = device.get(static_cast<Act const*>(data1), 5 * page_size);
  auto const two = device.get(static_cast<Act const*>(data2), 5 * page_size);
  // rows of one head; slots that no token has hold what they held
  for (index_t r = 0; r < 5 * page_size; r += head_dim) {
    MatrixView<Act const> const a{one.data() + r, 1, head_dim, head_dim}, b{two.data() + r, 1, head_dim, head_dim};
    REQUIRE(worst_row(a, b) <= bound<Act>());
  }
}

TEMPLATE_TEST_CASE("device: norms of heads, rotation and the cache in one kernel", "", float, bf16, f16) {
  check_heads<TestType>(64, 32, true, false);
  check_heads<TestType>(64, 32, false, false);
  check_heads<TestType>(80, 16, true, false);  // a part of the head is rotated
  check_heads<TestType>(10, 5, true, false);
  check_heads<TestType>(96, 48, false, true);  // groups of 64 reach over heads
  check_heads<TestType>(96, 16, true, true);
  check_heads<TestType>(96, 20, true, true);      // angles that no load of 8 divides
  check_heads<TestType>(96, 48, true, true, 18);  // more heads than a block has at once
}

}  // namespace
