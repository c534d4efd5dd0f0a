// SPDX-License-Identifier: Apache-2.0
// A frozen backbone with its bank of adapters.
#pragma once

#include <graft/adapter/bank.hpp>
#include <graft/arch/config.hpp>
#include <graft/arch/weights.hpp>
#include <graft/layer/transformer_layer.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

namespace graft {

/// ContractError unless the tokens and token types (as many, or none) of `what` number k of a batch are the model's.
inline void check_tokens(ModelConfig const& config, char const* what, std::size_t k,
                         std::span<std::int32_t const> tokens, std::span<std::int32_t const> token_types) {
  for (auto token : tokens)
    expects(token >= 0 && token < config.vocabulary, "graft: token ", token, " of ", what, " ", k,
            " is outside the vocabulary of ", config.vocabulary);
  expects(token_types.empty() || token_types.size() == tokens.size(), "graft: ", what, " ", k, " has ", tokens.size(),
          " tokens but ", token_types.size(), " token types");
  for (auto type : token_types)
    expects(type >= 0 && type < config.token_types, "graft: token type ", type, " of ", what, " ", k,
            " is not one of the model's ", config.token_types);
}

/// The model without its adapters: what the layers are made of and what stands before and behind them.
template <class Arch_, class B_>
class Backbone {
 public:
  using Arch = Arch_;
  using B = B_;
  using Layer = TransformerLayer<Arch, Adapters<>, B>;
  using Ends = typename Arch::template Ends<B>;

  Backbone(ModelConfig config, WeightMap weights);
  Backbone(Backbone const&) = delete;
  Backbone& operator=(Backbone const&) = delete;

  ModelConfig const& config() const { return config_; }
  WeightMap const& weights() const { return weights_; }
  SiteTable const& sites() const { return *sites_; }
  std::vector<Layer> const& layers() const { return layers_; }
  Ends const& ends() const { return ends_; }
  DenseVectors<B> const& dense() const { return dense_; }
  std::vector<double> const& rope() const { return frequencies_; }

  static SiteTable sites_of(ModelConfig const& config);

 protected:
  std::shared_ptr<SiteTable const> const& shared_sites() const { return sites_; }

 private:
  ModelConfig config_;
  WeightMap weights_;
  std::shared_ptr<SiteTable const> sites_;
  DenseVectors<B> dense_;
  std::vector<double> frequencies_;
  Ends ends_;
  std::vector<Layer> layers_;
};

template <class Arch, class B>
Backbone<Arch, B>::Backbone(ModelConfig config, WeightMap weights)
    : config_(std::move(config)),
      weights_(std::move(weights)),
      sites_(std::make_shared<SiteTable const>(sites_of(config_))),
      frequencies_(config_.rope.dimensions > 0 ? rope_frequencies(config_.rope) : std::vector<double>{}),
      ends_(Ends::load(config_, weights_, *sites_, dense_)) {
  layers_.reserve(static_cast<std::size_t>(config_.layers));
  for (index_t l = 0; l < config_.layers; ++l)
    layers_.emplace_back(Arch::template load<B>(config_, weights_, *sites_, dense_, l));
}

template <class Arch, class B>
SiteTable Backbone<Arch, B>::sites_of(ModelConfig const& config) {
  SiteTable sites;
  Arch::add_sites(config, sites);
  Ends::add_sites(config, sites);
  return sites;
}

/// Weights are views into mapped files and never change; the bank may be loaded while contexts decode.
template <class Arch, class AdapterList, class B>
class Model : public Backbone<Arch, B> {
 public:
  using Bank = graft::Bank<AdapterList, B>;

  /// adapters: what the bank keeps modules in. FormatError when a tensor is missing or has another shape than the
  /// configuration says.
  Model(ModelConfig config, WeightMap weights, AdapterStorage adapters = AdapterStorage::full)
      : Backbone<Arch, B>(std::move(config), std::move(weights)), bank_(this->shared_sites(), adapters) {}

  Bank& bank() { return bank_; }

 private:
  Bank bank_;
};

}  // namespace graft
