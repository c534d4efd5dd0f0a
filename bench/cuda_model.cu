// SPDX-License-Identifier: Apache-2.0
// A whole model on a GPU, its weights made up, everything in bf16, adapters too: decoding of requests with adapters of
// their own, and prefill.
//     cuda_model [LAYERS WIDTH FFN HEADS KV_HEADS VOCABULARY BATCH CONTEXT ADAPTERS]      default: LLaMA-2-7B, 32 x 512
// Prints one JSON object per line: seconds are medians; every row has the bytes that must move (weights, keys and
// values, adapters), their share of the copy bandwidth measured in the same run, and the overhead over the step without
// adapters with its floor, the bytes the adapters add. Decode steps are recorded, but for the row that says otherwise.
// Last come tokens per second against the number of requests, and against the length they have generated; a merged
// module costs what none does.
#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/pedro.hpp>
#include <graft/adapter/road.hpp>
#include <graft/arch/llama.hpp>
#include <graft/backend/cuda/cuda.cuh>
#include <graft/model/context.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace {

using namespace graft;
using B = CudaBackend<bf16>;
using BenchModel = Model<Llama, Adapters<IA3Scaling, RoAdRotation, LoRADelta, PedroGenerator>, B>;

struct Sizes {
  index_t layers = 32, width = 4096, ffn = 11008, heads = 32, kv_heads = 32, vocabulary = 32000, batch = 32,
          context = 512, adapters = 32;
};

ModelConfig config_of(Sizes const& s) {
  ModelConfig c;
  c.architecture = "llama", c.prefix = "model.", c.name = "made up";
  c.vocabulary = s.vocabulary, c.width = s.width, c.layers = s.layers;
  c.heads = s.heads, c.kv_heads = s.kv_heads, c.head_dim = s.width / s.heads, c.ffn = s.ffn;
  c.positions = 4096, c.tied = false;
  c.rope.dimensions = c.head_dim;
  return c;
}

/// All layers of a kind share one piece of host memory; on the device each has its own.
WeightMap weights_of(Sizes const& s) {
  index_t const most = std::max({s.vocabulary * s.width, s.ffn * s.width, s.width * s.width});
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
  matrix("lm_head.weight", s.vocabulary, s.width);
  norm("model.norm.weight");
  return map;
}

template <class P>
void load(B& be, BenchModel& model, std::string name, P const& policy, SiteKind kind) {
  std::vector<index_t> all;
  for (index_t k = 0; k < model.sites().size(); ++k)
    if (model.sites()[k].kind == kind && model.sites()[k].layer >= 0) all.push_back(k);
  auto module = make_module<P, B>(std::move(name), policy, model.sites(), all);
  Random random(std::hash<std::string>{}(module.name));
  for (auto& value : module.parameters()) value += static_cast<float>(random.uniform(-0.01, 0.01));
  model.bank().load(be, std::move(module));
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// Seconds of f, which only puts work on the stream: several calls between two waits.
double seconds_of(B& be, int calls, std::function<void()> const& f) {
  std::vector<double> all;
  for (int k = 0; k < 7; ++k) {
    be.synchronize();
    auto const start = std::chrono::steady_clock::now();
    for (int call = 0; call < calls; ++call) f();
    be.synchronize();
    all.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / calls);
  }
  return median(all);
}

/// Bytes per second that a copy on the device reads and writes.
double copy_bandwidth(B& be, std::size_t bytes) {
  Storage<std::byte, DeviceSpace> from(static_cast<index_t>(bytes)), to(static_cast<index_t>(bytes));
  double const seconds = seconds_of(be, 10, [&] {
    cuda::check(cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice, be.stream()),
                "cudaMemcpyAsync");
  });
  return 2 * static_cast<double>(bytes) / seconds;
}

struct Bench {
  static constexpr index_t most_requests = 256;

  explicit Bench(Sizes const& s)
      : sizes(s), model(config_of(s), weights_of(s), AdapterStorage::bf16), recording(model, be) {
    for (auto const& [name, weight] : model.weights().tensors)
      if (name != "model.embed_tokens.weight") weight_bytes += static_cast<double>(weight.bytes());
    linear_parameters = weight_bytes / 2;
    bandwidth = copy_bandwidth(be, std::min<std::size_t>(std::size_t{1} << 30, static_cast<std::size_t>(weight_bytes)));
    logits = Storage<bf16, DeviceSpace>(std::max(s.batch, most_requests) * s.vocabulary);
    for (index_t k = 0; k < 4096; ++k) tokens.push_back(static_cast<std::int32_t>(17 * k % s.vocabulary));
  }

  void load_adapters() {
    for (index_t k = 0; k < sizes.adapters; ++k) {
      load(be, model, text("road", k), RoAdRotation{}, SiteKind::linear);
      load(be, model, text("road4", k), RoAdRotation{.variant = RoAdRotation::Variant::road_4}, SiteKind::linear);
      load(be, model, text("ia3", k), IA3Scaling{}, SiteKind::linear);
      load(be, model, text("lora", k), LoRADelta{.rank = 16, .alpha = 16}, SiteKind::linear);
      load(be, model, text("mixed", k), LoRADelta{.rank = 8 << (k % 4), .alpha = 16}, SiteKind::linear);
      load(be, model, text("pedro", k), PedroGenerator{}, SiteKind::hidden);
    }
  }

  using Uses = std::function<std::vector<AdapterUse>(index_t request)>;
  using BenchContext = Context<BenchModel>;

  /// Requests with a past of `past` tokens; no more rows at once than scratch is wanted for.
  std::vector<Sequence<B>> start(BenchContext& context, index_t batch, index_t past, Uses const& uses) {
    std::vector<Sequence<B>> sequences;
    for (index_t k = 0; k < batch; ++k) {
      sequences.push_back(context.start(uses(k)));
      forward(context, std::span(sequences).last(1), past);
    }
    return sequences;
  }
  void forward(BenchContext& context, std::span<Sequence<B>> sequences, index_t count) {
    std::vector<SequenceInput<B>> inputs;
    for (auto& sequence : sequences)
      inputs.push_back({&sequence, std::span<std::int32_t const>(tokens).first(static_cast<std::size_t>(count))});
    context.forward_last(
        std::span<SequenceInput<B> const>(inputs),
        matrix_view<DeviceSpace>(logits.data(), static_cast<index_t>(inputs.size()), sizes.vocabulary));
  }

  double kv_bytes(index_t batch, index_t past) const {
    return 2. * 2 * static_cast<double>(sizes.layers * batch * past * sizes.kv_heads * (sizes.width / sizes.heads));
  }
  /// Of distinct sets' coefficients and factors, as the kernels read them.
  double adapter_bytes(std::vector<Sequence<B>>& sequences) const {
    double bytes = 0;
    std::set<void const*> seen;
    auto const of_maps = [&](std::vector<RowMapRow<float const>> const& table) {
      for (auto const& map : table)
        for (auto const& vector : {map.c1, map.d, map.e})
          if (vector != nullptr) bytes += static_cast<double>(vector.bytes(map.size));
    };
    for (auto& sequence : sequences) {
      auto const set = sequence.state().adapters();
      if (set == nullptr) continue;
      if (set->generates()) {  // the request's own vectors
        for (auto const& layer : model.sites().layers())
          bytes += 4. * static_cast<double>(layer.query.size + layer.value.size + layer.up.size);
      }
      if (!seen.insert(set.get()).second) continue;
      for (auto const& table : set->maps) of_maps(table);
      for (auto const& member : set->members)
        for (std::size_t s = 0; s < member.module->factors.size(); ++s) {
          auto const& info = model.sites()[static_cast<index_t>(s)];
          auto const& f = member.module->factors[s];
          bytes += static_cast<double>(f.a.bytes(f.rank * info.in) + f.b_transposed.bytes(f.rank * info.out));
        }
    }
    return bytes;
  }

  void decode(char const* name, Uses const& uses) { decode(name, uses, recording, sizes.batch); }
  void decode(char const* name, Uses const& uses, BenchContext& context, index_t batch) {
    auto sequences = start(context, batch, sizes.context, uses);
    auto const step = [&] {
      forward(context, sequences, 1);
      for (auto& sequence : sequences) sequence.truncate(sizes.context);
    };
    step();
    double const seconds = seconds_of(be, 8, step);
    double const base = weight_bytes + kv_bytes(batch, sizes.context), added = adapter_bytes(sequences);
    auto const plain = plain_seconds.try_emplace(batch, seconds).first->second;
    std::printf(
        "{\"step\": \"decode\", \"adapters\": \"%s\", \"batch\": %lld, \"context\": %lld, \"seconds\": %.6f, "
        "\"tokens_per_second\": %.1f, \"bytes\": %.0f, \"share_of_copy_bandwidth\": %.3f, \"overhead\": %.4f, "
        "\"overhead_floor\": %.4f}\n",
        name, static_cast<long long>(batch), static_cast<long long>(sizes.context), seconds,
        static_cast<double>(batch) / seconds, base + added, (base + added) / seconds / bandwidth, seconds / plain - 1,
        added / base);
    std::fflush(stdout);
  }

  /// Tokens per second of a few requests from a short prompt on, over all that was generated so far.
  void generated(char const* name, index_t batch, index_t longest, Uses const& uses) {
    auto sequences = start(recording, batch, std::min<index_t>(16, sizes.context), uses);
    be.synchronize();
    auto const begin = std::chrono::steady_clock::now();
    index_t next = std::max<index_t>(1, longest / 16);
    for (index_t length = 1; length <= longest; ++length) {
      forward(recording, sequences, 1);
      if (length != next) continue;
      next *= 2;
      be.synchronize();
      double const seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      std::printf(
          "{\"step\": \"generate\", \"adapters\": \"%s\", \"requests\": %lld, \"length\": %lld, \"seconds\": %.4f, "
          "\"tokens_per_second\": %.1f}\n",
          name, static_cast<long long>(batch), static_cast<long long>(length), seconds,
          static_cast<double>(batch * length) / seconds);
      std::fflush(stdout);
    }
  }

  void prefill(char const* name, index_t requests, index_t count, Uses const& uses) {
    std::vector<Sequence<B>> sequences;
    double const seconds = seconds_of(be, 1, [&] {
      sequences.clear();
      for (index_t k = 0; k < requests; ++k) sequences.push_back(recording.start(uses(k)));
      forward(recording, sequences, count);
    });
    double const flops = 2 * linear_parameters * static_cast<double>(requests * count);
    std::printf(
        "{\"step\": \"prefill\", \"adapters\": \"%s\", \"requests\": %lld, \"tokens\": %lld, \"seconds\": %.6f, "
        "\"model_flops_per_second\": %.4g}\n",
        name, static_cast<long long>(requests), static_cast<long long>(count), seconds, flops / seconds);
    std::fflush(stdout);
  }

  /// What cuBLASLt does on the model's products alone.
  void products(index_t rows) {
    auto const scope = be.scope();
    auto const x = be.arena().matrix<bf16>(rows, std::max(sizes.width, sizes.ffn));
    auto const y = be.arena().matrix<bf16>(rows, std::max(sizes.width, sizes.ffn));
    cuda::check(cudaMemsetAsync(x.data, 0, static_cast<std::size_t>(x.size()) * 2, be.stream()), "cudaMemsetAsync");
    auto const one = [&](Linear<B> const& layer) {
      product(be, matrix_view<DeviceSpace>(static_cast<bf16 const*>(x.data), rows, layer.weight.cols), layer.weight,
              layer.bias, matrix_view<DeviceSpace>(y.data, rows, layer.weight.rows));
    };
    double parameters = 0;
    auto const all = [&] {
      for (auto const& layer : model.layers()) {
        auto const& b = layer.block();
        for (auto const* linear : {&b.q, &b.k, &b.v, &b.o, &b.gate, &b.up, &b.down}) one(*linear);
      }
    };
    for (auto const& layer : model.layers()) {
      auto const& b = layer.block();
      for (auto const* linear : {&b.q, &b.k, &b.v, &b.o, &b.gate, &b.up, &b.down})
        parameters += static_cast<double>(linear->weight.rows * linear->weight.cols);
    }
    double const seconds = seconds_of(be, 1, all);
    std::printf(
        "{\"step\": \"products alone\", \"rows\": %lld, \"seconds\": %.6f, \"flops_per_second\": %.4g, "
        "\"share_of_copy_bandwidth\": %.3f}\n",
        static_cast<long long>(rows), seconds, 2 * parameters * static_cast<double>(rows) / seconds,
        2 * parameters / seconds / bandwidth);
    std::fflush(stdout);
  }

  Sizes sizes;
  B be;
  BenchModel model;
  BenchContext recording;
  Storage<bf16, DeviceSpace> logits;
  std::vector<std::int32_t> tokens;
  double weight_bytes = 0, linear_parameters = 0, bandwidth = 0;
  std::map<index_t, double> plain_seconds;  ///< by batch: the first row of its size
};

}  // namespace

int main(int argc, char** argv) {
  Sizes s;
  index_t* const members[] = {&s.layers,     &s.width, &s.ffn,     &s.heads,   &s.kv_heads,
                              &s.vocabulary, &s.batch, &s.context, &s.adapters};
  for (int k = 1; k < argc && k <= 9; ++k) *members[k - 1] = std::atoll(argv[k]);
  Bench bench(s);
  std::printf("{\"step\": \"copy\", \"bytes_per_second\": %.4g}\n", bench.bandwidth);
  auto const none = [](index_t) { return std::vector<AdapterUse>{}; };
  auto const each = [&](char const* kind) -> Bench::Uses {
    return [=](index_t k) { return std::vector<AdapterUse>{{text(kind, k % s.adapters)}}; };
  };
  bench.products(s.batch);
  bench.decode("none", none);
  {
    Context<BenchModel> one_by_one(bench.model, bench.be, {.decode_graphs = 0});
    bench.decode("none, kernels launched one by one", none, one_by_one, s.batch);
  }
  bench.load_adapters();
  bench.decode("none, adapters loaded and not used", none);
  for (auto const* kind : {"road", "road4", "ia3", "pedro", "lora"}) bench.decode(kind, each(kind));
  bench.decode("lora, mixed ranks", each("mixed"));
  bench.decode("half road, half lora", [&](index_t k) {
    return std::vector<AdapterUse>{{text(k % 2 == 0 ? "road" : "lora", k % s.adapters)}};
  });
  bench.decode("one lora for all", [](index_t) { return std::vector<AdapterUse>{{"lora0"}}; });
  bench.decode("none, again", none);
  index_t const prompts = std::min<index_t>(4, s.batch), prompt = std::min<index_t>(1024, 2 * s.context);
  bench.products(prompts * prompt);
  for (auto const* kind : {"road", "ia3", "pedro", "lora"}) bench.prefill(kind, prompts, prompt, each(kind));
  bench.prefill("none", prompts, prompt, none);

  auto const kinds = {std::pair{"none", Bench::Uses(none)}, std::pair{"lora", each("lora")},
                      std::pair{"road", each("road")}, std::pair{"pedro", each("pedro")}};
  std::size_t free = 0, total = 0;
  for (index_t batch = 1; batch <= Bench::most_requests; batch *= 2) {
    cuda::check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    if (bench.kv_bytes(batch, s.context + 64) > 0.8 * static_cast<double>(free + bench.recording.cache().bytes()))
      break;
    for (auto const& [name, uses] : kinds) bench.decode(name, uses, bench.recording, batch);
  }
  for (auto const& [name, uses] : kinds) bench.generated(name, std::min<index_t>(8, s.batch), 8 * s.context, uses);
  return 0;
}
