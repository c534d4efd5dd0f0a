// SPDX-License-Identifier: Apache-2.0
// Which sites an architecture has, under which names, and what it says of files that lack one of its tensors.
#include <tests/catch.hpp>

#include <graft/arch/architectures.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/io/model_files.hpp>

#include <set>
#include <string>
#include <vector>

using namespace graft;

namespace {

using B = CpuBackend<float>;

ModelFiles files_of(std::string const& name) { return open_model(GRAFT_TEST_DATA "/models/" + name); }

SiteTable sites_of(ModelConfig const& config) {
  return with_architecture(config.architecture, [&]<class Arch>() {
    SiteTable sites;
    Arch::add_sites(config, sites);
    Arch::template Ends<B>::add_sites(config, sites);
    return sites;
  });
}

/// "id path in out" of every site of a layer; layer -1: outside.
std::vector<std::string> listed(SiteTable const& sites, index_t layer) {
  std::vector<std::string> lines;
  for (auto const& site : sites.all())
    if (site.layer == layer) lines.push_back(text(site.id, ' ', site.path, ' ', site.in, ' ', site.out));
  return lines;
}

/// Loads ends and all layers of a model; the FormatError's sentence, or "".
std::string refused(ModelFiles const& files) {
  auto const& config = files.config;
  return with_architecture(config.architecture, [&]<class Arch>() -> std::string {
    SiteTable const sites = sites_of(config);
    DenseVectors<B> dense;
    try {
      Arch::template Ends<B>::load(config, files.weights, sites, dense);
      for (index_t l = 0; l < config.layers; ++l) Arch::template load<B>(config, files.weights, sites, dense, l);
    } catch (FormatError const& error) {
      return error.what();
    }
    return "";
  });
}

}  // namespace

TEST_CASE("sites of Llama") {
  auto const config = files_of("llama_multi_head").config;  // d 32, 4 heads of 8, f 56, V 71
  auto const sites = sites_of(config);
  std::string const p = "model.layers.1.";
  CHECK(listed(sites, 1) ==
        std::vector<std::string>{"q_proj " + p + "self_attn.q_proj 32 32", "k_proj " + p + "self_attn.k_proj 32 32",
                                 "v_proj " + p + "self_attn.v_proj 32 32", "o_proj " + p + "self_attn.o_proj 32 32",
                                 "gate_proj " + p + "mlp.gate_proj 32 56", "up_proj " + p + "mlp.up_proj 32 56",
                                 "down_proj " + p + "mlp.down_proj 56 32", "rotated_q model.layers.1 32 32",
                                 "block_out model.layers.1 32 32"});
  CHECK(listed(sites, -1) ==
        std::vector<std::string>{"embed_tokens model.embed_tokens 71 32", "lm_head lm_head 32 71"});
  CHECK(sites.layers().size() == 2);
}

TEST_CASE("sites of GPT-2") {
  auto const config = files_of("gpt2").config;  // d 30, f 120, V 83
  auto const sites = sites_of(config);
  std::string const p = "transformer.h.0.";
  CHECK(listed(sites, 0) ==
        std::vector<std::string>{"c_attn " + p + "attn.c_attn 30 90", "attn.c_proj " + p + "attn.c_proj 30 30",
                                 "c_fc " + p + "mlp.c_fc 30 120", "mlp.c_proj " + p + "mlp.c_proj 120 30",
                                 "block_out transformer.h.0 30 30"});
  CHECK(listed(sites, -1) == std::vector<std::string>{"wte transformer.wte 83 30", "lm_head lm_head 30 83"});
  auto const& layer = sites.layers()[1];  // PEDRO's vectors: two slices of the fused projection
  CHECK(sites[layer.query.site].id == "c_attn");
  CHECK(layer.query.offset == 0);
  CHECK(layer.query.size == 30);
  CHECK(layer.value.site == layer.query.site);
  CHECK(layer.value.offset == 60);
  CHECK(layer.value.size == 30);
  CHECK(sites[layer.up.site].id == "c_fc");
  CHECK(layer.up.size == 120);
  CHECK(layer.rotated_query.site == -1);
}

TEST_CASE("sites of BERT and RoBERTa, with and without a head") {
  auto const bare = sites_of(files_of("bert").config);  // d 32, f 52, V 79
  std::string const p = "encoder.layer.1.";
  CHECK(listed(bare, 1) ==
        std::vector<std::string>{"query " + p + "attention.self.query 32 32", "key " + p + "attention.self.key 32 32",
                                 "value " + p + "attention.self.value 32 32",
                                 "attention.output.dense " + p + "attention.output.dense 32 32",
                                 "intermediate.dense " + p + "intermediate.dense 32 52",
                                 "output.dense " + p + "output.dense 52 32", "block_out encoder.layer.1 32 32"});
  CHECK(listed(bare, -1) == std::vector<std::string>{"word_embeddings embeddings.word_embeddings 79 32",
                                                     "pooler.dense pooler.dense 32 32"});
  auto const bert = sites_of(files_of("bert_classifier").config);
  CHECK(listed(bert, -1) == std::vector<std::string>{"word_embeddings bert.embeddings.word_embeddings 79 32",
                                                     "pooler.dense bert.pooler.dense 32 32",
                                                     "classifier classifier 32 3"});
  CHECK(bert.find("bert.encoder.layer.0.attention.self.query") >= 0);
  auto const roberta = sites_of(files_of("roberta_classifier").config);
  CHECK(listed(roberta, -1) == std::vector<std::string>{"word_embeddings roberta.embeddings.word_embeddings 79 32",
                                                        "classifier.dense classifier.dense 32 32",
                                                        "classifier.out_proj classifier.out_proj 32 2"});
  CHECK(bert.layers()[0].value.offset == 0);
  CHECK(bert[bert.layers()[0].up.site].id == "intermediate.dense");
}

TEST_CASE("biases that transformers saves are those the architecture says there are, and the other way round") {
  for (auto const* name : {"llama_lora", "llama_biased", "mistral", "qwen2", "qwen3", "gpt2", "gpt2_classifier", "bert",
                           "bert_masked", "bert_classifier", "roberta", "roberta_classifier"}) {
    auto const files = files_of(name);
    std::set<std::string> stated;
    with_architecture(files.config.architecture, [&]<class Arch>() {
      for (auto const& tensor : Arch::optional_tensors(files.config))
        if (tensor.presence != OptionalTensor::Presence::never)
          for (index_t l = 0; l < (tensor.in_layers ? files.config.layers : 1); ++l)
            stated.insert(tensor.in_layers ? text(Arch::layer_path(files.config, l), '.', tensor.name) : tensor.name);
    });
    for (auto const& tensor : stated) {
      INFO(name << ' ' << tensor);
      CHECK(files.weights.contains(tensor));
    }
    for (auto const& [tensor, weight] : files.weights.tensors) {
      INFO(name << ' ' << tensor);
      bool const norm = tensor.find("orm.") != tensor.npos || tensor.find(".ln_") != tensor.npos;
      bool const unread = !files.config.classifier && tensor.find("pooler.") != tensor.npos;
      bool const twice = tensor == "cls.predictions.bias";  // the decoder's
      if (tensor.ends_with(".bias") && !norm && !unread && !twice) CHECK(stated.contains(tensor));
    }
  }
}

TEST_CASE("every tensor of a model is needed, in its shape") {
  for (auto const* name : {"llama_multi_head", "gpt2", "bert_classifier", "roberta_classifier"}) {
    auto const files = files_of(name);
    REQUIRE(refused(files) == "");
    int needed = 0;
    for (auto const& [tensor, weight] : files.weights.tensors) {
      INFO(name << ' ' << tensor);
      auto without = files;
      without.weights.tensors.erase(tensor);
      // a linear layer may do without its bias
      bool const optional =
          tensor.ends_with(".bias") && tensor.find("LayerNorm") == tensor.npos && tensor.find(".ln_") == tensor.npos;
      CHECK(refused(without) == (optional ? "" : text(files.weights.path, ": tensor ", tensor, " is missing")));
      needed += optional ? 0 : 1;
      auto longer = files;
      ++longer.weights.tensors.at(tensor).cols;
      CHECK(refused(longer) == text(files.weights.path, ": tensor ", tensor, " should be [", weight.rows, ", ",
                                    weight.cols, "] but is [", weight.rows, ", ", weight.cols + 1, "]"));
    }
    CHECK(needed > 15);
  }
}

TEST_CASE("a head that is the embedding has the embedding's weight") {
  for (std::string const name : {"gpt2", "llama_lora"}) {
    INFO(name);
    auto const files = files_of(name);
    auto const sites = sites_of(files.config);
    auto const& head = sites[sites.find("lm_head")];
    bool const tied = name == "gpt2";
    REQUIRE(files.weights.contains("lm_head.weight") == !tied);
    auto const weight = files.weights.matrix(head);
    CHECK(weight.rows == files.config.vocabulary);
    CHECK(weight.data == files.weights.tensors.at(tied ? "transformer.wte.weight" : "lm_head.weight").data);
  }
}
