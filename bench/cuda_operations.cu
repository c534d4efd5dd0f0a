// SPDX-License-Identifier: Apache-2.0
// Operations of the CUDA backend on a GPU, next to the bandwidth of a plain copy measured in the same run.
//     cuda_operations [--small] [products rows]      both where none is named
// Weights are rotated, so that no cache holds them; what is computed with is random bits.
#include <graft/backend/cuda/cuda.cuh>

#include <bench/on_device.cuh>
#include <bench/shapes.hpp>

namespace {

using namespace graft;
using bench::Row;
using B = CudaBackend<bf16>;
using View = MatrixView<bf16, DeviceSpace>;
using ConstView = MatrixView<bf16 const, DeviceSpace>;

class Bench {
 public:
  explicit Bench(bool small) : small_(small) {
    bandwidth_ = bench::copy_bandwidth(be_, small ? index_t{1} << 16 : index_t{1} << 30);
    Row("copy").with("bytes_per_second", bandwidth_);
  }

  void products() {
    for (auto const& shape : bench::shapes)
      for (Format const format : {Format::bf16, Format::q8_0, Format::q4_0, Format::q4_1, Format::q6_k})
        for (index_t const rows : {1, 8, 32, 256, 4096})
          if (shape.in % format_info(format).block == 0 && (!small_ || shape.in * shape.out * rows < 400'000))
            one_product(shape, format, rows);
  }

  void rows() {
    for (index_t const rows : {1, 32, 4096}) {
      if (small_ && rows > 1) continue;
      auto const scope = be_.scope();
      index_t const d = small_ ? 64 : 4096, f = small_ ? 128 : 11008;
      auto const x = matrix(rows, d), y = matrix(rows, d), gate = matrix(rows, f), up = matrix(rows, f);
      VectorView<float const, DeviceSpace> const weight{bench::filled<float>(be_, d), d};
      time("rms_norm", rows, d, 4., [&](index_t) { rms_norm(be_, ConstView(x), weight, 1e-5, y); });
      time("activate_gated", rows, f, 6., [&](index_t) { activate_gated(be_, Activation::silu, gate, ConstView(up)); });
    }
  }

 private:
  View matrix(index_t rows, index_t cols) { return {bench::filled<bf16>(be_, rows * cols), rows, cols, cols}; }

  // Seconds of work(0), work(1), ...
  double seconds_of(auto&& work) {
    index_t k = 0;
    return bench::median_seconds(be_, small_ ? 2 : 20, [&] { work(k++); });
  }

  void time(char const* operation, index_t rows, index_t cols, double bytes_of_each, auto&& work) {
    double const seconds = seconds_of(work), bytes = bytes_of_each * static_cast<double>(rows * cols);
    Row("operation")
        .with("operation", operation)
        .with("rows", rows)
        .with("cols", cols)
        .with("seconds", seconds)
        .with("share_of_copy_bandwidth", bytes / seconds / bandwidth_);
  }

  void one_product(bench::Shape const& shape, Format format, index_t rows) {
    auto const scope = be_.scope();
    index_t const size = round_up(shape.out * row_bytes(format, shape.in), 256);
    index_t const copies = small_ ? 2 : (index_t{512} << 20) / size + 1;  // more than any cache holds
    auto* const weights = bench::filled<std::byte>(be_, copies * size);
    auto const x = matrix(rows, shape.in), y = matrix(rows, shape.out);
    double const seconds = seconds_of([&](index_t k) {
      Weight const w{weights + k % copies * size, format, shape.out, shape.in, nullptr};
      product(be_, ConstView(x), w, VectorView<float const, DeviceSpace>{}, y);
    });
    auto const bytes = static_cast<double>(shape.out * row_bytes(format, shape.in) + 2 * rows * (shape.in + shape.out));
    Row("product")
        .with("shape", shape.name)
        .with("weights", std::string(format_info(format).name))
        .with("rows", rows)
        .with("seconds", seconds)
        .with("share_of_copy_bandwidth", bytes / seconds / bandwidth_)
        .with("flops_per_second", 2 * static_cast<double>(rows * shape.in * shape.out) / seconds);
  }

  bool small_;
  B be_;
  double bandwidth_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  bench::Arguments const arguments(argc, argv);
  Bench bench(arguments.small);
  if (arguments.wants("products")) bench.products();
  if (arguments.wants("rows")) bench.rows();
  return 0;
}
