// SPDX-License-Identifier: Apache-2.0
// A whole model on a GPU, its weights made up in LLaMA-2-7B's shapes, adapters kept in bf16: decoding and prefill of
// requests with adapters of their own, beside the same without adapters, in turns.
//     cuda_model [--small] [decode prefill requests lengths]      all four where none is named
// decode    32 requests, each with a context of 512 tokens; every row has the bytes that must move (weights, keys and
//           values, adapters), their share of the copy bandwidth of the same run, and the overhead over the step
//           without adapters with its floor, the bytes the adapters add. Decode steps are recorded where nothing else
//           is said.
// prefill   4 prompts of 1,024 tokens, beside the model's products alone, as cuBLASLt does them
// requests  tokens per second against the number of requests, each with a module of its own
// lengths   tokens per second against the number of generated tokens
// A module merged into the weights costs what none does. --small: sizes for a machine that emulates a GPU.
#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/pedro.hpp>
#include <graft/adapter/road.hpp>
#include <graft/arch/llama.hpp>
#include <graft/backend/cuda/cuda.cuh>
#include <graft/model/context.hpp>

#include <algorithm>
#include <array>
#include <cstdio>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <span>

#include <bench/on_device.cuh>

namespace {

using namespace graft;
using bench::Row;
using B = CudaBackend<bf16>;
using BenchModel = Model<Llama, Adapters<IA3Scaling, RoAdRotation, LoRADelta, PedroGenerator>, B>;
using BareModel = Model<Llama, Adapters<>, B>;

using Sequences = std::vector<Sequence<B>>;
using Uses = std::function<std::vector<AdapterUse>(index_t request)>;
std::vector<AdapterUse> none(index_t) { return {}; }

/// Modules of one kind, "road0", "road1", ..., made when they are asked for: all have the same numbers, each in memory
/// of its own.
class Modules {
 public:
  Modules(BenchModel& model, B& be) : model_(model), be_(be) {}

  /// Request k uses module k, and of more requests than `most` several use the same.
  Uses each(std::string const& kind, index_t count, index_t most = 1 << 20) {
    index_t const distinct = std::min(count, most);
    for (index_t k = loaded_[kind]; k < distinct; ++k) load(kind, k);
    loaded_[kind] = std::max(loaded_[kind], distinct);
    return [=](index_t k) { return std::vector<AdapterUse>{{text(kind, k % distinct)}}; };
  }

 private:
  void load(std::string const& kind, index_t k) {
    using Variant = RoAdRotation::Variant;
    std::string const name = text(kind, k);
    if (kind == "road 1") return load(name, kind, RoAdRotation{}, SiteKind::linear);
    if (kind == "road 2") return load(name, kind, RoAdRotation{.variant = Variant::road_2}, SiteKind::linear);
    if (kind == "road 4") return load(name, kind, RoAdRotation{.variant = Variant::road_4}, SiteKind::linear);
    if (kind == "ia3") return load(name, kind, IA3Scaling{}, SiteKind::linear);
    if (kind == "pedro") return load(name, kind, PedroGenerator{}, SiteKind::hidden);
    index_t const rank = kind == "lora, ranks 8 to 64" ? index_t{8} << k % 4 : 16;
    load(name, text("lora", rank), LoRADelta{.rank = rank, .alpha = 16}, SiteKind::linear);
  }
  // clones of the first module with these numbers
  template <class P>
  void load(std::string name, std::string const& like, P const& policy, SiteKind where) {
    auto& first = patterns<P>()[like];
    if (!first) {
      first = make_module<P, B>(like, policy, model_.sites(), bench::sites_of(model_.sites(), where));
      Random random(std::hash<std::string>{}(like));
      for (auto& value : first->parameters()) value += static_cast<float>(random.uniform(-0.01, 0.01));
    }
    auto copy = first->clone();
    copy.name = std::move(name);
    model_.bank().load(be_, std::move(copy));
  }
  template <class P>
  std::map<std::string, std::optional<Module<P, B>>>& patterns() {
    static std::map<std::string, std::optional<Module<P, B>>> all;
    return all;
  }

  BenchModel& model_;
  B& be_;
  std::map<std::string, index_t> loaded_;
};

/// A context and its steps.
template <class M>
class Runner {
 public:
  Runner(M& model, B& be, ContextOptions const& options = {}) : context_(model, be, options) {
    for (index_t k = 0; k < 4096; ++k) tokens_.push_back(static_cast<std::int32_t>(17 * k % model.config().vocabulary));
  }
  Context<M>& context() { return context_; }

  /// Requests whose past are `past` tokens.
  Sequences start(index_t batch, index_t past, Uses const& uses) {
    Sequences sequences;
    for (index_t k = 0; k < batch; ++k) sequences.push_back(context_.start(uses(k)));
    std::size_t const at_once = static_cast<std::size_t>(std::max<index_t>(1, 4096 / past));
    for (std::size_t k = 0; k < sequences.size(); k += at_once)
      forward(std::span(sequences).subspan(k, std::min(at_once, sequences.size() - k)), past);
    return sequences;
  }
  void forward(std::span<Sequence<B>> sequences, index_t count) {
    inputs_.clear();
    for (auto& sequence : sequences)
      inputs_.push_back({&sequence, std::span<std::int32_t const>(tokens_).first(static_cast<std::size_t>(count))});
    index_t const rows = static_cast<index_t>(inputs_.size()), width = context_.model().ends().output_width();
    if (logits_.size() < rows * width) logits_ = Storage<bf16, DeviceSpace>(rows * width);
    context_.forward_last(std::span<SequenceInput<B> const>(inputs_),
                          matrix_view<DeviceSpace>(logits_.data(), rows, width));
  }
  /// One more token for every sequence, which is forgotten at once.
  void decode(Sequences& sequences) {
    forward(sequences, 1);
    for (auto& sequence : sequences) sequence.truncate(sequence.length() - 1);
  }

 private:
  Context<M> context_;
  std::vector<std::int32_t> tokens_;
  std::vector<SequenceInput<B>> inputs_;
  Storage<bf16, DeviceSpace> logits_;
};

class Bench {
 public:
  explicit Bench(bool small)
      : small_(small),
        sizes_(small ? bench::small_sizes() : bench::llama_2_7b()),
        weights_(bench::weights_of(sizes_)),
        model_(bench::config_of(sizes_), weights_, AdapterStorage::bf16),
        runner_(model_, be_),
        modules_(model_, be_) {
    for (auto const& [name, weight] : weights_.tensors)
      if (name != "model.embed_tokens.weight") weight_bytes_ += static_cast<double>(weight.bytes());
    for (auto const& w : multiplied()) parameters_ += static_cast<double>(w.rows * w.cols);
  }

  void decode() {
    index_t const batch = small_ ? 2 : 32;
    double const floor_of_maps = 0.01;  // points above what the bytes ask for
    plain_decode(batch);
    unused(batch);
    for (auto const* kind : {"road 1", "road 2", "road 4", "ia3", "pedro"})
      decode(kind, batch, batch, floor_of_maps, modules_.each(kind, batch));
    decode("lora", batch, batch, 0.05, modules_.each("lora", batch));
    decode("lora, ranks 8 to 64", batch, batch, 0.06, modules_.each("lora, ranks 8 to 64", batch));
    auto const road = modules_.each("road 1", batch), lora = modules_.each("lora", batch);
    decode("half road 1, half lora", batch, batch, 0.04, [=](index_t k) { return k % 2 == 0 ? road(k) : lora(k); });
    decode("one lora for all", batch, 1, {}, [=](index_t) { return lora(0); });
  }

  void prefill() {
    index_t const prompts = small_ ? 1 : 4, tokens = small_ ? 8 : 1024, rows = prompts * tokens;
    double const flops = 2 * parameters_ * static_cast<double>(rows);
    auto const start = [&](Uses const& uses) {
      return [&, uses] {
        Sequences sequences;
        for (index_t k = 0; k < prompts; ++k) sequences.push_back(runner_.context().start(uses(k)));
        runner_.forward(sequences, tokens);
      };
    };
    auto const row = [&](char const* adapters) {
      auto made = std::make_unique<Row>("prefill");
      made->with("model", sizes_.name).with("adapters", adapters).with("requests", prompts).with("tokens", tokens);
      return made;
    };
    {
      auto const alone = bench::compare(be_, 1, products(rows), start(none));
      row("none")
          ->with("seconds", alone.other)
          .with("tokens_per_second", static_cast<double>(rows) / alone.other)
          .with("products_flops_per_second", flops / alone.plain)
          .with("model_flops_per_second", flops / alone.other)
          .at_least("share_of_products", 1 / alone.ratio, 0.75);
    }
    for (auto const* kind : {"road 1", "road 2", "road 4", "ia3", "pedro", "lora"}) {
      auto const times = bench::compare(be_, 1, start(none), start(modules_.each(kind, prompts)));
      row(kind)
          ->with("seconds", times.other)
          .with("tokens_per_second", static_cast<double>(rows) / times.other)
          .with("lowest", times.low - 1)
          .with("highest", times.high - 1)
          .at_most("overhead", times.ratio - 1, kind == std::string("lora") ? 0.08 : 0.02);
    }
  }

  /// As many as the keys and values leave room for.
  void requests() {
    index_t const most = small_ ? 1 : 256, most_lora = 64;  // a module of LoRA has 160 MB in f32
    for (index_t batch = 1; batch <= most; batch *= 2)
      for (std::string const kind : {"none", "road 1", "lora", "pedro"}) {
        if (kv_bytes(batch, past()) >
            0.8 * (bench::free_memory() + static_cast<double>(runner_.context().cache().bytes())))
          return;
        index_t const distinct = kind == "none" ? 0 : kind == "lora" ? std::min(batch, most_lora) : batch;
        auto sequences =
            runner_.start(batch, past(), distinct == 0 ? Uses(none) : modules_.each(kind, distinct, distinct));
        double const seconds = bench::median_seconds(be_, 4, [&] { runner_.decode(sequences); });
        Row("requests")
            .with("model", sizes_.name)
            .with("adapters", kind)
            .with("batch", batch)
            .with("modules", distinct)
            .with("context", past())
            .with("seconds", seconds)
            .with("tokens_per_second", static_cast<double>(batch) / seconds);
      }
  }

  /// Of a few requests from a short prompt on, over all that was generated so far.
  void lengths() {
    index_t const batch = small_ ? 1 : 8, prompt = small_ ? 2 : 16, longest = small_ ? 16 : 4096;
    for (std::string const kind : {"none", "road 1", "lora", "pedro"}) {
      auto sequences = runner_.start(batch, prompt, kind == "none" ? Uses(none) : modules_.each(kind, batch));
      be_.synchronize();
      double const begin = bench::now();
      index_t next = longest / 16;  // 256, 512, ..., 4096
      for (index_t length = 1; length <= longest; ++length) {
        runner_.forward(sequences, 1);
        if (length != next) continue;
        next *= 2;
        be_.synchronize();
        double const seconds = bench::now() - begin;
        Row("lengths")
            .with("model", sizes_.name)
            .with("adapters", kind)
            .with("batch", batch)
            .with("length", length)
            .with("seconds", seconds)
            .with("tokens_per_second", static_cast<double>(batch * length) / seconds);
      }
    }
  }

 private:
  index_t past() const { return small_ ? 3 : 512; }

  /// Weights of the layers as they are multiplied: those that lie together as one.
  std::vector<Weight> multiplied() const {
    std::vector<Weight> all;
    auto const add = [&](auto const&... linears) {
      if (Weight const joined = joined_weight(std::array{&linears...}); !joined.empty())
        all.push_back(joined);
      else
        (all.push_back(linears.weight), ...);
    };
    for (auto const& layer : model_.layers()) {
      auto const& b = layer.block();
      add(b.q, b.k, b.v), add(b.o), add(b.gate, b.up), add(b.down);
    }
    return all;
  }
  /// All products inside the layers, as the model asks for them.
  std::function<void()> products(index_t rows) {
    auto const weights = multiplied();
    index_t widest_in = 0, widest_out = 0;
    for (auto const& w : weights) widest_in = std::max(widest_in, w.cols), widest_out = std::max(widest_out, w.rows);
    x_ = Storage<bf16, DeviceSpace>(rows * widest_in), y_ = Storage<bf16, DeviceSpace>(rows * widest_out);
    bench::fill(be_, x_.data(), 2 * rows * widest_in);
    return [this, rows, weights] {
      for (auto const& w : weights)
        product(be_, matrix_view<DeviceSpace>(static_cast<bf16 const*>(x_.data()), rows, w.cols), w,
                VectorView<float const, DeviceSpace>{}, matrix_view<DeviceSpace>(y_.data(), rows, w.rows));
    };
  }

  double kv_bytes(index_t batch, index_t tokens) const {
    return 2. * 2 *
           static_cast<double>(sizes_.layers * batch * tokens * sizes_.kv_heads * (sizes_.width / sizes_.heads));
  }
  /// Of distinct sets' coefficients and factors, as the kernels read them.
  double adapter_bytes(Sequences& sequences) const {
    double bytes = 0;
    std::set<void const*> seen;
    for (auto& sequence : sequences) {
      auto const set = sequence.state().adapters();
      if (set == nullptr) continue;
      if (set->generates())  // the request's own vectors
        for (auto const& layer : model_.sites().layers())
          bytes += 4. * static_cast<double>(layer.query.size + layer.value.size + layer.up.size);
      if (!seen.insert(set.get()).second) continue;
      for (auto const& table : set->maps)
        for (auto const& map : table)
          for (auto const& vector : {map.c1, map.d, map.e})
            if (vector != nullptr) bytes += static_cast<double>(vector.bytes(map.size));
      for (auto const& member : set->members)
        for (std::size_t s = 0; s < member.module->factors.size(); ++s) {
          auto const& site = model_.sites()[static_cast<index_t>(s)];
          auto const& f = member.module->factors[s];
          bytes += static_cast<double>(f.a.bytes(f.rank * site.in) + f.b_transposed.bytes(f.rank * site.out));
        }
    }
    return bytes;
  }

  std::unique_ptr<Row> decode_row(std::string const& adapters, index_t batch, index_t modules, double seconds) const {
    auto row = std::make_unique<Row>("decode");
    row->with("model", sizes_.name)
        .with("adapters", adapters)
        .with("batch", batch)
        .with("modules", modules)
        .with("context", past())
        .with("seconds", seconds)
        .with("tokens_per_second", static_cast<double>(batch) / seconds);
    return row;
  }

  // Beside the driver's copy, and beside the same kernels launched one by one.
  void plain_decode(index_t batch) {
    double const bandwidth = bench::copy_bandwidth(be_, small_ ? index_t{1} << 16 : index_t{1} << 30);
    double const bytes = weight_bytes_ + kv_bytes(batch, past());
    auto sequences = runner_.start(batch, past(), none);
    double const seconds = bench::median_seconds(be_, 8, [&] { runner_.decode(sequences); });
    decode_row("none", batch, 0, seconds)
        ->with("bytes", bytes)
        .with("copy_bandwidth", bandwidth)
        .at_least("share_of_copy_bandwidth", bytes / seconds / bandwidth, 0.8);
    Runner<BenchModel> one_by_one(model_, be_, {.decode_graphs = 0});
    auto others = one_by_one.start(batch, past(), none);
    auto const times = bench::compare(
        be_, 8, [&] { runner_.decode(sequences); }, [&] { one_by_one.decode(others); });
    decode_row("none, kernels launched one by one", batch, 0, times.other)->with("overhead", times.ratio - 1);
    double const alone = bench::median_seconds(be_, 4, products(batch));
    Row("products alone")
        .with("model", sizes_.name)
        .with("rows", batch)
        .with("seconds", alone)
        .with("share_of_copy_bandwidth", 2 * parameters_ / alone / bandwidth);
  }

  // A model that could have adapters and has some loaded, beside one that was compiled without any.
  void unused(index_t batch) {
    modules_.each("road 1", batch), modules_.each("lora", batch);
    BareModel bare(bench::config_of(sizes_), weights_);
    Runner<BareModel> bare_runner(bare, be_);
    auto plain = bare_runner.start(batch, past(), none), sequences = runner_.start(batch, past(), none);
    auto const times = bench::compare(
        be_, 8, [&] { bare_runner.decode(plain); }, [&] { runner_.decode(sequences); });
    decode_row("loaded and not used", batch, 0, times.other)
        ->with("lowest", times.low - 1)
        .with("highest", times.high - 1)
        .at_most("overhead", times.ratio - 1, 0.005);
  }

  // Beside the same requests without adapters; above_floor: points that the overhead may be above the bytes' share. In
  // a context of its own, because one that has met many mixtures records a step that serves them all.
  void decode(std::string const& adapters, index_t batch, index_t modules, std::optional<double> above_floor,
              Uses const& uses) {
    Runner<BenchModel> runner(model_, be_);
    auto plain = runner.start(batch, past(), none), sequences = runner.start(batch, past(), uses);
    auto const times = bench::compare(
        be_, 8, [&] { runner.decode(plain); }, [&] { runner.decode(sequences); });
    double const base = weight_bytes_ + kv_bytes(batch, past()), added = adapter_bytes(sequences);
    decode_row(adapters, batch, modules, times.other)
        ->with("bytes", base + added)
        .with("overhead_floor", added / base)
        .with("lowest", times.low - 1)
        .with("highest", times.high - 1)
        .at_most("overhead", times.ratio - 1, above_floor ? added / base + *above_floor : 0.02);
  }

  bool small_;
  bench::Sizes sizes_;
  WeightMap weights_;
  B be_;
  BenchModel model_;
  Runner<BenchModel> runner_;
  Modules modules_;
  Storage<bf16, DeviceSpace> x_, y_;  ///< of the products alone
  double weight_bytes_ = 0;           ///< that a decode step reads
  double parameters_ = 0;             ///< of the products inside the layers
};

}  // namespace

int main(int argc, char** argv) {
  bench::Arguments const arguments(argc, argv);
  Bench bench(arguments.small);
  if (arguments.wants("decode")) bench.decode();
  if (arguments.wants("prefill")) bench.prefill();
  if (arguments.wants("requests")) bench.requests();
  if (arguments.wants("lengths")) bench.lengths();
  return 0;
}
