// SPDX-License-Identifier: Apache-2.0
// The bank: all loaded modules, and the composed adapters of requests.
#pragma once

#include <graft/adapter/adapter_set.hpp>
#include <graft/adapter/compose.hpp>
#include <graft/adapter/publish.hpp>

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
    typename decltype(modules_)::node_type gone;  // gives its memory back behind the lock
    std::lock_guard lock(mutex_);
    gone = modules_.extract(name);
    return !gone.empty();
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
  set->fingerprint = key;
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
  auto out = detail::Publisher<B>(sites_, storage_).published(be, std::move(module));
  out->policy = place;
  out->stages[0] = stage_of(place, Side::input), out->stages[1] = stage_of(place, Side::output);
  std::shared_ptr<Published const> replaced;  // gives its memory back behind the lock
  std::lock_guard lock(mutex_);
  std::uint64_t const version = out->version = ++versions_;
  replaced = std::exchange(modules_[out->name], std::move(out));
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
