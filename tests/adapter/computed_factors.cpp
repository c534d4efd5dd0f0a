// SPDX-License-Identifier: Apache-2.0
// A low-rank policy whose factors are not its parameters: they are computed when a module is published, live as long as
// what was published, and are trained through.
#include <graft/adapter/apply.hpp>
#include <graft/adapter/bank.hpp>
#include <graft/adapter/gradients.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/testing/gradient_check.hpp>
#include <graft/testing/random.hpp>
#include <tests/catch.hpp>

#include <memory>
#include <vector>

namespace {

using namespace graft;
using namespace graft::testing;

/// Vector-based random adaptation: y += diag(b) B diag(d) A x with frozen random A and B that are the same everywhere;
/// d [r] and b [o] are trained. Kopiczko, Blankevoort and Asano 2024, arXiv:2310.11454, eq. (2).
struct Vera {
  static constexpr std::string_view peft_type = "VERA_OF_A_TEST";
  index_t rank = 4;
  double start = 0.1;
  index_t seed = 0;

  template <class B>
  struct State {
    Parameters<B> d, b;
    index_t inputs = 0;
    void for_each(auto&& f) { f("vera_lambda_d", d), f("vera_lambda_b", b); }
  };
  void options(auto&& v) { v.option("r", rank), v.option("d_initial", start), v.option("projection_prng_key", seed); }
  bool accepts(SiteInfo const& site) const { return site.kind == SiteKind::linear; }
  template <class B>
  void shape(SiteInfo const& site, LayerSites const*, State<B>& state) const {
    state.d = {nullptr, rank}, state.b = {nullptr, site.out};
    state.inputs = site.in;
  }
  template <class B>
  void init(State<B>& state, auto&) const {
    for (auto& value : state.d) value = static_cast<Real<B>>(start);
  }

  /// A [r, i] and B [o, r] before they are scaled.
  template <class B>
  std::shared_ptr<std::vector<Real<B>>> frozen(State<B> const& state) const {
    auto const count = static_cast<std::size_t>(rank * (state.inputs + state.b.size));
    auto numbers = std::make_shared<std::vector<Real<B>>>(count);
    Random random(static_cast<std::uint64_t>(seed));
    for (auto& value : *numbers) value = static_cast<Real<B>>(random.normal());
    return numbers;
  }
  template <class B>
  LowRankViews<B> factors(B&, State<B> const& state) const {
    auto numbers = frozen(state);
    auto const a = matrix_view(numbers->data(), rank, state.inputs);
    auto const b = matrix_view(numbers->data() + rank * state.inputs, state.b.size, rank);
    for (index_t r = 0; r < rank; ++r)
      for (index_t i = 0; i < a.cols; ++i) a(r, i) *= state.d[r];
    for (index_t o = 0; o < b.rows; ++o)
      for (index_t r = 0; r < rank; ++r) b(o, r) *= state.b[o];
    return {a, b, 1, numbers};
  }
  template <class B>
  void backward(B&, State<B> const& state, LowRankViews<B> const& grad, State<B>& g) const {
    auto const numbers = frozen(state);
    auto const a = matrix_view(numbers->data(), rank, state.inputs);
    auto const b = matrix_view(numbers->data() + rank * state.inputs, state.b.size, rank);
    for (index_t r = 0; r < rank; ++r)
      for (index_t i = 0; i < a.cols; ++i) g.d[r] += grad.a(r, i) * a(r, i);
    for (index_t o = 0; o < b.rows; ++o)
      for (index_t r = 0; r < rank; ++r) g.b[o] += grad.b(o, r) * b(o, r);
  }
};

using B = CpuBackend<double>;
using List = Adapters<Vera>;
constexpr index_t in = 9, out = 14, rows = 3;
static_assert(TrainableLowRank<Vera, B>);

struct Fixture {
  explicit Fixture(AdapterStorage storage = AdapterStorage::full) : bank(sites(), storage) {
    auto made = make_module<Vera, B>("v", Vera{.seed = 7}, bank.sites(), {0});
    fill_normal(made.parameters(), random);
    module = std::make_unique<Module<Vera, B>>(std::move(made));
    x = random_matrix(rows, in, random);
  }
  static SiteTable sites() {
    SiteTable table;
    table.add_linear(0, "q_proj", "layers.0.q_proj", in, out);
    return table;
  }
  /// What a request of the module as it was published adds to zeros.
  Matrix delta(std::shared_ptr<AdapterSet<B> const> set) {
    SequenceState<B> state(std::move(set), bank.sites());
    RequestRows<B> const requests[] = {{.state = &state, .rows = rows}};
    Plan<B> plan;
    plan.build(requests);
    Matrix y(rows, out);
    apply_output(be, Site{0, in, out}, plan, x.view(), y.view());
    return y;
  }
  B be;
  Random random{3};
  Bank<List, B> bank;
  std::unique_ptr<Module<Vera, B>> module;
  Matrix x;
};

TEST_CASE("factors that a policy computes are those that serve, as long as anyone uses them") {
  for (auto const storage : {AdapterStorage::full, AdapterStorage::bf16}) {
    Fixture f(storage);
    f.bank.load(f.be, f.module->clone());
    auto const set = f.bank.resolve({{"v"}});
    f.bank.unload("v");
    std::vector<double> const reused(2 * 4 * (in + out), 1e30);  // of the size that was freed, had it been
    auto const y = f.delta(set);
    auto const& state = f.module->entries[0].state;
    auto const numbers = f.module->policy.frozen(state);
    for (index_t n = 0; n < rows; ++n)
      for (index_t o = 0; o < out; ++o) {
        double expected = 0;
        for (index_t r = 0; r < 4; ++r) {
          double t = 0;
          for (index_t i = 0; i < in; ++i) t += (*numbers)[static_cast<std::size_t>(r * in + i)] * f.x(n, i);
          expected += state.b[o] * (*numbers)[static_cast<std::size_t>(4 * in + o * 4 + r)] * state.d[r] * t;
        }
        CHECK(y(n, o) == Approx(expected).margin(storage == AdapterStorage::full ? 1e-12 : 0.2));
      }
  }
}

TEST_CASE("gradients go through factors that a policy computes") {
  Fixture f;
  Matrix const dy = random_matrix(rows, out, f.random);
  auto const loss = [&] {
    f.bank.load(f.be, f.module->clone());
    auto const y = f.delta(f.bank.resolve({{"v"}}));
    double sum = 0;
    for (index_t n = 0; n < rows; ++n)
      for (index_t o = 0; o < out; ++o) sum += dy(n, o) * y(n, o);
    return sum;
  };
  Matrix da(4, in), db(out, 4);  // of L = sum dy (x A^T) B^T, by definition
  auto const factors = f.module->policy.factors(f.be, f.module->entries[0].state);
  for (index_t n = 0; n < rows; ++n)
    for (index_t r = 0; r < 4; ++r) {
      double t = 0, dt = 0;
      for (index_t i = 0; i < in; ++i) t += factors.a(r, i) * f.x(n, i);
      for (index_t o = 0; o < out; ++o) dt += factors.b(o, r) * dy(n, o), db(o, r) += dy(n, o) * t;
      for (index_t i = 0; i < in; ++i) da(r, i) += dt * f.x(n, i);
    }
  auto gradient = f.module->clone();
  for (auto& value : gradient.parameters()) value = 0;
  f.module->policy.backward(f.be, f.module->entries[0].state, LowRankViews<B>{da.view(), db.view(), 1},
                            gradient.entries[0].state);
  auto const given = gradient.parameters();
  CHECK(gradient_error(loss, f.module->parameters(), VectorView<double const>{given.data, given.size}) <= 1);
}

}  // namespace
