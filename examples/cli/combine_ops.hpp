// SPDX-License-Identifier: Apache-2.0
// The operators of graft combine: one table of names, formulas and defaults, and what each does.
#pragma once

#include <examples/cli/engine.hpp>

#include <graft/arithmetic/conversions.hpp>
#include <graft/arithmetic/merging.hpp>
#include <graft/arithmetic/paper.hpp>
#include <graft/arithmetic/subspace.hpp>

#include <array>
#include <string>
#include <string_view>
#include <vector>

namespace graft::cli {

struct CombineOptions {
  std::string op, factor;
  double lambda = 0.5, t = 0.5, density = 0.5, error = 0, energy = 0;
  index_t rank = 0, group_size = 64, part = 0, parts = 2;
  std::uint64_t seed = 0;
  std::string majority = "total", heads = "exact";
  bool as_peft = false;
};

/// One row of the table in --help and in docs/arithmetic.md.
struct CombineOp {
  std::string_view name;
  index_t least, most;  ///< operands; most 0: any number
  double weight;        ///< of an operand that states none; 0: 1/N
  std::string_view kinds, formula, flags;
};

inline constexpr std::array combine_ops{
    CombineOp{"add", 1, 0, 1, "all", "sum w (what M changes); exact. LoRA by concatenation", ""},
    CombineOp{"cat", 1, 0, 1, "LoRA", "the same, PEFT's name", ""},
    CombineOp{"svd", 1, 0, 1, "LoRA", "the same, brought to a rank", "--rank --error --energy"},
    CombineOp{"linear", 1, 0, 1, "LoRA RoAd IA3", "LoRA: sum sqrt|w s| A, sum sqrt|w s| B; else as add", "--as-peft"},
    CombineOp{"negate", 1, 1, 1, "all", "-w (what M changes); exact", ""},
    CombineOp{"compose", 2, 0, 1, "RoAd IA3", "the last after ... after the first; no weights", ""},
    CombineOp{"inverse", 1, 1, 1, "RoAd IA3", "what undoes M; no weights", ""},
    CombineOp{"power", 1, 1, 1, "RoAd IA3", "M^t; no weights", "--t"},
    CombineOp{"interpolate", 2, 2, 1, "all", "(1 - t) A + t B of what they change; no weights", "--t"},
    CombineOp{"slerp", 2, 2, 1, "RoAd IA3", "(B A^-1)^t A; no weights", "--t"},
    CombineOp{"paper-add", 1, 0, 0, "all", "sum w theta of all parameters, w divided by their sum", ""},
    CombineOp{"paper-negate", 1, 1, 1, "all", "LoRA: one factor times -w; IA3: (1 + w) - w l", "--factor"},
    CombineOp{"analogy", 3, 3, 1, "all",
              "lambda A + (1 - lambda)(B + neg C): source classifier, target LM, source LM; no weights",
              "--lambda --factor"},
    CombineOp{"detoxify", 2, 2, 1, "all", "A + lambda (A + neg B), B trained on from A; no weights",
              "--lambda --factor"},
    CombineOp{"ties", 1, 0, 0, "LoRA RoAd IA3", "keep the largest, elect signs, mean of those that agree",
              "--density --majority --as-peft"},
    CombineOp{"dare_linear", 1, 0, 0, "LoRA RoAd IA3", "keep at random, divide by density, sum", "--density --seed"},
    CombineOp{"dare_ties", 1, 0, 0, "LoRA RoAd IA3", "the same, then elect signs",
              "--density --seed --majority --as-peft"},
    CombineOp{"magnitude_prune", 1, 0, 0, "LoRA RoAd IA3", "keep the largest, sum", "--density"},
    CombineOp{"della", 1, 0, 0, "LoRA RoAd IA3", "as dare_ties, but small entries go first",
              "--density --seed --majority"},
    CombineOp{"breadcrumbs", 1, 0, 0, "LoRA RoAd IA3", "drop the smallest and the 1 % largest, sum", "--density"},
    CombineOp{"ties_svd", 1, 0, 0, "LoRA", "ties on s B A, brought to a rank; so are the next five", "--rank ..."},
    CombineOp{"dare_linear_svd", 1, 0, 0, "LoRA", "", ""},
    CombineOp{"dare_ties_svd", 1, 0, 0, "LoRA", "", ""},
    CombineOp{"magnitude_prune_svd", 1, 0, 0, "LoRA", "", ""},
    CombineOp{"della_svd", 1, 0, 0, "LoRA", "", ""},
    CombineOp{"breadcrumbs_svd", 1, 0, 0, "LoRA", "", ""},
    CombineOp{"knots", 1, 0, 0, "LoRA", "ties on V_k of [D_1, D_2, ...] = U S [V_1, V_2, ...]",
              "--rank --density --majority"},
    CombineOp{"search", 1, 0, 1, "all", "add with weights found on --data with --model, as LoraHub; no weights",
              "--evaluations --seed --model --data"},
    CombineOp{"subspace", 1, 1, 1, "RoAd", "part k of N of M's blocks, the others do nothing; no weights",
              "--part --parts"},
    CombineOp{"to-road_2", 1, 1, 1, "RoAd IA3", "the same map as road_2; IA3 on outputs only", "--group-size"},
    CombineOp{"to-road_4", 1, 1, 1, "RoAd", "the same map as road_4", ""},
    CombineOp{"to-lora", 1, 1, 1, "RoAd IA3", "LoRA with a bias that does nearly the same on --model",
              "--rank --error --energy --model"},
};

/// The table as text, for --help.
std::string combine_table();

using CommandModule = AnyModule<CommandAdapters, CommandBackend>;

struct Operand {
  CommandModule module;
  std::string path;
  double weight = 1;
};

struct CombineResult {
  CommandModule module;
  std::vector<SiteError> errors;  ///< of compression, where there was some
};

/// Applies the operator to modules of one method. `base` is asked by to-lora only. ContractError says what is wrong.
CombineResult combine(CombineOp const& op, CombineOptions const& options, std::vector<Operand> const& operands,
                      SiteTable const& sites, BaseWeights const& base);

}  // namespace graft::cli
