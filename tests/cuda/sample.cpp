// SPDX-License-Identifier: Apache-2.0
// Sampling on the device against the host's sampler: the same tokens from the same random streams.
#include <graft/backend/cuda/sample.cuh>
#include <graft/model/sampling.hpp>
#include <tests/catch.hpp>
#include <tests/cuda/on_device.hpp>
#include <tests/model/sampling_options.hpp>

#include <limits>
#include <vector>

namespace {

using namespace graft_test;

/// One row's options as the device takes them.
template <class Act>
SamplingRow put(Device<Act>& device, SamplingOptions const& o, std::vector<std::int32_t> const& seen) {
  return {o.temperature, o.top_p,        o.min_p,          o.repeat_penalty,
          o.top_k,       Random(o.seed), device.put(seen), static_cast<index_t>(seen.size())};
}

/// Draws `steps` times from every row on the device and on the host; the same tokens must come out.
template <class T>
void check(std::vector<SamplingOptions> const& options, index_t vocabulary, int steps, double spread, bool ties) {
  Random random(static_cast<std::uint64_t>(vocabulary));
  auto const rows = static_cast<index_t>(options.size());
  Device<T> device;
  std::vector<std::vector<std::int32_t>> seen(options.size());
  std::vector<SamplingRow> on_device;
  std::vector<Sampler> samplers;
  for (std::size_t n = 0; n < options.size(); ++n) {
    for (index_t k = 0; k < 30; ++k) seen[n].push_back(static_cast<std::int32_t>(pick(random, 0, vocabulary - 1)));
    seen[n].push_back(seen[n].front());  // seen twice, penalised once
    on_device.push_back(put(device, options[n], seen[n]));
    samplers.emplace_back(options[n]);
  }
  auto* const row_data = device.put(on_device);
  auto* const tokens = device.template allocate<std::int32_t>(rows);
  for (int step = 0; step < steps; ++step) {
    Buffer<T> logits(rows, vocabulary, 5);
    fill_normal(logits.view(), random, 0, spread);
    if (ties)
      for (index_t n = 0; n < rows; ++n)
        for (index_t k = 0; k < vocabulary; ++k)
          logits.row(n)[k] = static_cast<T>(std::round(2 * static_cast<float>(logits.row(n)[k])) / 2);
    sample(device.be, MatrixView<T const, DeviceSpace>(device.put(logits)), row_data, tokens);
    auto const drawn = device.get(static_cast<std::int32_t const*>(tokens), rows);
    for (std::size_t n = 0; n < options.size(); ++n) {
      std::vector<float> row;
      for (index_t k = 0; k < vocabulary; ++k)
        row.push_back(static_cast<float>(logits.row(static_cast<index_t>(n))[k]));
      INFO("row " << n << ", step " << step << ", V " << vocabulary << ", ties " << ties);
      CHECK(drawn[n] == samplers[n].sample(row, seen[n]));
    }
  }
}

TEMPLATE_TEST_CASE("device: tokens are those of the host's sampler", "", float, bf16, f16) {
  check<TestType>(every_kind(), 600, 2, 3, false);
  check<TestType>(every_kind(), 130, 1, 1, true);
}

TEST_CASE("device: small vocabularies, and one that no block of threads divides") {
  check<float>(every_kind(), 1, 1, 1, false);
  check<float>(every_kind(), 2, 1, 1, true);
  check<float>(every_kind(), 5003, 1, 2, false);
}

TEST_CASE("device: a vocabulary of 70,001 tokens, most of them unlikely") {
  check<float>({{.temperature = 1, .seed = 1}, {.temperature = 0.9, .top_p = 0.95, .min_p = 1e-4, .seed = 2}}, 70001, 2,
               4, false);
}

TEST_CASE("device: zeros of both signs are equal, the lower token first") {
  Device<float> device;
  Buffer<float> logits(2, 4);
  float const values[2][4] = {{-1, 0.f, -0.f, 0.f}, {-1, -0.f, 0.f, -2}};
  for (index_t n = 0; n < 2; ++n) std::copy(values[n], values[n] + 4, logits.row(n));
  std::vector<SamplingRow> const rows(2);
  auto* const tokens = device.allocate<std::int32_t>(2);
  sample(device.be, MatrixView<float const, DeviceSpace>(device.put(logits)), device.put(rows), tokens);
  CHECK(device.get(static_cast<std::int32_t const*>(tokens), 2) == std::vector<std::int32_t>{1, 1});
}

TEST_CASE("device: NaN is never the likeliest") {
  Device<float> device;
  Buffer<float> logits(2, 4);
  float const nan = std::numeric_limits<float>::quiet_NaN(), nothing = -std::numeric_limits<float>::infinity();
  float const values[2][4] = {{nan, -1, 2, -nan}, {-nan, nan, nothing, nothing}};
  for (index_t n = 0; n < 2; ++n) std::copy(values[n], values[n] + 4, logits.row(n));
  std::vector<SamplingRow> const rows(2);
  auto* const tokens = device.allocate<std::int32_t>(2);
  sample(device.be, MatrixView<float const, DeviceSpace>(device.put(logits)), device.put(rows), tokens);
  CHECK(device.get(static_cast<std::int32_t const*>(tokens), 2) == std::vector<std::int32_t>{2, 2});
}

TEST_CASE("device: tokens that -infinity forbids are never drawn") {
  Device<float> device;
  Buffer<float> logits(1, 600);
  for (index_t k = 0; k < 600; ++k) logits.row(0)[k] = k % 3 == 1 ? 0.f : -std::numeric_limits<float>::infinity();
  std::vector<SamplingRow> rows(1);
  rows[0].temperature = 1, rows[0].random = Random(3);
  auto* const on_device = device.put(rows);
  auto* const tokens = device.allocate<std::int32_t>(1);
  auto const view = MatrixView<float const, DeviceSpace>(device.put(logits));
  for (int k = 0; k < 5; ++k) {
    sample(device.be, view, on_device, tokens);
    CHECK(device.get(static_cast<std::int32_t const*>(tokens), 1)[0] % 3 == 1);
  }
}

}  // namespace
