// SPDX-License-Identifier: Apache-2.0
// LoRA: scales, patterns, tensors and starting values.
#include <graft/adapter/lora.hpp>
#include <graft/adapter/module.hpp>
#include <graft/backend/cpu/cpu_backend.hpp>
#include <tests/catch.hpp>

#include <cmath>
#include <regex>
#include <string>

namespace {

using namespace graft;
using B = CpuBackend<float>;

SiteTable one_site(SiteKind kind = SiteKind::linear) {
  SiteTable sites;
  sites.add({0, "q_proj", "model.layers.0.self_attn.q_proj", 100, 40, kind});
  return sites;
}

/// How PEFT matches a key of rank_pattern or alpha_pattern against a module path.
auto matcher(std::string path) {
  return [path = std::move(path)](std::string const& key) {
    return std::regex_match(path, std::regex("(.*\\.)?(" + key + ")"));
  };
}

TEST_CASE("the scale is alpha / r, or alpha / sqrt(r) when rank-stabilised") {
  LoRADelta lora{.rank = 16, .alpha = 24};
  CHECK(lora.scale() == 1.5);
  lora.rank_stabilized = true;
  CHECK(lora.scale() == 6);
  LoRADelta const odd{.rank = 7, .alpha = 5};
  CHECK(odd.scale() == Approx(5.0 / 7));
}

TEST_CASE("patterns give sites their own rank and alpha, the first match wins") {
  LoRADelta const lora{.rank = 8,
                       .alpha = 16,
                       .rank_pattern = {{"self_attn.q_proj", 4}, {"q_proj", 2}, {"^v_proj", 32}},
                       .alpha_pattern = {{"q_proj", 3}}};
  auto const q = policy_at(lora, matcher("model.layers.0.self_attn.q_proj"));
  CHECK((q.rank == 4 && q.alpha == 3 && q.scale() == 0.75));
  auto const v = policy_at(lora, matcher("model.layers.0.self_attn.v_proj"));
  CHECK((v.rank == 8 && v.alpha == 16));
  auto const top = policy_at(lora, matcher("v_proj"));
  CHECK((top.rank == 32 && top.alpha == 16 && top.scale() == 0.5));
  auto const other_q = policy_at(lora, matcher("decoder.q_proj"));
  CHECK((other_q.rank == 2 && other_q.alpha == 3));
}

TEST_CASE("a new module has the ranks and alphas of its patterns") {
  SiteTable sites;
  for (auto const* path : {"layers.0.q_proj", "layers.0.v_proj", "layers.1.q_proj"}) sites.add({0, "proj", path, 8, 8});
  LoRADelta lora{.rank = 2, .rank_pattern = {{"q_proj", 3}}, .alpha_pattern = {{"layers.1.q_proj", 5}}};
  auto const module = make_module<LoRADelta, B>("l", lora, sites, {0, 1, 2});
  CHECK(module.entries[0].state.a.rows == 3);
  CHECK(module.entries[1].state.a.rows == 2);
  CHECK(module.entries[2].state.b.cols == 3);
  CHECK(module.entries[0].policy.scale() == Approx(8.0 / 3));
  CHECK(module.entries[2].policy.scale() == Approx(5.0 / 3));

  lora.rank_pattern = {{R"(layers\.0\..*)", 4}};
  CHECK_THROWS_WITH((make_module<LoRADelta, B>("l", lora, sites, {0})), Catch::Contains("regular expressions"));
  auto const matches = [](std::string const& pattern, std::string const& path) { return matcher(path)(pattern); };
  auto const all = make_module<LoRADelta, B>("l", lora, sites, {0, 1, 2}, 0, matches);
  CHECK(all.entries[1].state.a.rows == 4);
  CHECK(all.entries[2].state.a.rows == 2);
}

TEST_CASE("a module has A [r, i], B [o, r] and, when asked for, B's bias [o]") {
  for (bool const bias : {false, true}) {
    auto module = make_module<LoRADelta, B>("l", {.rank = 5, .alpha = 10, .bias = bias}, one_site(), {0});
    std::string seen;
    module.for_each([&](index_t site, char const* suffix, auto& tensor) {
      CHECK(site == 0);
      if constexpr (requires { tensor.rows; })
        seen += text(suffix, ' ', tensor.rows, 'x', tensor.cols, ' ');
      else
        seen += text(suffix, ' ', tensor.size, ' ');
    });
    CHECK(seen == std::string("lora_A.weight 5x100 lora_B.weight 40x5 ") + (bias ? "lora_B.bias 40 " : ""));
    CHECK(module.parameters().size == 5 * 140 + (bias ? 40 : 0));
  }
  auto embedding = make_module<LoRADelta, B>("e", {.rank = 5}, one_site(SiteKind::embedding), {0});
  std::string seen;
  embedding.for_each([&](index_t, char const* suffix, auto&) { seen += suffix + std::string(" "); });
  CHECK(seen == "lora_embedding_A lora_embedding_B ");
}

TEST_CASE("LoRA starts as the identity: A uniform within 1 / sqrt(i), B and its bias zero") {
  auto module = make_module<LoRADelta, B>("l", {.rank = 64, .bias = true}, one_site(), {0}, 5);
  auto const& state = module.entries[0].state;
  double sum = 0, squares = 0, largest = 0;
  for (index_t k = 0; k < state.a.size(); ++k) {
    double const a = state.a.data[k];
    sum += a, squares += a * a, largest = std::max(largest, std::fabs(a));
  }
  double const count = 6400, variance = 0.01 / 3;  // of uniform in [-0.1, 0.1]
  CHECK(largest <= 0.1f);
  CHECK(largest > 0.099);                                            // 6400 draws leave no gap of 1 % (e^-64)
  CHECK(std::fabs(sum / count) <= 5 * std::sqrt(variance / count));  // five standard errors
  CHECK(std::fabs(squares / count - variance) <= 5 * variance / std::sqrt(count));
  for (index_t k = 0; k < state.b.size(); ++k) REQUIRE(state.b.data[k] == 0);
  for (float const b : state.b_bias) REQUIRE(b == 0);

  // another seed, another start; the same seed, the same
  auto same = make_module<LoRADelta, B>("l", {.rank = 64, .bias = true}, one_site(), {0}, 5);
  auto other = make_module<LoRADelta, B>("l", {.rank = 64, .bias = true}, one_site(), {0}, 6);
  CHECK(std::equal(module.parameters().begin(), module.parameters().end(), same.parameters().begin()));
  CHECK_FALSE(std::equal(module.parameters().begin(), module.parameters().end(), other.parameters().begin()));
}

TEST_CASE("B's bias is an offset scaled like the delta") {
  B be;
  auto module = make_module<LoRADelta, B>("l", {.rank = 4, .alpha = 10, .bias = true}, one_site(), {0});
  auto& state = module.entries[0].state;
  for (index_t k = 0; k < 40; ++k) state.b_bias[k] = static_cast<float>(k);
  auto const form = module.policy.form<B>(one_site()[0], state);
  CHECK((form.present && form.e && !form.c && !form.d && form.side == Side::output));
  float e[40];
  module.policy.coefficients(be, state, RowMapRow<float>{nullptr, nullptr, e, 40, 0, nullptr});
  for (int k = 0; k < 40; ++k) CHECK(e[k] == 2.5f * static_cast<float>(k));
  auto plain = make_module<LoRADelta, B>("l", {.rank = 4}, one_site(), {0});
  CHECK_FALSE(plain.policy.form<B>(one_site()[0], plain.entries[0].state).present);
}

TEST_CASE("LoRA sits on linear layers and embeddings") {
  LoRADelta const lora;
  CHECK(lora.accepts(one_site()[0]));
  CHECK(lora.accepts(one_site(SiteKind::embedding)[0]));
  CHECK_FALSE(lora.accepts(one_site(SiteKind::hidden)[0]));
  CHECK_FALSE(lora.accepts(one_site(SiteKind::rotated_q)[0]));
  CHECK_THROWS_WITH((make_module<LoRADelta, B>("l", lora, one_site(SiteKind::hidden), {0})),
                    "graft: a LORA module cannot sit on model.layers.0.self_attn.q_proj");
}

}  // namespace
