// SPDX-License-Identifier: Apache-2.0
// A backbone in training: all of its tensors, and the optimisers that move them.
#pragma once

#include <graft/adapter/gradients.hpp>
#include <graft/train/clip.hpp>
#include <graft/train/optimizer.hpp>
#include <graft/train/trainable_weights.hpp>

#include <concepts>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace graft {

/// Moves the tensors of a TrainableWeights that a model was made from. On the host model and optimiser share their
/// memory. Elsewhere f32 parameters and what the optimiser keeps lie in B::Space beside the model's own copies, which
/// follow behind every step; nothing waits but store().
template <class M>
class BackboneOptimizer {
 public:
  using B = typename M::B;
  using R = Real<B>;
  using Space = typename B::Space;
  using Runner = OptimizerRunner<B>;
  using Make = std::function<std::unique_ptr<Optimizer<R, Runner>>(std::vector<ParameterRange>)>;
  static_assert(std::same_as<R, float>, "graft: TrainableWeights are f32, so the backend's Real must be float");

  /// `make` gives an optimiser for ranges; matrices decay. Model and weights must outlive this.
  BackboneOptimizer(M const& model, TrainableWeights& weights, Make const& make) : model_(model), weights_(weights) {
    weights.for_each([&](std::string const& name, MatrixView<float> values) {
      ParameterRange const range{0, values.size(), ParameterGroup::main, values.rows > 1};
      VectorView<R, Space> parameters;
      if constexpr (on_host)
        parameters = {values.data, values.size()};
      else
        parameters =
            memory_.emplace_back(std::span<R const>(values.data, static_cast<std::size_t>(values.size()))).view();
      tensors_.push_back({name, values.rows, values.cols, parameters, make({range})});
    });
  }

  /// Asks for the gradients of all tensors; zero() starts them anew.
  void want(Gradients<B>& gradients) const {
    for (auto const& tensor : tensors_) want_base(gradients, model_, tensor.name);
  }

  /// Clips the gradient of all tensors together to the norm `clip` (0: not at all) and moves them. *norm, in B::Space,
  /// becomes the norm before clipping, where it is asked for.
  void step(B& be, Gradients<B>& gradients, GroupRates const& rates, double clip = 0, double* norm = nullptr) {
    std::vector<VectorView<R, Space>> slopes;
    for (auto const& tensor : tensors_) slopes.push_back(gradients.of_tensor(be, tensor_address(model_, tensor.name)));
    auto& runner = optimizer_runner(be);
    clip_gradient(runner, std::span<VectorView<R, Space> const>(slopes), clip, norm != nullptr ? norm : norm_.data());
    for (std::size_t k = 0; k < tensors_.size(); ++k) {
      tensors_[k].optimizer->step(runner, tensors_[k].parameters, slopes[k], rates);
      if constexpr (!on_host) update_model(be, tensors_[k]);
    }
  }

  /// The parameters as they are now, into the TrainableWeights; waits for a device.
  void store([[maybe_unused]] B& be) {
    if constexpr (!on_host)
      for (auto const& tensor : tensors_)
        copy_to_host(be, static_cast<R const*>(tensor.parameters.data), weights_[tensor.name].data,
                     tensor.parameters.size);
  }

 private:
  static constexpr bool on_host = std::same_as<Space, HostSpace>;

  struct Tensor {
    std::string name;
    index_t rows, cols;
    VectorView<R, Space> parameters;
    std::unique_ptr<Optimizer<R, Runner>> optimizer;
  };

  // The model's own copy, in the numbers it computes with.
  void update_model(B& be, Tensor const& tensor) {
    auto const write = [&]<class T>(T* to) {
      convert(be, matrix_view<Space>(static_cast<R const*>(tensor.parameters.data), tensor.rows, tensor.cols),
              matrix_view<Space>(to, tensor.rows, tensor.cols));
    };
    auto* const to = const_cast<void*>(tensor_address(model_, tensor.name));
    if (model_.dense().find(tensor.name).empty())
      write(static_cast<typename B::Act*>(to));
    else
      write(static_cast<R*>(to));
  }

  M const& model_;
  TrainableWeights& weights_;
  std::deque<Storage<R, Space>> memory_;  ///< of parameters that are not the weights' own
  std::vector<Tensor> tensors_;
  Storage<double, Space> norm_{1};  ///< that nobody asked for
};

}  // namespace graft
