// SPDX-License-Identifier: Apache-2.0
// The golden models behind one interface, so that models, layers and contexts are compiled once for all tests.
#pragma once

#include <tests/model/batch.hpp>
#include <tests/model/cases.hpp>

#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/pedro.hpp>
#include <graft/adapter/road.hpp>
#include <graft/arch/config.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/model/context.hpp>
#include <graft/testing/matrix.hpp>

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace graft_test {

using namespace graft;

/// All kinds, innermost first, as in the graft command.
using AllAdapters = Adapters<IA3Scaling, RoAdRotation, LoRADelta, PedroGenerator>;

/// A Context of any architecture.
template <class Act>
class AnyContext {
 public:
  using B = CpuBackend<Act>;
  virtual ~AnyContext() = default;
  virtual KvCache<B>& cache() = 0;
  virtual Sequence<B> start(std::span<AdapterUse const> adapters = {}) = 0;
  virtual void forward(std::span<SequenceInput<B> const> inputs, std::span<index_t const> wanted,
                       MatrixView<Act> out) = 0;
  virtual index_t answer_row(std::span<std::int32_t const> tokens) const = 0;
  virtual void classify(std::span<SequenceInput<B> const> inputs, MatrixView<Act> out) = 0;
  virtual void forward_last(std::span<SequenceInput<B> const> inputs, MatrixView<Act> out) = 0;
};

/// A Model of any architecture.
template <class Act>
class AnyModel {
 public:
  virtual ~AnyModel() = default;
  virtual ModelConfig const& config() const = 0;
  virtual SiteTable const& sites() const = 0;
  virtual index_t output_width() const = 0;
  virtual void load(std::string const& name, std::filesystem::path const& folder) = 0;
  virtual std::unique_ptr<AnyContext<Act>> context(Executor& executor, ContextOptions options = {}) = 0;
};

/// The model at a path.
template <class Act>
std::unique_ptr<AnyModel<Act>> open(std::filesystem::path const& path);
extern template std::unique_ptr<AnyModel<float>> open(std::filesystem::path const& path);
extern template std::unique_ptr<AnyModel<double>> open(std::filesystem::path const& path);

/// The case's model with every adapter_* folder in its bank.
template <class Act>
std::unique_ptr<AnyModel<Act>> open(Case const& from);
extern template std::unique_ptr<AnyModel<float>> open(Case const& from);
extern template std::unique_ptr<AnyModel<double>> open(Case const& from);

/// Answers of requests: [tokens, width] each, [1, labels] of a classifier.
template <class Act>
struct Answer {
  index_t rows = 0, cols = 0;
  std::vector<Act> values;
  MatrixView<Act const> view() const { return {values.data(), rows, cols, cols}; }
};
template <class Act>
using Answers = std::vector<Answer<Act>>;

/// All requests as one batch of fresh sequences.
template <class Act>
Answers<Act> answer(AnyModel<Act> const& model, AnyContext<Act>& context, std::span<Request const> requests) {
  Batch<CpuBackend<Act>> const batch(context, requests, model.config().classifier);
  index_t const width = model.output_width(), rows_wanted = static_cast<index_t>(batch.wanted.size());
  std::vector<Act> all(static_cast<std::size_t>(rows_wanted * width));
  context.forward(batch.inputs, batch.wanted, matrix_view(all.data(), rows_wanted, width));
  Answers<Act> answers;
  auto next = all.begin();
  for (auto const& request : requests) {
    index_t const rows = model.config().classifier ? 1 : static_cast<index_t>(request.tokens.size());
    answers.push_back({rows, width, {next, next + rows * width}});
    next += rows * width;
  }
  return answers;
}
template <class Act>
Answers<Act> answer(AnyModel<Act>& model, std::span<Request const> requests, ContextOptions options = {}) {
  SerialExecutor executor;
  return answer(model, *model.context(executor, options), requests);
}

}  // namespace graft_test
