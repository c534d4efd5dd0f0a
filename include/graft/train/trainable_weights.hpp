// SPDX-License-Identifier: Apache-2.0
// A backbone whose own weights are trained: full fine-tuning, or training from scratch.
#pragma once

#include <graft/adapter/gradients.hpp>
#include <graft/arch/weights.hpp>

#include <concepts>
#include <map>
#include <string>
#include <vector>

namespace graft {

/// A model's tensors in f32, in memory that may be changed. Models made from `map()` read it as it is now.
class TrainableWeights {
 public:
  TrainableWeights() = default;
  /// A copy of every tensor, decoded.
  explicit TrainableWeights(WeightMap const& from) {
    for (auto const& [name, weight] : from.tensors) {
      auto const to = add(name, weight.rows, weight.cols);
      for (index_t k = 0; k < weight.rows; ++k) weight.row(k, to.row(k));
    }
  }
  TrainableWeights(TrainableWeights&&) = default;
  TrainableWeights& operator=(TrainableWeights&&) = default;

  /// A new tensor [rows, cols] of zeros; a vector has one row.
  MatrixView<float> add(std::string const& name, index_t rows, index_t cols) {
    auto& tensor = tensors_[name];
    expects(tensor.values.empty(), "graft: the model already has a tensor ", name);
    tensor = {rows, cols, std::vector<float>(static_cast<std::size_t>(rows * cols))};
    return tensor.view();
  }

  /// Views of these tensors, which must outlive whoever holds them.
  WeightMap map() const {
    WeightMap result;
    result.path = "weights in memory";
    for (auto const& [name, t] : tensors_)
      result.tensors[name] = {reinterpret_cast<std::byte const*>(t.values.data()), Format::f32, t.rows, t.cols,
                              nullptr};
    return result;
  }

  /// f(name, tensor [rows, cols]), by name.
  void for_each(auto&& f) {
    for (auto& [name, tensor] : tensors_) f(name, tensor.view());
  }
  MatrixView<float> operator[](std::string const& name) {
    auto const found = tensors_.find(name);
    expects(found != tensors_.end(), "graft: the model has no tensor ", name);
    return found->second.view();
  }
  index_t parameters() const {
    index_t sum = 0;
    for (auto const& [name, t] : tensors_) sum += t.rows * t.cols;
    return sum;
  }

 private:
  struct Tensor {
    index_t rows, cols;
    std::vector<float> values;
    MatrixView<float> view() { return {values.data(), rows, cols, cols}; }
  };
  std::map<std::string, Tensor> tensors_;
};

/// Where the model reads a tensor, which is what its gradient is kept by: in B::Space. Vectors may have been decoded
/// into memory of the model's own, and off the host everything is a copy.
template <class M>
void const* tensor_address(M const& model, std::string const& name) {
  if (auto const vector = model.dense().find(name); !vector.empty()) return vector.data;
  std::byte const* address = nullptr;
  if constexpr (std::same_as<typename M::B::Space, HostSpace>) {
    auto const found = model.weights().tensors.find(name);
    if (found != model.weights().tensors.end()) address = found->second.data;
  } else if (auto const* const matrix = model.dense().find_matrix(name)) {
    address = matrix->data;
  }
  expects(address != nullptr, "graft: the model has no tensor ", name);
  return address;
}

/// Trains this tensor of the model, which must be stored in row order, off the host in single numbers.
template <class M>
void want_base(Gradients<typename M::B>& gradients, M const& model, std::string const& name) {
  void const* const address = tensor_address(model, name);
  auto const& weight = model.weights().tensors.at(name);
  expects(weight.row_order == nullptr, "graft: ", name,
          " is stored in another row order; train a TrainableWeights copy");
  expects((std::same_as<typename M::B::Space, HostSpace>) || format_info(weight.format).block == 1, "graft: ", name,
          " is stored as ", format_info(weight.format).name, "; train a TrainableWeights copy");
  gradients.want_tensor(address, weight.rows * weight.cols);
}
/// Its gradient, [rows * cols], in host memory; waits for a device.
template <class M>
VectorView<Real<typename M::B>> base_gradient(Gradients<typename M::B>& gradients, M const& model,
                                              std::string const& name) {
  return gradients.of_tensor(tensor_address(model, name));
}

}  // namespace graft
