// SPDX-License-Identifier: Apache-2.0
// One module in training: its parameters, the heads it brings along, and the optimisers that move them.
#pragma once

#include <graft/adapter/bank.hpp>
#include <graft/adapter/gradients.hpp>
#include <graft/adapter/module.hpp>
#include <graft/core/executor.hpp>
#include <graft/train/clip.hpp>
#include <graft/train/optimizer.hpp>
#include <graft/train/parameter_ranges.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace graft {

/// publish() before the batches of a step, step() behind them. Several modules in one batch have one of these each: own
/// norm, own rates, own schedule.
template <class P, class B>
class ModuleOptimizer {
 public:
  using R = Real<B>;
  using Make = std::function<std::unique_ptr<Optimizer<R>>(std::vector<ParameterRange>)>;

  /// `make` gives an optimiser for ranges. The module must outlive this; publish() writes its heads.
  ModuleOptimizer(Module<P, B>& module, Make const& make) : module_(module) {
    add("", module.parameters(), parameter_ranges(module), make);
    heads_.reserve(module.saved.size());
    for (auto const& [path, tensor] : module.saved) {
      auto& head = heads_.emplace_back(tensor.values.begin(), tensor.values.end());
      auto const size = static_cast<index_t>(head.size());
      add(path, {head.data(), size}, {{0, size, ParameterGroup::main, tensor.shape.size() > 1}}, make);
    }
  }

  Module<P, B>& module() { return module_; }
  /// Numbers in training.
  index_t size() const {
    index_t sum = 0;
    for (auto const& buffer : buffers_) sum += buffer.parameters.size;
    return sum;
  }

  /// Loads the parameters as they are now into the bank, under the module's name: requests resolved from now on use
  /// this version.
  template <class List>
  void publish(B& be, Bank<List, B>& bank) {
    store_heads();
    bank.load(be, module_.clone());
  }
  /// And asks for their gradients, which start at zero.
  template <class List>
  void publish(B& be, Bank<List, B>& bank, Gradients<B>& gradients) {
    publish(be, bank);
    gradients.want(bank.find(module_.name));
  }

  /// Clips the module's gradient to the norm `clip` (0: not at all) and moves the groups that have a rate; the others
  /// do not count for the norm. Returns the norm before clipping.
  double step(Executor& executor, Gradients<B>& gradients, GroupRates const& rates, double clip = 0) {
    std::vector<VectorView<R>> slopes;
    for (auto const& buffer : buffers_) {
      slopes.push_back(buffer.path.empty() ? gradients.of(module_.name) : gradients.of(module_.name, buffer.path));
      for (auto const& range : buffer.ranges)
        if (!rates[static_cast<std::size_t>(range.group)])
          std::fill_n(slopes.back().data + range.first, range.size, R{0});
    }
    double const norm = clip > 0 ? clip_gradient<R>(executor, slopes, clip) : global_norm<R>(executor, slopes);
    for (std::size_t k = 0; k < buffers_.size(); ++k)
      buffers_[k].optimizer->step(executor, buffers_[k].parameters, slopes[k], rates);
    return norm;
  }

  /// f("name", view) for the parameters, heads included.
  void for_each_parameter(auto&& f) {
    for (auto& buffer : buffers_) f(text(buffer.path, buffer.path.empty() ? "" : ":", "parameters"), buffer.parameters);
  }
  /// f("name", view) for what the optimisers keep.
  void for_each_state(auto&& f) {
    for (auto& buffer : buffers_)
      buffer.optimizer->for_each([&](char const* name, VectorView<R> view) {
        f(text(buffer.path, buffer.path.empty() ? "" : ":", name), view);
      });
  }
  /// Steps made by each group: one more part of the state.
  std::array<std::int64_t, parameter_group_count> steps() { return buffers_[0].optimizer->steps(); }
  void set_steps(std::array<std::int64_t, parameter_group_count> const& steps) {
    for (auto& buffer : buffers_) buffer.optimizer->steps() = steps;
  }

  /// The heads as they are now, into the module, as for writing it.
  void store_heads() {
    auto head = heads_.begin();
    for (auto& [path, tensor] : module_.saved) {
      std::transform(head->begin(), head->end(), tensor.values.begin(), [](R v) { return static_cast<float>(v); });
      ++head;
    }
  }

 private:
  struct Buffer {
    std::string path;  ///< of a head; empty: the module's own parameters
    VectorView<R> parameters;
    std::vector<ParameterRange> ranges;
    std::unique_ptr<Optimizer<R>> optimizer;
  };
  void add(std::string path, VectorView<R> parameters, std::vector<ParameterRange> ranges, Make const& make) {
    auto optimizer = make(ranges);
    buffers_.push_back({std::move(path), parameters, std::move(ranges), std::move(optimizer)});
  }

  Module<P, B>& module_;
  std::vector<std::vector<R>> heads_;  // in the order of module_.saved
  std::vector<Buffer> buffers_;
};

}  // namespace graft
