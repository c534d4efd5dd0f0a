// SPDX-License-Identifier: Apache-2.0
// A golden model as llama.cpp's converter stores it in GGUF answers what the Hugging Face folder answers, with the
// same adapter folders.
#include <tests/catch.hpp>
#include <tests/io/files.hpp>
#include <tests/model/model_under_test.hpp>

#include <graft/io/gguf.hpp>
#include <graft/io/gguf_names.hpp>
#include <graft/io/json.hpp>
#include <graft/io/safetensors.hpp>
#include <graft/layer/rope.hpp>
#include <graft/testing/close.hpp>

#include <algorithm>
#include <cmath>
#include <list>

using namespace graft_test;
using graft::testing::relative_l2;

namespace {

/// Rows of f32 tensors, brought into the converter's order.
class Converter {
 public:
  explicit Converter(Case const& c) : config_(read_json(c.folder / "config.json")) {
    architecture_ = config_.at("model_type");
    if (architecture_ == "mistral") architecture_ = "llama";
    set_metadata();
    auto const file = read_safetensors(c.folder / "model.safetensors");
    for (auto const& tensor : file.tensors()) add(tensor);
    add_rope_divisors();
  }

  void write(std::filesystem::path const& path) const { write_gguf(path, metadata_, tensors_); }

 private:
  template <class T = std::uint32_t>
  T at(char const* key) const {
    return config_.at(key).get<T>();
  }
  template <class T>
  void set(std::string const& key, T value) {
    metadata_.set(architecture_ + "." + key, value);
  }

  void set_metadata() {
    metadata_.set("general.architecture", architecture_);
    if (architecture_ == "gpt2") {
      set("block_count", at("n_layer"));
      set("context_length", at("n_positions"));
      set("embedding_length", at("n_embd"));
      set("feed_forward_length", config_.at("n_inner").is_null() ? 4 * at("n_embd") : at("n_inner"));
      set("attention.head_count", at("n_head"));
      set("attention.layer_norm_epsilon", at<float>("layer_norm_epsilon"));
      return;
    }
    set("block_count", at("num_hidden_layers"));
    set("context_length", at("max_position_embeddings"));
    set("embedding_length", at("hidden_size"));
    set("feed_forward_length", at("intermediate_size"));
    heads_ = at("num_attention_heads"), kv_heads_ = at("num_key_value_heads");
    set("attention.head_count", heads_);
    set("attention.head_count_kv", kv_heads_);
    set("attention.layer_norm_rms_epsilon", at<float>("rms_norm_eps"));
    head_dim_ = config_.value("head_dim", nlohmann::json()).is_null() ? at("hidden_size") / heads_ : at("head_dim");
    set("attention.key_length", head_dim_);
    set("attention.value_length", head_dim_);
    set("rope.dimension_count", head_dim_);
    auto rope = config_.value("rope_parameters", config_.value("rope_scaling", nlohmann::json()));
    if (rope.is_null()) rope = nlohmann::json::object();
    if (config_.contains("rope_theta")) rope["rope_theta"] = config_["rope_theta"];
    rope_ = rope;
    set("rope.freq_base", rope.at("rope_theta").get<float>());
    std::string const kind = rope.value("rope_type", rope.value("type", "default"));
    if (kind == "linear" || kind == "yarn") {
      set("rope.scaling.type", kind);
      set("rope.scaling.factor", rope.at("factor").get<float>());
    }
    if (kind == "yarn") {
      set("rope.scaling.original_context_length", rope.at("original_max_position_embeddings").get<std::uint32_t>());
      set("rope.scaling.yarn_beta_fast", rope.value("beta_fast", 32.0f));
      set("rope.scaling.yarn_beta_slow", rope.value("beta_slow", 1.0f));
    }
  }

  void add(TensorInfo tensor) {
    std::string name = tensor.name;
    if (tensor.shape.size() > 2) return;  // causal masks
    if (architecture_ == "gpt2" && !name.starts_with("transformer.") && !name.starts_with("lm_head."))
      name = "transformer." + name;
    auto const stored = gguf_name(architecture_, name);
    REQUIRE(stored);
    REQUIRE(hf_name(architecture_, *stored) == name);
    bool const matrix = tensor.shape.size() == 2;
    index_t const rows = tensor.shape[0], cols = matrix ? tensor.shape[1] : 1;
    REQUIRE(tensor.format == Format::f32);
    auto const* from = reinterpret_cast<float const*>(tensor.data);
    auto& to = buffers_.emplace_back(static_cast<std::size_t>(rows * cols));
    bool const query = stored->find(".attn_q.") != stored->npos, key = stored->find(".attn_k.") != stored->npos;
    std::vector<index_t> shape = tensor.shape;
    auto const set_at = [&](index_t place, float value) { to[static_cast<std::size_t>(place)] = value; };
    if (architecture_ == "gpt2" && matrix && name.find(".h.") != name.npos) {  // Conv1D
      shape = {cols, rows};
      for (index_t r = 0; r < rows; ++r)
        for (index_t c = 0; c < cols; ++c) set_at(c * rows + r, from[r * cols + c]);
    } else if (architecture_ == "llama" && (query || key)) {
      // LlamaModel.permute: reshape(heads, 2, d/2, ...).swapaxes(1, 2)
      index_t const heads = query ? heads_ : kv_heads_, half = rows / heads / 2;
      for (index_t h = 0; h < heads; ++h)
        for (index_t a = 0; a < 2; ++a)
          for (index_t b = 0; b < half; ++b)
            for (index_t c = 0; c < cols; ++c)
              set_at(((h * half + b) * 2 + a) * cols + c, from[((h * 2 + a) * half + b) * cols + c]);
    } else {
      std::copy(from, from + rows * cols, to.begin());
    }
    tensors_.push_back(tensor_info(*stored, shape, to.data()));
  }

  // llama3's scaling is stored as what each frequency is divided by
  void add_rope_divisors() {
    if (!rope_.is_object() || rope_.value("rope_type", "") != "llama3") return;
    RopeConfig rope;
    rope.dimensions = head_dim_;
    rope.theta = rope_.at("rope_theta");
    auto const plain = rope_frequencies(rope);
    auto& to = buffers_.emplace_back();
    double const factor = rope_.at("factor"), low = rope_.at("low_freq_factor"), high = rope_.at("high_freq_factor"),
                 original = rope_.at("original_max_position_embeddings");
    for (double f : plain) {
      double const wavelength = 2 * std::acos(-1.0) / f;
      double const smooth = std::clamp((original / wavelength - low) / (high - low), 0.0, 1.0);
      to.push_back(static_cast<float>(1 / ((1 - smooth) / factor + smooth)));
    }
    tensors_.push_back(tensor_info("rope_freqs.weight", {static_cast<index_t>(to.size())}, to.data()));
  }

  nlohmann::json config_, rope_;
  std::string architecture_;
  std::uint32_t heads_ = 0, kv_heads_ = 0, head_dim_ = 0;
  GgufMetadata metadata_;
  std::list<std::vector<float>> buffers_;
  std::vector<TensorInfo> tensors_;
};

}  // namespace

TEST_CASE("a GGUF file answers what the Hugging Face folder it was made from answers") {
  for (auto const* name :
       {"llama_lora", "llama_ia3", "llama_sums", "llama_pedro", "llama_lora_embedding", "llama_grouped_3_linear",
        "llama_grouped_8_llama3", "llama_yarn", "qwen2", "qwen3", "gpt2", "gpt2_hub"}) {
    INFO(name);
    auto const& c = case_of(name);
    TemporaryFolder folder;
    Converter(c).write(folder / "model.gguf");
    auto const original = open<float>(c), converted = open<float>(folder / "model.gguf");
    for (auto const& entry : std::filesystem::directory_iterator(c.folder))
      if (auto const adapter = entry.path().filename().string(); adapter.starts_with("adapter_"))
        converted->load(adapter.substr(8), entry.path());
    auto const expected = answer(*original, c.requests), found = answer(*converted, c.requests);
    // the same weights in another order of rows; GGUF keeps RoPE's base, epsilon and divisors in f32
    for (std::size_t k = 0; k < expected.size(); ++k) CHECK(relative_l2(found[k].view(), expected[k].view()) < 1e-6);
  }
}

TEST_CASE("names of GGUF tensors") {
  CHECK(hf_name("llama", "blk.11.attn_q.weight") == "model.layers.11.self_attn.q_proj.weight");
  CHECK(hf_name("llama", "token_embd.weight") == "model.embed_tokens.weight");
  CHECK(hf_name("qwen2", "blk.0.ffn_down.bias") == "model.layers.0.mlp.down_proj.bias");
  CHECK(hf_name("gpt2", "blk.3.attn_qkv.weight") == "transformer.h.3.attn.c_attn.weight");
  CHECK(hf_name("gpt2", "position_embd.weight") == "transformer.wpe.weight");
  for (auto const* unknown : {"blk.x.attn_q.weight", "blk..attn_q.weight", "blk.1.attn_q", "blk.1.ssm.weight", "a", ""})
    CHECK_FALSE(hf_name("llama", unknown));
  for (auto const* unknown : {"model.layers.1.self_attn.weight", "layers.1.self_attn.q_proj.weight", "model.layers.1"})
    CHECK_FALSE(gguf_name("llama", unknown));
}
