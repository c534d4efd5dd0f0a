// SPDX-License-Identifier: Apache-2.0
// AdamW, SGD, schedules and clipping against torch and transformers; groups; the same bits for any number of threads.
#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/pedro.hpp>
#include <graft/backend/cpu/cpu_backend.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/random.hpp>
#include <graft/train/clip.hpp>
#include <graft/train/optimizer.hpp>
#include <graft/train/schedule.hpp>
#include <tests/catch.hpp>
#include <tests/train/golden.hpp>

#include <algorithm>
#include <memory>
#include <vector>

namespace {

using namespace graft;
using namespace graft_test;

std::vector<ParameterRange> two_groups() {
  return {{0, 4, ParameterGroup::main, true}, {4, 2, ParameterGroup::main, false}};
}

/// Ten steps of torch's, one after the other. `bound`: largest difference of a parameter.
template <class R>
void follow(nlohmann::json const& golden, Optimizer<R>& optimizer, double bound) {
  auto const start = numbers(golden["start"]);
  std::vector<R> parameters(start.begin(), start.end());
  SerialExecutor serial;
  auto const view = vector_view(parameters.data(), static_cast<index_t>(parameters.size()));
  double const clip = golden["clip"];
  for (std::size_t step = 0; step < golden["gradients"].size(); ++step) {
    auto const slope = numbers(golden["gradients"][step]);
    std::vector<R> gradient(slope.begin(), slope.end());
    std::vector const buffers{vector_view(gradient.data(), view.size)};
    if (clip > 0)
      CHECK(clip_gradient<R>(serial, buffers, clip) ==
            Approx(golden["norms"][step].get<double>()).epsilon(4 * testing::unit_roundoff<R>()));
    optimizer.step(serial, view, buffers[0], group_rates(golden["rates"][step]));
    auto const expected = numbers(golden["after"][step]);
    for (std::size_t k = 0; k < expected.size(); ++k)
      CHECK(static_cast<double>(parameters[k]) == Approx(expected[k]).epsilon(0).margin(bound));
  }
}

TEMPLATE_TEST_CASE("ten steps of AdamW are torch's", "", float, double) {
  auto const& golden = training_golden()["adamw"];
  // parameters below 2 rounded once a step, and steps of 0.02 with some ten roundings each
  double const bound = 10 * (2 + 0.02 * 10) * testing::unit_roundoff<TestType>();
  AdamW<TestType> plain(two_groups());
  follow(golden[0], plain, bound);
  AdamW<TestType> tuned(two_groups(), {.beta1 = 0.8, .beta2 = 0.95, .epsilon = 1e-6, .weight_decay = 0.1});
  follow(golden[1], tuned, bound);
}

TEMPLATE_TEST_CASE("ten steps of SGD are torch's", "", float, double) {
  auto const& golden = training_golden()["sgd"];
  double const bound = 10 * (2 + 0.02 * 50) * testing::unit_roundoff<TestType>();  // velocities up to 10, 5 roundings
  Sgd<TestType> plain(two_groups());
  follow(golden[0], plain, bound);
  Sgd<TestType> heavy(two_groups(), {.momentum = 0.9, .weight_decay = 0.1});
  follow(golden[1], heavy, bound);
  Sgd<TestType> nesterov(two_groups(), {.momentum = 0.9, .nesterov = true});
  follow(golden[2], nesterov, bound);
}

TEST_CASE("schedules are transformers'") {
  for (auto const& golden : training_golden()["schedules"]) {
    auto const names = Schedule::names();
    Schedule schedule;
    schedule.kind = static_cast<Schedule::Kind>(
        std::find(names.begin(), names.end(), golden["kind"].get<std::string>()) - names.begin());
    schedule.warmup = golden["warmup"], schedule.total = golden["total"];
    if (golden.contains("end")) schedule.end = golden["end"], schedule.power = golden["power"];
    auto const rates = numbers(golden["rates"]);
    for (std::size_t step = 0; step < rates.size(); ++step) {
      INFO(golden["kind"] << " step " << step);
      // behind its end the cosine of transformers rises again; ours stays at zero
      if (schedule.kind == Schedule::Kind::cosine && step > 20) break;
      CHECK(schedule.rate(golden["peak"], static_cast<index_t>(step)) ==
            Approx(rates[step]).epsilon(1e-13).margin(1e-16));
    }
  }
}

TEST_CASE("steps are the same bits for any number of threads", "[many_threads]") {
  Random random(11);
  index_t const size = 100'003;
  std::vector<ParameterRange> const ranges{{0, 70'001, ParameterGroup::main, true},
                                           {70'001, 30'002, ParameterGroup::expansion, false}};
  auto const start = testing::random_vector(size, random), slope = testing::random_vector(size, random);
  auto const run = [&](Executor& executor) {
    std::vector<float> parameters(start.begin(), start.end()), gradient(slope.begin(), slope.end());
    std::vector const buffers{vector_view(gradient.data(), size)};
    AdamW<float> optimizer(ranges, {.weight_decay = 0.01});
    double norm = 0;
    for (int step = 0; step < 3; ++step) {
      norm += clip_gradient<float>(executor, buffers, 100);
      optimizer.step(executor, vector_view(parameters.data(), size), buffers[0], group_rates(1e-3, 16));
    }
    return std::make_pair(parameters, norm);
  };
  SerialExecutor serial;
  auto const expected = run(serial);
  for (index_t threads : {2, 5}) {
    ThreadPool pool(threads);
    CHECK(run(pool) == expected);
  }
}

TEST_CASE("a group moves only where it has a rate, and counts its own steps") {
  std::vector<ParameterRange> const ranges{
      {0, 1, ParameterGroup::main}, {1, 1, ParameterGroup::expansion}, {2, 1, ParameterGroup::activation}};
  AdamW<double> optimizer(ranges);
  SerialExecutor serial;
  std::vector<double> p{1, 1, 1}, g{0.5, 0.5, 0.5};
  auto const view = vector_view(p.data(), 3);
  optimizer.step(serial, view, vector_view(g.data(), 3), {0.1, 0.2, std::nullopt});
  CHECK(p[0] == Approx(0.9));  // Adam's first step is the rate itself, whatever the gradient
  CHECK(p[1] == Approx(0.8));
  CHECK(p[2] == 1);
  optimizer.step(serial, view, vector_view(g.data(), 3), {std::nullopt, std::nullopt, 0.3});
  CHECK(p[0] == Approx(0.9));
  CHECK(p[2] == Approx(0.7));  // a first step for this group
  CHECK(optimizer.steps() == std::array<std::int64_t, 3>{1, 1, 1});
  CHECK_THROWS_AS(optimizer.step(serial, vector_view(p.data(), 2), vector_view(g.data(), 2), group_rates(1)),
                  ContractError);
}

TEST_CASE("a state put back goes on as if it had never been away") {
  Random random(5);
  auto const slope = testing::random_vector(6, random);
  SerialExecutor serial;
  auto const steps = [&](Optimizer<float>& optimizer, std::vector<float>& p, int count) {
    std::vector<float> g(slope.begin(), slope.end());
    for (int k = 0; k < count; ++k)
      optimizer.step(serial, vector_view(p.data(), 6), vector_view(g.data(), 6), group_rates(0.01));
  };
  std::vector<float> unbroken(6, 1.f), broken(6, 1.f);
  AdamW<float> whole(two_groups()), first(two_groups()), second(two_groups());
  steps(whole, unbroken, 7);
  steps(first, broken, 3);
  std::vector<VectorView<float>> from;
  first.for_each([&](char const*, VectorView<float> state) { from.push_back(state); });
  std::size_t k = 0;
  second.for_each([&](char const*, VectorView<float> to) {
    std::copy(from[k].begin(), from[k].end(), to.begin());
    ++k;
  });
  second.steps() = first.steps();
  steps(second, broken, 4);
  CHECK(broken == unbroken);
}

TEST_CASE("modules are cut into ranges by group, and vectors do not decay") {
  using B = CpuBackend<float>;
  SiteTable table;
  Site const q = table.add_linear(0, "q_proj", "model.layers.0.self_attn.q_proj", 6, 8);
  Site const v = table.add_linear(0, "v_proj", "model.layers.0.self_attn.v_proj", 6, 4);
  Site const up = table.add_linear(0, "up_proj", "model.layers.0.mlp.up_proj", 6, 10);
  Site const block = table.add({0, "block_out", "model.layers.0", 6, 6, SiteKind::hidden});
  table.add_layer({block.index, {q.index, 0, 8}, {v.index, 0, 4}, {up.index, 0, 10}, {}});

  auto const lora =
      parameter_ranges(make_module<LoRADelta, B>("m", {.rank = 3, .bias = true}, table, {q.index, v.index}));
  auto const is = [](ParameterRange const& r, index_t first, index_t size, ParameterGroup group, bool decays) {
    return r.first == first && r.size == size && r.group == group && r.decays == decays;
  };
  REQUIRE(lora.size() == 6);
  CHECK(is(lora[0], 0, 18, ParameterGroup::main, true));        // A [3, 6]
  CHECK(is(lora[1], 18, 24, ParameterGroup::expansion, true));  // B [8, 3]
  CHECK(is(lora[2], 42, 8, ParameterGroup::expansion, false));  // its bias
  CHECK(is(lora[3], 50, 18, ParameterGroup::main, true));

  auto const narrow = parameter_ranges(make_module<LoRADelta, B>("m", {.rank = 1}, table, {q.index}));
  REQUIRE(narrow.size() == 2);
  CHECK(is(narrow[0], 0, 6, ParameterGroup::main, true));  // A [1, 6] is a matrix, as any other rank's
  CHECK(is(narrow[1], 6, 8, ParameterGroup::expansion, true));

  auto const scales = parameter_ranges(make_module<IA3Scaling, B>("m", {}, table, {q.index, v.index}));
  REQUIRE(scales.size() == 1);  // neighbours of one kind are one range
  CHECK(is(scales[0], 0, 12, ParameterGroup::main, false));

  auto const pedro = parameter_ranges(make_module<PedroGenerator, B>("m", {.rank = 2}, table, {block.index}));
  REQUIRE(pedro.size() == 2);
  CHECK(is(pedro[0], 0, 2 * 6 + 22 * 2, ParameterGroup::main, true));
  CHECK(is(pedro[1], 56, 6 + 4, ParameterGroup::activation, false));
}

}  // namespace
