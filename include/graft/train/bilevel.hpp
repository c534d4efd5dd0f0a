// SPDX-License-Identifier: Apache-2.0
// Bi-level training: the coefficients of a learnable activation on one split of the data, everything else on another.
#pragma once

#include <graft/adapter/parameter_group.hpp>
#include <graft/train/parameter_ranges.hpp>

#include <cstddef>

namespace graft {

// One turn is a step of lower_level with the gradient of the first split, then one of upper_level with that of the
// second: the alternating first-order scheme of Liu, Simonyan and Yang 2019, arXiv:1806.09055, section 2.3 with xi = 0.
// PEDRO's paper (arXiv:2409.17834) says bi-level; its split sizes and steps could not be read.

/// These rates for everything but the activation's coefficients, which rest.
inline GroupRates lower_level(GroupRates rates) {
  rates[static_cast<std::size_t>(ParameterGroup::activation)].reset();
  return rates;
}

/// The activation's rate alone; everything else rests.
inline GroupRates upper_level(GroupRates const& rates) {
  GroupRates upper;
  auto const activation = static_cast<std::size_t>(ParameterGroup::activation);
  upper[activation] = rates[activation];
  return upper;
}

}  // namespace graft
