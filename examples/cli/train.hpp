// SPDX-License-Identifier: Apache-2.0
// What `graft train` is asked for: its options, and what each method begins with.
#pragma once

#include <examples/cli/command.hpp>

#include <graft/io/peft_targets.hpp>
#include <graft/train/trainer_options.hpp>

#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace graft::cli {

struct TrainCommand {
  ModelOptions model;
  std::string method, data, out, val;
  double val_fraction = 0, bilevel = 0;
  std::vector<std::string> targets, settings;
  std::optional<std::string> rank, alpha, variant, group_size;
  std::optional<double> rate;
  std::string schedule = "linear", optimizer = "adamw", loss = "completion", type = "f32";
  index_t max_length = 0;
  bool chat = false, resume = false;
  TrainerOptions trainer;
};

/// Runs it; the summary's fields are printed by the caller.
nlohmann::ordered_json train(TrainCommand const& command);
/// The same on a GPU: activations in f32, in native precision in bf16. ContractError in a build without CUDA.
nlohmann::ordered_json train_on_cuda(TrainCommand const& command);

/// Of one architecture; Owner is made from EngineOptions and holds a backend: owner.backend(). Defined in train_of.hpp.
template <class Arch, class Owner>
nlohmann::ordered_json train_of(TrainCommand const& command, ModelFiles const& files);

/// What a method begins with: `rate` is a learning rate that works for many models, targets are PEFT's.
template <class P>
struct MethodDefaults;
template <>
struct MethodDefaults<LoRADelta> {
  static constexpr std::string_view name = "lora";
  static constexpr double rate = 2e-4;
  static LoRADelta policy(ModelConfig const& model) {
    return {.rank = 16, .fan_in_fan_out = model.architecture == "gpt2"};  // its Conv1D
  }
  static std::vector<std::string> targets(ModelConfig const&) { return {}; }
};
template <>
struct MethodDefaults<RoAdRotation> {
  static constexpr std::string_view name = "road";
  static constexpr double rate = 3e-3;
  static RoAdRotation policy(ModelConfig const&) { return {}; }
  static std::vector<std::string> targets(ModelConfig const&) { return {}; }
};
template <>
struct MethodDefaults<IA3Scaling> {
  static constexpr std::string_view name = "ia3";
  static constexpr double rate = 3e-3;
  static IA3Scaling policy(ModelConfig const& model) {
    return {.feedforward_modules = {targets(model).back()}, .fan_in_fan_out = model.architecture == "gpt2"};
  }
  static std::vector<std::string> targets(ModelConfig const& model) {  // keys, values, the feed-forward's last layer
    if (model.architecture == "gpt2") return {"c_attn", "mlp.c_proj"};
    if (model.is_encoder()) return {"key", "value", "output.dense"};
    return {"k_proj", "v_proj", "down_proj"};
  }
};
template <>
struct MethodDefaults<PedroGenerator> {
  static constexpr std::string_view name = "pedro";
  static constexpr double rate = 1e-3;
  static PedroGenerator policy(ModelConfig const&) { return {}; }
  static std::vector<std::string> targets(ModelConfig const&) { return {}; }
};

/// The command line's policy: the method's defaults, then --rank and its like, then --set.
template <class P>
P policy_of(TrainCommand const& command, ModelConfig const& model) {
  using Defaults = MethodDefaults<P>;
  P policy = Defaults::policy(model);
  auto const set = [&](std::string const& key, std::string const& value) {
    checked_use([&] { set_policy_option(policy, key, value); });
  };
  if constexpr (requires { policy.alpha; }) policy.alpha = std::numeric_limits<double>::quiet_NaN();
  if (command.rank) set("r", *command.rank);
  if (command.alpha) set("lora_alpha", *command.alpha);
  if (command.variant) set("variant", *command.variant);
  if (command.group_size) set("group_size", *command.group_size);
  for (auto const& setting : command.settings) {
    auto const equals = setting.find('=');
    if (equals == std::string::npos) throw UsageError(text("expected --set KEY=VALUE, got ", setting));
    set(setting.substr(0, equals), setting.substr(equals + 1));
  }
  if constexpr (requires { policy.rank; })
    if (policy.rank < 1) throw UsageError(text("a rank is at least 1, not ", policy.rank));
  if constexpr (requires { policy.alpha; }) {
    if (std::isnan(policy.alpha)) policy.alpha = 2 * static_cast<double>(policy.rank);  // nobody said it
    if (policy.alpha == 0) throw UsageError("an adapter with lora_alpha 0 does nothing");
  }
  return policy;
}

}  // namespace graft::cli
