// SPDX-License-Identifier: Apache-2.0
// The bank: all loaded modules, and the composed adapters of requests.
#pragma once

#include <graft/adapter/adapter_set.hpp>
#include <graft/adapter/compose.hpp>

#include <algorithm>
#include <bit>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

namespace graft {

/// What a bank is, whatever its list of policies.
template <class B>
class ModuleBank {
 public:
  using R = Real<B>;
  using Published = PublishedModule<B>;
  using Set = AdapterSet<B>;

  SiteTable const& sites() const { return *sites_; }
  AdapterStorage storage() const { return storage_; }

  /// Forgets the name; false when there is none. Memory goes when the last request using it ends.
  bool unload(std::string const& name) {
    std::lock_guard lock(mutex_);
    return modules_.erase(name) != 0;
  }

  /// The module under this name now, or null.
  std::shared_ptr<Published const> find(std::string const& name) const {
    std::lock_guard lock(mutex_);
    auto const found = modules_.find(name);
    return found == modules_.end() ? nullptr : found->second;
  }
  std::vector<std::string> names() const {
    std::lock_guard lock(mutex_);
    std::vector<std::string> result;
    for (auto const& [name, module] : modules_) result.push_back(name);
    std::sort(result.begin(), result.end());
    return result;
  }

  /// The composed adapters of a request; the same list gives the same object while anyone holds it. The order of the
  /// names does not matter. Null for an empty list. Unknown names and maps that cannot be summed are ContractErrors.
  std::shared_ptr<Set const> resolve(std::span<AdapterUse const> uses);
  std::shared_ptr<Set const> resolve(std::initializer_list<AdapterUse> uses) {
    return resolve(std::span<AdapterUse const>(uses.begin(), uses.size()));
  }

 protected:
  /// low_rank: of each policy in the list, whether it gives deltas; outlives the bank.
  ModuleBank(std::shared_ptr<SiteTable const> sites, AdapterStorage storage, std::span<bool const> low_rank)
      : sites_(std::move(sites)), storage_(storage), low_rank_(low_rank) {}

  /// Publishes a module of the policy at a place in the list; its new version.
  template <class P>
  std::uint64_t publish(B& be, index_t place, std::shared_ptr<Module<P, B>> module);

 private:
  static constexpr bool on_host = std::same_as<typename B::Space, HostSpace>;

  // up to the last low-rank policy
  bool is_inner(index_t policy) const {
    auto const place = static_cast<std::size_t>(policy);
    auto const before = low_rank_.first(place);
    return low_rank_[place] || std::find(before.begin(), before.end(), true) == before.end();
  }
  Stage stage_of(index_t policy, Side side) const {
    if (side == Side::input) return is_inner(policy) ? Stage::input_inner : Stage::input_outer;
    return is_inner(policy) ? Stage::output_inner : Stage::output_outer;
  }

  // On the host a replacement points into the module; elsewhere it is a copy, a matrix in the backend's activations.
  static Replacement<B> replacement(Published& out, SavedTensor const& saved) {
    auto const elements = static_cast<index_t>(saved.values.size());
    index_t const cols = saved.shape.empty() ? elements : saved.shape.back(), rows = cols > 0 ? elements / cols : 0;
    Replacement<B> result;
    if constexpr (on_host) {
      result.weight = dense_weight(matrix_view(saved.values.data(), rows, cols));
      if constexpr (std::same_as<R, float>) {
        result.vector = {saved.values.data(), elements};
      } else {
        auto const values = std::make_shared<std::vector<R> const>(saved.values.begin(), saved.values.end());
        result.vector = {values->data(), elements};
        out.keep.push_back(values);
      }
    } else {
      auto const [weight, keep] = resident_weight<B>(dense_weight(matrix_view(saved.values.data(), rows, cols)));
      result.weight = weight;
      out.keep.push_back(keep);
      auto const vector = std::make_shared<Storage<R, typename B::Space> const>(
          std::span<R const>(saved.values.data(), saved.values.size()));
      result.vector = vector->view();
      out.keep.push_back(vector);
    }
    return result;
  }

  // What a policy gives at one of its sites.
  void publish_map(B& be, auto const& entry, Published& out) const {
    SiteInfo const& info = (*sites_)[entry.site];
    RowMapForm const form = entry.policy.template form<B>(info, entry.state);
    if (!form.present) return;
    auto& maps = out.maps[static_cast<std::size_t>(form.side)];
    maps.resize(static_cast<std::size_t>(sites_->size()));
    index_t const size = form.side == Side::input ? info.in : info.out;
    maps[static_cast<std::size_t>(entry.site)] =
        out.storage.keep_map(size, form.c, form.d, form.e, form.group,
                             [&](RowMapRow<R> const& map) { entry.policy.coefficients(be, entry.state, map); });
  }
  void publish_factors(B& be, auto const& entry, Published& out) const {
    auto const f = entry.policy.factors(be, entry.state);
    Numbers<R> a = f.a.data;
    if (f.memory != nullptr) out.keep.push_back(f.memory);
    if (storage_ != AdapterStorage::full)
      a = out.storage.keep(f.a.size(), [&](R* to) { std::copy_n(f.a.data, f.a.size(), to); });
    auto const b_transposed = out.storage.keep(f.b.size(), [&](R* to) {
      for (index_t o = 0; o < f.b.rows; ++o)
        for (index_t r = 0; r < f.b.cols; ++r) to[r * f.b.rows + o] = f.b(o, r);
    });
    out.factors.resize(static_cast<std::size_t>(sites_->size()));
    out.factors[static_cast<std::size_t>(entry.site)] = {a, b_transposed, f.a.rows, f.scale};
  }
  void publish_generator(auto const& entry, Published& out) const {
    using P = std::remove_cvref_t<decltype(entry.policy)>;
    using State = std::remove_cvref_t<decltype(entry.state)>;
    using ConstView = MatrixView<typename B::Act const, typename B::Space>;
    auto const place = static_cast<std::size_t>((*sites_)[entry.site].layer);
    auto const& layer = sites_->layers()[place];
    out.generators.resize(sites_->layers().size());
    auto& generator = out.generators[place];
    generator.policy = &entry.policy;
    generator.state = &entry.state;
    generator.site = entry.site;
    generator.vectors = layer.query.size + layer.value.size + layer.up.size;
    generator.query = layer.query.size;
    generator.rotated_query = entry.policy.rotated_query() && layer.rotated_query.site >= 0;
    generator.resident = entry.policy.generator(entry.state);
    if constexpr (on_host) {
      generator.scratch_size = [](void const* policy, void const* state, index_t prompt_rows) {
        return static_cast<P const*>(policy)->scratch_size(*static_cast<State const*>(state), prompt_rows);
      };
      generator.generate = [](B& be, void const* policy, void const* state, ConstView normalized, ConstView raw,
                              VectorView<R> scratch, VectorView<R> vectors) {
        static_cast<P const*>(policy)->generate(be, *static_cast<State const*>(state), normalized, raw, scratch,
                                                vectors);
      };
    }
  }
  // Copies all of it to where kernels read it, where that is not the host's memory.
  template <class P>
  void make_resident(Module<P, B> const& module, Published& out) const {
    if (!out.factors.empty())
      out.resident_factors = ResidentFactors<R, typename B::Space>(
          out.factors, [&](index_t site) { return std::pair((*sites_)[site].in, (*sites_)[site].out); });
    if constexpr (!on_host) {
      std::vector<RowMapRow<R const>> const* const sides[] = {&out.maps[0], &out.maps[1]};
      out.resident_maps = ResidentMaps<R, typename B::Space>(std::span(sides));
    }
    if constexpr (GeneratedPolicy<P, B> && !on_host) {
      auto const all = module.parameters();
      out.resident_parameters = Storage<R, typename B::Space>(std::span<R const>(all.data, all.data + all.size));
      for (auto& generator : out.generators)
        for (auto* tensor : {&generator.resident.down, &generator.resident.up, &generator.resident.up_bias,
                             &generator.resident.numerator, &generator.resident.denominator, &generator.resident.pool})
          if (*tensor != nullptr) *tensor = out.resident_parameters.data() + (*tensor - all.data);
    }
  }

  // Requests may replace what stands outside the layers; a tensor nobody would ask for must not pass in silence.
  void check_saved(std::string const& name, std::string const& tensor, SavedTensor const& saved) const {
    auto const dot = tensor.rfind('.');
    index_t const site = dot == std::string::npos ? -1 : sites_->find(tensor.substr(0, dot));
    bool const weight = tensor.ends_with(".weight"), bias = tensor.ends_with(".bias");
    expects(site >= 0 || !(tensor.starts_with("score.") || tensor.starts_with("classifier.")), "graft: adapter ", name,
            " brings the head of a classifier, ", tensor, ", and this model has none; its base is the model saved as ",
            "ForSequenceClassification");
    expects(site >= 0 && (*sites_)[site].layer < 0 && (weight || (bias && (*sites_)[site].kind == SiteKind::linear)),
            "graft: adapter ", name, " brings its own ", tensor,
            ", but only embeddings and heads can be replaced for one request");
    auto const& info = (*sites_)[site];
    auto const shape = bias                               ? std::vector<index_t>{info.out}
                       : info.kind == SiteKind::embedding ? std::vector<index_t>{info.in, info.out}
                                                          : std::vector<index_t>{info.out, info.in};
    index_t const elements = bias ? info.out : info.in * info.out;
    expects(saved.shape == shape && static_cast<index_t>(saved.values.size()) == elements, "graft: the ", tensor,
            " of adapter ", name, " does not have the model's shape");
  }

  // Two copies of the base's tensor, as PEFT saves beside adapted embeddings, are one replacement.
  static void check_one_replacement(std::vector<typename Set::Member> const& members) {
    std::map<std::string, std::pair<SavedTensor const*, std::string>> seen;
    for (auto const& member : members)
      for (auto const& [tensor, saved] : *member.module->saved) {
        auto const [entry, fresh] = seen.try_emplace(tensor, &saved, member.module->name);
        expects(fresh || entry->second.first->values == saved.values, "graft: adapters ", entry->second.second, " and ",
                member.module->name, " bring different tensors ", tensor, "; a request can use one of them");
      }
  }

  /// I + sum w (M - I) over the members of one policy that have a map here; a lone member of weight 1 is used as it is.
  RowMapRow<R const> summed(Set& set, index_t policy, Side side, index_t site) const {
    MapSum<R> sum;
    for (auto const& member : set.members) {
      auto const& table = member.module->maps[static_cast<std::size_t>(side)];
      if (member.module->policy != policy || table.empty() || table[static_cast<std::size_t>(site)].identity())
        continue;
      auto const& map = table[static_cast<std::size_t>(site)];
      expects(map.group == 0 || sum.group == 0 || map.group == sum.group, "graft: adapter ", member.module->name,
              " has groups of ", map.group, " at ", (*sites_)[site].path, ", another of its kind has groups of ",
              sum.group, "; such maps cannot be summed");
      sum.add(map, member.weight);
    }
    return sum.total(set.storage);
  }

  std::shared_ptr<Set> compose_set(std::vector<typename Set::Member> members) const {
    auto set = std::make_shared<Set>();
    set->storage = NumberStorage<R>(storage_);
    set->members = std::move(members);
    auto const count = static_cast<std::size_t>(sites_->size());
    Published const* positioned = nullptr;  // the first that acts on the residual stream
    for (auto const& member : set->members) {
      auto const& module = *member.module;
      if (!module.factors.empty()) set->low_rank.push_back({module.factors.data(), member.weight});
      if (!module.generators.empty()) {
        set->generating.push_back(member);
        set->generated_stage = stage_of(module.policy, Side::output);
      }
      for (index_t s = 0; !module.maps[1].empty() && s < sites_->size(); ++s) {
        if ((*sites_)[s].kind != SiteKind::hidden || module.maps[1][static_cast<std::size_t>(s)].identity()) continue;
        if (positioned == nullptr) positioned = &module;
        expects(module.positions == positioned->positions, "graft: adapters ", positioned->name, " and ", module.name,
                " of the request act on the residual stream at different positions; they cannot share a request");
      }
    }
    check_one_replacement(set->members);
    if (positioned != nullptr) set->positions = positioned->positions;
    for (std::size_t s = 0; s < count; ++s) {
      index_t ranks = 0;
      for (auto const& term : set->low_rank) ranks += term.table[s].rank;
      set->max_rank = std::max(set->max_rank, ranks);
    }
    auto const policies = static_cast<index_t>(low_rank_.size());
    for (index_t k = 0; k < policies; ++k) {
      // input maps wrap inwards: the policy listed last meets x first
      wrap(*set, policies - 1 - k, Side::input);
      wrap(*set, k, Side::output);
    }
    set->make_resident();
    return set;
  }

  // Composes the policy's maps onto what the set has so far.
  void wrap(Set& set, index_t policy, Side side) const {
    bool any = false, generated = false;
    std::size_t first = set.members.size(), members = 0;
    for (std::size_t k = 0; k < set.members.size(); ++k) {
      auto const& module = *set.members[k].module;
      if (module.policy != policy) continue;
      first = std::min(first, k), ++members;
      any = any || !module.maps[static_cast<std::size_t>(side)].empty();
      generated = generated || (side == Side::output && !module.generators.empty());
    }
    auto const count = static_cast<std::size_t>(sites_->size());
    Stage const stage = stage_of(policy, side);
    if (generated) set.policy_maps.push_back({stage, first, members, {}});
    if (!any) return;
    std::vector<RowMapRow<R const>> sums(count);
    std::vector<RowMapRow<R const>>* tables[2] = {&set.maps[static_cast<std::size_t>(stage)], nullptr};
    if (set.generates() && stage == set.generated_stage)
      tables[1] = policy < set.generating[0].module->policy ? &set.before_generated : &set.after_generated;
    for (auto* table : tables)
      if (table != nullptr) table->resize(count);
    for (std::size_t s = 0; s < count; ++s) {
      sums[s] = summed(set, policy, side, static_cast<index_t>(s));
      for (auto* table : tables)
        if (table != nullptr) (*table)[s] = compose((*table)[s], sums[s], set.storage, set.chains);
    }
    if (!generated) set.policy_maps.push_back({stage, first, members, std::move(sums)});
  }

  std::shared_ptr<SiteTable const> sites_;
  AdapterStorage storage_;
  std::span<bool const> low_rank_;
  mutable std::mutex mutex_, set_mutex_;
  std::unordered_map<std::string, std::shared_ptr<Published const>> modules_;
  std::unordered_map<std::string, std::weak_ptr<Set const>> sets_;
  std::size_t live_sets_ = 0;
  std::uint64_t versions_ = 0;
};

template <class B>
std::shared_ptr<AdapterSet<B> const> ModuleBank<B>::resolve(std::span<AdapterUse const> uses) {
  if (uses.empty()) return nullptr;
  std::vector<typename Set::Member> members;
  {
    std::lock_guard lock(mutex_);
    for (auto const& use : uses) {
      auto const found = modules_.find(use.name);
      expects(found != modules_.end(), "graft: no adapter is called ", use.name);
      auto same =
          std::find_if(members.begin(), members.end(), [&](auto const& m) { return m.module == found->second; });
      if (same == members.end()) same = members.insert(same, {found->second, R{0}});
      same->weight += static_cast<R>(use.weight);
      expects(is_finite(same->weight), "graft: the weight of adapter ", use.name, " is not finite");
    }
  }
  std::sort(members.begin(), members.end(), [](auto const& a, auto const& b) {
    return std::tie(a.module->policy, a.module->name) < std::tie(b.module->policy, b.module->name);
  });
  std::string key;
  for (auto const& m : members)
    key += text(m.module->version, ':', std::bit_cast<std::uint64_t>(static_cast<double>(m.weight)), ' ');
  std::lock_guard lock(set_mutex_);
  if (auto const known = sets_[key].lock()) return known;
  auto set = compose_set(std::move(members));
  set->fingerprint = std::hash<std::string>{}(key);
  if (sets_.size() > 2 * live_sets_ + 64) {
    std::erase_if(sets_, [](auto const& entry) { return entry.second.expired(); });
    live_sets_ = sets_.size();
  }
  sets_[key] = set;
  return set;
}

template <class B>
template <class P>
std::uint64_t ModuleBank<B>::publish(B& be, index_t place, std::shared_ptr<Module<P, B>> module) {
  detail::check_fits(*module, *sites_);
  for (auto const& [tensor, saved] : module->saved) check_saved(module->name, tensor, saved);
  auto out = std::make_shared<Published>();
  out->storage = NumberStorage<R>(storage_);
  out->name = module->name;
  out->policy = place;
  out->saved = &module->saved;
  out->stages[0] = stage_of(out->policy, Side::input), out->stages[1] = stage_of(out->policy, Side::output);
  out->back = backpropagation(*module, sites_->size());
  out->sites = sites_;
  for (auto const& [tensor, saved] : module->saved) out->replacements[tensor] = replacement(*out, saved);
  for (auto const& entry : module->entries) {
    if constexpr (RowMapPolicy<P, B>) publish_map(be, entry, *out);
    if constexpr (LowRankPolicy<P, B>) publish_factors(be, entry, *out);
    if constexpr (GeneratedPolicy<P, B>) publish_generator(entry, *out);
    if constexpr (requires { entry.policy.positions; })
      if ((*sites_)[entry.site].kind == SiteKind::hidden) out->positions = entry.policy.positions;
  }
  make_resident(*module, *out);
  // what was published stands for the parameters, unless it points to them: in f32, and generators
  if (storage_ != AdapterStorage::full && out->generators.empty()) module->discard_parameters();
  out->module = std::move(module);
  std::lock_guard lock(mutex_);
  std::uint64_t const version = out->version = ++versions_;
  modules_[out->name] = std::move(out);
  return version;
}

/// Holds published modules by name, with their numbers in f32 or bf16: see AdapterStorage. One thread may load or
/// unload while others resolve and decode: a module is immutable once published (but see ModuleOptimizer::publish), a
/// name is one pointer, and whoever uses a module keeps it alive.
template <class List, class B>
class Bank;

template <class... Ps, class B>
class Bank<Adapters<Ps...>, B> : public ModuleBank<B> {
  using Checked = detail::CheckedPolicies<Adapters<Ps...>, B>;
  static_assert(sizeof(Checked) > 0);  // says what is wrong with the list

 public:
  using Policies = Adapters<Ps...>;

  explicit Bank(SiteTable sites, AdapterStorage storage = AdapterStorage::full)
      : Bank(std::make_shared<SiteTable const>(std::move(sites)), storage) {}
  explicit Bank(std::shared_ptr<SiteTable const> sites, AdapterStorage storage = AdapterStorage::full)
      : ModuleBank<B>(std::move(sites), storage, std::span(Checked::Order::low_rank).first(sizeof...(Ps))) {}

  /// Publishes the module under its name; requests resolved before keep what they had. Returns the new version.
  /// ContractError when it is of a model with other sites, or brings a tensor (modules_to_save) that cannot be replaced
  /// for one request.
  template <class P>
  std::uint64_t load(B& be, Module<P, B> module) {
    static_assert((std::same_as<P, Ps> || ...), "graft: this bank's Adapters<...> does not list the module's policy");
    return this->publish(be, place<P>(), std::make_shared<Module<P, B>>(std::move(module)));
  }

 private:
  template <class P>
  static constexpr index_t place() {
    index_t place = 0;
    bool found = false;
    ((found = found || std::same_as<P, Ps>, place += found ? 0 : 1), ...);
    return place;
  }
};

}  // namespace graft

#if defined(GRAFT_EXTERN_KERNELS)
#include <graft/adapter/compiled.hpp>
#include <graft/core/scalar.hpp>
#endif
