// SPDX-License-Identifier: Apache-2.0
// Merging methods: PEFT's numbers where PEFT has the method, the papers' rules where it has not.
#include <graft/arithmetic/merging.hpp>
#include <graft/arithmetic/weight_search.hpp>
#include <graft/io/peft.hpp>
#include <tests/arithmetic/modules.hpp>
#include <tests/catch.hpp>

#include <filesystem>

namespace {

using namespace graft_test;
using B = CpuBackend<float>;
using D = CpuBackend<double>;

SiteTable golden_sites() {
  SiteTable sites;
  sites.add_linear(0, "q_proj", "q_proj", 12, 10);
  sites.add_linear(0, "down_proj", "down_proj", 10, 8);
  return sites;
}
std::filesystem::path const golden = std::filesystem::path(GRAFT_TEST_DATA) / "arithmetic";

template <class P>
Module<P, B> read(char const* name) {
  return read_peft<P, B>(golden / name, golden_sites(), name).module;
}
/// A tensor of expected.safetensors as a matrix.
Matrix expected(std::string const& name) {
  auto const file = read_safetensors(golden / "expected.safetensors");
  auto const* tensor = file.find(name);
  REQUIRE(tensor != nullptr);
  Matrix result(tensor->shape[0], tensor->shape[1]);
  decode_row(tensor->format, tensor->data, 0, result.rows * result.cols, result.values.data());
  return result;
}

struct Lora {
  Module<LoRADelta, B> a = read<LoRADelta>("lora_a"), b = read<LoRADelta>("lora_b"), c = read<LoRADelta>("lora_c");
  SiteTable sites = golden_sites();

  /// The largest error over both layers against PEFT's `case_name`.
  double error(std::vector<ModuleTerm<LoRADelta, B>> const& terms, MergeRecipe const& recipe,
               std::string const& case_name) const {
    auto const merged = merge_modules(std::span<ModuleTerm<LoRADelta, B> const>(terms), recipe, sites).module;
    double worst = 0;
    for (index_t s = 0; s < 2; ++s)
      worst = testing::worse(
          worst, testing::relative_l2(delta_matrix(merged, s, sites), expected(case_name + "/" + sites[s].path)));
    return worst;
  }
  std::vector<ModuleTerm<LoRADelta, B>> pair() const { return {{&a, 0.7}, {&b, -0.4}}; }
  std::vector<ModuleTerm<LoRADelta, B>> three() const { return {{&a, 0.7}, {&b, -0.4}, {&c, 1.5}}; }
};

// PEFT computes in f32; its SVD of 10 x 12 matrices is good to about 20 roundings of the largest singular value.
constexpr double bound = 40 * 0x1p-24;

TEST_CASE("cat, linear and svd are PEFT's") {
  Lora const lora;
  auto const sum = materialize(0.7 * lora.a - 0.4 * lora.b + 1.5 * lora.c, lora.sites, "sum");
  for (index_t s = 0; s < 2; ++s)
    CHECK(testing::relative_l2(delta_matrix(sum, s, lora.sites), expected("cat/" + lora.sites[s].path)) <= bound);
  CHECK(lora.error(lora.pair(), merge_recipe("linear"), "linear") <= bound);
  CHECK(lora.error(lora.pair(), merge_recipe("svd"), "svd") <= bound);
  auto rank_2 = merge_recipe("svd");
  rank_2.truncation.rank = 2;
  CHECK(lora.error(lora.three(), rank_2, "svd_rank_2") <= bound);
  CHECK(lora.error(lora.three(), merge_recipe("svd"), "svd_rank_2") > 0.01);  // another rank is another result
}

TEST_CASE("ties and magnitude_prune are PEFT's, with PEFT's election") {
  Lora const lora;
  for (char const* density : {"0.3", "0.6"})
    for (char const* suffix : {"", "_svd"}) {
      auto recipe = merge_recipe(text("magnitude_prune", suffix));
      recipe.pruning.density = std::stod(density);
      recipe.truncation.rank = 8;
      CHECK(lora.error(lora.pair(), recipe, text("magnitude_prune", suffix, "_", density)) <= bound);
      for (char const* majority : {"total", "frequency"}) {
        auto ties = merge_recipe(text("ties", suffix));
        ties.pruning.density = std::stod(density);
        ties.truncation.rank = 8;
        ties.majority = majority == std::string("total") ? MajoritySign::total : MajoritySign::frequency;
        ties.as_peft = true;
        auto const name = text("ties", suffix, "_", majority, "_", density);
        CHECK(lora.error(lora.pair(), ties, name) <= bound);
        ties.as_peft = false;  // b is subtracted: its signs count the other way round
        CHECK(lora.error(lora.pair(), ties, name) > 0.1);
      }
    }
}

TEST_CASE("(IA)3: PEFT's sum of vectors is graft's where the weights sum to 1, and as_peft everywhere") {
  auto const a = read<IA3Scaling>("ia3_a"), b = read<IA3Scaling>("ia3_b");
  auto const sites = golden_sites();
  std::vector<ModuleTerm<IA3Scaling, B>> const terms{{&a, 0.3}, {&b, 0.7}};
  for (bool const as_peft : {false, true}) {
    auto recipe = merge_recipe("linear");
    recipe.as_peft = as_peft;
    auto const merged = merge_modules(std::span<ModuleTerm<IA3Scaling, B> const>(terms), recipe, sites);
    for (index_t s = 0; s < 2; ++s)
      CHECK(testing::relative_l2(merged.entries[static_cast<std::size_t>(s)].state.l,
                                 expected("ia3/" + sites[s].path)) <= 2 * 0x1p-24);
  }
  std::vector<ModuleTerm<IA3Scaling, B>> const ones{{&a, 1}, {&b, 1}};
  auto recipe = merge_recipe("linear");
  auto const centred = merge_modules(std::span<ModuleTerm<IA3Scaling, B> const>(ones), recipe, sites);
  recipe.as_peft = true;
  auto const plain = merge_modules(std::span<ModuleTerm<IA3Scaling, B> const>(ones), recipe, sites);
  float const la = a.entries[0].state.l.data[0], lb = b.entries[0].state.l.data[0];
  CHECK(centred.entries[0].state.l.data[0] == Approx(la + lb - 1));
  CHECK(plain.entries[0].state.l.data[0] == Approx(la + lb));
}

TEST_CASE("what each method drops") {
  Random random(1);
  std::vector<double> const t{0.1, -4, 3, -0.2, 2, 5, -1, 0.3, -0.4, 6};
  auto const pruned = [&](PruneOptions const& options, index_t cols = 10) {
    auto copy = t;
    detail::prune(copy, cols, options, random);
    return copy;
  };
  CHECK(pruned({Prune::magnitude, 0.35}) == std::vector<double>{0, -4, 0, 0, 0, 5, 0, 0, 0, 6});
  CHECK(pruned({Prune::magnitude, 1}) == t);
  CHECK(pruned({.prune = Prune::breadcrumbs, .density = 0.3, .outliers = 0.2}) ==
        std::vector<double>{0, -4, 3, 0, 2, 0, 0, 0, 0, 0});
  CHECK(pruned({Prune::none, 0.1}) == t);
}

TEST_CASE("what is dropped at random keeps its mean") {
  // n Bernoulli trials of value v / p: mean v, deviation v sqrt((1 - p) / (p n)); five of those
  Random random(2);
  index_t const n = 20000;
  for (double const density : {0.2, 0.7}) {
    std::vector<double> t(static_cast<std::size_t>(n), 3.0);
    detail::prune(t, n, {Prune::random, density}, random);
    double sum = 0, kept = 0;
    for (double const value : t) {
      REQUIRE((value == 0 || value == Approx(3 / density)));
      sum += value, kept += value != 0;
    }
    CHECK(std::abs(sum / n - 3) <= 5 * 3 * std::sqrt((1 - density) / (density * n)));
    CHECK(kept > 0);
  }
}

TEST_CASE("DELLA keeps the larger half of a row more often, and every entry's mean") {
  Random random(3);
  index_t const rows = 20000, cols = 5;
  std::vector<double> t;
  for (index_t r = 0; r < rows; ++r)
    for (double const value : {1.0, 2.0, 3.0, 4.0, 5.0}) t.push_back(value);
  detail::prune(t, cols, {.prune = Prune::della, .density = 0.5, .window = 0.4}, random);
  for (index_t c = 0; c < cols; ++c) {
    double const keep = 0.3 + 0.1 * static_cast<double>(c);
    double kept = 0, sum = 0;
    for (index_t r = 0; r < rows; ++r) {
      double const value = t[static_cast<std::size_t>(r * cols + c)];
      kept += value != 0, sum += value;
    }
    CHECK(std::abs(kept / rows - keep) <= 5 * std::sqrt(keep * (1 - keep) / rows));
    double const v = static_cast<double>(c + 1);
    CHECK(std::abs(sum / rows - v) <= 5 * v * std::sqrt((1 - keep) / (keep * rows)));
  }
}

TEST_CASE("TIES elects a sign for every entry and takes the mean of those that have it") {
  std::vector<std::vector<double>> const t{{3, 1, 0, -1}, {-1, 2, 0, -2}, {-1, -9, 0, 0}};
  std::vector<double> const ones{1, 1, 1}, weights{1, 2, 0.5}, mixed{1, -1, 1};
  CHECK(detail::fuse(t, ones, Fuse::ties, MajoritySign::total, false) == std::vector<double>{3, -9, 0, -1.5});
  CHECK(detail::fuse(t, ones, Fuse::ties, MajoritySign::frequency, false) == std::vector<double>{-1, 1.5, 0, -1.5});
  // votes 3 - 2 - 0.5, 1 + 4 - 4.5: both positive
  CHECK(detail::fuse(t, weights, Fuse::ties, MajoritySign::total, false) == std::vector<double>{3, 2.5, 0, -2.5});
  // a module that is subtracted votes against itself; PEFT counts it as it is
  CHECK(detail::fuse(t, mixed, Fuse::ties, MajoritySign::total, false) == std::vector<double>{2, -5.5, 0, 2});
  CHECK(detail::fuse(t, mixed, Fuse::ties, MajoritySign::total, true) == std::vector<double>{3, -9, 0, 0.5});
  CHECK(detail::fuse(t, weights, Fuse::sum, MajoritySign::total, false) == std::vector<double>{0.5, 0.5, 0, -5});
}

TEST_CASE("KnOTS merges in one basis of all deltas, and is the plain sum when nothing is dropped") {
  Lora const lora;
  auto recipe = merge_recipe("knots");
  recipe.truncation.rank = 10;
  auto const terms = lora.three();
  auto const span = std::span<ModuleTerm<LoRADelta, B> const>(terms);
  auto sum = recipe;
  sum.fuse = Fuse::sum;
  sum.pruning.prune = Prune::none;
  auto const exact = 0.7 * delta_matrix(lora.a, 0, lora.sites) - 0.4 * delta_matrix(lora.b, 0, lora.sites) +
                     1.5 * delta_matrix(lora.c, 0, lora.sites);
  CHECK(testing::relative_l2(delta_matrix(merge_modules(span, sum, lora.sites).module, 0, lora.sites), exact) <= bound);

  // the definition, dense: SVD of the deltas side by side, TIES on the V_k, and back
  recipe.pruning.density = 0.6;
  auto const merged = merge_modules(span, recipe, lora.sites).module;
  std::vector<Matrix> const parts{delta_matrix(lora.a, 0, lora.sites), delta_matrix(lora.b, 0, lora.sites),
                                  delta_matrix(lora.c, 0, lora.sites)};
  Matrix beside(10, 36);
  for (std::size_t k = 0; k < 3; ++k)
    for (index_t r = 0; r < 10; ++r)
      for (index_t c = 0; c < 12; ++c) beside(r, static_cast<index_t>(k) * 12 + c) = parts[k](r, c);
  auto const basis = svd(beside.view());
  std::vector<std::vector<double>> v(3);
  for (index_t k = 0; k < 3; ++k)
    for (index_t r = 0; r < 10; ++r)
      for (index_t c = 0; c < 12; ++c) v[static_cast<std::size_t>(k)].push_back(basis.vt(r, 12 * k + c));
  Random unused(0);
  for (auto& own : v) detail::prune(own, 12, recipe.pruning, unused);
  std::vector<double> const weights{0.7, -0.4, 1.5};
  auto const fused = detail::fuse(v, weights, Fuse::ties, MajoritySign::total, false);
  Matrix back(10, 12);
  for (index_t o = 0; o < 10; ++o)
    for (index_t r = 0; r < 10; ++r)
      for (index_t c = 0; c < 12; ++c)
        back(o, c) +=
            basis.u(o, r) * basis.s[static_cast<std::size_t>(r)] * fused[static_cast<std::size_t>(r * 12 + c)];
  CHECK(testing::relative_l2(delta_matrix(merged, 0, lora.sites), back) <= bound);
  CHECK(testing::relative_l2(back, exact) > 0.1);
}

TEST_CASE("RoAd modules are merged block by block, whatever variants they are") {
  auto const sites = golden_sites();
  Random random(4);
  using Variant = RoAdRotation::Variant;
  for (auto const variant : {Variant::road_1, Variant::road_2, Variant::road_4}) {
    auto const a = random_module<RoAdRotation, D>("a", {Variant::road_1, 2}, sites, {0, 1}, random);
    auto const b = random_module<RoAdRotation, D>("b", {variant, 2}, sites, {0}, random);
    std::vector<ModuleTerm<RoAdRotation, D>> const terms{{&a, 0.8}, {&b, 0.5}};
    auto const span = std::span<ModuleTerm<RoAdRotation, D> const>(terms);
    CHECK(testing::relative_l2(map_matrix(merge_modules(span, merge_recipe("linear"), sites), 0, sites),
                               map_matrix(weighted_sum(span, sites), 0, sites)) <= 1e-14);
    auto recipe = merge_recipe("ties");
    recipe.pruning.density = 0.7;
    auto const merged = map_matrix(merge_modules(span, recipe, sites), 0, sites);
    // the definition: entries of the blocks of R - I, two of them where every module is road_1
    bool const plain = variant == Variant::road_1;
    std::vector<std::vector<double>> t;
    for (auto const* m : {&a, &b}) {
      auto const dense = map_matrix(*m, 0, sites) - testing::identity(10);
      auto& values = t.emplace_back();
      for (index_t k = 0; k < 10; k += 2) {
        if (plain)
          values.insert(values.end(), {dense(k, k), dense(k + 1, k)});
        else
          values.insert(values.end(), {dense(k, k), dense(k, k + 1), dense(k + 1, k), dense(k + 1, k + 1)});
      }
      detail::prune(values, 1, recipe.pruning, random);
    }
    std::vector<double> const weights{0.8, 0.5};
    auto const fused = detail::fuse(t, weights, Fuse::ties, MajoritySign::total, false);
    auto next = fused.begin();
    for (index_t k = 0; k < 10; k += 2, next += plain ? 2 : 4) {
      CHECK(merged(k, k) == Approx(1 + next[0]));
      CHECK(merged(k + 1, k) == Approx(next[plain ? 1 : 2]).margin(1e-15));
      CHECK(merged(k, k + 1) == Approx(plain ? -next[1] : next[1]).margin(1e-15));
    }
  }
  auto const a = random_module<RoAdRotation, D>("a", {Variant::road_1, 2}, sites, {0, 1}, random);
  ModuleTerm<RoAdRotation, D> const term{&a, 1};
  CHECK_THROWS_WITH(merge_modules(std::span<ModuleTerm<RoAdRotation, D> const>(&term, 1), merge_recipe("knots"), sites),
                    "graft: knots shares the singular vectors of LoRA's deltas; ROAD modules have none");
}

TEST_CASE("the same seed drops the same, another seed something else") {
  Lora const lora;
  auto const terms = lora.pair();
  auto recipe = merge_recipe("dare_linear_svd");
  auto const delta = [&] {
    return delta_matrix(merge_modules(std::span<ModuleTerm<LoRADelta, B> const>(terms), recipe, lora.sites).module, 0,
                        lora.sites);
  };
  auto const first = delta();
  CHECK(testing::relative_l2(delta(), first) == 0);
  recipe.seed = 1;
  CHECK(testing::relative_l2(delta(), first) > 0.1);
}

TEST_CASE("wrong merges are refused with a sentence") {
  Lora const lora;
  auto const terms = lora.three();
  auto const span = std::span<ModuleTerm<LoRADelta, B> const>(terms);
  CHECK_THROWS_WITH(merge_modules(span, merge_recipe("ties"), lora.sites),
                    "graft: at q_proj module lora_a has rank 4 and lora_c rank 2; factors of different ranks cannot be "
                    "merged, but deltas can (_svd)");
  auto recipe = merge_recipe("ties_svd");
  recipe.pruning.density = 0;
  CHECK_THROWS_WITH(merge_modules(span, recipe, lora.sites),
                    "graft: a density is the share that is kept, in (0, 1]; got 0");
  CHECK_THROWS_WITH(merge_recipe("tie"), Catch::Contains("no merging method is called tie; there are linear, svd"));
}

TEST_CASE("weights are found without gradients") {
  std::vector<double> const wanted{0.8, -0.5, 1.2};
  index_t calls = 0;
  auto const loss = [&](std::vector<double> const& w) {
    ++calls;
    double sum = 0;
    for (std::size_t k = 0; k < 3; ++k) sum += (w[k] - wanted[k]) * (w[k] - wanted[k]);
    return sum;
  };
  auto const found = search_weights(3, loss, {.evaluations = 400, .regularization = 0});
  CHECK(calls == 400);
  for (std::size_t k = 0; k < 3; ++k) CHECK(found.weights[k] == Approx(wanted[k]).margin(1e-3));
  CHECK(search_weights(3, loss, {.evaluations = 400, .regularization = 0}).weights == found.weights);
  // a few calls already help, the start is never made worse, and NaN is never taken
  CHECK(search_weights(3, loss, {.evaluations = 40}).score < loss({0, 0, 0}));
  auto const nan = search_weights(1, [](auto const& w) { return w[0] > 0 ? std::nan("") : -w[0]; },
                                  {.evaluations = 60, .regularization = 0});
  CHECK(nan.weights[0] <= 0);
  for (double const w : search_weights(2, [](auto const& v) { return -v[0] - v[1]; }, {.evaluations = 200}).weights)
    CHECK(w == 1.5);  // the bound
}

}  // namespace
