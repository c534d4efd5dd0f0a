// SPDX-License-Identifier: Apache-2.0
// (IA)3: learned vectors that rescale activations.
#pragma once

#include <graft/adapter/policy.hpp>

#include <string>
#include <utility>
#include <vector>

namespace graft {

/// Rescales a linear layer's output,  y' = l * (W x + b)  with l stored as [o, 1]  (keys and values),
/// or its input,  y' = W (l * x) + b  with l stored as [1, i]  (the feed-forward's last layer). l = 1 at the start.
/// Liu et al. 2022, arXiv:2205.05638, section 3.3.
/// Several IA3 modules of one request: I + sum w (l - 1), linear in w; HF PEFT multiplies them instead.
struct IA3Scaling {
  static constexpr std::string_view peft_type = "IA3";

  /// Modules whose input is scaled; the stored shape decides when a file is read, this list when a module is made.
  std::vector<std::string> feedforward_modules = {"down_proj"};
  bool fan_in_fan_out = false;  ///< the base stores W as [in, out]; l does not care, files say it

  template <class B>
  struct State {
    ParameterMatrix<B> l;  ///< [o, 1] or [1, i]
    void for_each(auto&& f) { f("ia3_l", l); }
  };

  void options(auto&& v) {
    v.option("feedforward_modules", feedforward_modules);
    v.option("fan_in_fan_out", fan_in_fan_out);
  }

  bool accepts(SiteInfo const& site) const { return site.kind == SiteKind::linear; }
  bool scales_input(SiteInfo const& site) const {
    for (auto const& name : feedforward_modules)
      if (site.path.ends_with(name)) return true;
    return false;
  }

  /// The side that the stored shape tells, where the list says the other one.
  IA3Scaling as_stored(SiteInfo const& site, auto&& shape_of) const {
    bool const input = scales_input(site);
    std::vector<index_t> const sides[] = {{site.out, 1}, {1, site.in}}, stored = shape_of("ia3_l");
    IA3Scaling here = *this;
    if (stored != sides[input] && stored == sides[!input])
      here.feedforward_modules = input ? std::vector<std::string>{} : std::vector{site.path};
    return here;
  }
  /// Lists modules one by one where the list does not say what holds at every site.
  void describe(auto const& policies_at_sites, auto&&) {
    std::vector<std::string> input;
    bool said = true;
    for (auto const& [site, here] : policies_at_sites) {
      said = said && scales_input(*site) == here.scales_input(*site);
      if (here.scales_input(*site)) input.push_back(site->path);
    }
    if (!said) feedforward_modules = std::move(input);
  }
  /// PEFT wants feedforward_modules to be among target_modules. Those that are not give way to the targets that name
  /// modules of that side alone, and to whole paths where no target does: what is targeted stays the same.
  void describe_targets(auto const& policies_at_sites, auto& targets) {
    bool among_targets = true;
    for (auto const& name : feedforward_modules) among_targets = among_targets && targets.contains(name);
    if (among_targets) return;
    feedforward_modules.clear();
    for (auto const& target : targets) {
      bool input = false, output = false;
      for (auto const& [site, here] : policies_at_sites)
        if (site->path.ends_with(target)) (here.scales_input(*site) ? input : output) = true;
      if (input && !output) feedforward_modules.push_back(target);
    }
    for (auto const& [site, here] : policies_at_sites)
      if (here.scales_input(*site) && !scales_input(*site)) {
        feedforward_modules.push_back(site->path);
        targets.insert(site->path);
      }
  }

  template <class B>
  void shape(SiteInfo const& site, LayerSites const*, State<B>& state) const {
    if (scales_input(site))
      state.l = {nullptr, 1, site.in, site.in};
    else
      state.l = {nullptr, site.out, 1, 1};
  }

  template <class B>
  void init(State<B>& state, auto&) const {
    for (index_t k = 0; k < state.l.size(); ++k) state.l.data[k] = 1;
  }

  static bool decays() { return false; }  // l is a vector, and rests at 1

  template <class B>
  RowMapForm form(SiteInfo const&, State<B> const& state) const {
    // an output vector is a column; a layer with one input or output cannot tell and counts as output-sided
    return {.present = true, .side = state.l.cols == 1 ? Side::output : Side::input};
  }

  /// One site's parameters, or their gradients; piece k is the k-th: c = l.
  template <class R>
  struct Elements {
    R* l;
    index_t count;
    GRAFT_HOST_DEVICE index_t size() const { return count; }
    GRAFT_HOST_DEVICE void publish(index_t k, SiteNumbers<R> const& out) const { out.map.c1[k] = l[k] - 1; }
    GRAFT_HOST_DEVICE void backward(index_t k, SiteNumbers<R const> const& grad, Elements const& g) const {
      g.l[k] += grad.map.c1[k];
    }
  };
  template <class B>
  Elements<Real<B>> elements(State<B> const& state) const {
    return {state.l.data, state.l.size()};
  }

  template <class B>
  void coefficients(B&, State<B> const& state, RowMapRow<Real<B>> const& out) const {
    publish_all(elements(state), SiteNumbers<Real<B>>{out});
  }
  template <class B>
  void backward(B&, State<B> const& state, RowMapRow<Real<B> const> const& grad, State<B>& g) const {
    backward_all(elements(state), SiteNumbers<Real<B> const>{grad}, elements(g));
  }
};

}  // namespace graft
