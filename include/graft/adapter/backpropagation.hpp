// SPDX-License-Identifier: Apache-2.0
// The way back from what a bank publishes to the parameters of the module it was made from.
#pragma once

#include <graft/adapter/module.hpp>

#include <vector>

namespace graft {

/// How gradients of a published module's coefficients, factors and vectors become gradients of its parameters. All of
/// it is host code on host memory. The functions are null where the policy has no `backward`; `into` is a buffer in the
/// order of Module::parameters, added to.
template <class B>
struct Backpropagation {
  using R = Real<B>;
  using View = MatrixView<typename B::Act, typename B::Space>;
  using ConstView = MatrixView<typename B::Act const, typename B::Space>;

  index_t count = 0;             ///< parameters
  std::vector<index_t> entries;  ///< [sites] place in Module::entries, -1: none

  /// grad: dL/dc, dL/dd, dL/de of the entry's map.
  void (*map)(B&, void const* module, index_t entry, RowMapRow<R const> const& grad, R* into) = nullptr;
  /// grad: dL/dA [r, i] and dL/dB [o, r] of the entry's factors.
  void (*factors)(B&, void const* module, index_t entry, LowRankViews<B> const& grad, R* into) = nullptr;
  bool generates = false;  ///< whether it makes vectors from prompts and has a way back through them
  /// dl: dL/dl [q+v+u]; dnormalized and draw [p, d] are added to. Null where the host cannot read the prompt's rows:
  /// the backend then goes back through what PublishedModule::generators describe.
  void (*generator)(B&, void const* module, index_t entry, ConstView normalized, ConstView raw, VectorView<R> scratch,
                    VectorView<R const> dl, R* into, View dnormalized, View draw) = nullptr;
  index_t (*generator_scratch)(void const* module, index_t entry, index_t prompt_rows) = nullptr;

  bool trainable() const { return map != nullptr || factors != nullptr || generates; }
};

namespace detail {

// The state with the same shapes, laid over a buffer of gradients.
template <class State, class R>
State state_over(State state, R const* parameters, R* gradients) {
  state.for_each([&](char const*, auto& tensor) {
    if (tensor.data != nullptr) tensor.data = gradients + (tensor.data - parameters);
  });
  return state;
}

}  // namespace detail

template <class P, class B>
Backpropagation<B> backpropagation(Module<P, B> const& module, index_t sites) {
  using R = Real<B>;
  using Back = Backpropagation<B>;
  Back back;
  back.count = module.parameters().size;
  back.entries.assign(static_cast<std::size_t>(sites), -1);
  for (std::size_t k = 0; k < module.entries.size(); ++k)
    back.entries[static_cast<std::size_t>(module.entries[k].site)] = static_cast<index_t>(k);

  if constexpr (TrainableRowMap<P, B>)
    back.map = [](B& be, void const* of, index_t entry, RowMapRow<R const> const& grad, R* into) {
      auto const& m = *static_cast<Module<P, B> const*>(of);
      auto const& [site, policy, state] = m.entries[static_cast<std::size_t>(entry)];
      auto over = detail::state_over(state, m.parameters().data, into);
      policy.backward(be, state, grad, over);
    };
  if constexpr (TrainableLowRank<P, B>)
    back.factors = [](B& be, void const* of, index_t entry, LowRankViews<B> const& grad, R* into) {
      auto const& m = *static_cast<Module<P, B> const*>(of);
      auto const& [site, policy, state] = m.entries[static_cast<std::size_t>(entry)];
      auto over = detail::state_over(state, m.parameters().data, into);
      policy.backward(be, state, grad, over);
    };
  back.generates = TrainableGenerated<P, B>;
  if constexpr (TrainableGenerated<P, B> && std::same_as<typename B::Space, HostSpace>) {
    back.generator = [](B& be, void const* of, index_t entry, typename Back::ConstView normalized,
                        typename Back::ConstView raw, VectorView<R> scratch, VectorView<R const> dl, R* into,
                        typename Back::View dnormalized, typename Back::View draw) {
      auto const& m = *static_cast<Module<P, B> const*>(of);
      auto const& [site, policy, state] = m.entries[static_cast<std::size_t>(entry)];
      auto over = detail::state_over(state, m.parameters().data, into);
      policy.backward(be, state, normalized, raw, scratch, dl, over, dnormalized, draw);
    };
    back.generator_scratch = [](void const* of, index_t entry, index_t prompt_rows) {
      auto const& at = static_cast<Module<P, B> const*>(of)->entries[static_cast<std::size_t>(entry)];
      return at.policy.backward_scratch_size(at.state, prompt_rows);
    };
  }
  return back;
}

}  // namespace graft
