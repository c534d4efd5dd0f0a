// SPDX-License-Identifier: Apache-2.0
// Gradients of adapters on any backend against torch's autograd (tests/golden/make_gradients.py).
#pragma once

#include <tests/catch.hpp>

#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/pedro.hpp>
#include <graft/adapter/road.hpp>
#include <graft/arch/architectures.hpp>
#include <graft/io/json_lines.hpp>
#include <graft/io/model_files.hpp>
#include <graft/io/peft.hpp>
#include <graft/train/loss.hpp>
#include <graft/train/training_pass.hpp>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

namespace graft_test {

using namespace graft;
using AllAdapters = Adapters<IA3Scaling, RoAdRotation, LoRADelta, PedroGenerator>;

// The loss of make_gradients.py for one adapter: its requests in one batch, each weighted by 1 / its own rows.
template <class M, class B>
void run(M& model, B& be, Gradients<B>& gradients, std::string const& name, std::filesystem::path const& requests) {
  std::vector<std::vector<std::int32_t>> tokens, types;
  std::vector<TrainingSequence<B>> batch;
  std::vector<index_t> wanted;
  std::vector<LossRow> rows;
  std::ifstream file(requests);
  index_t first = 0;
  std::int32_t index = -1;
  tokens.reserve(1000), types.reserve(1000);
  for (std::string line; std::getline(file, line);) {
    ++index;
    auto const request = nlohmann::json::parse(line);
    auto const adapters = request.value("adapters", nlohmann::json::array());
    if (adapters.size() != 1 || adapters[0].at("name") != name || adapters[0].at("weight") != 1.0) continue;
    tokens.push_back(request.at("tokens"));
    types.push_back(request.value("token_types", request.value("token_type_ids", std::vector<std::int32_t>{})));
    auto const count = static_cast<index_t>(tokens.back().size());
    batch.push_back(
        {tokens.back(), model.bank().resolve({{name, 1}}), request.value("prompt_tokens", index_t{-1}), types.back()});
    if (model.config().classifier) {
      wanted.push_back(first);
      rows.push_back({index % static_cast<std::int32_t>(model.config().labels.size())});
    } else {
      for (index_t t = 0; t + 1 < count; ++t) {
        wanted.push_back(first + t);
        rows.push_back({tokens.back()[static_cast<std::size_t>(t + 1)], 1.0 / static_cast<double>(count - 1)});
      }
    }
    first += count;
  }
  REQUIRE(!batch.empty());
  TrainingPass<M> pass(model, be);
  pass.forward(batch, gradients);
  CrossEntropy<B> loss(be, rows);
  pass.head(wanted, loss);
  pass.backward();
}

// Relative L2 of each tensor; `expected` holds gradients in the shapes of the module's tensors.
template <class P, class B>
double worst_of(Module<P, B> const& expected, VectorView<float> found) {
  double worst = 0;
  for (auto const& entry : expected.entries) {
    auto state = entry.state;
    state.for_each([&](char const*, auto& tensor) {
      if (tensor.data == nullptr) return;
      index_t const offset = tensor.data - expected.parameters().data;
      index_t size;
      if constexpr (requires { tensor.rows; })
        size = tensor.rows * tensor.cols;
      else
        size = tensor.size;
      double difference = 0, norm = 0;
      for (index_t k = 0; k < size; ++k) {
        double const a = found[offset + k], b = tensor.data[k];
        difference += (a - b) * (a - b), norm += b * b;
      }
      // where the true gradient is zero (a pooler the output does not depend on), ours is to be zero too; below 1e-9 is
      // what is left of terms that cancel, as a bias of the key
      if (norm > 1e-18) worst = std::max(worst, std::sqrt(difference / norm));
      if (norm <= 1e-18) CHECK(difference < 1e-12);
    });
  }
  return worst;
}

/// What was checked of tests/golden/data/gradients.
struct GradientsChecked {
  int adapters = 0;
  double worst = 0;  ///< relative L2 of a tensor's gradient
};
template <class B, class Arch>
void check_gradients(std::filesystem::path const& folder, double bound, GradientsChecked& result) {
  std::filesystem::path const data = GRAFT_TEST_DATA;
  auto const model_folder = data / "models" / folder.filename();
  auto files = open_model(model_folder);
  using M = Model<Arch, AllAdapters, B>;
  M model(std::move(files.config), std::move(files.weights));
  for (auto const& adapter : std::filesystem::directory_iterator(folder)) {
    std::string const name = adapter.path().filename().string();
    INFO(adapter.path().string());
    B be;
    load_adapter(be, model, name, model_folder / ("adapter_" + name));
    Gradients<B> gradients;
    gradients.want(model.bank().find(name));
    run(model, be, gradients, name, model_folder / "requests.jsonl");
    auto const expected = read_any_peft<AllAdapters, B>(adapter.path(), model.sites(), name);
    std::visit(
        [&](auto const& module) {
          double const error = worst_of(module, gradients.of(name));
          CHECK(error < bound);
          result.worst = std::max(result.worst, error);
          for (auto const& [tensor, values] : module.saved) {
            auto const own = gradients.of(name, tensor);
            double difference = 0, norm = 0;
            for (std::size_t k = 0; k < values.values.size(); ++k) {
              double const b = values.values[k], a = own[static_cast<index_t>(k)];
              difference += (a - b) * (a - b), norm += b * b;
            }
            CHECK(std::sqrt(difference / norm) < bound);
          }
        },
        expected.module);
    ++result.adapters;
  }
}
template <class B>
GradientsChecked check_gradients(double bound) {
  GradientsChecked result;
  for (auto const& folder : std::filesystem::directory_iterator(std::filesystem::path(GRAFT_TEST_DATA) / "gradients")) {
    auto const files = open_model(std::filesystem::path(GRAFT_TEST_DATA) / "models" / folder.path().filename());
    with_architecture(files.config.architecture,
                      [&]<class Arch>() { check_gradients<B, Arch>(folder.path(), bound, result); });
  }
  return result;
}

}  // namespace graft_test
