// SPDX-License-Identifier: Apache-2.0
// Losses and their gradients against torch, against differences of the formulas themselves, and in any chunks.
#include <graft/backend/cpu/cpu.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/random.hpp>
#include <graft/train/loss.hpp>
#include <tests/catch.hpp>
#include <tests/train/golden.hpp>

#include <cmath>
#include <vector>

namespace {

using namespace graft;
using namespace graft_test;
using testing::Matrix;

std::vector<LossRow> rows_of(nlohmann::json const& labels, nlohmann::json const& weights) {
  std::vector<LossRow> rows;
  for (std::size_t n = 0; n < labels.size(); ++n) rows.push_back({labels[n], weights[n], static_cast<index_t>(n % 2)});
  return rows;
}

/// The loss of a row, straight from its definition, in double.
double plain_loss(Matrix const& z, index_t n, std::int32_t label, CrossEntropyOptions const& options) {
  double sum = 0, mean = 0;
  for (index_t k = 0; k < z.cols; ++k) sum += std::exp(z(n, k));
  for (index_t k = 0; k < z.cols; ++k) mean -= std::log(std::exp(z(n, k)) / sum) / static_cast<double>(z.cols);
  double const nll = -std::log(std::exp(z(n, label)) / sum), e = options.label_smoothing;
  return (1 - e) * nll + e * mean + options.z_loss * std::log(sum) * std::log(sum);
}

TEMPLATE_TEST_CASE("cross-entropy and its gradient are torch's", "", float, double) {
  using B = CpuBackend<TestType>;
  // exp within 2 ulp and sums of 7 terms: some 10 roundings of numbers up to 3; double leaves the file's 17 digits
  double const bound = 16 * testing::unit_roundoff<TestType>() + 1e-15;
  for (auto const& golden : training_golden()["cross_entropy"]) {
    auto const expected = matrix(golden["gradient"]), start = matrix(golden["logits"]);
    std::vector<TestType> logits(start.values.begin(), start.values.end());
    B be;
    CrossEntropy<B> loss(be, rows_of(golden["labels"], golden["weights"]),
                         {golden["label_smoothing"], golden["z_loss"]});
    // two chunks, as a head would bring them
    loss(0, matrix_view(logits.data(), 2, start.cols));
    loss(2, matrix_view(logits.data() + 2 * start.cols, start.rows - 2, start.cols));
    auto const gradient = Matrix(matrix_view(logits.data(), start.rows, start.cols));
    CHECK(testing::relative_l2(gradient, expected) < bound);
    LossSums both = loss.sums(0);
    both += loss.sums(1);
    CHECK(both.rows == start.rows);
    CHECK(both.correct == golden["correct"].get<index_t>());
    double losses = 0, nlls = 0;
    for (std::size_t n = 0; n < loss.rows().size(); ++n) {
      CHECK(loss.rows()[n].loss == Approx(golden["losses"][n].get<double>()).epsilon(8 * bound));
      losses += golden["losses"][n].get<double>(), nlls += golden["nll"][n].get<double>();
    }
    CHECK(both.loss == Approx(losses).epsilon(8 * bound));
    CHECK(both.nll == Approx(nlls).epsilon(8 * bound));
    CHECK(loss.sums(1).rows == 2);
  }
}

TEST_CASE("squared errors and their gradient are torch's") {
  auto const& golden = training_golden()["squared_error"];
  auto outputs = matrix(golden["outputs"]);
  auto const targets = matrix(golden["targets"]);
  CpuBackend<double> be;
  // torch's mean over all elements is the mean over rows of our row losses
  std::vector<double> const weights(static_cast<std::size_t>(outputs.rows), 1 / static_cast<double>(outputs.rows));
  SquaredError<CpuBackend<double>> loss(be, targets.view(), weights);
  loss(0, outputs.view().row_range(0, 3));
  loss(3, outputs.view().row_range(3, outputs.rows - 3));
  CHECK(testing::relative_l2(outputs, matrix(golden["gradient"])) < 1e-15);
  CHECK(loss.sums().mean() == Approx(golden["loss"].get<double>()).epsilon(1e-14));
}

TEST_CASE("the gradient of cross-entropy is the difference quotient of its definition") {
  Random random(7);
  CrossEntropyOptions const options{0.15, 2e-3};
  Matrix const z = testing::random_matrix(4, 37, random, 2);
  std::vector<LossRow> rows;
  for (index_t n = 0; n < z.rows; ++n)
    rows.push_back({static_cast<std::int32_t>(testing::pick(random, 0, z.cols - 1)), 0.3 + static_cast<double>(n)});
  Matrix gradient = z;
  CpuBackend<double> be;
  CrossEntropy<CpuBackend<double>> loss(be, rows, options);
  loss(0, gradient.view());
  for (index_t n = 0; n < z.rows; ++n) {
    auto const& row = rows[static_cast<std::size_t>(n)];
    CHECK(loss.rows()[static_cast<std::size_t>(n)].loss == Approx(plain_loss(z, n, row.label, options)).epsilon(1e-13));
    for (index_t k = 0; k < z.cols; ++k) {
      double const h = 1e-5;  // truncation h^2, rounding 1e-16 / h: both about 1e-10
      Matrix up = z, down = z;
      up(n, k) += h, down(n, k) -= h;
      double const slope = (plain_loss(up, n, row.label, options) - plain_loss(down, n, row.label, options)) / (2 * h);
      CHECK(gradient(n, k) == Approx(row.weight * slope).margin(1e-8));
    }
  }
}

TEST_CASE("logits of any size lose what they should", "[isa]") {
  CpuBackend<float> be;
  std::vector<LossRow> const rows{{1, 1}};
  std::vector<float> far{1e4f, 0.f, -1e4f};  // the label is as good as impossible
  CrossEntropy<CpuBackend<float>> loss(be, rows);
  loss(0, matrix_view(far.data(), 1, 3));
  CHECK(loss.sums().loss == 1e4);
  CHECK(far == std::vector<float>{1, -1, 0});
  std::vector<float> zeros(3, 0.f);  // no answer is better than another: only the first counts as given
  CrossEntropy<CpuBackend<float>> guess(be, rows);
  guess(0, matrix_view(zeros.data(), 1, 3));
  CHECK(guess.sums().correct == 0);
  // a vocabulary of today: the sum of 150,000 exponentials keeps f32's digits
  std::vector<float> wide(150'000, 1.25f);
  CrossEntropy<CpuBackend<float>> all(be, rows);
  all(0, matrix_view(wide.data(), 1, 150'000));
  CHECK(all.sums().loss == Approx(std::log(150'000.0)).epsilon(1e-7));
}

TEST_CASE("losses are the same bits in any chunks and for any number of threads", "[many_threads]") {
  Random random(3);
  Matrix const z = testing::random_matrix(57, 300, random, 3);
  std::vector<LossRow> rows;
  for (index_t n = 0; n < z.rows; ++n) rows.push_back({static_cast<std::int32_t>(5 * n), 0.1, n % 3});
  std::vector<float> const start(z.values.begin(), z.values.end());
  auto one = start;
  CpuBackend<float> serial;
  CrossEntropy<CpuBackend<float>> expected(serial, rows, {0.1, 1e-3});
  expected(0, matrix_view(one.data(), z.rows, z.cols));
  for (index_t threads : {2, 3})
    for (index_t chunk : {1, 20, 57}) {
      ThreadPool pool(threads);
      CpuBackend<float> be(pool);
      auto logits = start;
      CrossEntropy<CpuBackend<float>> loss(be, rows, {0.1, 1e-3});
      for (index_t n = 0; n < z.rows; n += chunk)
        loss(n, matrix_view(logits.data() + n * z.cols, std::min(chunk, z.rows - n), z.cols));
      CHECK(logits == one);
      for (index_t group = 0; group < 3; ++group) CHECK(loss.sums(group).loss == expected.sums(group).loss);
    }
}

TEST_CASE("labels that cannot be are refused before anything changes") {
  CpuBackend<float> be;
  std::vector<LossRow> const rows{{0, 1}, {3, 1}};
  CrossEntropy<CpuBackend<float>> loss(be, rows);
  std::vector<float> logits(6, 0.5f);
  CHECK_THROWS_WITH(loss(0, matrix_view(logits.data(), 2, 3)), Catch::Contains("label 3 of wanted row 1"));
  CHECK(logits == std::vector<float>(6, 0.5f));
  CHECK_THROWS_AS(loss(1, matrix_view(logits.data(), 2, 3)), ContractError);
  CHECK_THROWS_AS(CrossEntropy<CpuBackend<float>>(be, rows, {1.0}), ContractError);
}

}  // namespace
