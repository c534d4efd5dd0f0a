// SPDX-License-Identifier: Apache-2.0
// expected-error: graft: a type in Adapters<\.\.\.> is not a Policy
// A policy says how its parameters start.
#include <graft/adapter/bank.hpp>
#include <graft/backend/cpu/cpu_backend.hpp>

struct Offset {
  static constexpr std::string_view peft_type = "OFFSET";
  template <class B>
  struct State {
    graft::Parameters<B> offset;
    void for_each(auto&& f) { f("offset", offset); }
  };
  void options(auto&&) {}
  bool accepts(graft::SiteInfo const&) const { return true; }
  template <class B>
  void shape(graft::SiteInfo const& site, graft::LayerSites const*, State<B>& state) const {
    state.offset = {nullptr, site.out};
  }
#ifndef GRAFT_EXPECT_FAIL
  template <class B>
  void init(State<B>&, auto&) const {}
#endif
  template <class B>
  graft::RowMapForm form(graft::SiteInfo const&, State<B> const&) const {
    return {.present = true, .e = true, .c = false};
  }
  template <class B>
  void coefficients(B&, State<B> const& state, graft::RowMapRow<graft::Real<B>> const& out) const {
    for (graft::index_t j = 0; j < out.size; ++j) out.e[j] = state.offset[j];
  }
};
template class graft::Bank<graft::Adapters<Offset>, graft::CpuBackend<>>;
