// SPDX-License-Identifier: Apache-2.0
// A model of any architecture behind one interface, so that the command's parts are compiled once.
#pragma once

#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/pedro.hpp>
#include <graft/adapter/road.hpp>
#include <graft/arch/config.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/io/model_files.hpp>
#include <graft/io/peft.hpp>
#include <graft/model/generate.hpp>

#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace graft::cli {

/// The command's adapters, innermost first.
using CommandAdapters = Adapters<IA3Scaling, RoAdRotation, LoRADelta, PedroGenerator>;
using CommandBackend = CpuBackend<float>;

/// One line of a requests file for `logits`.
struct LogitsRequest {
  std::vector<std::int32_t> tokens, token_types;
  std::vector<AdapterUse> adapters;
  index_t prompt_tokens = -1;
};

/// Tokens of which those from `first` on (at least 1) are scored.
struct ScoreRequest {
  std::vector<std::int32_t> tokens;
  std::vector<AdapterUse> adapters;
  index_t first = 1;
  index_t prompt_tokens = -1;
};

class Engine {
 public:
  virtual ~Engine() = default;
  virtual ModelConfig const& config() const = 0;
  virtual SiteTable const& sites() const = 0;
  virtual WeightMap const& weights() const = 0;
  /// Loads a PEFT folder or a GGUF LoRA into the bank.
  virtual void load(std::string const& name, std::filesystem::path const& path) = 0;
  /// The composed adapters of a list of names that were loaded; of an engine on the CPU.
  virtual std::shared_ptr<AdapterSet<CommandBackend> const> resolve(std::span<AdapterUse const> uses) = 0;
  /// Output columns: the vocabulary, the labels, or the width of an encoder without a head.
  virtual index_t output_width() const = 0;
  /// All requests as one batch; results[k] [rows, width]: one row per token, or one for a classifier.
  virtual std::vector<std::vector<float>> logits(std::span<LogitsRequest const> requests) = 0;
  /// log p of every scored token given those before it, all requests as one batch.
  virtual std::vector<std::vector<double>> scores(std::span<ScoreRequest const> requests) = 0;
  virtual std::vector<Generation> generate(std::span<GenerationRequest const> requests,
                                           std::function<void(std::size_t, std::int32_t)> on_token) = 0;
};

enum class Device : std::uint8_t { cpu, cuda };

struct EngineOptions {
  index_t threads = 0;                     ///< of the processor; 0: one per hardware thread
  Precision precision = Precision::exact;  ///< on a GPU: activations in f32, or in bf16
  Device device = Device::cpu;
  AdapterStorage adapters = AdapterStorage::full;
  KvStorage kv = KvStorage::full;  ///< of the processor; a GPU keeps what its activations are
  bool pack_weights = false;       ///< of the processor: graft::pack_weights
};

/// Of one architecture; Owner is made from EngineOptions and holds a backend: owner.backend(). Defined in
/// engine_of.hpp.
template <class Arch, class Owner>
std::unique_ptr<Engine> make_engine_of(ModelFiles files, EngineOptions const& options);

/// FormatError when the files are not a whole model.
std::unique_ptr<Engine> make_engine(ModelFiles files, EngineOptions const& options);
/// ContractError in a build without CUDA.
std::unique_ptr<Engine> make_cuda_engine(ModelFiles files, EngineOptions const& options);

}  // namespace graft::cli
