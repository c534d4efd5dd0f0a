// SPDX-License-Identifier: Apache-2.0
// (IA)3: the stored shape tells the side; l - 1 is the coefficient.
#include <graft/adapter/ia3.hpp>
#include <graft/adapter/module.hpp>
#include <graft/backend/cpu/cpu_backend.hpp>
#include <tests/catch.hpp>

#include <vector>

namespace {

using namespace graft;
using B = CpuBackend<float>;

SiteTable sites() {
  SiteTable table;
  table.add_linear(0, "k_proj", "model.layers.0.self_attn.k_proj", 6, 10);
  table.add_linear(0, "down_proj", "model.layers.0.mlp.down_proj", 8, 6);
  return table;
}

TEST_CASE("attention outputs and feed-forward inputs are scaled") {
  B be;
  auto const table = sites();
  auto module = make_module<IA3Scaling, B>("i", {}, table, {0, 1});
  CHECK(module.parameters().size == 10 + 8);
  auto& k = module.entries[0];
  auto& down = module.entries[1];
  CHECK((k.state.l.rows == 10 && k.state.l.cols == 1));
  CHECK((down.state.l.rows == 1 && down.state.l.cols == 8));
  CHECK(k.policy.form<B>(table[0], k.state).side == Side::output);
  CHECK(down.policy.form<B>(table[1], down.state).side == Side::input);

  for (auto* entry : {&k, &down}) {
    auto const size = entry->state.l.size();
    std::vector<float> c1(static_cast<std::size_t>(size), 99.0f);
    RowMapRow<float> const out{c1.data(), nullptr, nullptr, size, 0, nullptr};
    entry->policy.coefficients(be, entry->state, out);
    for (float const c : c1) CHECK(c == 0);  // the start is the identity, exactly
    for (index_t j = 0; j < size; ++j) entry->state.l.data[j] = 0.5f * static_cast<float>(j);
    entry->policy.coefficients(be, entry->state, out);
    for (index_t j = 0; j < size; ++j) CHECK(c1[static_cast<std::size_t>(j)] == 0.5f * static_cast<float>(j) - 1);
  }
}

TEST_CASE("the list of feed-forward modules can be changed, also to nothing") {
  auto const table = sites();
  auto const other = make_module<IA3Scaling, B>("i", {.feedforward_modules = {"k_proj"}}, table, {0, 1});
  CHECK((other.entries[0].state.l.rows == 1 && other.entries[0].state.l.cols == 6));
  CHECK((other.entries[1].state.l.rows == 6 && other.entries[1].state.l.cols == 1));
  auto const none = make_module<IA3Scaling, B>("i", {.feedforward_modules = {}}, table, {0, 1});
  CHECK((none.entries[1].state.l.rows == 6 && none.entries[1].state.l.cols == 1));
}

TEST_CASE("(IA)3 sits on linear layers only") {
  IA3Scaling const ia3;
  CHECK(ia3.accepts(sites()[0]));
  for (SiteKind const kind : {SiteKind::embedding, SiteKind::hidden, SiteKind::rotated_q})
    CHECK_FALSE(ia3.accepts({0, "x", "x", 4, 4, kind}));
}

}  // namespace
