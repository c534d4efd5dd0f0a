// SPDX-License-Identifier: Apache-2.0
// Products at every level, format, precision and number of rows, next to what the machine can do: the read limit and
// the limit of the instruction, measured in turn with the product. Weights are rotated, so that no cache holds them.
#include <graft/backend/cpu/cpu.hpp>
#include <graft/testing/random.hpp>

#include <benchmark/benchmark.h>

#include <bench/beside_limits.hpp>
#include <bench/shapes.hpp>

namespace {

using namespace graft;

ThreadPool& pool() {
  static ThreadPool one(bench::threads());
  return one;
}

/// Copies of one weight, more than a cache holds.
class Rotated {
 public:
  Rotated(Format format, index_t out, index_t in)
      : format_(format),
        out_(out),
        in_(in),
        size_(out * row_bytes(format, in)),
        bytes_(size_ * ((index_t{192} << 20) / size_ + 1)) {
    Random random(1);
    std::vector<float> row(static_cast<std::size_t>(in));
    index_t const stored = row_bytes(format, in);
    for (index_t k = 0; k < bytes_.size() / stored; ++k) {
      if (k < 32) {
        for (auto& value : row) value = static_cast<float>(random.normal());
        encode_row(format, row.data(), in, bytes_.data() + k * stored);
      } else {
        std::memcpy(bytes_.data() + k * stored, bytes_.data() + (k - 32) * stored, static_cast<std::size_t>(stored));
      }
    }
  }
  Weight next() {
    at_ = at_ + 2 * size_ > bytes_.size() ? 0 : at_ + size_;
    return {bytes_.data() + at_, format_, out_, in_, nullptr};
  }
  bench::ReadLimit::Memory memory() const { return {{bytes_.data(), static_cast<std::size_t>(bytes_.size())}}; }
  double bytes() const { return static_cast<double>(size_); }

 private:
  Format format_;
  index_t out_, in_;
  index_t size_, at_ = 0;
  Storage<std::byte, HostSpace> bytes_;  // as graft takes it, in huge pages where there are any
};

void run(benchmark::State& state, bench::Shape const& shape, Format format, index_t rows, Isa isa,
         Precision precision) {
  CpuBackend<> be(pool());
  be.set_isa(isa);
  be.set_precision(precision);
  Rotated weights(format, shape.out, shape.in);
  std::vector<float> x(static_cast<std::size_t>(rows * shape.in)), y(static_cast<std::size_t>(rows * shape.out));
  Random random(2);
  for (auto& value : x) value = static_cast<float>(random.normal());
  auto const once = [&] {
    product(be, matrix_view(static_cast<float const*>(x.data()), rows, shape.in), weights.next(), {},
            matrix_view(y.data(), rows, shape.out));
  };
  auto const instruction = precision == Precision::exact ? bench::Instruction::fma
                           : format == Format::bf16      ? bench::Instruction::bf16
                                                         : bench::Instruction::integers;
  double const operations = 2.0 * static_cast<double>(rows * shape.in * shape.out);
  bench::ReadLimit read_limit(pool(), weights.memory());
  bench::beside_limits(state, pool(), {weights.bytes(), operations, isa, instruction}, read_limit, once);
}

}  // namespace

int main(int argc, char** argv) {
  for (auto const& shape : bench::shapes)
    for (Format format : {Format::f32, Format::bf16, Format::q8_0, Format::q4_0, Format::q4_1})
      for (index_t rows : bench::product_rows)
        for (int level = 0; level <= static_cast<int>(detected_isa()); ++level)
          for (Precision precision : {Precision::exact, Precision::native}) {
            auto const isa = static_cast<Isa>(level);
            bool const native = precision == Precision::native;
            if (native && (isa < Isa::vnni || format == Format::f32)) continue;
            // the same kernels
            if (native && isa == Isa::amx && format != Format::bf16) continue;
            if (!native && isa >= Isa::avx512 && isa != detected_isa()) continue;
            benchmark::RegisterBenchmark(
                text("product/", shape.name, "/", format_info(format).name, "/", rows, "/", isa_name(isa), "/",
                     native ? "native" : "exact")
                    .c_str(),
                [=](benchmark::State& state) { run(state, shape, format, rows, isa, precision); })
                ->UseManualTime()
                ->Iterations(rows > 64 ? 7 : 25)
                ->Unit(benchmark::kMicrosecond);
          }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
