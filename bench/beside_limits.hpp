// SPDX-License-Identifier: Apache-2.0
// An operation timed beside the machine's limits, measured in turn with it.
#pragma once

#include <graft/core/executor.hpp>

#include <benchmark/benchmark.h>

#include <bench/limits.hpp>

#include <algorithm>
#include <vector>

namespace bench {

/// What one call of an operation reads and computes, and by which instruction.
struct Work {
  double bytes, operations;
  Isa isa;
  Instruction instruction;
};

/// Times once() in every turn of the state, and reports it in microseconds, GB/s, GFLOP/s and shares of the limits: the
/// instruction's, and `read_limit` of the memory it reads.
template <class F>
void beside_limits(benchmark::State& state, graft::Executor& executor, Work const& work, ReadLimit& read_limit,
                   F&& once) {
  // long enough that a clock's tick and a wake-up do not matter
  auto const repeats = std::max<index_t>(1, static_cast<index_t>(1e8 / work.operations));
  once();
  std::vector<double> seconds, of_read, of_instruction;
  for (auto _ : state) {
    double const read = read_limit(), compute = operation_limit(executor, work.isa, work.instruction);
    double const all = seconds_of([&] {
      for (index_t k = 0; k < repeats; ++k) once();
    });
    double const one = all / static_cast<double>(repeats);
    state.SetIterationTime(one);
    seconds.push_back(one);
    of_read.push_back(100 * work.bytes / one / read);
    of_instruction.push_back(compute > 0 ? 100 * work.operations / one / compute : 0);
  }
  double const typical = median(seconds);
  state.counters["us"] = 1e6 * typical;
  state.counters["GB/s"] = 1e-9 * work.bytes / typical;
  state.counters["GFLOP/s"] = 1e-9 * work.operations / typical;
  state.counters["read_limit_%"] = median(of_read);
  state.counters["instruction_limit_%"] = median(of_instruction);
}

}  // namespace bench
