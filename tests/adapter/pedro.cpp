// SPDX-License-Identifier: Apache-2.0
// PEDRO's vectors against a plain-loop reference in double, for every option.
#include <graft/adapter/module.hpp>
#include <graft/adapter/pedro.hpp>
#include <graft/backend/cpu/cpu_backend.hpp>
#include <graft/testing/buffer.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/policies.hpp>
#include <graft/testing/random.hpp>
#include <tests/adapter/pedro_layer.hpp>
#include <tests/catch.hpp>

#include <vector>

namespace {

using namespace graft;
using namespace graft::testing;
using Pedro = PedroGenerator;

constexpr index_t width = 40, query = 32, value = 16, up = 56, vectors = query + value + up;

template <class B>
Module<Pedro, B> make(Pedro const& policy) {
  auto const sites = graft_test::pedro_layer(width, query, value, up);
  return make_module<Pedro, B>("p", policy, sites, {sites.find("layers.0")}, 1);
}

/// The state's numbers in the reference's hands.
template <class B>
PedroReference reference(Pedro const& policy, typename Pedro::State<B> const& state) {
  auto const list = [](auto const& v) {
    Vector result;
    for (auto const& x : v) result.push_back(to_double(x));
    return result;
  };
  return {.down = Matrix(state.down),
          .up = Matrix(state.up),
          .up_bias = list(state.up_bias),
          .numerator = list(state.numerator),
          .denominator = list(state.denominator),
          .pool = list(state.pool),
          .pooling = Pedro::names(policy.pooling)[static_cast<std::size_t>(policy.pooling)],
          .activation = Pedro::names(policy.activation)[static_cast<std::size_t>(policy.activation)],
          .offset = policy.offset == Pedro::Offset::one ? 1.0 : 0.0};
}

template <class R>
Vector generate(Module<Pedro, CpuBackend<R>>& module, Buffer<R> const& normalized, Buffer<R> const& raw) {
  CpuBackend<R> be;
  auto const& [site, policy, state] = module.entries[0];
  std::vector<R> scratch(static_cast<std::size_t>(policy.scratch_size(state, normalized.view().rows))), out(vectors);
  policy.generate(be, state, normalized.view(), raw.view(), {scratch.data(), static_cast<index_t>(scratch.size())},
                  VectorView<R>{out.data(), vectors});
  Vector l;
  for (R const x : out) l.push_back(to_double(x) + 1);  // stored as l - 1
  return l;
}
Matrix as_row(Vector const& v) {
  Matrix row(1, static_cast<index_t>(v.size()));
  row.values = v;
  return row;
}

TEMPLATE_TEST_CASE("vectors equal the plain-loop reference for every option and prompt length", "", float, double) {
  using R = TestType;
  using B = CpuBackend<R>;
  Random random(1);
  for (auto const& policy : graft_test::every_pedro_option(6, {5, 6})) {
    auto module = make<B>(policy);
    fill_normal(module.parameters(), random, 0.1, 0.3);
    auto const& state = module.entries[0].state;
    for (index_t const rows : {1, 2, 9}) {
      Buffer<R> normalized(rows, width, 3), raw(rows, width);
      fill_normal(normalized.view(), random);
      fill_normal(raw.view(), random);
      auto const& input = policy.pooler_input == Pedro::PoolerInput::normalized ? normalized : raw;
      Vector const expected = reference<B>(policy, state).vectors(Matrix(input.view()));
      INFO("pooling " << int(policy.pooling) << ", activation " << int(policy.activation) << ", " << rows << " rows");
      // sums of 40 and 6 terms, and a rational of degree 6 that may steepen an error: 1000 roundings cover it
      CHECK(relative_l2(as_row(generate<R>(module, normalized, raw)), as_row(expected)) <= 1000 * unit_roundoff<R>());
    }
  }
}

TEST_CASE("PEDRO starts as the identity, exactly, for every option") {
  using B = CpuBackend<float>;
  Random random(2);
  Buffer<float> normalized(5, width), raw(5, width);
  fill_normal(normalized.view(), random, 0, 3);
  fill_normal(raw.view(), random, 0, 3);
  for (auto const& policy : graft_test::every_pedro_option(6, {5, 6})) {
    auto module = make<B>(policy);
    for (double const l : generate<float>(module, normalized, raw)) REQUIRE(l == 1);
    // but for W_up everything else is ready to learn: W_down is not zero, f starts near GELU
    auto const& state = module.entries[0].state;
    CHECK(relative_l2(state.down, Matrix(6, width)) > 0.1);
    for (float const x : {-2.f, -0.5f, 0.f, 1.f, 2.5f})
      if (policy.rational_activation())
        CHECK(policy.activate(x, state.numerator.data, state.denominator.data) ==
              Approx(gelu(static_cast<double>(x))).margin(4.5e-3));  // largest error of the least exact start
  }
}

TEST_CASE("attention pooling stands scores of any size") {
  using B = CpuBackend<float>;
  Random random(3);
  auto module = make<B>({.rank = 4, .pooling = Pedro::Pooling::attention});
  fill_normal(module.parameters(), random, 0, 0.1);
  auto const& state = module.entries[0].state;
  for (float& w : state.pool) w = 1000;
  Buffer<float> x(3, width);
  fill_normal(x.view(), random);
  for (index_t k = 0; k < width; ++k) x.row(1)[k] = 3;  // scores of 120,000: this row gets all attention
  Buffer<float> last(1, width);
  std::copy_n(x.row(1), width, last.row(0));
  auto only = make<B>({.rank = 4, .pooling = Pedro::Pooling::last});
  auto const& other = only.entries[0].state;
  std::copy_n(state.down.data, state.down.size(), other.down.data);
  std::copy_n(state.up.data, state.up.size(), other.up.data);
  std::copy(state.numerator.begin(), state.numerator.end(), other.numerator.begin());
  std::copy(state.denominator.begin(), state.denominator.end(), other.denominator.begin());
  CHECK(generate<float>(module, x, x) == generate<float>(only, last, last));
}

TEST_CASE("the generator's tensors") {
  using B = CpuBackend<float>;
  auto const describe = [](Pedro const& policy) {
    auto module = make<B>(policy);
    std::string result;
    module.for_each([&](index_t, char const* suffix, auto& tensor) {
      if constexpr (requires { tensor.rows; })
        result += text(suffix, ' ', tensor.rows, 'x', tensor.cols, ' ');
      else
        result += text(suffix, ' ', tensor.size, ' ');
    });
    return result;
  };
  std::string const matrices = "pedro_down.weight 12x40 pedro_up.weight 104x12 ";
  CHECK(describe({}) == matrices + "pedro_num 6 pedro_den 4 ");
  CHECK(describe({.activation = Pedro::Activation::relu}) == matrices);
  CHECK(describe({.offset = Pedro::Offset::bias, .activation = Pedro::Activation::gelu}) ==
        matrices + "pedro_up.bias 104 ");
  CHECK(describe({.up_bias = true, .activation = Pedro::Activation::silu}) == matrices + "pedro_up.bias 104 ");
  CHECK(describe({.pooling = Pedro::Pooling::attention,
                  .activation = Pedro::Activation::rational_b,
                  .numerator_degree = 6,
                  .denominator_degree = 5}) == matrices + "pedro_num 7 pedro_den 5 pedro_pool.weight 40 ");
}

TEST_CASE("layers and degrees PEDRO cannot work with are refused by name") {
  using B = CpuBackend<float>;
  CHECK_THROWS_WITH(make<B>({.numerator_degree = 7, .denominator_degree = 2}),
                    Catch::Contains("no GELU start is known for a rational of degrees (7, 2)"));
  CHECK_THROWS_WITH(make<B>({.rank = 0}), Catch::Contains("rank r must be positive"));
  SiteTable encoder;
  Site const block = encoder.add({0, "block_out", "layers.0", width, width, SiteKind::hidden});
  encoder.add_layer({block.index, {}, {}, {}, {}});
  CHECK_THROWS_WITH((make_module<Pedro, B>("p", {}, encoder, {block.index})),
                    Catch::Contains("layers.0 has no query, value and up projections for PEDRO to scale"));
  SiteTable no_layers;
  no_layers.add({0, "block_out", "layers.0", width, width, SiteKind::hidden});
  CHECK_THROWS_AS((make_module<Pedro, B>("p", {}, no_layers, {0})), ContractError);
  CHECK_FALSE(Pedro{}.accepts({0, "q_proj", "q", 4, 4, SiteKind::linear}));
}

}  // namespace
