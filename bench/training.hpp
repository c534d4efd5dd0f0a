// SPDX-License-Identifier: Apache-2.0
// Steps of a training loop.
#pragma once

#include <graft/adapter/module.hpp>
#include <graft/train/loss.hpp>
#include <graft/train/module_optimizer.hpp>
#include <graft/train/training_pass.hpp>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include <bench/made_up.hpp>

namespace bench {

/// Trains a new module at all sites of a kind inside the layers: the mean cross-entropy of every next token, AdamW, the
/// norm clipped at 1.
template <class P, class M>
class TrainingSteps {
 public:
  using B = typename M::B;

  TrainingSteps(M& model, B& be, P const& policy, SiteKind kind, std::vector<std::vector<std::int32_t>> sequences,
                bool recompute)
      : model_(model),
        be_(be),
        sequences_(std::move(sequences)),
        pass_(model, be, TrainingOptions{.recompute = {recompute}}),
        module_(make_module<P, B>("trained", policy, model.sites(), sites_of(model.sites(), kind))),
        optimizer_(module_, [](auto ranges) { return std::make_unique<AdamW<float>>(std::move(ranges)); }) {}

  /// Numbers in training.
  index_t parameters() const { return optimizer_.size(); }

  /// One step; its loss.
  double operator()() {
    Gradients<B> gradients;
    optimizer_.publish(be_, model_.bank(), gradients);
    std::vector<TrainingSequence<B>> batch;
    std::vector<index_t> wanted;
    std::vector<LossRow> rows;
    index_t row = 0;
    for (auto const& tokens : sequences_) {
      batch.push_back({tokens, model_.bank().resolve({AdapterUse{module_.name}})});
      for (std::size_t t = 0; t + 1 < tokens.size(); ++t) {
        wanted.push_back(row + static_cast<index_t>(t));
        rows.push_back({tokens[t + 1], 1.0 / static_cast<double>(sequences_.size() * (tokens.size() - 1))});
      }
      row += static_cast<index_t>(tokens.size());
    }
    pass_.forward(batch, gradients);
    CrossEntropy<B> loss(be_, rows);
    pass_.head(wanted, loss);
    pass_.backward();
    optimizer_.step(be_, gradients, group_rates(1e-3), 1.0);
    return loss.sums().mean();
  }

 private:
  M& model_;
  B& be_;
  std::vector<std::vector<std::int32_t>> sequences_;
  TrainingPass<M> pass_;
  Module<P, B> module_;
  ModuleOptimizer<P, B> optimizer_;
};

}  // namespace bench
