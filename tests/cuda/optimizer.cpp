// SPDX-License-Identifier: Apache-2.0
// Optimisers and clipping on the device against the CPU's, which are torch's (tests/train/optimizer.cpp).
#include <graft/backend/cuda/optimizer.cuh>
#include <graft/train/clip.hpp>
#include <graft/train/optimizer.hpp>
#include <tests/catch.hpp>
#include <tests/cuda/device.hpp>
#include <tests/cuda/on_device.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

namespace {

using namespace graft_test;

constexpr index_t size = 20'011;
// Gaps, ranges smaller than a block, all groups, and not in order.
std::vector<ParameterRange> ranges() {
  return {{9'000, 11'011, ParameterGroup::expansion, true},
          {3, 700, ParameterGroup::main, true},
          {703, 1, ParameterGroup::activation, false},
          {704, 7'000, ParameterGroup::main, false}};
}
/// In turn all groups, and some of them resting.
GroupRates rates_of(int step) {
  auto rates = group_rates(0.02, 2);
  if (step % 3 == 1) rates[static_cast<std::size_t>(ParameterGroup::activation)].reset();
  if (step % 4 == 2) rates[static_cast<std::size_t>(ParameterGroup::main)].reset();
  return rates;
}

template <class Act>
void compare(Optimizer<float>& host, Optimizer<float, CudaBackend<Act>>& device) {
  Random random(3);
  auto const start = random_vector(size, random);
  std::vector<float> p(start.begin(), start.end());
  CudaBackend<Act> be;
  DeviceArray<float> const q(p);
  DeviceArray<double> const norm(1);
  SerialExecutor serial;
  constexpr int steps = 8;
  // Per step: a parameter below 2 is rounded once, and what it moves by, at most 0.04 with some ten roundings of
  // numbers up to ten times as large (a difference g - m, momentum) before it; the device may fuse products and sums.
  double const bound = steps * (2 + 0.04 * 100) * unit_roundoff<float>();
  for (int step = 0; step < steps; ++step) {
    auto const slope = random_vector(size, random);
    std::vector<float> g(slope.begin(), slope.end());
    DeviceArray<float> const h(g);
    double const clip = step % 2 == 0 ? 40 : 400;  // the norm is about 80: clipped, and not
    std::vector const buffers{vector_view(g.data(), 9'001), vector_view(g.data() + 9'001, size - 9'001)};
    auto const on_device = h.mutable_view();
    std::vector const pieces{on_device.part(0, 9'001), on_device.part(9'001, size - 9'001)};
    double const expected = clip_gradient<float>(serial, buffers, clip);
    clip_gradient(be, std::span<VectorView<float, DeviceSpace> const>(pieces), clip, norm.data());
    host.step(serial, vector_view(p.data(), size), vector_view(g.data(), size), rates_of(step));
    device.step(be, q.mutable_view(), h.view(), rates_of(step));
    CHECK(norm.host()[0] == Approx(expected).epsilon(1e-13));  // doubles in another order
    auto const found = q.host();
    double worst = 0;
    for (std::size_t k = 0; k < found.size(); ++k)
      worst = std::max(worst, std::abs(static_cast<double>(found[k]) - static_cast<double>(p[k])));
    CHECK(worst <= bound);
  }
  CHECK(host.steps() == device.steps());
  // what belongs to no range stays as it was; everything else has moved
  auto const found = q.host();
  for (std::size_t k = 0; k < found.size(); ++k) {
    bool const in_range = (k >= 3 && k < 7'704) || k >= 9'000;
    if ((found[k] != static_cast<float>(start[k])) != in_range) FAIL("parameter " << k);
  }
  CHECK(finish() == "");
}

TEST_CASE("steps of optimisers on the device are the CPU's") {
  using F = CudaBackend<float>;
  using H = CudaBackend<bf16>;  // activations do not matter
  AdamWOptions const tuned{.beta1 = 0.8, .beta2 = 0.95, .epsilon = 1e-6, .weight_decay = 0.1};
  SgdOptions const heavy{.momentum = 0.9, .nesterov = true, .weight_decay = 0.1};
  AdamW<float> adamw(ranges()), decaying(ranges(), tuned);
  AdamW<float, F> adamw_device(ranges());
  AdamW<float, H> decaying_device(ranges(), tuned);
  compare(adamw, adamw_device);
  compare(decaying, decaying_device);
  Sgd<float> plain(ranges()), nesterov(ranges(), heavy);
  Sgd<float, H> plain_device(ranges());
  Sgd<float, F> nesterov_device(ranges(), heavy);
  compare(plain, plain_device);
  compare(nesterov, nesterov_device);
}

TEST_CASE("a norm that is not a number clips nothing, an infinite one leaves nothing") {
  CudaBackend<float> be;
  DeviceArray<double> const norm(1);
  auto const clipped = [&](float wrong) {
    DeviceArray<float> const g(std::vector<float>{1, wrong, -3});
    std::vector const buffers{g.mutable_view()};
    clip_gradient(be, std::span<VectorView<float, DeviceSpace> const>(buffers), 0.5, norm.data());
    be.synchronize();
    return g.host();
  };
  CHECK(clipped(std::nanf(""))[2] == -3);
  CHECK(clipped(std::numeric_limits<float>::infinity())[2] == 0);
  CHECK(std::isinf(norm.host()[0]));
  CHECK(finish() == "");
}

}  // namespace
