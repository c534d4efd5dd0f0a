// SPDX-License-Identifier: Apache-2.0
// Gradients of one generator of vectors on the device against plain loops in double, with sizes whose sums many blocks
// share. Pooling by attention and rationals are tested by training PEDRO.
#include <graft/backend/cuda/generator_backward.cuh>
#include <tests/catch.hpp>
#include <tests/cuda/on_device.hpp>

#include <vector>

namespace {

using namespace graft_test;

Buffer<float> random_buffer(Random& random, index_t rows, index_t cols) {
  Buffer<float> result(rows, cols);
  fill_normal(result.view(), random);
  return result;
}

TEST_CASE("device: gradients of a generator's bottleneck, of many pieces") {
  constexpr index_t p = 3, d = 2300, r = 5, vectors = 1100, query = 20;
  constexpr double weight = 0.5;
  Random random(1);
  auto const x = random_buffer(random, p, d), down = random_buffer(random, r, d),
             up = random_buffer(random, vectors, r);
  auto const dl = random_buffer(random, 1, vectors + query), dx = random_buffer(random, p, d);
  auto const ddown = random_buffer(random, r, d), dup = random_buffer(random, vectors, r),
             dbias = random_buffer(random, 1, vectors);

  // l = W_up silu(W_down mean(x)) + b, of which the queries' part is kept behind all others
  Matrix down64(ddown.view()), up64(dup.view()), bias64(dbias.view()), dx64(dx.view());
  auto const slope = [&](index_t j) { return weight * static_cast<double>(dl.row(0)[j < query ? vectors + j : j]); };
  for (index_t j = 0; j < vectors; ++j) bias64(0, j) += slope(j);
  for (index_t k = 0; k < r; ++k) {
    Vector h(static_cast<std::size_t>(d));
    double z = 0, dy = 0;
    for (index_t c = 0; c < d; ++c) {
      auto& pooled = h[static_cast<std::size_t>(c)];
      for (index_t t = 0; t < p; ++t) pooled += static_cast<double>(x.row(t)[c]) / p;
      z += static_cast<double>(down.row(k)[c]) * pooled;
    }
    for (index_t j = 0; j < vectors; ++j) {
      dy += slope(j) * static_cast<double>(up.row(j)[k]);
      up64(j, k) += slope(j) * activate(Activation::silu, z);
    }
    double const dz = dy * activation_derivative(Activation::silu, z);
    for (index_t c = 0; c < d; ++c) {
      down64(k, c) += dz * h[static_cast<std::size_t>(c)];
      for (index_t t = 0; t < p; ++t) dx64(t, c) += dz * static_cast<double>(down.row(k)[c]) / p;
    }
  }

  for (bool const trained : {true, false}) {
    Device<float> device;
    GeneratorTerm<float> term{{}, static_cast<float>(weight), query, true};
    auto& g = term.generator;
    g.down = device.put(down).data, g.up = device.put(up).data;
    g.rank = r, g.width = d, g.vectors = vectors;
    g.pooling = VectorGenerator<float>::Pooling::mean, g.function = VectorGenerator<float>::Function::silu;
    auto const to_down = device.put(ddown), to_up = device.put(dup), to_bias = device.put(dbias), to_x = device.put(dx);
    GeneratorGradient<float> gradient;
    if (trained) gradient = {to_down.data, to_up.data, to_bias.data, nullptr, nullptr, nullptr};
    MatrixView<float const, DeviceSpace> const rows = device.put(x);
    generator_backward(device.be, term, gradient, {device.put(dl).data, vectors + query}, rows, rows, to_x, to_x);
    auto const bound = sum_bound(d);
    CHECK(worst_row(device.get(to_x).view(), dx64) <= bound);
    CHECK(worst_row(device.get(to_down).view(), trained ? down64 : Matrix(ddown.view())) <= bound);
    CHECK(worst_row(device.get(to_up).view(), trained ? up64 : Matrix(dup.view())) <= bound);
    CHECK(worst_row(device.get(to_bias).view(), trained ? bias64 : Matrix(dbias.view())) <= bound);
  }
}

}  // namespace
