// SPDX-License-Identifier: Apache-2.0
// A policy of your own: BitFit, a bias on a layer's output, in 30 lines. It then works in the bank, in mixed batches
// with the other kinds, and in PEFT-style folders, without a change anywhere else.
#include <graft/adapter/apply.hpp>
#include <graft/adapter/bank.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/io/peft.hpp>

#include <cstdio>
#include <filesystem>

// [policy]
/// y' = W x + b + e,  e [o], zero at the start. Zaken, Ravfogel and Goldberg 2021, arXiv:2106.10199.
struct BitFit {
  static constexpr std::string_view peft_type = "BITFIT";  // "peft_type" in adapter_config.json

  template <class B>
  struct State {
    graft::Parameters<B> e;                           // [o]
    void for_each(auto&& f) { f("bitfit_bias", e); }  // the one list that load, save, count and training use
  };

  void options(auto&&) {}  // no hyper-parameters, so no configuration keys
  bool accepts(graft::SiteInfo const& site) const { return site.kind == graft::SiteKind::linear; }
  template <class B>
  void shape(graft::SiteInfo const& site, graft::LayerSites const*, State<B>& state) const {
    state.e = {nullptr, site.out};
  }
  template <class B>
  void init(State<B>&, auto&) const {}  // memory starts at zero

  // It is a row map with c = 1 and d absent: only e is filled.
  template <class B>
  graft::RowMapForm form(graft::SiteInfo const&, State<B> const&) const {
    return {.present = true, .e = true, .c = false};
  }
  template <class B>
  void coefficients(B&, State<B> const& state, graft::RowMapRow<graft::Real<B>> const& out) const {
    for (graft::index_t j = 0; j < out.size; ++j) out.e[j] = state.e[j];
  }
  // To be trained: grad.e is dL/de of what coefficients wrote; g, a State like the first, collects.
  template <class B>
  void backward(B&, State<B> const&, graft::RowMapRow<graft::Real<B> const> const& grad, State<B>& g) const {
    for (graft::index_t j = 0; j < grad.size; ++j) g.e[j] += grad.e[j];
  }
};
// [/policy]

int main() {
  using namespace graft;
  using B = CpuBackend<>;
  using MyAdapters = Adapters<BitFit, LoRADelta>;

  SiteTable sites;
  Site const q_proj = sites.add_linear(0, "q_proj", "model.layers.0.self_attn.q_proj", 4, 2);
  Bank<MyAdapters, B> bank(sites);
  B backend;

  // A module with numbers in it, saved as a folder and loaded again by its peft_type.
  auto module = make_module<BitFit, B>("mine", BitFit{}, bank.sites(), {q_proj.index});
  module.parameters()[0] = 0.5f, module.parameters()[1] = -0.25f;
  auto const folder = std::filesystem::temp_directory_path() / "graft_your_own_adapter";
  write_peft(folder, module, bank.sites());
  load_adapter(backend, bank, "mine", folder);
  std::filesystem::remove_all(folder);

  auto lora = make_module<LoRADelta, B>("lora", LoRADelta{.rank = 1, .alpha = 1}, bank.sites(), {q_proj.index});
  for (auto& value : lora.parameters()) value = 1;  // A = 1, B = 1: adds the sum of x to every output
  bank.load(backend, std::move(lora));

  // One batch of four requests: mine, LoRA, both (mine at half weight), none.
  std::vector<SequenceState<B>> requests;
  requests.emplace_back(bank.resolve({{"mine", 1.0}}), bank.sites());
  requests.emplace_back(bank.resolve({{"lora", 1.0}}), bank.sites());
  requests.emplace_back(bank.resolve({{"lora", 1.0}, {"mine", 0.5}}), bank.sites());
  requests.emplace_back(nullptr, bank.sites());
  std::vector<RequestRows<B>> rows;
  for (auto& request : requests) rows.push_back({.state = &request, .rows = 1});
  Plan<B> plan;
  plan.build(rows);

  std::vector<float> x(16, 0.25f), y(8, 0.f);  // y stands for x W^T + b of your engine
  apply_output(backend, q_proj, plan, matrix_view(x.data(), 4, 4), matrix_view(y.data(), 4, 2));
  std::printf("mine (%g, %g)  lora (%g, %g)  both (%g, %g)  none (%g, %g)\n", y[0], y[1], y[2], y[3], y[4], y[5], y[6],
              y[7]);
}
