// SPDX-License-Identifier: Apache-2.0
// The operations that only training needs, on the device, against the CPU's in double, which tests check with
// differences: gradients of products and tables, losses, dropout.
#include <graft/backend/cpu/cpu.hpp>
#include <graft/backend/cuda/cuda.cuh>
#include <tests/catch.hpp>
#include <tests/cuda/on_device.hpp>

#include <cmath>
#include <vector>

namespace {

using namespace graft_test;

template <class T>
MatrixView<T const, DeviceSpace> read_only(MatrixView<T, DeviceSpace> view) {
  return view;
}
MatrixView<double const> in_double(Matrix const& m) { return m.view(); }
template <class T>
Buffer<T> random_buffer(Random& random, index_t rows, index_t cols, index_t gap = 8) {
  Buffer<T> result(rows, cols, gap);
  fill_normal(result.view(), random);
  return result;
}

/// Roundings of the result, and sums in f32 that cancel.
template <class Act>
double bound(index_t terms, int roundings = 1) {
  return 2 * roundings * unit_roundoff<Act>() + sum_bound(terms);
}

std::vector<std::byte> stored(Format format, index_t rows, index_t cols, Random& random) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(rows * row_bytes(format, cols)));
  std::vector<float> row(static_cast<std::size_t>(cols));
  for (index_t r = 0; r < rows; ++r) {
    fill_normal(VectorView<float>{row.data(), cols}, random);
    encode_row(format, row.data(), cols, bytes.data() + r * row_bytes(format, cols));
  }
  return bytes;
}

TEMPLATE_TEST_CASE("device: gradients of products", "", float, bf16, f16) {
  Random random(1);
  Device<TestType> device;
  CpuBackend<double> cpu;
  index_t const rows = 37, outputs = 70, inputs = 256;
  auto const dy = random_buffer<TestType>(random, rows, outputs), x = random_buffer<TestType>(random, rows, inputs);
  Matrix const dy64(dy.view()), x64(x.view());
  auto const dy_device = read_only(device.put(dy)), x_device = read_only(device.put(x));
  for (auto const format :
       {Format::f32, Format::bf16, Format::f16, Format::q8_0, Format::q4_0, Format::q4_1, Format::q6_k}) {
    auto const bytes = stored(format, outputs, inputs, random);
    Weight const host{bytes.data(), format, outputs, inputs, nullptr};
    auto const before = random_buffer<TestType>(random, rows, inputs);
    Matrix dx64(before.view());
    product_transposed(cpu, in_double(dy64), host, dx64.view());
    auto const dx = device.put(before);
    product_transposed(device.be, dy_device, {device.put(bytes), format, outputs, inputs, nullptr}, dx);
    INFO(format_info(format).name);
    auto const result = device.get(dx);
    // the weight is rounded to activations too
    CHECK(worst_row(result.view(), dx64) <= bound<TestType>(outputs, 2));
    CHECK(result.gaps_untouched());
  }
  auto const dw = random_buffer<float>(random, outputs, inputs, 4), db = random_buffer<float>(random, 1, outputs, 0);
  Matrix dw64(dw.view()), db64(db.view());
  weight_gradient(cpu, in_double(dy64), in_double(x64), dw64.view());
  bias_gradient(cpu, in_double(dy64), {db64.view().data, outputs});
  auto const dw_device = device.put(dw), db_device = device.put(db);
  weight_gradient(device.be, dy_device, x_device, dw_device);
  bias_gradient(device.be, dy_device, {db_device.data, outputs});
  auto const result = device.get(dw_device);
  CHECK(worst_row(result.view(), dw64) <= bound<float>(rows));
  CHECK(result.gaps_untouched());
  CHECK(worst_row(device.get(db_device).view(), db64) <= bound<float>(rows));
}

TEST_CASE("device: a gradient of a wide output goes through slices of the weight") {
  Random random(2);
  Device<bf16> device;
  CpuBackend<double> cpu;
  index_t const inputs = 131072, outputs = 65;  // 64 outputs of this width are a slice
  auto const bytes = stored(Format::q8_0, outputs, inputs, random);
  auto const dy = random_buffer<bf16>(random, 2, outputs), before = random_buffer<bf16>(random, 2, inputs, 0);
  Matrix const dy64(dy.view());
  Matrix dx64(before.view());
  product_transposed(cpu, in_double(dy64), {bytes.data(), Format::q8_0, outputs, inputs, nullptr}, dx64.view());
  auto const dx = device.put(before);
  product_transposed(device.be, read_only(device.put(dy)), {device.put(bytes), Format::q8_0, outputs, inputs, nullptr},
                     dx);
  CHECK(worst_row(device.get(dx).view(), dx64) <= bound<bf16>(outputs, 3));  // weight, first slice, second slice
}

TEMPLATE_TEST_CASE("device: gradients of embedding rows add up in their order, without atomics", "", float, bf16, f16) {
  Random random(3);
  for (index_t const rows : {1, 40, 200}) {
    Device<TestType> device;
    CpuBackend<double> cpu;
    index_t const size = 36, vocabulary = 11;  // the last token never comes
    std::vector<std::int32_t> index;
    for (index_t n = 0; n < rows; ++n) index.push_back(static_cast<std::int32_t>(pick(random, 0, vocabulary - 2)));
    auto const dh = random_buffer<TestType>(random, rows, size);
    auto const table = random_buffer<float>(random, vocabulary, size, 4);
    Matrix const dh64(dh.view());
    Matrix table64(table.view());
    gather_rows_backward(cpu, index.data(), in_double(dh64), table64.view());
    auto const dh_device = read_only(device.put(dh));
    auto const* const index_device = device.put(index);
    auto const first = device.put(table), again = device.put(table);
    gather_rows_backward(device.be, index_device, dh_device, first);
    gather_rows_backward(device.be, index_device, dh_device, again);
    auto const result = device.get(first), repeated = device.get(again);
    CHECK(worst_row(result.view(), table64) <= bound<float>(rows));
    CHECK(result.gaps_untouched());
    CHECK(same_bits(result.view(), repeated.view()));
    CHECK(same_bits(result.row(vocabulary - 1), table.row(vocabulary - 1), size));
  }
}

TEMPLATE_TEST_CASE("device: losses and their gradients", "", float, bf16, f16) {
  Random random(4);
  for (index_t const size : {2, 77, 1030})
    for (auto const& options : {CrossEntropyOptions{}, CrossEntropyOptions{0.1, 1e-3}}) {
      Device<TestType> device;
      CpuBackend<double> cpu;
      index_t const rows = 9;
      Buffer<TestType> logits(rows, size, 3);
      fill_normal(logits.view(), random, 0, 3);
      std::vector<std::int32_t> labels;
      std::vector<float> weights;
      std::vector<double> weights64;
      for (index_t n = 0; n < rows; ++n) {
        labels.push_back(static_cast<std::int32_t>(pick(random, 0, size - 1)));
        weights.push_back(static_cast<float>(random.uniform(0.1, 1)));
        weights64.push_back(weights.back());
      }
      for (index_t n : {1, 2})
        logits.row(n)[labels[static_cast<std::size_t>(n)]] = static_cast<TestType>(20.f);  // right
      std::fill(logits.row(3), logits.row(3) + size, static_cast<TestType>(1.f));  // all equal: the first is the answer
      Matrix logits64(logits.view());
      std::vector<RowLoss> rows64(static_cast<std::size_t>(rows));
      cross_entropy(cpu, logits64.view(), {labels.data(), rows}, {weights64.data(), rows}, options,
                    {rows64.data(), rows});
      auto const logits1 = device.put(logits);
      std::vector<RowLoss> const poison(static_cast<std::size_t>(rows), {std::nan(""), std::nan(""), true});
      auto* const out = device.put(poison);
      cross_entropy(device.be, logits1, {device.put(labels), rows}, {device.put(weights), rows}, options, {out, rows});
      auto const result = device.get(logits1);
      INFO("width " << size << ", smoothing " << options.label_smoothing);
      for (index_t n = 0; n < rows; ++n) {
        double difference = 0, norm = 0;
        for (index_t k = 0; k < size; ++k) {
          difference += std::pow(static_cast<double>(static_cast<float>(result.row(n)[k])) - logits64(n, k), 2);
          norm += logits64(n, k) * logits64(n, k);
        }
        // p - 1 cancels where the label is nearly certain: there f32's rounding is one of numbers of about 1
        CHECK(std::sqrt(difference) <= bound<TestType>(size) * std::sqrt(norm) + 8 * unit_roundoff<float>());
      }
      CHECK(result.gaps_untouched());
      auto const found = device.get(static_cast<RowLoss const*>(out), rows);
      for (std::size_t n = 0; n < found.size(); ++n) {
        CHECK(std::abs(found[n].loss - rows64[n].loss) <= 1e-6 * (1 + std::abs(rows64[n].loss)));
        CHECK(std::abs(found[n].nll - rows64[n].nll) <= 1e-6 * (1 + std::abs(rows64[n].nll)));
        CHECK(found[n].correct == rows64[n].correct);
      }
    }
  Device<TestType> device;
  CpuBackend<double> cpu;
  auto const outputs = random_buffer<TestType>(random, 5, 3), targets = random_buffer<TestType>(random, 5, 3);
  std::vector<float> const weights{0.5f, 1, 2, 0.25f, 0};
  std::vector<double> const weights64(weights.begin(), weights.end());
  Matrix outputs64(outputs.view());
  Matrix const targets64(targets.view());
  std::vector<RowLoss> rows64(5);
  squared_error(cpu, outputs64.view(), in_double(targets64), {weights64.data(), 5}, {rows64.data(), 5});
  auto const outputs1 = device.put(outputs);
  auto* const out = device.put(std::vector<RowLoss>(5));  // gaps between members too: all of it is copied back
  squared_error(device.be, outputs1, read_only(device.put(targets)), {device.put(weights), 5}, {out, 5});
  CHECK(worst_row(device.get(outputs1).view(), outputs64) <= bound<TestType>(3));
  auto const found = device.get(static_cast<RowLoss const*>(out), 5);
  for (std::size_t n = 0; n < 5; ++n) {
    CHECK(std::abs(found[n].loss - rows64[n].loss) <= 1e-6 * rows64[n].loss);
    CHECK_FALSE(found[n].correct);
  }
}

TEMPLATE_TEST_CASE("device: rows are cleared, converted, added, dropped", "", float, bf16, f16) {
  Random random(5);
  Device<TestType> device;
  CpuBackend<double> cpu;
  auto const x = random_buffer<TestType>(random, 6, 77, 3);
  auto const sums = random_buffer<float>(random, 6, 77, 1);
  Matrix const x64(x.view());
  auto const cleared = device.put(x);
  clear(device.be, cleared);
  auto const zeros = device.get(cleared);
  CHECK(worst_row(zeros.view(), Matrix(6, 77)) == 0);
  CHECK(zeros.gaps_untouched());

  auto const added = device.put(sums);
  accumulate(device.be, -0.75f, read_only(device.put(x)), added);
  Matrix sums64(sums.view());
  accumulate(cpu, -0.75, in_double(x64), sums64.view());
  CHECK(worst_row(device.get(added).view(), sums64) <= bound<float>(1));

  std::vector<std::int32_t> const rows{0, 3, 5};
  auto const converted = device.put(sums);
  convert(device.be, std::span<std::int32_t const>(device.put(rows), 3), read_only(device.put(x)), converted);
  auto const some = device.get(converted);
  for (std::int32_t n = 0; n < 6; ++n) {
    bool const listed = n == 0 || n == 3 || n == 5;
    for (index_t j = 0; j < 77; ++j)
      CHECK(some.row(n)[j] == (listed ? static_cast<float>(x.row(n)[j]) : sums.row(n)[j]));
  }
  CHECK(some.gaps_untouched());

  std::vector<double> const rates{0, 0.5, 0.1, 0.9, 0.5, 0};
  std::vector<std::uint64_t> keys;
  for (int n = 0; n < 6; ++n) keys.push_back(random.next());
  Matrix dropped64(x.view());
  drop(cpu, rates.data(), keys.data(), 4, dropped64.view());
  auto const dropped = device.put(x);
  drop(device.be, device.put(rates), device.put(keys), 4, dropped);
  auto const result = device.get(dropped);
  CHECK(worst_row(result.view(), dropped64) <= bound<TestType>(1));
  index_t hit = 0;
  for (index_t j = 0; j < 77; ++j) {
    CHECK((static_cast<float>(result.row(1)[j]) == 0) == (dropped64(1, j) == 0));
    hit += dropped64(3, j) == 0;
  }
  CHECK(hit > 50);
}

}  // namespace
