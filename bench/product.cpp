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
  Rotated(CpuBackend<>& be, Format format, bool packed, index_t out, index_t in)
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
    for (index_t at = 0; at + size_ <= bytes_.size(); at += size_)
      weights_.push_back({bytes_.data() + at, format_, out_, in_, nullptr});
    std::vector<Weight*> all;
    for (auto& weight : weights_) all.push_back(&weight);
    if (packed) forms_ = pack(be, all);
  }
  Weight next() { return weights_[at_ = (at_ + 1) % weights_.size()]; }
  bench::ReadLimit::Memory memory() const {
    auto const& read = forms_ != nullptr ? *forms_ : bytes_;
    return {{read.data(), static_cast<std::size_t>(read.size())}};
  }
  /// Of one of them.
  double bytes() const {
    if (forms_ == nullptr) return static_cast<double>(size_);
    return static_cast<double>(forms_->size()) / static_cast<double>(weights_.size());
  }

 private:
  Format format_;
  index_t out_, in_;
  index_t size_;
  Storage<std::byte, HostSpace> bytes_;  // as graft takes it, in huge pages where there are any
  std::vector<Weight> weights_;
  std::shared_ptr<Storage<std::byte, HostSpace> const> forms_;
  std::size_t at_ = 0;
};

void run(benchmark::State& state, bench::Shape const& shape, Format format, bool packed, index_t rows, Isa isa,
         Precision precision) {
  CpuBackend<> be(pool());
  be.set_isa(isa);
  be.set_precision(precision);
  Rotated weights(be, format, packed, shape.out, shape.in);
  Storage<float, HostSpace> x(rows * shape.in), y(rows * shape.out);  // as models hold activations
  Random random(2);
  for (index_t k = 0; k < x.size(); ++k) x.data()[k] = static_cast<float>(random.normal());
  std::fill_n(y.data(), y.size(), 0.0f);
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
    for (Format format : {Format::f32, Format::bf16, Format::q8_0, Format::q4_0, Format::q4_1, Format::q5_0,
                          Format::q4_k, Format::q5_k, Format::q6_k})
      for (index_t rows : bench::product_rows)
        for (int level = 0; level <= static_cast<int>(detected_isa()); ++level)
          for (Precision precision : {Precision::exact, Precision::native}) {
            if (shape.in % format_info(format).block != 0) continue;
            auto const isa = static_cast<Isa>(level);
            bool const native = precision == Precision::native;
            if (native && (isa < (format == Format::bf16 ? Isa::vnni : Isa::avx2) || format == Format::f32)) continue;
            // the same kernels
            if (native && isa == Isa::amx && format != Format::bf16) continue;
            if (!native && isa >= Isa::avx512 && isa != detected_isa()) continue;
            bool const has_form = rows <= cpu::pack_kernels<float>(isa, precision, format).most_rows;
            for (bool const packed : has_form ? std::vector{false, true} : std::vector{false})
              benchmark::RegisterBenchmark(
                  text("product/", shape.name, "/", format_info(format).name, packed ? " packed/" : "/", rows, "/",
                       isa_name(isa), "/", native ? "native" : "exact")
                      .c_str(),
                  [=](benchmark::State& state) { run(state, shape, format, packed, rows, isa, precision); })
                  ->UseManualTime()
                  ->Iterations(rows > 64 ? 7 : 25)
                  ->Unit(benchmark::kMicrosecond);
          }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
