// SPDX-License-Identifier: Apache-2.0
// Models whose weights were packed answer as before, bit for bit.
#include <bench/made_up.hpp>
#include <tests/catch.hpp>

#include <graft/adapter/lora.hpp>
#include <graft/arch/llama.hpp>
#include <graft/arch/pack_weights.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/model/context.hpp>
#include <graft/model/model.hpp>
#include <graft/testing/close.hpp>

#include <vector>

namespace {

using namespace graft;
using B = CpuBackend<>;
using SmallModel = Model<Llama, Adapters<LoRADelta>, B>;

/// Logits of a prompt and of tokens that follow it, one after the other.
std::vector<float> logits(B& be, SmallModel&& model) {
  Context context(model, be);
  auto sequence = context.start();
  std::vector<float> all;
  for (std::vector<std::int32_t> const& tokens : {std::vector<std::int32_t>{1, 5, 2, 7, 3}, {4}, {90}, {11}}) {
    std::vector<float> row(static_cast<std::size_t>(model.config().vocabulary));
    SequenceInput<B> const input{&sequence, tokens};
    context.forward_last({&input, 1}, matrix_view(row.data(), 1, model.config().vocabulary));
    all.insert(all.end(), row.begin(), row.end());
  }
  return all;
}

}  // namespace

TEST_CASE("a model with packed weights answers as with those of its file") {
  ThreadPool pool(2);
  B be(pool);
  be.set_precision(Precision::native);
  bool any = false;
  for (Format const format : {Format::bf16, Format::q8_0, Format::q4_1})
    for (bool const tied : {true, false}) {
      if (cpu::pack_kernels<float>(be.isa(), be.precision(), format).form == PackedForm::none) continue;
      any = true;
      INFO(format_info(format).name << (tied ? ", tied" : ", a head of its own"));
      bench::Sizes const sizes{"small", 2, 128, 192, 4, 2, 96, tied};
      auto const config = bench::config_of(sizes);
      auto const weights = bench::weights_of(sizes, format, bench::MadeUp::apart);
      auto packed = weights;
      auto const sites = SmallModel::sites_of(config);
      index_t const bytes = pack_weights(be, sites, packed);
      index_t multiplied = 0;
      for (auto const& [name, weight] : packed.tensors) {
        bool const has_site = weight.rows > 1 && (tied || name != "model.embed_tokens.weight");
        INFO(name);
        CHECK(weight.packed.empty() == !has_site);
        if (has_site) multiplied += weight.bytes();
      }
      CHECK(bytes > multiplied / 2);
      CHECK(bytes < multiplied * (format == Format::bf16 ? 4 : 6) / 5);
      CHECK(logits(be, SmallModel(config, packed)) == logits(be, SmallModel(config, weights)));
    }
  if (!any) GRAFT_SKIP("weights are packed for levels avx2 and avx512, and vnni of processors with AVX512-VBMI2");
}

TEST_CASE("weights are left alone where products would not read them packed") {
  B be;
  bench::Sizes const sizes{"small", 1, 128, 192, 4, 2, 96, true};
  auto const sites = SmallModel::sites_of(bench::config_of(sizes));
  for (Format const format : {Format::bf16, Format::q4_1, Format::f32})
    for (int level = 0; level <= static_cast<int>(default_isa()); ++level)
      for (Precision const precision : {Precision::exact, Precision::native}) {
        INFO(format_info(format).name << ", " << isa_name(static_cast<Isa>(level)));
        auto weights = bench::weights_of(sizes, format);
        be.set_isa(static_cast<Isa>(level));
        be.set_precision(precision);
        bool const reads = cpu::pack_kernels<float>(be.isa(), precision, format).form != PackedForm::none;
        CHECK((pack_weights(be, sites, weights) > 0) == reads);
        if (format == Format::f32 || level == 0) CHECK_FALSE(reads);
      }
}
