// SPDX-License-Identifier: Apache-2.0
// Low-rank deltas on the device, alone and between row maps, against stack-and-mask in double: all factors of a batch
// one below the other, t = x A^T over all of them, foreign entries set to zero, y += t B^T.
#include <graft/backend/cuda/fused_product.cuh>
#include <graft/backend/cuda/maps_and_deltas.cuh>
#include <graft/backend/resident_weight.hpp>
#include <tests/catch.hpp>
#include <tests/cuda/on_device.hpp>

#include <array>
#include <cmath>
#include <deque>

namespace {

using namespace graft_test;

struct Factors {
  index_t rank;
  float scale;
  std::vector<float> a, b_transposed;        // [r, i], [r, o]
  std::vector<bf16> narrow_a{}, narrow_b{};  // the same numbers
};
struct Term {
  std::size_t factors;
  float weight;
};

/// Modules, the weighted lists of some requests, and which rows have which list (-1: none).
struct Deltas {
  index_t inputs, outputs;
  std::vector<Factors> modules;
  std::vector<std::vector<Term>> lists;
  std::vector<int> list_of_row;

  Deltas(Random& random, index_t i, index_t o, std::vector<index_t> const& ranks) : inputs(i), outputs(o) {
    for (index_t const r : ranks) {
      Factors f{r, static_cast<float>(random.uniform(0.5, 2)), {}, {}};
      f.a.resize(static_cast<std::size_t>(r * i)), f.b_transposed.resize(static_cast<std::size_t>(r * o));
      fill_normal(VectorView<float>{f.a.data(), r * i}, random, 0, 1 / std::sqrt(static_cast<double>(i)));
      fill_normal(VectorView<float>{f.b_transposed.data(), r * o}, random, 0,
                  1 / std::sqrt(static_cast<double>(std::max<index_t>(r, 1))));
      modules.push_back(std::move(f));
    }
  }

  /// Rounds all factors to bf16, and keeps them so on the device.
  void narrow() {
    auto const round = [](std::vector<float>& from, std::vector<bf16>& to) {
      for (float& value : from) value = static_cast<float>(to.emplace_back(value));
    };
    for (auto& f : modules) round(f.a, f.narrow_a), round(f.b_transposed, f.narrow_b);
  }

  index_t rank(std::vector<Term> const& list) const {
    index_t sum = 0;
    for (auto const& term : list) sum += modules[term.factors].rank;
    return sum;
  }
  index_t max_rank() const {
    index_t most = 0;
    for (auto const& list : lists) most = std::max(most, rank(list));
    return most;
  }

  /// Tiles of rows with equal lists. `spare` empty tiles follow, as in a graph captured for more.
  template <class Act>
  LowRankBatch<float> put(Device<Act>& device, index_t spare = 0) const {
    std::vector<LowRankFactors<float> const*> tables;
    for (auto const& f : modules) {
      // site 1 of 2
      LowRankFactors<float> table[2] = {{}, {{}, {}, f.rank, f.scale}};
      if (f.narrow_a.empty())
        table[1].a = device.put(f.a), table[1].b_transposed = device.put(f.b_transposed);
      else
        table[1].a = device.put(f.narrow_a), table[1].b_transposed = device.put(f.narrow_b);
      tables.push_back(device.put(table, 2));
    }
    std::vector<LowRankTile<float>> tiles;
    for (std::size_t l = 0; l < lists.size(); ++l) {
      std::vector<LowRankTerm<float>> terms;
      for (auto const& term : lists[l]) terms.push_back({tables[term.factors], term.weight});
      auto const* const on_device = device.put(terms);
      std::vector<std::int32_t> rows;
      for (std::size_t n = 0; n < list_of_row.size(); ++n)
        if (list_of_row[n] == static_cast<int>(l)) rows.push_back(static_cast<std::int32_t>(n));
      for (std::size_t k = 0; k < rows.size(); k += 8) {
        std::vector<std::int32_t> const part(rows.begin() + static_cast<long>(k),
                                             rows.begin() + static_cast<long>(std::min(rows.size(), k + 8)));
        tiles.push_back(
            {on_device, static_cast<index_t>(terms.size()), device.put(part), static_cast<index_t>(part.size())});
      }
    }
    tiles.resize(tiles.size() + static_cast<std::size_t>(spare));
    return {device.put(tiles),
            static_cast<index_t>(tiles.size()),
            static_cast<index_t>(list_of_row.size()),
            max_rank(),
            1,
            1};
  }

  /// What the lists add to each row; x in double.
  Matrix of(Matrix const& x) const {
    index_t stacked = 0;
    for (auto const& f : modules) stacked += f.rank;
    Matrix a(stacked, inputs), b(stacked, outputs), mask(x.rows, stacked);
    index_t first = 0;
    for (std::size_t m = 0; m < modules.size(); ++m) {
      auto const& f = modules[m];
      for (index_t r = 0; r < f.rank; ++r) {
        for (index_t k = 0; k < inputs; ++k) a(first + r, k) = f.a[static_cast<std::size_t>(r * inputs + k)];
        for (index_t k = 0; k < outputs; ++k)
          b(first + r, k) = f.b_transposed[static_cast<std::size_t>(r * outputs + k)];
        for (index_t n = 0; n < x.rows; ++n)
          if (int const list = list_of_row[static_cast<std::size_t>(n)]; list >= 0)
            for (auto const& term : lists[static_cast<std::size_t>(list)])
              if (term.factors == m) mask(n, first + r) += double{term.weight} * f.scale;
      }
      first += f.rank;
    }
    Matrix t = x * transposed(a);
    for (index_t n = 0; n < t.rows; ++n)
      for (index_t r = 0; r < stacked; ++r) t(n, r) *= mask(n, r);
    return t * b;
  }
};

/// One rounding of the result to Y, and two sums in f32.
template <class Y>
double bound(Deltas const& deltas) {
  return unit_roundoff<Y>() + sum_bound(deltas.inputs) + sum_bound(std::max<index_t>(deltas.max_rank(), 1));
}

template <class X, class Y>
void check_deltas(Deltas const& deltas, index_t gap, Random& random, index_t spare = 0) {
  Device<float> device;
  auto const rows = static_cast<index_t>(deltas.list_of_row.size());
  Buffer<X> x(rows, deltas.inputs, gap);
  Buffer<Y> y(rows, deltas.outputs, gap);
  fill_normal(x.view(), random), fill_normal(y.view(), random);
  Matrix const correct = Matrix(y.view()) + deltas.of(Matrix(x.view()));
  auto const x_device = device.put(x);
  auto const y_device = device.put(y);
  apply_low_rank(device.be, deltas.put(device, spare), MatrixView<X const, DeviceSpace>(x_device), y_device);
  auto const result = device.get(y_device);
  CHECK(worst_row(result.view(), correct) <= bound<Y>(deltas));
  REQUIRE(result.gaps_untouched());
  for (index_t n = 0; n < rows; ++n) {
    int const list = deltas.list_of_row[static_cast<std::size_t>(n)];
    if (list < 0 || deltas.rank(deltas.lists[static_cast<std::size_t>(list)]) == 0)
      REQUIRE(same_bits(result.row(n), y.row(n), deltas.outputs));
  }
}

/// Lists of one, no, one and three modules; rows go through them in turn.
void mixed_lists(Deltas& deltas, index_t rows) {
  deltas.lists = {{{0, 1.f}}, {}, {{1, 0.5f}}, {{2, 1.f}, {0, -2.f}, {1, 0.25f}}};
  for (index_t n = 0; n < rows; ++n) deltas.list_of_row.push_back(static_cast<int>(n % 5) - 1);
}

TEMPLATE_TEST_CASE("device: deltas equal stack and mask", "", float, bf16, f16) {
  bool const narrow = GENERATE(false, true);
  Random random(1);
  struct Size {
    index_t inputs, outputs, rows;
    std::vector<index_t> ranks;
    index_t gap;
  };
  for (auto const& size :
       {Size{576, 576, 11, {16, 8, 64}, 0}, Size{64, 1536, 45, {1, 3, 5}, 8}, Size{130, 130, 5, {7, 256, 1}, 3},
        Size{1100, 36, 1, {33, 4, 0}, 0}, Size{12, 515, 256, {2, 0, 1}, 1}}) {
    Deltas deltas(random, size.inputs, size.outputs, size.ranks);
    mixed_lists(deltas, size.rows);
    if (size.rows == 1) deltas.list_of_row = {3};
    if (narrow) deltas.narrow();
    INFO("i " << size.inputs << ", o " << size.outputs << ", n " << size.rows << ", bf16 " << narrow);
    check_deltas<TestType, TestType>(deltas, size.gap, random, size.rows % 2);
  }
}

TEST_CASE("device: inputs and outputs of deltas may differ in type") {
  Random random(2);
  Deltas deltas(random, 96, 128, {4, 4, 4});
  mixed_lists(deltas, 9);
  check_deltas<bf16, float>(deltas, 0, random);
  check_deltas<float, f16>(deltas, 0, random);
}

TEST_CASE("device: deltas of an embedding equal those of one-hot rows") {
  Random random(3);
  Deltas deltas(random, 50, 72, {5, 16, 2});
  deltas.narrow();
  mixed_lists(deltas, 13);
  std::vector<std::int32_t> tokens;
  Matrix one_hot(13, 50);
  for (index_t n = 0; n < 13; ++n) {
    tokens.push_back(static_cast<std::int32_t>(pick(random, 0, 49)));
    one_hot(n, tokens.back()) = 1;
  }
  Device<bf16> device;
  Buffer<bf16> y(13, 72);
  fill_normal(y.view(), random);
  Matrix const correct = Matrix(y.view()) + deltas.of(one_hot);
  auto const y_device = device.put(y);
  apply_low_rank_embedding(device.be, deltas.put(device), device.put(tokens), 50, y_device);
  CHECK(worst_row(device.get(y_device).view(), correct) <= bound<bf16>(deltas));
}

/// Maps around deltas: for every row one inside and one outside, or none.
struct Maps {
  std::deque<OwnedMap<float>> owned;
  std::deque<RowMapRow<float const>> rows;
  std::vector<RowMapRow<float const> const*> inner, outer;

  RowMapRow<float const> const* add(Random& random, index_t size, index_t group, bool c, bool e) {
    owned.push_back(OwnedMap<float>::random(random, size, group, c, e));
    if (owned.size() % 2 == 0) owned.back().narrow();
    rows.push_back(owned.back().row());
    return &rows.back();
  }
};

template <class T>
void check_all(index_t size, index_t inner_group, index_t outer_group, bool with_deltas, int roundings) {
  Random random(static_cast<std::uint64_t>(size + inner_group));
  Deltas deltas(random, 96, size, {8, 3, 16});
  if (with_deltas && size % 64 == 0) deltas.narrow();
  mixed_lists(deltas, 23);
  Maps maps;
  for (index_t n = 0; n < 23; ++n) {
    bool const adapted = deltas.list_of_row[static_cast<std::size_t>(n)] >= 0;  // rows without a tile have no maps
    maps.inner.push_back(adapted && n % 3 != 0 ? maps.add(random, size, inner_group, n % 2 == 0, n % 4 == 1) : nullptr);
    maps.outer.push_back(adapted && n % 7 != 0 ? maps.add(random, size, outer_group, true, true) : nullptr);
  }
  // a successor of another group, which no chunk can hold
  if (roundings > 1) maps.rows.back().next = maps.add(random, size, 2, true, false);
  Device<T> device;
  Buffer<T> x(23, 96), y(23, size, 4);
  fill_normal(x.view(), random), fill_normal(y.view(), random);
  Matrix correct(y.view());
  auto const map_rows = [&](auto const& of_row) {
    for (index_t n = 0; n < 23; ++n)
      if (auto const* map = of_row[static_cast<std::size_t>(n)]) {
        Vector const row = dense(*map)(correct.row(n));
        std::copy(row.begin(), row.end(), correct.view().row(n));
      }
  };
  map_rows(maps.inner);
  if (with_deltas) correct = correct + deltas.of(Matrix(x.view()));
  map_rows(maps.outer);
  auto batch = deltas.put(device, 2);
  batch.present = with_deltas ? 1 : 0;
  auto const y_device = device.put(y);
  apply_maps_and_deltas(device.be, device.put_maps(maps.inner), batch, device.put_maps(maps.outer),
                        MatrixView<T const, DeviceSpace>(device.put(x)), y_device);
  auto const result = device.get(y_device);
  // maps of coefficients up to 2 or so may grow what was rounded before them
  double const limit = roundings * 4 * unit_roundoff<T>() + 4 * sum_bound(96);
  INFO("size " << size << ", groups " << inner_group << " and " << outer_group << ", deltas " << with_deltas);
  CHECK(worst_row(result.view(), correct) <= limit);
  REQUIRE(result.gaps_untouched());
  for (index_t n = 0; n < 23; ++n)
    if (deltas.list_of_row[static_cast<std::size_t>(n)] < 0) REQUIRE(same_bits(result.row(n), y.row(n), size));
}

TEMPLATE_TEST_CASE("device: maps and deltas in one pass equal the three steps", "", float, bf16, f16) {
  check_all<TestType>(576, 64, 2, true, 1);
  check_all<TestType>(640, 0, 128, true, 1);
  check_all<TestType>(516, 0, 0, true, 1);
  check_all<TestType>(130, 2, 0, true, 1);
  check_all<TestType>(64, 64, 64, false, 1);
  check_all<TestType>(576, 576, 96, true, 4);  // groups that reach over chunks of columns
  check_all<TestType>(576, 64, 64, false, 4);
}

TEMPLATE_TEST_CASE("device: products whose weights lie one behind the other, as one", "", float, bf16) {
  using B = CudaBackend<TestType>;
  using View = MatrixView<TestType const, DeviceSpace>;
  Random random(6);
  constexpr index_t rows = 11, inputs = 96, outputs[] = {64, 128, 192}, total = 384;
  Device<TestType> device;
  Buffer<TestType> x(rows, inputs), weights(total, inputs);
  fill_normal(x.view(), random);
  fill_normal(weights.view(), random, 0, 0.1);
  View const x_device = device.put(x);
  Weight const all{reinterpret_cast<std::byte const*>(device.put(weights).data), format_of<TestType>, total, inputs};
  std::deque<Deltas> deltas;
  Maps maps;
  for (index_t n = 0; n < rows; ++n)
    for (index_t k = 0; k < 2; ++k) {
      auto const* const map = n % 5 == 0 ? nullptr : maps.add(random, outputs[k], 32, true, k == 0);
      (k == 0 ? maps.inner : maps.outer).push_back(map);
    }
  for (index_t k = 0; k < 3; ++k) {
    deltas.emplace_back(random, inputs, outputs[k], std::vector<index_t>{4, 3, 8});
    mixed_lists(deltas.back(), rows);
  }
  // maps and deltas; maps alone; deltas alone
  RowMapBatch<float> const inner[] = {device.put_maps(maps.inner), device.put_maps(maps.outer), {}};
  LowRankBatch<float> const low_rank[] = {deltas[0].put(device), {}, deltas[2].put(device)};
  auto const together = device.be.arena().template matrix<TestType>(rows, total);
  std::array<JoinedProduct<B>, 3> parts;
  for (index_t k = 0, first = 0; k < 3; first += outputs[k++])
    parts[static_cast<std::size_t>(k)] = {inner[k], low_rank[k], together.col_range(first, outputs[k])};
  joined_products(device.be, all, x_device, parts, together);
  for (index_t k = 0, first = 0; k < 3; first += outputs[k++]) {
    auto const y = device.be.arena().template matrix<TestType>(rows, outputs[k]);
    fused_product(device.be, all.row_range(first, outputs[k]), {}, x_device, x_device,
                  inner[k].any() ? &inner[k] : nullptr, low_rank[k].any() ? &low_rank[k] : nullptr, nullptr, y);
    INFO("part " << k);
    Matrix const expected(device.get(y).view());
    CHECK(worst_row(device.get(together).view().col_range(first, outputs[k]), expected) <= bound<TestType>(deltas[0]));
  }
}

TEST_CASE("device: a row's result does not depend on its neighbours") {
  Random random(5);
  Deltas deltas(random, 200, 576, {16, 8, 4});
  mixed_lists(deltas, 40);
  if (GENERATE(false, true)) deltas.narrow();
  Buffer<bf16> x(40, 200), y(40, 576);
  fill_normal(x.view(), random), fill_normal(y.view(), random);
  auto const run = [&](std::vector<index_t> const& rows) {
    Deltas part = deltas;
    part.list_of_row.clear();
    Buffer<bf16> xs(static_cast<index_t>(rows.size()), 200), ys(static_cast<index_t>(rows.size()), 576);
    for (std::size_t k = 0; k < rows.size(); ++k) {
      part.list_of_row.push_back(deltas.list_of_row[static_cast<std::size_t>(rows[k])]);
      std::copy(x.row(rows[k]), x.row(rows[k]) + 200, xs.row(static_cast<index_t>(k)));
      std::copy(y.row(rows[k]), y.row(rows[k]) + 576, ys.row(static_cast<index_t>(k)));
    }
    Device<bf16> device;
    auto const y_device = device.put(ys);
    apply_low_rank(device.be, part.put(device), MatrixView<bf16 const, DeviceSpace>(device.put(xs)), y_device);
    return device.get(y_device);
  };
  std::vector<index_t> all(40);
  for (index_t n = 0; n < 40; ++n) all[static_cast<std::size_t>(n)] = n;
  auto const together = run(all);
  for (index_t n : {0, 7, 22, 39}) CHECK(same_bits(run({n}).row(0), together.row(n), 576));
}

}  // namespace
