// SPDX-License-Identifier: Apache-2.0
// How an optimiser sees a module: one flat vector of parameters, cut into ranges that are treated alike.
#pragma once

#include <graft/adapter/module.hpp>
#include <graft/adapter/parameter_group.hpp>
#include <graft/core/types.hpp>

#include <array>
#include <optional>
#include <vector>

namespace graft {

struct ParameterRange {
  index_t first = 0, size = 0;  ///< in Module::parameters()
  ParameterGroup group = ParameterGroup::main;
  bool decays = true;  ///< whether weight decay pulls it to zero
};

/// A learning rate for each ParameterGroup; a group without one rests in this step.
using GroupRates = std::array<std::optional<double>, parameter_group_count>;

/// One learning rate for all, times LoRA+'s ratio for the expansion factor.
inline GroupRates group_rates(double rate, double expansion_ratio = 1) { return {rate, rate * expansion_ratio, rate}; }

/// Matrices decay; vectors do not: biases, scales, angles and magnitudes have their rest position elsewhere than at 0,
/// or too few numbers to overfit. Groups, and what is a matrix in name only, are the policy's (see
/// parameter_group.hpp).
template <class P, class B>
std::vector<ParameterRange> parameter_ranges(Module<P, B> const& module) {
  std::vector<ParameterRange> ranges;
  for (auto const& entry : module.entries) {
    auto state = entry.state;  // its views; for_each is not const
    state.for_each([&](char const* suffix, auto& tensor) {
      ParameterRange range{0, 0, parameter_group_of(entry.policy, suffix), false};
      if constexpr (requires { tensor.rows; }) {
        range.size = tensor.rows * tensor.cols;
        range.decays = matrices_decay(entry.policy);
      } else {
        range.size = tensor.size;
      }
      if (range.size == 0) return;
      range.first = tensor.data - module.parameters().data;
      bool const joins = !ranges.empty() && ranges.back().first + ranges.back().size == range.first &&
                         ranges.back().group == range.group && ranges.back().decays == range.decays;
      if (joins)
        ranges.back().size += range.size;
      else
        ranges.push_back(range);
    });
  }
  return ranges;
}

}  // namespace graft
