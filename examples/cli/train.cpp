// SPDX-License-Identifier: Apache-2.0
// graft train: a module of any method learns from lines of prompts and completions, or of texts and labels.
#include <examples/cli/train.hpp>

#include <cstdio>

namespace graft::cli {
namespace train_command {

void run(TrainCommand command) {
  auto const place = [](auto const& names, std::string const& name) {
    return std::find(names.begin(), names.end(), name) - names.begin();
  };
  command.trainer.schedule = static_cast<Schedule::Kind>(place(Schedule::names(), command.schedule));
  command.trainer.method = static_cast<TrainerOptions::Method>(place(TrainerOptions::names(), command.optimizer));
  command.trainer.sgd.weight_decay = command.trainer.adamw.weight_decay;
  if (!command.val.empty() && command.val_fraction > 0)
    throw UsageError("--val and --val-fraction both say what to validate on; give one");
  auto const summary = train(command);
  if (command.model.json) {
    std::printf("%s\n", summary.dump().c_str());
    return;
  }
  for (auto const& [key, value] : summary.items())
    if (!value.is_structured() && !value.is_null())
      std::printf("%-20s %s\n", key.c_str(), (value.is_string() ? value.get<std::string>() : value.dump()).c_str());
}

}  // namespace train_command

void add_train(CLI::App& app) {
  using namespace train_command;
  auto const c = std::make_shared<TrainCommand>();
  auto* const command = app.add_subcommand("train", "trains an adapter and writes it as a PEFT folder");
  c->model.add_to(*command, false);
  auto& t = c->trainer;
  auto const positive = whole_number(1), count = whole_number(0);
  auto const above_zero = number([](double x) { return x > 0; }, "a number above 0"),
             from_zero = number([](double x) { return x >= 0; }, "a number from 0 up"),
             share = number([](double x) { return x >= 0 && x <= 0.9; }, "from 0 to 0.9"),
             below_one =
                 number([](double x) { return x >= 0 && x < 1; }, "from 0 up and below 1");  // an average must forget
  command->add_option("--method", c->method, "lora, road, pedro or ia3")
      ->required()
      ->check(CLI::IsMember({"lora", "road", "pedro", "ia3"}));
  command
      ->add_option("--data", c->data, "lines {\"prompt\", \"completion\"}, or {\"prompt\", \"label\"} for a classifier")
      ->required();
  command->add_option("--out", c->out, "folder for the adapter, log.csv, training.json and checkpoints")->required();

  command->add_option("--val", c->val, "lines to validate on; the parameters that are best there are kept");
  command->add_option("--val-fraction", c->val_fraction, "validate on this share of the data instead")->check(share);
  command->add_option("--max-length", c->max_length, "tokens of an example; 0: the model's context")->check(count);
  command->add_flag("--chat", c->chat, "the prompt is a user's turn of the model's chat template");
  command->add_option("--loss", c->loss, "completion, or all: learn the prompt too")
      ->check(CLI::IsMember({"completion", "all"}));

  command->add_option("--targets", c->targets, "modules as PEFT's target_modules: names, all-linear, or one pattern")
      ->delimiter(',');
  command->add_option("--rank", c->rank, "lora (16), pedro (12)");
  command->add_option("--alpha", c->alpha, "lora (twice the rank)");
  command->add_option("--variant", c->variant, "road: road_1, road_2 or road_4");
  command->add_option("--group-size", c->group_size, "road (64)");
  command
      ->add_option("--parts", t.parts, "road: parts of the blocks; lines with \"part\": k are learned by part k alone")
      ->check(CLI::Range(0, 1024));
  command->add_option("--set", c->settings, "KEY=VALUE: any option of the method; repeatable")->take_all();

  command->add_option("--epochs", t.epochs, "passes over the data (3)")->check(above_zero);
  command->add_option("--steps", t.steps, "optimiser steps, instead of --epochs")->check(count);
  command->add_option("--batch", t.batch, "sequences that pass together (8)")->check(positive);
  command->add_option("--accumulate", t.accumulate, "batches per optimiser step (1)")->check(positive);
  command->add_option("--optimizer", c->optimizer, "adamw or sgd")->check(CLI::IsMember({"adamw", "sgd"}));
  command->add_option("--lr", c->rate, "learning rate at its peak (lora 2e-4, road 3e-3, ia3 3e-3, pedro 1e-3)")
      ->check(above_zero);
  command->add_option("--schedule", c->schedule, "constant, linear, cosine or polynomial (linear)")
      ->check(CLI::IsMember({"constant", "linear", "cosine", "polynomial"}));
  command->add_option("--warmup", t.warmup, "steps; below 1 a share of all (0)")->check(from_zero);
  command->add_option("--weight-decay", t.adamw.weight_decay, "of matrices (0)")->check(from_zero);
  command->add_option("--beta1", t.adamw.beta1, "of adamw (0.9)")->check(below_one);
  command->add_option("--beta2", t.adamw.beta2, "of adamw (0.999)")->check(below_one);
  command->add_option("--epsilon", t.adamw.epsilon, "of adamw (1e-8)")->check(above_zero);
  command->add_option("--momentum", t.sgd.momentum, "of sgd (0)")->check(below_one);
  command->add_option("--clip", t.clip, "largest norm of the gradient; 0: any (1)")->check(from_zero);
  command->add_option("--dropout", t.dropout, "on what lora sees (0)")->check(share);
  command->add_option("--label-smoothing", t.loss.label_smoothing, "(0)")->check(share);
  command->add_option("--z-loss", t.loss.z_loss, "(0)")->check(from_zero);
  command->add_option("--lora-plus", t.expansion_ratio, "LoRA+: B's learning rate over A's (1)")->check(above_zero);
  command->add_option("--activation-lr", t.activation_ratio, "pedro: the rational's learning rate over the others' (1)")
      ->check(from_zero);
  command->add_option("--bilevel", c->bilevel, "pedro: train the rational on this share of the data alone")
      ->check(share);
  command->add_option("--seed", t.seed, "of start values, order, dropout and splits (0)")->check(seed_number());

  command->add_option("--validate-every", t.validate_every, "steps; 0: behind each epoch")->check(count);
  command->add_option("--save-every", t.save_every, "steps; 0: behind each epoch and every half minute")->check(count);
  command->add_flag("--recompute", t.recompute, "run layers again on the way back: less memory, more time");
  command->add_flag("--resume", c->resume, "go on where a training into --out stopped");
  command->add_option("--type", c->type, "of the written adapter: f32, bf16 or f16")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}));
  command->callback([c] { run(*c); });
}

}  // namespace graft::cli
