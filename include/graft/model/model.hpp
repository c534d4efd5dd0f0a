// SPDX-License-Identifier: Apache-2.0
// A frozen backbone with its bank of adapters.
#pragma once

#include <graft/adapter/bank.hpp>
#include <graft/arch/config.hpp>
#include <graft/arch/weights.hpp>
#include <graft/layer/transformer_layer.hpp>

#include <vector>

namespace graft {

/// Weights are views into mapped files and never change; the bank may be loaded while contexts decode.
template <class Arch_, class AdapterList, class B_>
class Model {
 public:
  using Arch = Arch_;
  using B = B_;
  using Layer = TransformerLayer<Arch, AdapterList, B>;
  using Bank = graft::Bank<AdapterList, B>;
  using Ends = typename Arch::template Ends<B>;

  /// adapters: what the bank keeps modules in. FormatError when a tensor is missing or has another shape than the
  /// configuration says.
  Model(ModelConfig config, WeightMap weights, AdapterStorage adapters = AdapterStorage::full)
      : config_(std::move(config)),
        weights_(std::move(weights)),
        bank_(sites_of(config_), adapters),
        frequencies_(config_.rope.dimensions > 0 ? rope_frequencies(config_.rope) : std::vector<double>{}),
        ends_(Ends::load(config_, weights_, bank_.sites(), dense_)) {
    layers_.reserve(static_cast<std::size_t>(config_.layers));
    for (index_t l = 0; l < config_.layers; ++l)
      layers_.emplace_back(Arch::template load<B>(config_, weights_, bank_.sites(), dense_, l));
  }
  Model(Model const&) = delete;
  Model& operator=(Model const&) = delete;

  ModelConfig const& config() const { return config_; }
  WeightMap const& weights() const { return weights_; }
  SiteTable const& sites() const { return bank_.sites(); }
  Bank& bank() { return bank_; }
  std::vector<Layer> const& layers() const { return layers_; }
  Ends const& ends() const { return ends_; }
  DenseVectors<B> const& dense() const { return dense_; }
  std::vector<double> const& rope() const { return frequencies_; }

  static SiteTable sites_of(ModelConfig const& config) {
    SiteTable sites;
    Arch::add_sites(config, sites);
    Ends::add_sites(config, sites);
    return sites;
  }

 private:
  ModelConfig config_;
  WeightMap weights_;
  Bank bank_;
  DenseVectors<B> dense_;
  std::vector<double> frequencies_;
  Ends ends_;
  std::vector<Layer> layers_;
};

}  // namespace graft
