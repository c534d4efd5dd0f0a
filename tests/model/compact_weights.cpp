// SPDX-License-Identifier: Apache-2.0
// Models whose weights were made compact answer as before, bit for bit.
#include <bench/made_up.hpp>
#include <tests/catch.hpp>

#include <graft/adapter/lora.hpp>
#include <graft/arch/compact_weights.hpp>
#include <graft/arch/llama.hpp>
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

TEST_CASE("a model with compact weights answers as with those of its file") {
  if (cpu::compact_kernels<float>(default_isa(), Precision::native).form == CompactForm::none)
    GRAFT_SKIP("compact weights are for level avx2, and vnni of processors with AVX512-VBMI2");
  ThreadPool pool(2);
  B be(pool);
  be.set_precision(Precision::native);
  for (bool const tied : {true, false}) {
    INFO((tied ? "tied" : "a head of its own"));
    bench::Sizes const sizes{"small", 2, 128, 192, 4, 2, 96, tied};
    auto const config = bench::config_of(sizes);
    auto const weights = bench::weights_of(sizes, Format::bf16, bench::MadeUp::apart);
    auto made_compact = weights;
    auto const sites = SmallModel::sites_of(config);
    index_t const bytes = compact_weights(be, sites, made_compact);
    index_t multiplied = 0;
    for (auto const& [name, weight] : made_compact.tensors) {
      bool const has_site = weight.rows > 1 && (tied || name != "model.embed_tokens.weight");
      INFO(name);
      CHECK(weight.compact.empty() == !has_site);
      if (has_site) multiplied += weight.bytes();
    }
    CHECK(bytes > multiplied / 2);
    CHECK(bytes < multiplied * 4 / 5);
    CHECK(logits(be, SmallModel(config, made_compact)) == logits(be, SmallModel(config, weights)));
  }
}

TEST_CASE("weights are left alone where products would not read them compact") {
  B be;
  bench::Sizes const sizes{"small", 1, 128, 192, 4, 2, 96, true};
  auto const sites = SmallModel::sites_of(bench::config_of(sizes));
  auto weights = bench::weights_of(sizes, Format::bf16);
  auto exact = weights;
  bool const reads_exactly = cpu::compact_kernels<float>(be.isa(), Precision::exact).form != CompactForm::none;
  CHECK((compact_weights(be, sites, exact) > 0) == reads_exactly);
  be.set_precision(Precision::native);
  auto quantised = bench::weights_of(sizes, Format::q4_1);
  CHECK(compact_weights(be, sites, quantised) == 0);
  be.set_isa(Isa::baseline);
  CHECK(compact_weights(be, sites, weights) == 0);  // no instructions to read them with
}
