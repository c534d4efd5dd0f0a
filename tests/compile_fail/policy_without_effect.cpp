// SPDX-License-Identifier: Apache-2.0
// expected-error: graft: a policy must offer coefficients, factors or generate, or it would do nothing
#include <graft/adapter/bank.hpp>
#include <graft/adapter/ia3.hpp>
#include <graft/backend/cpu/cpu_backend.hpp>

struct Gain {
  static constexpr std::string_view peft_type = "GAIN";
  template <class B>
  struct State {
    graft::Parameters<B> gain;
    void for_each(auto&& f) { f("gain", gain); }
  };
  void options(auto&&) {}
  bool accepts(graft::SiteInfo const&) const { return true; }
  template <class B>
  void shape(graft::SiteInfo const& site, graft::LayerSites const*, State<B>& state) const {
    state.gain = {nullptr, site.out};
  }
  template <class B>
  void init(State<B>&, auto&) const {}
#ifndef GRAFT_EXPECT_FAIL
  template <class B>
  graft::RowMapForm form(graft::SiteInfo const&, State<B> const&) const {
    return {.present = true};
  }
  template <class B>
  void coefficients(B&, State<B> const& state, graft::RowMapRow<graft::Real<B>> const& out) const {
    for (graft::index_t j = 0; j < out.size; ++j) out.c1[j] = state.gain[j];
  }
#endif
};
template class graft::Bank<graft::Adapters<Gain>, graft::CpuBackend<>>;
