// SPDX-License-Identifier: Apache-2.0
// One module in training: its parameters, the heads it brings along, and the optimisers that move them.
#pragma once

#include <graft/adapter/bank.hpp>
#include <graft/adapter/gradients.hpp>
#include <graft/adapter/module.hpp>
#include <graft/core/executor.hpp>
#include <graft/train/clip.hpp>
#include <graft/train/host_copy.hpp>
#include <graft/train/module_elements.hpp>
#include <graft/train/optimizer.hpp>
#include <graft/train/parameter_ranges.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace graft {

/// publish() before the batches of a step, step() behind them. Several modules in one batch have one of these each: own
/// norm, own rates, own schedule.
///
/// Parameters, gradients and what the optimisers keep lie in B::Space. On the host the parameters are the module's own;
/// elsewhere the module in host memory is what store() made of it, and nothing waits for the device but store() and
/// what says so. Two things are done by way of the host, which waits: policies that are not DeviceTrainable, and
/// modules that are part of weighted lists whose maps are composed.
template <class P, class B>
class ModuleOptimizer {
 public:
  using R = Real<B>;
  using Space = typename B::Space;
  using Runner = OptimizerRunner<B>;
  using Make = std::function<std::unique_ptr<Optimizer<R, Runner>>(std::vector<ParameterRange>)>;

  /// `make` gives an optimiser for ranges. The module must outlive this; store() writes to it.
  ModuleOptimizer(Module<P, B>& module, Make const& make) : module_(module), norm_(1) {
    auto const own = module.parameters();
    if constexpr (on_host)
      add("", own, parameter_ranges(module), make);
    else
      add("", keep(std::span<R const>(own.data, static_cast<std::size_t>(own.size))), parameter_ranges(module), make);
    for (auto const& [path, tensor] : module.saved) {
      std::vector<R> const head(tensor.values.begin(), tensor.values.end());
      auto const size = static_cast<index_t>(head.size());
      add(path, keep(head), {{0, size, ParameterGroup::main, tensor.shape.size() > 1}}, make);
    }
  }

  Module<P, B>& module() { return module_; }
  /// Numbers in training.
  index_t size() const {
    index_t sum = 0;
    for (auto const& buffer : buffers_) sum += buffer.parameters.size;
    return sum;
  }

  /// Puts the parameters as they are now into the bank, under the module's name. Requests resolved from now on use
  /// them; on a device those resolved since the first time do too, whose version and fingerprint stay the same: keys
  /// and values that were cached with them are of other parameters then.
  template <class List>
  void publish(B& be, Bank<List, B>& bank) {
    if (publish_in_place(be, bank)) return;
    store(be);
    bank.load(be, module_.clone());
    published_ = bank.find(module_.name);
  }
  /// And asks for their gradients, which start at zero.
  template <class List>
  void publish(B& be, Bank<List, B>& bank, Gradients<B>& gradients) {
    publish(be, bank);
    gradients.want(published_);
  }

  /// Clips the module's gradient to the norm `clip` (0: not at all) and moves the groups that have a rate; the others
  /// do not count for the norm. *norm, in B::Space, becomes the norm before clipping, where it is asked for.
  void step(B& be, Gradients<B>& gradients, GroupRates const& rates, double clip = 0, double* norm = nullptr) {
    std::vector<VectorView<R, Space>> slopes;
    for (auto const& buffer : buffers_) {
      slopes.push_back(buffer.path.empty() ? own_gradient(be, gradients) : head_gradient(be, gradients, buffer.path));
      for (auto const& range : buffer.ranges)
        if (!rates[static_cast<std::size_t>(range.group)]) clear(be, slopes.back().part(range.first, range.size));
    }
    auto& runner = optimizer_runner(be);
    clip_gradient(runner, std::span<VectorView<R, Space> const>(slopes), clip, norm != nullptr ? norm : norm_.data());
    for (std::size_t k = 0; k < buffers_.size(); ++k)
      buffers_[k].optimizer->step(runner, buffers_[k].parameters, slopes[k], rates);
  }

  /// f("name", view) for the parameters, heads included.
  void for_each_parameter(auto&& f) {
    for (auto& buffer : buffers_) f(text(buffer.path, buffer.path.empty() ? "" : ":", "parameters"), buffer.parameters);
  }
  /// f("name", view) for what the optimisers keep.
  void for_each_state(auto&& f) {
    for (auto& buffer : buffers_)
      buffer.optimizer->for_each([&](char const* name, VectorView<R, Space> view) {
        f(text(buffer.path, buffer.path.empty() ? "" : ":", name), view);
      });
  }
  /// Steps made by each group: one more part of the state.
  std::array<std::int64_t, parameter_group_count> steps() { return buffers_[0].optimizer->steps(); }
  void set_steps(std::array<std::int64_t, parameter_group_count> const& steps) {
    for (auto& buffer : buffers_) buffer.optimizer->steps() = steps;
  }

  /// Parameters and heads as they are now, into the module, as for writing it; waits for a device. Also before
  /// Gradients::of is asked on one: policies on the host go back from the parameters that were published.
  void store(B& be) {
    if constexpr (!on_host) {
      auto const to = module_.parameters();
      copy_to_host(be, static_cast<R const*>(own().data), to.data, own().size);
      if (published_ != nullptr && published_->ahead) {
        std::copy(to.begin(), to.end(), static_cast<Module<P, B> const*>(published_->module.get())->parameters().data);
        published_->ahead = false;
      }
    }
    std::size_t k = 1;
    for (auto& [path, tensor] : module_.saved) {
      auto const values = host_copy(be, buffers_[k++].parameters);
      std::transform(values.begin(), values.end(), tensor.values.begin(), [](R v) { return static_cast<float>(v); });
    }
  }

 private:
  static constexpr bool on_host = std::same_as<Space, HostSpace>;

  struct Buffer {
    std::string path;  ///< of a head; empty: the module's own parameters
    VectorView<R, Space> parameters;
    std::vector<ParameterRange> ranges;
    std::unique_ptr<Optimizer<R, Runner>> optimizer;
  };
  VectorView<R, Space> keep(std::span<R const> values) { return memory_.emplace_back(values).view(); }
  void add(std::string path, VectorView<R, Space> parameters, std::vector<ParameterRange> ranges, Make const& make) {
    auto optimizer = make(ranges);
    buffers_.push_back({std::move(path), parameters, std::move(ranges), std::move(optimizer)});
  }
  VectorView<R, Space> own() const { return buffers_[0].parameters; }

  // Where kernels read the version that was published before, when that is still the bank's and no set has made
  // something else of it.
  template <class List>
  bool publish_in_place(B& be, Bank<List, B>& bank) {
    if constexpr (DeviceTrainable<P, B>) {
      if (published_ == nullptr || published_->composed || bank.find(module_.name) != published_) return false;
      publish_elements(be, module_, own(), *published_);
      published_->ahead = true;
      for (auto const& buffer : buffers_) {
        if (buffer.path.empty()) continue;
        auto const& replacement = published_->replacements.at(buffer.path);
        auto const write = [&](auto const* to, index_t rows, index_t cols) {
          using To = std::remove_cvref_t<decltype(*to)>;
          convert(be, matrix_view<Space>(static_cast<R const*>(buffer.parameters.data), rows, cols),
                  matrix_view<Space>(const_cast<To*>(to), rows, cols));
        };
        write(reinterpret_cast<typename B::Act const*>(replacement.weight.data), replacement.weight.rows,
              replacement.weight.cols);
        write(replacement.vector.data, 1, replacement.vector.size);
      }
      return true;
    }
    return false;
  }

  VectorView<R, Space> own_gradient([[maybe_unused]] B& be, Gradients<B>& gradients) {
    if constexpr (on_host) {
      return gradients.of(module_.name);
    } else {
      gradient_.make_room(own().size);
      auto const to = gradient_.view();
      if constexpr (DeviceTrainable<P, B>)
        if (!gradients.fetched(module_.name)) {
          auto const* const published = gradients.find_published(be, *published_);
          expects(published != nullptr, "graft: the gradients of ", module_.name,
                  " are those of another version of it");
          clear(be, to);
          gather_gradients(be, module_, own(), *published_, *published, to);
          return to;
        }
      copy_to_device(be, static_cast<R const*>(gradients.of(module_.name).data), to.data, to.size);
      return to;
    }
  }
  VectorView<R, Space> head_gradient(B& be, Gradients<B>& gradients, std::string const& path) {
    if constexpr (on_host)
      return gradients.of(module_.name, path);
    else
      return gradients.of_tensor(be, published_->replacements.at(path).weight.data);
  }

  Module<P, B>& module_;
  std::deque<Storage<R, Space>> memory_;  ///< of parameters that are not the module's own
  std::vector<Buffer> buffers_;           ///< the module's own, then its heads in the order of module_.saved
  Storage<double, Space> norm_;           ///< that nobody asked for
  // not on the host
  Storage<R, Space> gradient_;
  std::shared_ptr<PublishedModule<B> const> published_;
};

}  // namespace graft
