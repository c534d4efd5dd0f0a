// SPDX-License-Identifier: Apache-2.0
// A model's tensors by their Hugging Face names, whatever file they came from.
#pragma once

#include <graft/adapter/site.hpp>
#include <graft/backend/resident_weight.hpp>
#include <graft/layer/linear.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace graft {

/// Tensors in Hugging Face's names and row order, [out, in]. One-dimensional tensors are one row.
class WeightMap {
 public:
  std::string path;  ///< of the file, for messages
  std::unordered_map<std::string, Weight> tensors;
  std::vector<std::shared_ptr<void const>> keep;  ///< mappings and buffers the weights point into

  bool contains(std::string const& name) const { return tensors.contains(name); }

  /// The tensor, which must exist and be [rows, cols].
  Weight matrix(std::string const& name, index_t rows, index_t cols) const {
    auto const found = tensors.find(name);
    if (found == tensors.end()) raise<FormatError>(path, ": tensor ", name, " is missing");
    Weight const& w = found->second;
    if (w.rows != rows || w.cols != cols)
      raise<FormatError>(path, ": tensor ", name, " should be [", rows, ", ", cols, "] but is [", w.rows, ", ", w.cols,
                         "]");
    return w;
  }
  /// W [out, in] of a linear site; where the model's head is its embedding, that one.
  Weight matrix(SiteInfo const& site) const {
    bool const own = site.tied_to.empty() || contains(site.path + ".weight");
    return matrix((own ? site.path : site.tied_to) + ".weight", site.out, site.in);
  }
};

/// A model's tensors where the backend reads them. On the host matrices stay in their files, and small dense tensors
/// (norms, biases) are decoded once where the file does not hold them as the backend wants them.
template <class B>
class DenseVectors {
 public:
  using R = Real<B>;
  using Vector = VectorView<R const, typename B::Space>;

  Weight matrix(WeightMap const& weights, std::string const& name, index_t rows, index_t cols) {
    return matrices_[name] = keep(resident_weight<B>(weights.matrix(name, rows, cols)));
  }
  Vector load(WeightMap const& weights, std::string const& name, index_t size) {
    Weight const w = weights.matrix(name, 1, size);
    auto const address = reinterpret_cast<std::uintptr_t>(w.data);
    if constexpr (std::same_as<typename B::Space, HostSpace> && std::is_same_v<R, float>)
      if (w.format == Format::f32 && address % alignof(R) == 0)
        return by_name_[name] = {reinterpret_cast<R const*>(w.data), size};
    std::vector<R> values(static_cast<std::size_t>(size));
    w.row(0, values.data());
    storage_.emplace_back(std::span<R const>(values));
    return by_name_[name] = storage_.back().view();
  }
  Vector load_if_present(WeightMap const& weights, std::string const& name, index_t size) {
    return weights.contains(name) ? load(weights, name, size) : Vector{};
  }
  /// W and, where the file has one, b of the module with this path. With `tied`, that weight instead of the file's.
  Linear<B> linear(WeightMap const& weights, SiteTable const& sites, std::string const& path,
                   Weight const* tied = nullptr) {
    if (tied == nullptr) return linears(weights, sites, std::array{path})[0];
    return with_bias(weights, sites, path, *tied);
  }
  /// Those of modules that read the same input: where weights are copied, in one piece of memory (JoinsProducts).
  template <std::size_t N>
  std::array<Linear<B>, N> linears(WeightMap const& weights, SiteTable const& sites,
                                   std::array<std::string, N> const& paths) {
    std::array<Weight, N> from;
    for (std::size_t k = 0; k < N; ++k) {
      auto const& info = site(sites, paths[k]);
      from[k] = weights.matrix(paths[k] + ".weight", info.out, info.in);
    }
    auto const resident = keep(resident_weights<B>(from));
    std::array<Linear<B>, N> all;
    for (std::size_t k = 0; k < N; ++k) {
      matrices_[paths[k] + ".weight"] = resident[k];
      all[k] = with_bias(weights, sites, paths[k], resident[k]);
    }
    return all;
  }

  /// The matrix loaded under this name, or null.
  Weight const* find_matrix(std::string const& name) const {
    auto const found = matrices_.find(name);
    return found == matrices_.end() ? nullptr : &found->second;
  }
  /// The vector loaded under this name; empty when none was.
  Vector find(std::string const& name) const {
    auto const found = by_name_.find(name);
    return found == by_name_.end() ? Vector{} : found->second;
  }

 private:
  template <class T>
  T keep(std::pair<T, std::shared_ptr<void const>> resident) {
    if (resident.second != nullptr) keep_.push_back(std::move(resident.second));
    return resident.first;
  }
  static SiteInfo const& site(SiteTable const& sites, std::string const& path) {
    index_t const index = sites.find(path);
    expects(index >= 0, "graft: no site is called ", path);
    return sites[index];
  }
  Linear<B> with_bias(WeightMap const& weights, SiteTable const& sites, std::string const& path, Weight const& weight) {
    auto const& info = site(sites, path);
    return {weight, load_if_present(weights, path + ".bias", info.out), sites.bind(path, info.in, info.out)};
  }

  std::vector<Storage<R, typename B::Space>> storage_;
  std::vector<std::shared_ptr<void const>> keep_;
  std::unordered_map<std::string, Vector> by_name_;
  std::unordered_map<std::string, Weight> matrices_;
};

}  // namespace graft
