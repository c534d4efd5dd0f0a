// SPDX-License-Identifier: Apache-2.0
// LoRA in GGUF files: what llama.cpp's converter wrote means what the PEFT folder meant, both ways; what the format
// cannot hold is refused.
#include <tests/catch.hpp>
#include <tests/io/adapter_folders.hpp>
#include <tests/io/files.hpp>
#include <tests/io/golden_sites.hpp>

#include <graft/io/gguf_lora.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace fs = std::filesystem;
using graft::Format;
using graft::index_t;
using graft::LoRADelta;
using graft::Module;
using graft_test::B;
using graft_test::golden_model;
using graft_test::GoldenModel;
using graft_test::sample;
using graft_test::TemporaryFolder;

namespace {

fs::path const converted = GRAFT_TEST_DATA "/gguf_lora";

Module<LoRADelta, B> from_peft(GoldenModel const& model, std::string const& adapter) {
  return graft::read_peft<LoRADelta, B>(model.folder / ("adapter_" + adapter), model.sites, adapter).module;
}
Module<LoRADelta, B> from_gguf(GoldenModel const& model, fs::path const& file) {
  auto read = graft::read_gguf_lora<B>(file, model.sites, "x", model.config);
  CHECK(read.warnings.empty());
  return std::move(read.module);
}

/// s B A of every site, in double.
std::map<index_t, std::vector<double>> deltas(Module<LoRADelta, B> const& module) {
  std::map<index_t, std::vector<double>> result;
  for (auto const& entry : module.entries) {
    auto const &a = entry.state.a, &b = entry.state.b;
    auto& delta = result[entry.site];
    for (index_t o = 0; o < b.rows; ++o)
      for (index_t i = 0; i < a.cols; ++i) {
        double sum = 0;
        for (index_t r = 0; r < a.rows; ++r) sum += static_cast<double>(b(o, r)) * static_cast<double>(a(r, i));
        delta.push_back(entry.policy.scale() * sum);
      }
  }
  return result;
}
/// The largest relative L2 distance between the deltas of a site.
double distance(Module<LoRADelta, B> const& x, Module<LoRADelta, B> const& y) {
  auto const dx = deltas(x), dy = deltas(y);
  REQUIRE(dx.size() == dy.size());
  double worst = 0;
  for (auto const& [site, values] : dx) {
    auto const other = dy.at(site);
    REQUIRE(values.size() == other.size());
    double difference = 0, norm = 0;
    for (std::size_t k = 0; k < values.size(); ++k) {
      difference += (values[k] - other[k]) * (values[k] - other[k]);
      norm += values[k] * values[k];
    }
    worst = std::max(worst, std::sqrt(difference / norm));
  }
  return worst;
}

}  // namespace

TEST_CASE("adapters converted by llama.cpp are the adapters they were made from") {
  struct Case {
    char const *model, *adapter, *type;
    double bound;
  };
  // f32, and f16 of values that were halves, are exact; bf16 has 8 bits for each of A and B, q8_0 some 7 for A
  for (auto const& c :
       {Case{"llama_lora", "a", "f32", 0}, Case{"llama_lora", "f16", "f16", 0},
        Case{"llama_lora", "f16", "bf16", 0x1p-7}, Case{"llama_lora", "a", "q8_0", 0x1p-6},
        Case{"llama_lora_embedding", "embed", "f32", 0}, Case{"llama_lora_embedding_saved", "embed", "f32", 0},
        Case{"mistral", "lora", "f32", 0}, Case{"qwen2", "lora", "f32", 0}, Case{"qwen3", "lora", "f32", 0}}) {
    std::string const file = std::string(c.model) + "-" + c.adapter + "-" + c.type + ".gguf";
    INFO(file);
    auto const model = golden_model(c.model);
    auto peft = from_peft(model, c.adapter);
    auto const gguf = from_gguf(model, converted / file);
    CHECK(distance(gguf, peft) <= c.bound);
    if (c.bound != 0) CHECK(distance(gguf, peft) > 0);
    // and the other way: the tensors are the converter's to the byte
    if (c.bound != 0 || (model.config.tied && gguf.entries[0].state.embedding)) continue;
    peft.saved.clear();  // the embedding as it was, which PEFT wrote beside its adapter and the converter skips
    TemporaryFolder folder;
    auto const dtype = std::string(c.type) == "f16" ? Format::f16 : Format::f32;
    graft::write_gguf_lora(folder / "x.gguf", peft, model.sites, model.config, dtype);
    auto const ours = graft::read_gguf(folder / "x.gguf"), theirs = graft::read_gguf(converted / file);
    CHECK(ours.tensors.tensors().size() == theirs.tensors.tensors().size());
    for (auto const& tensor : theirs.tensors.tensors()) {
      INFO(tensor.name);
      auto const& mine = ours.tensors.at(tensor.name, tensor.shape);
      REQUIRE(mine.bytes == tensor.bytes);
      CHECK(std::equal(mine.data, mine.data + mine.bytes, tensor.data));
    }
    for (auto const* key : {"general.architecture", "general.type", "adapter.type"})
      CHECK(ours.metadata.get<std::string>(key) == theirs.metadata.get<std::string>(key));
    CHECK(ours.metadata.get<float>("adapter.lora.alpha") == theirs.metadata.get<float>("adapter.lora.alpha"));
  }
}

TEST_CASE("scales: one alpha in the file, whatever rule or patterns the module has") {
  auto const model = golden_model("llama_lora");
  TemporaryFolder folder;
  auto const again = [&](Module<LoRADelta, B> const& module) {
    graft::write_gguf_lora(folder / "x.gguf", module, model.sites, model.config);
    return from_gguf(model, folder / "x.gguf");
  };
  auto const stabilized = from_peft(model, "rslora");
  REQUIRE(stabilized.policy.rank_stabilized);
  auto const read = again(stabilized);
  // llama.cpp's scale is alpha / r with alpha = 5 sqrt(r), rounded once to f32
  CHECK(distance(read, stabilized) < 1e-7);
  CHECK(read.entries[0].policy.alpha == Approx(5 * std::sqrt(6)));
  for (std::size_t k = 0; k < read.entries.size(); ++k)
    CHECK(std::equal(read.entries[k].state.b.data, read.entries[k].state.b.data + read.entries[k].state.b.size(),
                     stabilized.entries[k].state.b.data));

  auto const patterns = from_peft(model, "patterns");
  CHECK(distance(again(patterns), patterns) < 1e-7);  // B was multiplied by the ratio: one rounding
  CHECK(again(patterns).entries[0].policy.alpha == 8);

  // alpha 0: PEFT's scale is 0, llama.cpp's is 1
  LoRADelta none{.rank = 2, .alpha = 0};
  auto const silent = again(sample(none, model.sites, {"model.layers.0.self_attn.q_proj"}));
  CHECK(deltas(silent).begin()->second[3] == 0);
  auto const loud = sample(LoRADelta{.rank = 2, .alpha = 2}, model.sites, {"model.layers.0.self_attn.q_proj"});
  graft::write_gguf_lora(folder / "x.gguf", loud, model.sites, model.config);
  auto gguf = graft::read_gguf(folder / "x.gguf");
  gguf.metadata.set("adapter.lora.alpha", 0.0f);
  graft::write_gguf(folder / "y.gguf", gguf.metadata, gguf.tensors.tensors());
  CHECK(distance(from_gguf(model, folder / "y.gguf"), loud) == 0);
}

TEST_CASE("a module survives a GGUF file and becomes the PEFT folder it was") {
  auto const model = golden_model("llama_lora");
  auto const module = from_peft(model, "a");
  TemporaryFolder folder;
  graft::write_gguf_lora(folder / "x.gguf", module, model.sites, model.config);
  auto const read = from_gguf(model, folder / "x.gguf");
  CHECK(graft_test::numbers(read) == graft_test::numbers(module));
  graft::write_peft(folder / "x", read, model.sites);
  CHECK(graft_test::read_bytes(folder / "x/adapter_model.safetensors") ==
        graft_test::read_bytes(model.folder / "adapter_a/adapter_model.safetensors"));
  CHECK(graft_test::config_of(folder / "x")["target_modules"] ==
        graft_test::config_of(model.folder / "adapter_a")["target_modules"]);

  // GPT-2's modules too, whose order GGUF leaves alone; HF's own paths come back
  auto const gpt2 = golden_model("gpt2");
  auto const other = sample(LoRADelta{.rank = 1}, gpt2.sites,
                            {"transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_proj", "transformer.h.0.mlp.c_fc",
                             "transformer.h.1.mlp.c_proj"});
  graft::write_gguf_lora(folder / "g.gguf", other, gpt2.sites, gpt2.config);
  CHECK(graft_test::numbers(from_gguf(gpt2, folder / "g.gguf")) == graft_test::numbers(other));
  auto const file = graft::read_gguf(folder / "g.gguf");
  CHECK(file.metadata.get<std::string>("general.architecture") == "gpt2");
  for (auto const* name : {"blk.0.attn_qkv", "blk.1.attn_output", "blk.0.ffn_up", "blk.1.ffn_down"})
    CHECK(file.tensors.find(std::string(name) + ".weight.lora_a") != nullptr);
}

TEST_CASE("without its model a GGUF LoRA can be looked at") {
  auto const path = converted / "llama_lora-a-f32.gguf";
  auto const sites = graft::gguf_lora_sites(path);
  REQUIRE(sites.size() == 4);
  auto const& q = sites[sites.find("model.layers.1.self_attn.q_proj")];
  CHECK((q.in == 32 && q.out == 40 && q.layer == 1 && q.id == "q_proj"));
  auto const read = graft::read_gguf_lora<B>(path, sites, "x");
  CHECK(read.module.entries.size() == 4);
  REQUIRE(read.warnings.size() == 1);
  CHECK_THAT(read.warnings[0], Catch::Contains("rows of query and key stay in GGUF's order"));
  auto const embedding = graft::gguf_lora_sites(converted / "llama_lora_embedding-embed-f32.gguf");
  CHECK((embedding[0].kind == graft::SiteKind::embedding && embedding[0].in == 71 && embedding[0].out == 32));
}

TEST_CASE("what is wrong with a GGUF LoRA is said by name") {
  auto const model = golden_model("llama_lora");
  auto const original = graft::read_gguf(converted / "llama_lora-a-f32.gguf");
  TemporaryFolder folder;
  auto const sentence = [&](std::function<void(graft::GgufMetadata&, std::vector<graft::TensorInfo>&)> const& change) {
    auto metadata = original.metadata;
    auto tensors = original.tensors.tensors();
    change(metadata, tensors);
    graft::write_gguf(folder / "source.gguf", metadata, tensors);
    return graft_test::refusal(folder / "x.gguf", graft_test::read_bytes(folder / "source.gguf"),
                               [&](fs::path const& path) { from_gguf(model, path); });
  };
  auto const with_key = [&](std::string const& key, auto const& value) {
    return sentence([&](auto& metadata, auto&) { metadata.set(key, value); });
  };
  auto const with_first = [&](std::function<void(graft::TensorInfo&)> const& change) {
    return sentence([&](auto&, auto& tensors) { change(tensors[0]); });  // blk.0.attn_q.weight.lora_a [4, 32]
  };
  CHECK(with_key("general.name", std::string("y")) == "");
  CHECK(with_key("general.type", std::string("model")) == "metadata key 'general.type' is 'model', expected 'adapter'");
  CHECK(with_key("adapter.type", std::string("road")) == "metadata key 'adapter.type' is 'road', expected 'lora'");
  CHECK(with_key("general.architecture", std::string("qwen2")) == "is for architecture 'qwen2', the model is 'llama'");
  CHECK_THAT(with_key("general.architecture", std::string("gemma")), Catch::Contains("supported are llama, qwen2"));
  CHECK(with_key("adapter.lora.alpha", std::nanf("")) == "metadata key 'adapter.lora.alpha' is nan");
  CHECK_THAT(sentence([](auto& metadata, auto&) {
               metadata.set_array("adapter.alora.invocation_tokens", std::vector<std::uint32_t>{1});
             }),
             Catch::Contains("activated LoRA is not supported"));
  CHECK(sentence([](auto&, auto& tensors) { tensors.clear(); }) == "has no tensor of a LoRA adapter");
  CHECK(sentence([](auto&, auto& tensors) { tensors.erase(tensors.begin()); }) ==
        "tensor 'blk.0.attn_q.weight.lora_a' is missing");
  CHECK(with_first([](auto& t) { t.name = "blk.0.attn_q.weight"; }) ==
        "tensor 'blk.0.attn_q.weight' is neither lora_a nor lora_b");
  CHECK(with_first([](auto& t) { t.name = "blk.0.attn_q.bias.lora_a"; }) ==
        "tensor 'blk.0.attn_q.bias.lora_a' has no place in a llama model");
  CHECK(sentence([](auto&, auto& tensors) {
          tensors[0].name = "blk.7.attn_q.weight.lora_a";
          tensors[1].name = "blk.7.attn_q.weight.lora_b";
        }) == "tensor 'blk.7.attn_q.weight.lora_a' belongs to no module of the model that LoRA can adapt");
  CHECK(with_first([](auto& t) {
          t.shape = {2, 64};
        }) ==
        "tensor 'blk.0.attn_q.weight.lora_a' has shape [2, 64] of rank 2, 'blk.0.attn_q.weight.lora_b' has [40, 4] of "
        "rank 4");
  CHECK(with_first([](auto& t) {
          t.shape = {2, 2, 32};
        }) == "tensor 'blk.0.attn_q.weight.lora_a' has shape [2, 2, 32], expected a matrix");
  std::vector<float> values(4 * 33, 1.0f);
  CHECK(with_first([&](auto& t) {
          t = graft::tensor_info(t.name, {4, 33}, values.data());
        }) ==
        "tensor 'blk.0.attn_q.weight.lora_a' has shape [4, 33] for 33 inputs, but model.layers.0.self_attn.q_proj has "
        "32");
  values[5] = HUGE_VALF;
  CHECK(with_first([&](auto& t) {
          t = graft::tensor_info(t.name, {4, 32}, values.data());
        }) == "tensor 'blk.0.attn_q.weight.lora_a' holds inf at place 5");
  std::vector<std::int32_t> integers(4 * 32);
  CHECK(with_first([&](auto& t) {
          t = graft::tensor_info(t.name, {4, 32}, integers.data());
        }) == "tensor 'blk.0.attn_q.weight.lora_a' is I32, which holds no real numbers");

  std::vector<float> norm(32, 1.0f);
  graft::write_gguf(folder / "norm.gguf", original.metadata, [&] {
    auto tensors = original.tensors.tensors();
    tensors.push_back(graft::tensor_info("blk.0.attn_norm.weight", {32}, norm.data()));
    return tensors;
  }());
  auto const read = graft::read_gguf_lora<B>(folder / "norm.gguf", model.sites, "x", model.config);
  REQUIRE(read.warnings.size() == 1);
  CHECK_THAT(read.warnings[0], Catch::Contains("'blk.0.attn_norm.weight' is ignored, as by llama.cpp"));
}

TEST_CASE("what a GGUF LoRA cannot hold is refused before anything is written") {
  auto const model = golden_model("llama_lora");
  TemporaryFolder folder;
  auto const refusal = [&](Module<LoRADelta, B> const& module, GoldenModel const& of) {
    try {
      graft::write_gguf_lora(folder / "x.gguf", module, of.sites, of.config);
    } catch (graft::ContractError const& error) {
      CHECK_FALSE(fs::exists(folder / "x.gguf"));
      return std::string(error.what());
    }
    return std::string();
  };
  CHECK_THAT(refusal(from_peft(model, "lora_bias"), model), Catch::Contains("it has a lora_bias at model.layers."));
  CHECK_THAT(refusal(Module<LoRADelta, B>{}, model), Catch::Contains("it has no sites"));
  auto with_head = from_peft(model, "a");
  with_head.saved["score.weight"] = {{1, 32}, std::vector<float>(32)};
  CHECK_THAT(refusal(with_head, model), Catch::Contains("it brings a replacement of score.weight"));
  auto const tied = golden_model("llama_lora_embedding");
  REQUIRE(tied.config.tied);
  for (auto const* adapter : {"head", "embed"})
    CHECK_THAT(refusal(from_peft(tied, adapter), tied), Catch::Contains("the model's head shares its weight"));
  auto const bert = golden_model("bert");
  auto const query = std::find_if(bert.sites.all().begin(), bert.sites.all().end(),
                                  [](graft::SiteInfo const& site) { return site.id == "query"; });
  REQUIRE(query != bert.sites.all().end());
  CHECK_THAT(refusal(sample(LoRADelta{}, bert.sites, {query->path}), bert),
             Catch::Contains("GGUF has no name for " + query->path));
}

TEST_CASE("whatever the bytes of a GGUF LoRA are, it is read or refused") {
  auto const model = golden_model("llama_lora");
  auto const original = graft_test::read_bytes(converted / "llama_lora-a-q8_0.gguf");
  TemporaryFolder folder;
  graft::Random random(3);
  int refused = 0;
  for (int k = 0; k < 3000; ++k) {
    auto bytes = original;
    for (int change = 0; change < 2; ++change) {
      auto const at = static_cast<std::size_t>(random.next() % std::min<std::size_t>(bytes.size(), 1000));
      if (random.next() % 8 == 0)
        bytes.resize(at + 1);
      else
        bytes[at] = static_cast<char>(random.next() % 4 == 0 ? random.next() : bytes[at] ^ (1 << random.next() % 8));
    }
    refused += !graft_test::refusal(folder / "x.gguf", bytes, [&](fs::path const& path) {
                  graft::read_gguf_lora<B>(path, model.sites, "x", model.config);
                  graft::gguf_lora_sites(path);
                }).empty();
  }
  CHECK(refused > 1000);
}
