// SPDX-License-Identifier: Apache-2.0
#include <examples/cli/combine_ops.hpp>

#include <algorithm>
#include <span>

namespace graft::cli {
namespace combine_ops_parts {

namespace paper = arithmetic::paper;
using B = CommandBackend;

template <class P>
inline constexpr bool is_map = std::same_as<P, RoAdRotation> || std::same_as<P, IA3Scaling>;

/// The operators on modules of one method.
template <class P>
class Combiner {
 public:
  Combiner(CombineOp const& op, CombineOptions const& options, std::vector<Operand> const& operands,
           SiteTable const& sites, BaseWeights const& base)
      : op_(op), options_(options), sites_(sites), base_(base) {
    for (auto const& operand : operands) {
      auto const* const module = std::get_if<Module<P, B>>(&operand.module.module);
      expects(module != nullptr, "graft: ", operands.front().path, " is a ", P::peft_type, " adapter and ",
              operand.path, " is not; only adapters of one method can be combined");
      terms_.push_back({module, operand.weight});
    }
  }

  CombineResult run() {
    auto const name = op_.name;
    auto const& first = *terms_.front().module;
    if (name == "add" || name == "search") return made(sum(1));
    if (name == "negate") return made(sum(-1));
    if (name == "interpolate") return made(interpolate(first, *terms_[1].module, options_.t, sites_));
    if (name == "paper-add") return made(paper::add(span(), heads()));
    if (name == "paper-negate") return made(paper::scaled_negation(first, terms_.front().weight, factor("b")));
    if (name == "analogy")
      return made(paper::analogy(first, *terms_[1].module, *terms_[2].module, options_.lambda, factor("b")));
    if (name == "detoxify") return made(paper::detoxify(first, *terms_[1].module, options_.lambda, factor("a")));
    if constexpr (std::same_as<P, LoRADelta>) return run_lora();
    if constexpr (is_map<P>) return run_map();
    not_for_this();
  }

 private:
  std::span<ModuleTerm<P, B> const> span() const { return terms_; }
  Heads heads() const { return options_.heads == "first" ? Heads::first : Heads::exact; }
  paper::Factor factor(std::string_view fallback) const {
    return (options_.factor.empty() ? fallback : std::string_view(options_.factor)) == "a" ? paper::Factor::a
                                                                                           : paper::Factor::b;
  }
  [[noreturn]] void not_for_this() const {
    raise<ContractError>("graft: ", op_.name, " is for ", op_.kinds, " adapters, not for ", P::peft_type);
  }
  static CombineResult made(Module<P, B> module) { return {{std::move(module), {}}, {}}; }
  static CombineResult made(Compressed<B> compressed) {
    return {{std::move(compressed.module), {}}, std::move(compressed.errors)};
  }

  Module<P, B> sum(double sign) const {
    auto terms = terms_;
    for (auto& term : terms) term.weight *= sign;
    auto const once = detail::collected(std::span<ModuleTerm<P, B> const>(terms));
    return weighted_sum(std::span<ModuleTerm<P, B> const>(once), sites_, heads());
  }
  MergeRecipe recipe() const {
    auto recipe = merge_recipe(op_.name);
    recipe.pruning.density = options_.density;
    recipe.majority = options_.majority == "frequency" ? MajoritySign::frequency : MajoritySign::total;
    recipe.truncation = truncation();
    recipe.seed = options_.seed;
    recipe.as_peft = options_.as_peft;
    return recipe;
  }
  Truncation truncation() const { return {options_.rank, options_.error, options_.energy}; }

  CombineResult run_lora() requires std::same_as<P, LoRADelta> {
    if (op_.name == "cat") return made(sum(1));
    if (op_.kinds.find("LoRA") == std::string_view::npos) not_for_this();
    auto merged = merge_modules(span(), recipe(), sites_, heads());
    return made(std::move(merged));
  }
  CombineResult run_map() requires is_map<P> {
    auto const name = op_.name;
    auto const& first = *terms_.front().module;
    if (name == "inverse") return made(inverse(first, sites_));
    if (name == "power") return made(power(first, options_.t, sites_));
    if (name == "slerp") return made(slerp(first, *terms_[1].module, options_.t, sites_));
    if (name == "to-lora") return made_other(to_lora(first, base_, truncation(), sites_));
    if (name == "compose") {
      auto product = compose(*terms_[1].module, first, sites_);
      for (std::size_t k = 2; k < terms_.size(); ++k) product = compose(*terms_[k].module, product, sites_);
      return made(std::move(product));
    }
    if constexpr (std::same_as<P, RoAdRotation>) {
      if (name == "subspace")
        return made(subspace(
            first, sites_, [this](index_t outputs) { return part_of_blocks(outputs, options_.part, options_.parts); }));
      if (name == "to-road_2") return made(to_variant(first, RoAdRotation::Variant::road_2, sites_));
      if (name == "to-road_4") return made(to_variant(first, RoAdRotation::Variant::road_4, sites_));
    } else if (name == "to-road_2") {
      return {{to_road(first, options_.group_size, sites_), {}}, {}};
    }
    if (op_.kinds.find("RoAd IA3") == std::string_view::npos) not_for_this();
    return made(merge_modules(span(), recipe(), sites_, heads()));
  }
  static CombineResult made_other(Compressed<B> compressed) {
    return {{std::move(compressed.module), {}}, std::move(compressed.errors)};
  }

  CombineOp const& op_;
  CombineOptions const& options_;
  SiteTable const& sites_;
  BaseWeights const& base_;
  std::vector<ModuleTerm<P, B>> terms_;
};

}  // namespace combine_ops_parts

std::string combine_table() {
  using namespace combine_ops_parts;
  std::string table = "Operators (M, A, B, C: adapters in their order; w: weights; s B A: LoRA's delta):\n";
  for (auto const& op : combine_ops) {
    std::string name(op.name), weight = op.weight == 0                                      ? "1/N"
                                        : op.formula.find("no weights") < op.formula.size() ? "-"
                                                                                            : "1";
    name.resize(std::max<std::size_t>(20, name.size() + 1), ' ');
    weight.resize(4, ' ');
    std::string kinds(op.kinds);
    kinds.resize(14, ' ');
    table += text("  ", name, "w ", weight, kinds, op.formula, op.flags.empty() ? "" : "  ", op.flags, '\n');
  }
  return table;
}

CombineResult combine(CombineOp const& op, CombineOptions const& options, std::vector<Operand> const& operands,
                      SiteTable const& sites, BaseWeights const& base) {
  using namespace combine_ops_parts;
  return std::visit(
      [&]<class P>(Module<P, CommandBackend> const&) { return Combiner<P>(op, options, operands, sites, base).run(); },
      operands.front().module.module);
}

}  // namespace graft::cli
