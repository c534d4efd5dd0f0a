// SPDX-License-Identifier: Apache-2.0
// Gradients on the device against the CPU's in double, which tests check with differences.
#include <graft/backend/cpu/elementwise_backward.hpp>
#include <graft/backend/cpu/row_map_backward.hpp>
#include <graft/backend/cuda/elementwise_backward.cuh>
#include <tests/catch.hpp>
#include <tests/cuda/on_device.hpp>

namespace {

using namespace graft_test;

template <class Act>
using View = MatrixView<Act, DeviceSpace>;
template <class Act>
View<Act const> read_only(View<Act> view) {
  return view;
}
template <class Act>
Buffer<Act> random_buffer(Random& random, index_t rows, index_t cols, index_t gap = 8) {
  Buffer<Act> result(rows, cols, gap);
  fill_normal(result.view(), random);
  return result;
}
MatrixView<double const> in_double(Matrix const& m) { return m.view(); }

/// One rounding of the result, and sums in f32 that cancel.
template <class Act>
double bound(index_t terms) {
  return 2 * unit_roundoff<Act>() + sum_bound(terms);
}

TEMPLATE_TEST_CASE("device: gradients of norms", "", float, bf16, f16) {
  Random random(1);
  index_t const rows = 70, size = 96;  // three blocks of rows, the last one short
  for (bool const replace : {false, true}) {
    Device<TestType> device;
    CpuBackend<double> cpu;
    auto const x = random_buffer<TestType>(random, rows, size), dy = random_buffer<TestType>(random, rows, size);
    auto const before = replace ? dy : random_buffer<TestType>(random, rows, size);
    auto const weight = random_buffer<float>(random, 1, size, 0);
    auto const sums = random_buffer<float>(random, 2, size, 0);
    Matrix const x64(x.view()), dy64(dy.view()), w64(weight.view());
    VectorView<double const> const w_host{w64.values.data(), size};
    VectorView<float const, DeviceSpace> const w{device.put(weight).data, size};
    auto const x_device = device.put(x);
    for (int kind = 0; kind < 3; ++kind) {  // of rows, of heads of 32, with a mean
      Matrix dx64(before.view()), sums64(sums.view());
      auto const dx = device.put(before);
      auto const dy_device = replace ? dx : device.put(dy);
      auto const sums_device = device.put(sums);
      MatrixView<double const> const dy_host = replace ? MatrixView<double const>(dx64.view()) : in_double(dy64);
      auto const host_sum = [&](index_t k, index_t n) { return VectorView<double>{sums64.view().row(k), n}; };
      auto const sum = [&](index_t k, index_t n) { return VectorView<float, DeviceSpace>{sums_device.row(k), n}; };
      if (kind == 0) {
        rms_norm_backward(cpu, in_double(x64), w_host, 1e-5, dy_host, dx64.view(), host_sum(0, size));
        rms_norm_backward(device.be, read_only(x_device), w, 1e-5, read_only(dy_device), dx, sum(0, size));
      } else if (kind == 1) {
        rms_norm_heads_backward(cpu, in_double(x64), w_host.part(0, 32), 1e-5, dx64.view(), host_sum(0, 32));
        rms_norm_heads_backward(device.be, read_only(x_device), w.part(0, 32), 1e-5, dx, sum(0, 32));
      } else {
        layer_norm_backward(cpu, in_double(x64), w_host, 1e-5, dy_host, dx64.view(), host_sum(0, size),
                            host_sum(1, size));
        layer_norm_backward(device.be, read_only(x_device), w, 1e-5, read_only(dy_device), dx, sum(0, size),
                            sum(1, size));
      }
      INFO("kind " << kind << ", in place " << replace);
      auto const result = device.get(dx);
      CHECK(worst_row(result.view(), dx64) <= bound<TestType>(size));
      CHECK(result.gaps_untouched());
      CHECK(worst_row(device.get(sums_device).view(), sums64) <= bound<float>(rows * 3));
    }
  }
}

TEMPLATE_TEST_CASE("device: gradients of activations and rotations", "", float, bf16, f16) {
  Random random(2);
  Device<TestType> device;
  CpuBackend<double> cpu;
  for (index_t const size : {160, 33}) {
    auto const gate = random_buffer<TestType>(random, 9, size), up = random_buffer<TestType>(random, 9, size),
               dgate = random_buffer<TestType>(random, 9, size), dup = random_buffer<TestType>(random, 9, size);
    Matrix const gate64(gate.view()), up64(up.view());
    for (auto const f :
         {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu, Activation::tanh}) {
      Matrix dy64(dgate.view()), dgate64(dgate.view()), dup64(dup.view());
      activate_backward(cpu, f, in_double(gate64), dy64.view());
      activate_gated_backward(cpu, f, in_double(gate64), in_double(up64), dgate64.view(), dup64.view());
      auto const g = read_only(device.put(gate)), u = read_only(device.put(up));
      auto const dy1 = device.put(dgate), dgate1 = device.put(dgate), dup1 = device.put(dup);
      activate_backward(device.be, f, g, dy1);
      activate_gated_backward(device.be, f, g, u, dgate1, dup1);
      CHECK(worst_row(device.get(dy1).view(), dy64) <= bound<TestType>(8));
      CHECK(worst_row(device.get(dgate1).view(), dgate64) <= bound<TestType>(8));
      CHECK(worst_row(device.get(dup1).view(), dup64) <= bound<TestType>(8));
    }
  }
  auto const dx = random_buffer<TestType>(random, 7, 3 * 20);
  auto const cosine = random_buffer<TestType>(random, 7, 8, 0), sine = random_buffer<TestType>(random, 7, 8, 0);
  Matrix dx64(dx.view());
  Matrix const c64(cosine.view()), s64(sine.view());
  rotate_backward(cpu, in_double(c64), in_double(s64), 20, dx64.view());
  auto const dx1 = device.put(dx);
  rotate_backward(device.be, read_only(device.put(cosine)), read_only(device.put(sine)), 20, dx1);
  CHECK(worst_row(device.get(dx1).view(), dx64) <= bound<TestType>(8));
}

TEMPLATE_TEST_CASE("device: gradients of a row map", "", float, bf16, f16) {
  Random random(3);
  index_t const size = 192;
  std::vector<std::int32_t> rows;
  for (std::int32_t n = 0; n < 90; n += n % 3 + 1) rows.push_back(n);  // two blocks and more, not all rows
  for (index_t const group : {0, 2, 6, 64}) {
    Device<TestType> device;
    CpuBackend<double> cpu;
    bool const c = group != 6, e = group != 2;
    auto const host = OwnedMap<float>::random(random, size, group, c, e);
    auto const z = random_buffer<TestType>(random, 90, size), dy = random_buffer<TestType>(random, 90, size);
    auto const sums = random_buffer<float>(random, 3, size, 0);
    std::vector<double> const c1(host.c1.begin(), host.c1.end()), d(host.d.begin(), host.d.end()),
        shift(host.e.begin(), host.e.end());
    auto const data = [](auto const& v) { return v.empty() ? nullptr : v.data(); };
    RowMapRow<double const> const map64{data(c1), data(d), data(shift), size, group, nullptr};
    Matrix const z64(z.view());
    Matrix dy64(dy.view()), sums64(sums.view());
    auto const sums_device = device.put(sums);
    auto const pick_of = [&](auto view) {
      using T = typename decltype(view)::Element;
      return RowMapRow<T>{view.row(0), group != 0 ? view.row(1) : nullptr, view.row(2), size, group, nullptr};
    };
    row_map_backward(cpu, map64, rows, in_double(z64), dy64.view(), pick_of(sums64.view()));
    auto const dy_device = device.put(dy);
    row_map_backward(device.be, device.put(host.row()), std::span<std::int32_t const>(device.put(rows), rows.size()),
                     read_only(device.put(z)), dy_device, pick_of(sums_device));
    INFO("group " << group);
    auto const result = device.get(dy_device);
    CHECK(worst_row(result.view(), dy64) <= bound<TestType>(4));
    CHECK(result.gaps_untouched());
    CHECK(worst_row(device.get(sums_device).view(), sums64) <= bound<float>(90));
  }
}

}  // namespace
