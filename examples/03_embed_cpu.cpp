// SPDX-License-Identifier: Apache-2.0
// graft inside somebody else's engine: its buffers (rows with gaps between them, f32 and bf16), its threads, its
// products. Nothing of graft's models is in sight; graft applies the adapters of a mixed batch to what the engine made.
#include <graft/adapter/apply.hpp>
#include <graft/adapter/bank.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/road.hpp>
#include <graft/backend/cpu/cpu.hpp>

#include <barrier>
#include <cmath>
#include <cstdio>
#include <thread>
#include <vector>

using namespace graft;
using B = CpuBackend<>;
using EngineAdapters = Adapters<RoAdRotation, LoRADelta>;

namespace {

constexpr index_t rows = 5, in = 96, out = 128, rank = 8, threads = 3;
constexpr index_t x_stride = 112, y_stride = 160;  // the engine pads its rows

/// The engine's product: y = x W^T. Slice `slice` of `threads` computes its share of the outputs.
template <class T>
void engine_product(std::vector<T> const& x, std::vector<float> const& w, std::vector<T>& y, index_t slice) {
  for (index_t o = slice; o < out; o += threads)
    for (index_t n = 0; n < rows; ++n) {
      float sum = 0;
      for (index_t k = 0; k < in; ++k)
        sum +=
            static_cast<float>(x[static_cast<std::size_t>(n * x_stride + k)]) * w[static_cast<std::size_t>(o * in + k)];
      y[static_cast<std::size_t>(n * y_stride + o)] = static_cast<T>(sum);
    }
}

/// What the batch should be, in double: rows 0 and 1 are rotated, rows 2 and 3 have the low-rank delta, row 4 nothing.
template <class T>
double reference(std::vector<T> const& x, std::vector<float> const& w, std::vector<float> const& theta,
                 std::vector<float> const& a, std::vector<float> const& b, index_t n, index_t o) {
  auto const at = [&](index_t k) {
    return static_cast<double>(static_cast<float>(x[static_cast<std::size_t>(n * x_stride + k)]));
  };
  auto const product = [&](index_t j) {
    double sum = 0;
    for (index_t k = 0; k < in; ++k) sum += at(k) * static_cast<double>(w[static_cast<std::size_t>(j * in + k)]);
    return static_cast<double>(
        static_cast<float>(static_cast<T>(static_cast<float>(sum))));  // the engine stored it as T
  };
  if (n < 2) {  // RoAd 1, groups of 64: o pairs with o + 32
    index_t const p = partner(o, 64);
    double const t = static_cast<double>(theta[static_cast<std::size_t>(o / 64 * 32 + o % 32)]);
    return std::cos(t) * product(o) + (o % 64 < 32 ? -1 : 1) * std::sin(t) * product(p);
  }
  double result = product(o);
  for (index_t r = 0; r < rank && n < 4; ++r) {  // alpha / r = 2
    double t = 0;
    for (index_t k = 0; k < in; ++k) t += at(k) * static_cast<double>(a[static_cast<std::size_t>(r * in + k)]);
    result += 2 * t * static_cast<double>(b[static_cast<std::size_t>(o * rank + r)]);
  }
  return result;
}

/// Runs the batch on buffers of T and returns the largest difference to the reference, relative to the largest value.
template <class T>
double run(Bank<EngineAdapters, B>& bank, Site site, std::vector<float> const& theta, std::vector<float> const& a,
           std::vector<float> const& b) {
  Random random(7);
  std::vector<T> x(static_cast<std::size_t>(rows * x_stride)), y(static_cast<std::size_t>(rows * y_stride));
  std::vector<float> w(static_cast<std::size_t>(out * in));
  for (auto& value : x) value = static_cast<T>(static_cast<float>(random.normal()));
  for (auto& value : w) value = static_cast<float>(random.normal() / std::sqrt(static_cast<double>(in)));

  // [engine]
  // Once per request: resolve its adapters. Once per step: say which rows belong to whom.
  SequenceState<B> rotated(bank.resolve({{"road", 1.0}}), bank.sites());
  SequenceState<B> low_rank(bank.resolve({{"lora", 1.0}}), bank.sites());
  std::vector<RequestRows<B>> const requests{
      {.state = &rotated, .rows = 2}, {.state = &low_rank, .rows = 2}, {.state = nullptr, .rows = 1}};
  Plan<B> plan;
  plan.build(requests);

  // The engine's own threads: each makes the same call with its slice. The engine synchronises between operations.
  auto const x_view = matrix_view(x.data(), rows, in, x_stride);
  auto const y_view = matrix_view(y.data(), rows, out, y_stride);
  std::barrier between(threads);
  std::vector<std::thread> pool;
  for (index_t slice = 0; slice < threads; ++slice)
    pool.emplace_back([&, slice] {
      SliceExecutor executor(slice, threads);
      B backend(executor);
      backend.arena().reserve(workspace_size<T>(backend, bank.sites(), plan));  // from here on nothing allocates
      engine_product(x, w, y, slice);
      between.arrive_and_wait();
      apply_output(backend, site, plan, x_view, y_view);
    });
  for (auto& thread : pool) thread.join();
  // [/engine]

  double worst = 0, largest = 0;
  for (index_t n = 0; n < rows; ++n)
    for (index_t o = 0; o < out; ++o) {
      double const expected = reference(x, w, theta, a, b, n, o);
      worst = std::max(worst, std::abs(static_cast<double>(static_cast<float>(y_view(n, o))) - expected));
      largest = std::max(largest, std::abs(expected));
    }
  return worst / largest;
}

}  // namespace

int main() {
  SiteTable sites;
  Site const site = sites.add_linear(0, "up", "layers.0.up", in, out);
  Bank<EngineAdapters, B> bank(sites);
  B backend;
  Random random(1);

  auto road = make_module<RoAdRotation, B>("road", RoAdRotation{}, bank.sites(), {site.index});
  std::vector<float> theta;  // [out / 2]; alpha stays 1
  for (index_t k = 0; k < out / 2; ++k) theta.push_back(road.parameters()[k] = static_cast<float>(random.normal()));
  auto lora = make_module<LoRADelta, B>("lora", LoRADelta{.rank = rank, .alpha = 2 * rank}, bank.sites(), {site.index});
  for (auto& value : lora.parameters()) value = static_cast<float>(random.normal() / 10);
  std::vector<float> const all(lora.parameters().begin(), lora.parameters().end());  // A [r, i], then B [o, r]
  std::vector<float> const a(all.begin(), all.begin() + rank * in), b(all.begin() + rank * in, all.end());
  bank.load(backend, std::move(road));
  bank.load(backend, std::move(lora));

  double const f32 = run<float>(bank, site, theta, a, b), half = run<bf16>(bank, site, theta, a, b);
  // f32 sums of 96 products; bf16 keeps 8 bits of every result
  bool const good = f32 < 1e-6 && half < 1.0 / 256;
  std::printf("f32 %.1e, bf16 %.1e: %s\n", f32, half, good ? "as computed by hand" : "WRONG");
  return good ? 0 : 1;
}
