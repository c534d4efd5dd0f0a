// SPDX-License-Identifier: Apache-2.0
// A backbone's own weights trained on the CUDA backend, against the CPU.
#include <graft/arch/llama.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/backend/cuda/cuda.cuh>
#include <graft/io/model_files.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/random.hpp>
#include <graft/train/backbone_optimizer.hpp>
#include <graft/train/loss.hpp>
#include <graft/train/training_pass.hpp>
#include <tests/catch.hpp>
#include <tests/cuda/device.hpp>

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace {

using namespace graft;

struct Trained {
  std::vector<double> losses;
  double norm = 0;                                ///< of the last step's gradient
  std::map<std::string, std::vector<double>> by;  ///< what each tensor moved by
};

/// Steps of gradient descent, which show the gradients themselves, of all tensors of a small Llama with a tied head.
template <class B>
Trained train(int steps) {
  auto const files = open_model(std::string(GRAFT_TEST_DATA "/models/llama_pedro"));
  TrainableWeights weights(files.weights);
  using M = Model<Llama, Adapters<>, B>;
  B be;
  M model(files.config, weights.map());
  TrainingPass pass(model, be);
  Gradients<B> gradients;
  using Runner = OptimizerRunner<B>;
  BackboneOptimizer<M> optimizer(model, weights,
                                 [](auto ranges) { return std::make_unique<Sgd<float, Runner>>(std::move(ranges)); });
  optimizer.want(gradients);
  Random random(3);
  std::vector<std::vector<std::int32_t>> lines(3);
  for (auto& line : lines)
    for (index_t k = testing::pick(random, 4, 9); k > 0; --k)
      line.push_back(static_cast<std::int32_t>(testing::pick(random, 0, files.config.vocabulary - 1)));
  Trained result;
  Storage<double, typename B::Space> norm(1);
  for (int step = 0; step < steps; ++step) {
    std::vector<TrainingSequence<B>> batch;
    std::vector<index_t> wanted;
    std::vector<LossRow> rows;
    index_t first = 0;
    for (auto const& line : lines) {
      batch.push_back({.tokens = line});
      for (std::size_t k = 0; k + 1 < line.size(); ++k) {
        wanted.push_back(first + static_cast<index_t>(k));
        rows.push_back({line[k + 1], 0.05});
      }
      first += static_cast<index_t>(line.size());
    }
    gradients.zero();
    pass.forward(batch, gradients);
    CrossEntropy<B> loss(be, rows);
    pass.head(wanted, loss);
    pass.backward();
    optimizer.step(be, gradients, group_rates(0.3), 0.8, norm.data());
    result.losses.push_back(loss.sums().mean());
  }
  if constexpr (std::same_as<typename B::Space, HostSpace>)
    result.norm = *norm.data();
  else
    copy_to_host(be, static_cast<double const*>(norm.data()), &result.norm, 1);
  optimizer.store(be);
  TrainableWeights before(files.weights);
  weights.for_each([&](std::string const& name, MatrixView<float> values) {
    for (index_t k = 0; k < values.size(); ++k)
      result.by[name].push_back(static_cast<double>(values.data[k]) - static_cast<double>(before[name].data[k]));
  });
  return result;
}

double distance(std::vector<double> const& a, std::vector<double> const& b) {
  auto const size = static_cast<index_t>(a.size());
  return testing::relative_l2(matrix_view(a.data(), 1, size), matrix_view(b.data(), 1, size));
}

TEST_CASE("a backbone learns on the CUDA backend as on the CPU") {
  auto const host = train<CpuBackend<float>>(3), device = train<CudaBackend<float>>(3);
  REQUIRE(host.by.size() == device.by.size());
  CHECK(host.losses.back() < 0.97 * host.losses.front());
  for (auto const& [name, moved] : host.by) {
    INFO(name);
    CHECK(distance(device.by.at(name), moved) <= 1e-3);  // three gradients that are 1e-4 off
  }
  CHECK(device.norm == Approx(host.norm).epsilon(1e-4));
  // in bf16 the model follows its f32 parameters, rounded: losses are those of rounded weights and activations
  auto const rounded = train<CudaBackend<bf16>>(3);
  for (std::size_t k = 0; k < host.losses.size(); ++k) CHECK(rounded.losses[k] == Approx(host.losses[k]).epsilon(2e-2));
  CHECK(graft_test::finish() == "");
}

TEST_CASE("a gradient of a weight in blocks is refused on the CUDA backend") {
  auto files = open_model(std::string(GRAFT_TEST_DATA "/models/llama_pedro"));
  auto& weight = files.weights.tensors.at("model.layers.0.mlp.up_proj.weight");
  std::vector<std::byte> blocks(static_cast<std::size_t>(weight.rows * row_bytes(Format::q8_0, weight.cols)));
  weight = {blocks.data(), Format::q8_0, weight.rows, weight.cols, nullptr};
  using B = CudaBackend<float>;
  Model<Llama, Adapters<>, B> const model(files.config, files.weights);
  Gradients<B> gradients;
  CHECK_THROWS_WITH(want_base(gradients, model, "model.layers.0.mlp.up_proj.weight"),
                    "graft: model.layers.0.mlp.up_proj.weight is stored as Q8_0; train a TrainableWeights copy");
  CHECK_THROWS_WITH(want_base(gradients, model, "nobody"), "graft: the model has no tensor nobody");
}

}  // namespace
