// SPDX-License-Identifier: Apache-2.0
// Which parameters of a policy an optimiser may treat on their own.
#pragma once

#include <graft/config.hpp>

#include <cstdint>
#include <string_view>

namespace graft {

/// Groups with a learning rate, and in bi-level training a split of the data, of their own.
enum class ParameterGroup : std::uint8_t {
  main,        ///< everything that belongs to no other group
  expansion,   ///< the factor that is zero at the start, LoRA's B: LoRA+ gives it a higher learning rate
  activation,  ///< coefficients of a learnable activation, PEDRO's rationals: bi-level training's upper level
};
inline constexpr int parameter_group_count = 3;

/// The group of the tensor `suffix`: what the policy's own `parameter_group(suffix)` says, where it has one.
template <class P>
ParameterGroup parameter_group_of(P const& policy, std::string_view suffix) {
  if constexpr (requires { policy.parameter_group(suffix); })
    return policy.parameter_group(suffix);
  else
    return ParameterGroup::main;
}

/// Whether weight decay pulls a matrix of the policy to zero: what its own `decays()` says, where it has one. A matrix
/// of rank 1 is one too; a vector that files store as a matrix is not.
template <class P>
bool matrices_decay(P const& policy) {
  if constexpr (requires { policy.decays(); })
    return policy.decays();
  else
    return true;
}

}  // namespace graft
