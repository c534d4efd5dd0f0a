// SPDX-License-Identifier: Apache-2.0
// config.json: what a key left out means, and sizes that no model has.
#include <tests/catch.hpp>
#include <tests/io/files.hpp>

#include <graft/io/hf_config.hpp>
#include <graft/io/model_files.hpp>
#include <graft/io/safetensors.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace graft;

/// A golden model's folder whose config.json may be changed.
struct Folder {
  explicit Folder(std::string const& name) : golden(std::filesystem::path(GRAFT_TEST_DATA "/models") / name) {
    config = nlohmann::json::parse(graft_test::read_bytes(golden / "config.json"));
    std::filesystem::copy(golden / "model.safetensors", folder / "model.safetensors");
  }
  Folder& set(char const* key, nlohmann::json value) { return config[key] = std::move(value), *this; }
  Folder& drop(char const* key) { return config.erase(key), *this; }

  ModelConfig read() const {
    graft_test::write_bytes(folder / "config.json", config.dump());
    return read_hf_config(folder / "config.json");
  }
  /// The sentence with which the model is refused, paths left out.
  std::string refusal() const {
    graft_test::write_bytes(folder / "config.json", config.dump());
    try {
      open_model(folder.path());
    } catch (FormatError const& error) {
      std::string const sentence = error.what();
      return sentence.substr(folder.path().string().size() + 1);
    }
    return "";
  }

  std::filesystem::path golden;
  graft_test::TemporaryFolder folder;
  nlohmann::json config;
};

TEST_CASE("a key that config.json leaves out has the value transformers gives it, null is another") {
  Folder mistral("mistral");
  CHECK(mistral.read().window == 5);
  CHECK(mistral.drop("sliding_window").read().window == 4096);
  CHECK(mistral.set("sliding_window", nullptr).read().window == 0);
  CHECK(mistral.set("num_attention_heads", 16).set("hidden_size", 64).drop("num_key_value_heads").read().kv_heads == 8);
  CHECK(mistral.set("num_key_value_heads", nullptr).read().kv_heads == 16);

  Folder llama("llama_lora");
  CHECK(llama.drop("num_key_value_heads").read().kv_heads == 4);
  CHECK(llama.drop("head_dim").read().head_dim == 8);
  CHECK(Folder("qwen3").drop("head_dim").read().head_dim == 128);

  Folder yarn("llama_yarn");
  yarn.config["rope_parameters"]["factor"] = nullptr;
  CHECK(yarn.set("max_position_embeddings", 192).read().rope.factor == 3);  // of 64 original positions
  yarn.config["rope_parameters"].erase("factor");
  CHECK(yarn.refusal() == "config.json: key 'factor' is missing");

  Folder qwen("qwen2_windows");
  qwen.drop("layer_types");
  CHECK(qwen.read().window_of(0) == 0);
  CHECK(qwen.read().window_of(1) == 4);
  CHECK(qwen.set("num_hidden_layers", 29).drop("max_window_layers").read().window_of(27) == 0);
  CHECK(qwen.read().window_of(28) == 4);
  CHECK(qwen.set("use_sliding_window", false).read().window_of(28) == 0);
}

TEST_CASE("continuations end at the tokens that generation_config.json names, or config.json") {
  using Tokens = std::vector<std::int32_t>;
  Folder llama("llama_lora");
  CHECK(llama.drop("eos_token_id").read().end_tokens == Tokens{});
  CHECK(llama.set("eos_token_id", 2).read().end_tokens == Tokens{2});
  CHECK(llama.set("eos_token_id", nlohmann::json::array({2, 7})).read().end_tokens == Tokens{2, 7});
  graft_test::write_bytes(llama.folder / "generation_config.json", R"({"max_length": 20})");
  CHECK(llama.read().end_tokens == Tokens{2, 7});
  graft_test::write_bytes(llama.folder / "generation_config.json", R"({"eos_token_id": [5]})");
  CHECK(llama.read().end_tokens == Tokens{5});
  CHECK(llama.set("eos_token_id", "</s>").read().end_tokens == Tokens{5});
  graft_test::write_bytes(llama.folder / "generation_config.json", R"({"eos_token_id": [5.5]})");
  CHECK(llama.refusal() == "generation_config.json: key 'eos_token_id' has the unexpected value [5.5]");
}

TEST_CASE("a head that the file has beside the embedding is tied to it only where they are equal") {
  Folder llama("llama_lora");  // a head of its own
  llama.set("tie_word_embeddings", true);
  auto const opened = [&] {
    llama.read();
    return open_model(llama.folder.path());
  };
  CHECK_FALSE(opened().config.tied);

  auto const path = llama.folder / "model.safetensors";
  auto const rewrite = [&](auto&& change) {  // keeps the tensors' order
    auto const file = read_safetensors(path);
    auto tensors = file.tensors();
    change(tensors);
    write_safetensors(path, tensors);
  };
  auto const named = [](auto& tensors, std::string const& name) -> TensorInfo& {
    return *std::find_if(tensors.begin(), tensors.end(), [&](auto const& one) { return one.name == name; });
  };
  rewrite(
      [&](auto& tensors) { named(tensors, "lm_head.weight").data = named(tensors, "model.embed_tokens.weight").data; });
  CHECK(opened().config.tied);

  // the same numbers in another format are the same head
  auto const files = opened();
  auto const& embedding = files.weights.tensors.at("model.embed_tokens.weight");
  std::vector<double> wide(static_cast<std::size_t>(embedding.rows * embedding.cols));
  for (index_t r = 0; r < embedding.rows; ++r) embedding.row(r, wide.data() + r * embedding.cols);
  auto const widened = [&](auto& tensors) {
    auto& head = named(tensors, "lm_head.weight");
    head.format = Format::f64;
    head.data = reinterpret_cast<std::byte const*>(wide.data());
    head.bytes = wide.size() * sizeof(double);
  };
  rewrite(widened);
  CHECK(opened().config.tied);
  wide.back() += 1;
  rewrite(widened);
  CHECK_FALSE(opened().config.tied);
}

TEST_CASE("the decoder of a masked language model has the bias that is its own, or the one beside it") {
  auto const bias = [](std::vector<std::string> const& names) {
    Folder roberta("roberta_masked");
    roberta.set("tie_word_embeddings", true).read();
    auto const path = roberta.folder / "model.safetensors";
    auto const file = read_safetensors(path);
    auto tensors = file.tensors();
    std::erase_if(tensors,
                  [](auto const& one) { return one.name == "lm_head.bias" || one.name == "lm_head.decoder.bias"; });
    std::vector<float> values[2];
    for (std::size_t k = 0; k < names.size(); ++k) {
      values[k].assign(static_cast<std::size_t>(file.find("lm_head.bias")->elements()), static_cast<float>(k + 1));
      tensors.push_back(tensor_info(names[k], {static_cast<index_t>(values[k].size())}, values[k].data()));
    }
    write_safetensors(path, tensors);
    auto const files = open_model(roberta.folder.path());
    auto const& own = files.weights.tensors.at("lm_head.decoder.bias");
    std::vector<float> row(static_cast<std::size_t>(own.cols));
    own.row(0, row.data());
    return row.front();
  };
  CHECK(bias({"lm_head.bias"}) == 1);
  CHECK(bias({"lm_head.decoder.bias"}) == 1);
  CHECK(bias({"lm_head.bias", "lm_head.decoder.bias"}) == 2);
}

TEST_CASE("tensors that the class in transformers does not have are left out, whatever the file holds") {
  auto const opened = [](char const* name, std::vector<std::string> const& added, bool biased = false) {
    Folder folder(name);
    if (biased) folder.set("attention_bias", true).set("mlp_bias", true);
    folder.read();
    auto const path = folder.folder / "model.safetensors";
    auto const file = read_safetensors(path);
    auto tensors = file.tensors();
    std::vector<float> const values(256, 1.0f);
    std::set<std::string> there;
    for (auto const& tensor : tensors) there.insert(tensor.name);
    for (auto const& one : added)
      for (auto const* layer : {"model.layers.0.", "model.layers.1.", ""})
        if (one.starts_with("lm_head") == (*layer == 0) && !there.contains(layer + one))
          tensors.push_back(tensor_info(layer + one, {8}, values.data()));
    write_safetensors(path, tensors);
    auto const files = open_model(folder.folder.path());
    std::string kept;
    for (auto const& one : added)
      kept += files.weights.contains((one.starts_with("lm_head") ? "" : "model.layers.0.") + one) ? '1' : '0';
    return kept;
  };
  std::vector<std::string> const added = {"self_attn.q_proj.bias",   "self_attn.o_proj.bias",
                                          "mlp.up_proj.bias",        "lm_head.bias",
                                          "self_attn.q_norm.weight", "self_attn.k_norm.weight"};
  auto const with_all = [&](char const* name, bool biased = false) {
    auto all = added;
    for (auto const* more :
         {"self_attn.k_proj.bias", "self_attn.v_proj.bias", "mlp.gate_proj.bias", "mlp.down_proj.bias"})
      all.push_back(more);
    return opened(name, all, biased).substr(0, added.size());
  };
  CHECK(with_all("llama_lora") == "000000");
  CHECK(with_all("llama_lora", true) == "111000");
  CHECK(with_all("mistral", true) == "000000");
  CHECK(with_all("qwen2", true) == "100000");
  CHECK(with_all("qwen3") == "000011");
  CHECK(with_all("qwen3", true) == "110011");
}

TEST_CASE("a model that lost a bias or a norm is refused, not read without it") {
  auto const without = [](char const* name, std::string const& tensor) {
    Folder folder(name);
    auto const path = folder.folder / "model.safetensors";
    auto const file = read_safetensors(path);
    auto tensors = file.tensors();
    REQUIRE(std::erase_if(tensors, [&](auto const& one) { return one.name == tensor; }) == 1);
    write_safetensors(path, tensors);
    CHECK(folder.refusal() == "model.safetensors: tensor '" + tensor + "' is missing");
  };
  without("llama_biased", "model.layers.1.self_attn.q_proj.bias");
  without("llama_biased", "model.layers.0.mlp.down_proj.bias");
  without("qwen2", "model.layers.0.self_attn.k_proj.bias");
  without("gpt2", "transformer.h.1.attn.c_attn.bias");
  without("bert_masked", "bert.encoder.layer.0.output.dense.bias");
  without("bert_masked", "cls.predictions.transform.dense.bias");
  without("bert_classifier", "bert.pooler.dense.bias");
  without("bert_classifier", "classifier.bias");
  without("roberta_classifier", "classifier.out_proj.bias");
  without("qwen3", "model.layers.1.self_attn.q_norm.weight");
}

TEST_CASE("sizes that no model has are refused before memory is taken for them") {
  auto const with = [](char const* name, char const* key, nlohmann::json value) {
    return Folder(name).set(key, std::move(value)).refusal();
  };
  REQUIRE(Folder("llama_lora").refusal() == "");
  CHECK(with("llama_lora", "num_hidden_layers", 1000000000) ==
        "config.json: key 'num_hidden_layers' is 1000000000, expected a size from 1 to 100000");
  CHECK(with("llama_lora", "num_hidden_layers", 30000).starts_with("model.safetensors: has "));
  CHECK(with("llama_lora", "num_attention_heads", 1ll << 40).starts_with("config.json: key 'num_attention_heads' is "));
  CHECK(with("llama_lora", "vocab_size", 0) ==
        "config.json: key 'vocab_size' is 0, expected a size from 1 to 2147483648");
  CHECK(with("bert_classifier", "id2label", nullptr) == "");  // two labels
  Folder labels("bert_classifier");
  labels.drop("id2label").set("num_labels", 1ll << 30);
  CHECK(labels.refusal() == "config.json: key 'num_labels' is 1073741824, expected a size from 1 to 100000");
  CHECK(with("roberta", "pad_token_id", -7) ==
        "config.json: pad_token_id is -7, which leaves no position of the model's 40");
  CHECK(with("roberta", "pad_token_id", 39) ==
        "config.json: pad_token_id is 39, which leaves no position of the model's 40");
  CHECK(with("llama_lora", "partial_rotary_factor", 0.5) ==
        "config.json: partial_rotary_factor is 0.5; llama rotates whole heads");
  CHECK(with("llama_lora", "partial_rotary_factor", 1.0) == "");
  CHECK(with("llama_yarn", "rope_parameters", {{"rope_type", "default"}, {"partial_rotary_factor", 1e300}}) ==
        "config.json: partial_rotary_factor is 1e+300; llama rotates whole heads");
}

TEST_CASE("classes that graft has no head for are refused by name") {
  auto const as = [](char const* name, char const* one) {
    return Folder(name).set("architectures", nlohmann::json::array({one})).refusal();
  };
  CHECK(as("llama_lora", "LlamaForTokenClassification") ==
        "config.json: a LlamaForTokenClassification is not supported for llama (the causal language model and "
        "ForSequenceClassification are)");
  CHECK(as("bert", "BertForQuestionAnswering") ==
        "config.json: a BertForQuestionAnswering is not supported (the bare model, ForMaskedLM and "
        "ForSequenceClassification are)");
}

}  // namespace
