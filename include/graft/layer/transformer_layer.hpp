// SPDX-License-Identifier: Apache-2.0
// One layer of a transformer: an architecture's block with a list of adapter policies on a backend.
#pragma once

#include <graft/backend/backend.hpp>
#include <graft/layer/linear.hpp>
#include <graft/layer/step.hpp>

#include <utility>

namespace graft {

/// What an architecture is: Block<B> holds one layer's frozen weights and sites, forward writes the order of the block.
/// forward is a template of the backend that runs it: training passes a Recorder, which notes every operation for the
/// way back. So each value gets a buffer of its own, from be.arena(), and only the residual stream h is added to.
template <class A, class B>
concept Architecture = requires(typename A::template Block<B> const& block, B& be, Step<B> const& step,
                                MatrixView<typename B::Act, typename B::Space> h) {
  A::forward(be, block, step, h);
};

template <class Arch, class AdapterList, class B>
class TransformerLayer {
  using Checked = detail::CheckedPolicies<AdapterList, B>;
  static_assert(sizeof(Checked) > 0);
  static_assert(Backend<B>,
                "graft: the third argument of TransformerLayer is not a Backend; an operation that "
                "graft/backend/backend.hpp lists is missing, or its header is not included");
  static_assert(Architecture<Arch, B>,
                "graft: the first argument of TransformerLayer is not an Architecture (see graft/arch/llama.hpp)");

 public:
  using Block = typename Arch::template Block<B>;

  explicit TransformerLayer(Block block) : block_(std::move(block)) {}

  /// h [n, d], in place: the residual stream through this layer, every adapter of the step applied.
  template <class Be>
  void forward(Be& be, Step<B> const& step, MatrixView<typename B::Act, typename B::Space> h) const {
    Arch::forward(be, block_, step, h);
  }

  Block const& block() const { return block_; }

 private:
  Block block_;
};

}  // namespace graft
