// SPDX-License-Identifier: Apache-2.0
// Trains a small byte-level Llama from nothing, on plain text.   06_pretrain OUT STEPS TEXT...
// How examples/data/model was made: examples/data/model/README.md.
#include <graft/graft.hpp>
#include <graft/io/hf_config.hpp>
#include <graft/io/model_writer.hpp>
#include <graft/io/output_folder.hpp>
#include <graft/text/byte_level_bpe.hpp>
#include <graft/text/hf_tokenizer_writer.hpp>
#include <graft/train/backbone_optimizer.hpp>
#include <graft/train/loss.hpp>
#include <graft/train/optimizer.hpp>
#include <graft/train/schedule.hpp>
#include <graft/train/training_pass.hpp>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <numbers>

using namespace graft;
using B = CpuBackend<>;
using Tokens = std::vector<std::int32_t>;

constexpr index_t vocabulary = 257, eos = 256;  // the bytes, and the end of a text
constexpr index_t window = 256, batch = 16;     // bytes a sequence holds while training

ModelConfig small_llama() {
  ModelConfig c;
  c.architecture = "llama", c.prefix = "model.";
  c.vocabulary = vocabulary, c.width = 128, c.layers = 6, c.heads = 4, c.kv_heads = 2, c.head_dim = 32, c.ffn = 320;
  c.positions = 1024, c.rope.dimensions = c.head_dim;
  return c;
}

// Normal with deviation 0.02, as GPT-2's: what adds to the residual stream divided by sqrt(2 layers).
TrainableWeights start_values(ModelConfig const& c, std::uint64_t seed) {
  TrainableWeights weights;
  Random random(seed);
  double const deviation = 0.02, into_stream = deviation / std::sqrt(2.0 * static_cast<double>(c.layers));
  auto const normal = [&](std::string const& name, index_t rows, index_t cols, double spread) {
    auto const w = weights.add(name, rows, cols);
    for (index_t k = 0; k < w.size(); ++k) w.data[k] = static_cast<float>(spread * random.normal());
  };
  auto const ones = [&](std::string const& name) {
    auto const w = weights.add(name, 1, c.width);
    std::fill_n(w.data, w.size(), 1.f);
  };
  normal("model.embed_tokens.weight", c.vocabulary, c.width, deviation);
  for (index_t l = 0; l < c.layers; ++l) {
    std::string const path = text("model.layers.", l, ".");
    index_t const q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
    ones(path + "input_layernorm.weight");
    normal(path + "self_attn.q_proj.weight", q, c.width, deviation);
    normal(path + "self_attn.k_proj.weight", kv, c.width, deviation);
    normal(path + "self_attn.v_proj.weight", kv, c.width, deviation);
    normal(path + "self_attn.o_proj.weight", c.width, q, into_stream);
    ones(path + "post_attention_layernorm.weight");
    normal(path + "mlp.gate_proj.weight", c.ffn, c.width, deviation);
    normal(path + "mlp.up_proj.weight", c.ffn, c.width, deviation);
    normal(path + "mlp.down_proj.weight", c.width, c.ffn, into_stream);
  }
  ones("model.norm.weight");
  return weights;
}

// A Hugging Face folder, weights in bf16.
void save(std::filesystem::path const& path, ModelConfig const& c, TrainableWeights& weights, Executor& executor) {
  OutputFolder folder(path);
  std::vector<TensorConversion> tensors;
  weights.for_each([&](std::string const& name, MatrixView<float> w) {
    std::vector<index_t> const shape = w.rows == 1 ? std::vector{w.cols} : std::vector{w.rows, w.cols};
    TensorInfo const from{name, Format::f32, shape, reinterpret_cast<std::byte const*>(w.data),
                          static_cast<std::size_t>(w.size()) * sizeof(float)};
    tensors.push_back(conversion(from, name, Format::bf16));
  });
  write_safetensors(folder / "model.safetensors", tensors, executor);
  nlohmann::ordered_json const config = {{"architectures", {"LlamaForCausalLM"}},
                                         {"model_type", "llama"},
                                         {"vocab_size", c.vocabulary},
                                         {"hidden_size", c.width},
                                         {"intermediate_size", c.ffn},
                                         {"num_hidden_layers", c.layers},
                                         {"num_attention_heads", c.heads},
                                         {"num_key_value_heads", c.kv_heads},
                                         {"head_dim", c.head_dim},
                                         {"max_position_embeddings", c.positions},
                                         {"hidden_act", "silu"},
                                         {"rms_norm_eps", c.norm_eps},
                                         {"rope_theta", c.rope.theta},
                                         {"tie_word_embeddings", true},
                                         {"eos_token_id", eos},
                                         {"torch_dtype", "bfloat16"}};
  ByteAlphabet const letters;
  TokenizerSpec tokenizer;  // every byte is a token; no merges
  for (int byte = 0; byte < 256; ++byte) tokenizer.tokens.push_back(letters.spell(static_cast<unsigned char>(byte)));
  tokenizer.tokens.push_back("<|endoftext|>");
  tokenizer.added = {{eos, "<|endoftext|>", true}};
  tokenizer.eos = eos;
  tokenizer.pre_tokenizer = "gpt-2";
  std::ofstream(folder / "config.json") << config.dump(2) << '\n';
  std::ofstream(folder / "tokenizer.json") << hf_tokenizer(tokenizer).dump(1) << '\n';
  std::ofstream(folder / "tokenizer_config.json") << hf_tokenizer_config(tokenizer, c.positions).dump(2) << '\n';
  folder.commit();
}

int main(int argc, char** argv) {
  if (argc < 4) return std::fprintf(stderr, "usage: 06_pretrain OUT STEPS TEXT...\n"), 2;
  index_t const steps = std::atol(argv[2]);
  std::vector<Tokens> train, held_out;  // the last fiftieth of each text is held out
  for (int k = 3; k < argc; ++k) {
    std::ifstream file(argv[k], std::ios::binary);
    if (!file) return std::fprintf(stderr, "%s: cannot be opened\n", argv[k]), 1;
    std::string const bytes{std::istreambuf_iterator<char>(file), {}};
    Tokens all;
    for (char const byte : bytes) all.push_back(static_cast<unsigned char>(byte));
    auto const cut = all.end() - static_cast<std::ptrdiff_t>(all.size() / 50);
    train.emplace_back(all.begin(), cut), held_out.emplace_back(cut, all.end());
  }
  std::vector<double> share;  // texts are drawn by their size
  for (auto const& t : train) share.push_back((share.empty() ? 0 : share.back()) + static_cast<double>(t.size()));

  ThreadPool pool;
  B be(pool);
  ModelConfig const config = small_llama();
  TrainableWeights weights = start_values(config, 1);
  Model<Llama, Adapters<>, B> model(config, weights.map());
  TrainingPass pass(model, be);
  Gradients<B> gradients;
  BackboneOptimizer<decltype(model)> optimizer(model, weights, [](auto ranges) {
    return std::make_unique<AdamW<float>>(
        std::move(ranges), AdamWOptions{.beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .weight_decay = 0.1});
  });
  optimizer.want(gradients);

  // windows of one text, as sequences whose every next byte is wanted
  auto const run = [&](std::vector<std::span<std::int32_t const>> const& windows, bool back) {
    std::vector<TrainingSequence<B>> sequences;
    std::vector<index_t> wanted;
    std::vector<LossRow> rows;
    index_t first = 0;
    for (auto const& w : windows) {
      sequences.push_back({.tokens = w.first(w.size() - 1)});
      for (std::size_t t = 0; t + 1 < w.size(); ++t) {
        wanted.push_back(first++);
        rows.push_back({w[t + 1], 1.0 / static_cast<double>(windows.size() * (w.size() - 1))});
      }
    }
    pass.forward(sequences, gradients);
    CrossEntropy<B> loss(be, rows);
    if (back) {
      pass.head(wanted, loss);
      pass.backward();
    } else {
      pass.logits(wanted, loss);
    }
    return loss.sums().mean() / std::numbers::ln2;  // bits per byte
  };

  Random random(2);
  Schedule const schedule{.kind = Schedule::Kind::cosine, .warmup = std::min<index_t>(100, steps / 10), .total = steps};
  auto const start = std::chrono::steady_clock::now();
  auto const seconds = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  double mean = 0;
  for (index_t step = 0; step < steps; ++step) {
    std::vector<std::span<std::int32_t const>> windows;
    for (index_t k = 0; k < batch; ++k) {
      double const at = random.uniform(0, share.back());
      auto const& source =
          train[static_cast<std::size_t>(std::upper_bound(share.begin(), share.end(), at) - share.begin())];
      auto const from = static_cast<std::size_t>(random.uniform(0, static_cast<double>(source.size() - window - 1)));
      windows.push_back(std::span(source).subspan(from, window + 1));
    }
    gradients.zero();
    double const bits = run(windows, true);
    optimizer.step(be, gradients, group_rates(schedule.rate(3e-3, step)), 1.0);
    mean = step == 0 ? bits : 0.98 * mean + 0.02 * bits;
    if ((step + 1) % 50 == 0 || step + 1 == steps) {
      std::printf("step %5ld of %ld   %.3f bits per byte   %.0f bytes/s\n", static_cast<long>(step + 1),
                  static_cast<long>(steps), mean, static_cast<double>((step + 1) * batch * window) / seconds());
      std::fflush(stdout);
    }
  }
  for (std::size_t k = 0; k < held_out.size(); ++k) {
    double sum = 0;
    index_t count = 0;
    for (std::size_t from = 0; from + window + 1 <= held_out[k].size() && count < 100; from += window, ++count)
      sum += run({std::span(held_out[k]).subspan(from, window + 1)}, false);
    if (count > 0) std::printf("held out of %s: %.3f bits per byte\n", argv[3 + k], sum / static_cast<double>(count));
  }
  save(argv[1], config, weights, pool);
}
