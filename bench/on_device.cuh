// SPDX-License-Identifier: Apache-2.0
// What the programs for a GPU share: times of what is put on a stream, the bandwidth of a copy, memory that holds
// something, and models whose weights are made up.
#pragma once

#include <graft/arch/config.hpp>
#include <graft/arch/weights.hpp>
#include <graft/backend/cuda/cuda_backend.cuh>
#include <graft/core/random.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <bench/row.hpp>

namespace bench {

using namespace graft;

inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
inline double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

inline bool once = false;  ///< --small: things are done once, nothing is warmed up

/// How long f() takes that puts work on the backend's stream: of `calls` calls between two waits.
template <class B>
double seconds_of(B& be, int calls, auto&& f) {
  be.synchronize();
  double const start = now();
  for (int call = 0; call < calls; ++call) f();
  be.synchronize();
  return (now() - start) / calls;
}
/// The median over several turns, after a first one that takes memory and chooses algorithms.
template <class B>
double median_seconds(B& be, int calls, auto&& f) {
  if (once) return seconds_of(be, 1, f);
  std::vector<double> all;
  seconds_of(be, 1, f);
  for (int turn = 0; turn < 7; ++turn) all.push_back(seconds_of(be, calls, f));
  return median(std::move(all));
}

struct Compared {
  double plain, other;  ///< seconds, medians
  double ratio;         ///< other / plain, the median of the turns' own
  double low, high;     ///< the lowest and the highest of these
};
/// Two things in turn, so that what the machine does meanwhile hits both.
template <class B>
Compared compare(B& be, int calls, auto&& plain, auto&& other) {
  if (once) {
    double const first = seconds_of(be, 1, plain), second = seconds_of(be, 1, other);
    return {first, second, second / first, second / first, second / first};
  }
  for (int warm = 0; warm < 2; ++warm) seconds_of(be, 1, plain), seconds_of(be, 1, other);
  std::vector<double> a, b, ratios;
  for (int turn = 0; turn < 9; ++turn) {
    a.push_back(seconds_of(be, calls, plain)), b.push_back(seconds_of(be, calls, other));
    ratios.push_back(b.back() / a.back());
  }
  auto const [low, high] = std::minmax_element(ratios.begin(), ratios.end());
  return {median(a), median(b), median(ratios), *low, *high};
}

__global__ void fill_words(std::uint32_t* words, index_t count) {
  index_t const stride = index_t{gridDim.x} * blockDim.x;
  for (index_t k = index_t{blockIdx.x} * blockDim.x + threadIdx.x; k < count; k += stride) {
    std::uint32_t x = static_cast<std::uint32_t>(k) * 2654435761u + 12345u;
    x = (x ^ (x >> 15)) * 0x85ebca6bu;
    words[k] = (x ^ (x >> 13)) & 0xbfbfbfbfu;
  }
}
/// Random bits, because a GPU multiplies zeros faster than numbers. The second highest bit of each byte is clear: read
/// as f32, bf16 or f16, also as the scale of a quantised block, they are numbers between -2 and 2. bytes % 4 == 0.
template <class B>
void fill(B& be, void* memory, index_t bytes) {
  cuda::launch(fill_words, 1024, 256, 0, be.stream(), static_cast<std::uint32_t*>(memory), bytes / 4);
}
/// `size` elements of the arena with random bits.
template <class T, class B>
T* filled(B& be, index_t size) {
  index_t const bytes = round_up(size * static_cast<index_t>(sizeof(T)), 4);
  auto* const memory = be.arena().template allocate<std::byte>(bytes);
  fill(be, memory, bytes);
  return reinterpret_cast<T*>(memory);
}

/// Bytes per second that the driver's own copy reads and writes; `bytes` from one place to another.
template <class B>
double copy_bandwidth(B& be, index_t bytes) {
  auto const scope = be.scope();
  auto* const from = filled<std::byte>(be, bytes);
  auto* const to = be.arena().template allocate<std::byte>(bytes);
  double const seconds = median_seconds(be, 10, [&] {
    cuda::check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice, be.stream()),
                "cudaMemcpyAsync");
  });
  return 2 * static_cast<double>(bytes) / seconds;
}
/// Of the device, not of this process alone.
inline double free_memory() {
  std::size_t free = 0, total = 0;
  cuda::check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return static_cast<double>(free);
}

/// The shapes of a decoder.
struct Sizes {
  std::string name;
  index_t layers, width, ffn, heads, kv_heads, vocabulary;
  bool tied;
};
inline Sizes llama_2_7b() { return {"LLaMA-2-7B", 32, 4096, 11008, 32, 32, 32000, false}; }
inline Sizes smollm2() { return {"SmolLM2-135M", 30, 576, 1536, 9, 3, 49152, true}; }
/// For machines without a GPU, which emulate one: only to see that a program runs.
inline Sizes small_sizes() { return {"small", 1, 128, 192, 4, 2, 32, false}; }

inline ModelConfig config_of(Sizes const& s) {
  ModelConfig c;
  c.architecture = "llama", c.prefix = "model.", c.name = s.name;
  c.vocabulary = s.vocabulary, c.width = s.width, c.layers = s.layers;
  c.heads = s.heads, c.kv_heads = s.kv_heads, c.head_dim = s.width / s.heads, c.ffn = s.ffn;
  c.positions = 4096, c.tied = s.tied;
  c.rope.dimensions = c.head_dim;
  return c;
}

/// In bf16. All layers share one piece of host memory; on the device each has its own.
inline WeightMap weights_of(Sizes const& s) {
  index_t const most = s.width * std::max({s.vocabulary, s.ffn, s.width});
  auto const values = std::make_shared<std::vector<bf16>>(static_cast<std::size_t>(most));
  Random random(1);
  for (auto& v : *values) v = bf16(static_cast<float>(random.uniform(-1, 1) / std::sqrt(static_cast<double>(s.width))));
  auto const ones = std::make_shared<std::vector<float>>(static_cast<std::size_t>(s.width), 1.f);
  WeightMap map;
  map.keep = {values, ones};
  auto const matrix = [&](std::string const& name, index_t rows, index_t cols) {
    map.tensors[name] = {reinterpret_cast<std::byte const*>(values->data()), Format::bf16, rows, cols, nullptr};
  };
  auto const norm = [&](std::string const& name) {
    map.tensors[name] = {reinterpret_cast<std::byte const*>(ones->data()), Format::f32, 1, s.width, nullptr};
  };
  index_t const kv = s.kv_heads * (s.width / s.heads);
  for (index_t l = 0; l < s.layers; ++l) {
    std::string const path = text("model.layers.", l);
    matrix(path + ".self_attn.q_proj.weight", s.width, s.width);
    matrix(path + ".self_attn.k_proj.weight", kv, s.width);
    matrix(path + ".self_attn.v_proj.weight", kv, s.width);
    matrix(path + ".self_attn.o_proj.weight", s.width, s.width);
    matrix(path + ".mlp.gate_proj.weight", s.ffn, s.width);
    matrix(path + ".mlp.up_proj.weight", s.ffn, s.width);
    matrix(path + ".mlp.down_proj.weight", s.width, s.ffn);
    norm(path + ".input_layernorm.weight");
    norm(path + ".post_attention_layernorm.weight");
  }
  matrix("model.embed_tokens.weight", s.vocabulary, s.width);
  if (!s.tied) matrix("lm_head.weight", s.vocabulary, s.width);
  norm("model.norm.weight");
  return map;
}

/// The sites of the linear layers inside the layers, or of the residual streams behind them.
inline std::vector<index_t> sites_of(SiteTable const& sites, SiteKind kind) {
  std::vector<index_t> all;
  for (index_t k = 0; k < sites.size(); ++k)
    if (sites[k].kind == kind && sites[k].layer >= 0) all.push_back(k);
  return all;
}

/// The command line: names of parts, and --small.
struct Arguments {
  bool small = false;
  std::vector<std::string> parts;

  Arguments(int argc, char** argv) {
    for (int k = 1; k < argc; ++k)
      if (std::string_view(argv[k]) == "--small")
        small = once = true;
      else
        parts.push_back(argv[k]);
  }
  /// Whether this part is asked for; all are where none is named.
  bool wants(std::string_view part) const {
    return parts.empty() || std::find(parts.begin(), parts.end(), part) != parts.end();
  }
};

}  // namespace bench
