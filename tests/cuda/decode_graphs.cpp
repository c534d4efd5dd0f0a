// SPDX-License-Identifier: Apache-2.0
// Recorded decode steps give what steps give that are not recorded, whatever changes between two of them, and a step
// that was recorded costs one copy and one launch.
#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/pedro.hpp>
#include <graft/adapter/road.hpp>
#include <graft/arch/llama.hpp>
#include <graft/backend/cuda/cuda.cuh>
#include <graft/model/context.hpp>
#include <graft/testing/close.hpp>
#include <tests/catch.hpp>
#include <tests/cuda/device.hpp>

#include <cmath>
#include <deque>
#include <functional>
#include <string>
#include <vector>

// A name of its own: nvcc confuses a kernel's unnamed namespace with those inside TEST_CASE.
namespace decode_graphs_test {

using namespace graft;
using graft_test::DeviceArray;
using B = CudaBackend<float>;
using M = Model<Llama, Adapters<IA3Scaling, RoAdRotation, LoRADelta, PedroGenerator>, B>;

ModelConfig config_of(index_t layers) {
  ModelConfig c;
  c.architecture = "llama", c.prefix = "model.", c.name = "made up";
  c.vocabulary = 50, c.width = 32, c.layers = layers;
  c.heads = 4, c.kv_heads = 2, c.head_dim = 8, c.ffn = 48;
  c.positions = 2048, c.tied = false;
  c.rope.dimensions = c.head_dim;
  return c;
}

WeightMap weights_of(ModelConfig const& c) {
  WeightMap map;
  Random random(7);
  auto const tensor = [&](std::string const& name, index_t rows, index_t cols, float around, float spread) {
    auto const values = std::make_shared<std::vector<float>>(static_cast<std::size_t>(rows * cols));
    for (auto& v : *values) v = around + spread * static_cast<float>(random.uniform(-1, 1));
    map.keep.push_back(values);
    map.tensors[name] = {reinterpret_cast<std::byte const*>(values->data()), Format::f32, rows, cols, nullptr};
  };
  index_t const kv = c.kv_heads * c.head_dim;
  for (index_t l = 0; l < c.layers; ++l) {
    std::string const path = text("model.layers.", l);
    tensor(path + ".self_attn.q_proj.weight", c.width, c.width, 0, 0.3f);
    tensor(path + ".self_attn.k_proj.weight", kv, c.width, 0, 0.3f);
    tensor(path + ".self_attn.v_proj.weight", kv, c.width, 0, 0.3f);
    tensor(path + ".self_attn.o_proj.weight", c.width, c.width, 0, 0.3f);
    tensor(path + ".mlp.gate_proj.weight", c.ffn, c.width, 0, 0.3f);
    tensor(path + ".mlp.up_proj.weight", c.ffn, c.width, 0, 0.3f);
    tensor(path + ".mlp.down_proj.weight", c.width, c.ffn, 0, 0.3f);
    tensor(path + ".input_layernorm.weight", 1, c.width, 1, 0.1f);
    tensor(path + ".post_attention_layernorm.weight", 1, c.width, 1, 0.1f);
  }
  tensor("model.embed_tokens.weight", c.vocabulary, c.width, 0, 1);
  tensor("lm_head.weight", c.vocabulary, c.width, 0, 0.3f);
  tensor("model.norm.weight", 1, c.width, 1, 0.1f);
  return map;
}

/// One context that records and one that does not, given the same to do.
struct Pair {
  struct Request {
    Sequence<B> recorded, plain;
  };

  explicit Pair(index_t layers = 2, index_t kept = 32, AdapterStorage adapters = AdapterStorage::full)
      : model(config_of(layers), weights_of(config_of(layers)), adapters),
        recording(model, be, {.page_tokens = 4, .decode_graphs = kept}) {}

  template <class P>
  void load(std::string const& name, P const& policy, std::vector<std::string> const& modules = {}) {
    std::vector<index_t> at;
    for (index_t k = 0; k < model.sites().size(); ++k) {
      auto const& site = model.sites()[k];
      bool const listed = modules.empty() || std::count(modules.begin(), modules.end(), site.id) > 0;
      SiteKind const kind = std::same_as<P, PedroGenerator> ? SiteKind::hidden : SiteKind::linear;
      if (site.layer >= 0 && site.kind == kind && listed) at.push_back(k);
    }
    auto module = make_module<P, B>(name, policy, model.sites(), at);
    for (auto& value : module.parameters()) value += 0.2f * static_cast<float>(random.uniform(-1, 1));
    model.bank().load(be, std::move(module));
  }
  std::size_t start(std::vector<AdapterUse> const& adapters, index_t prompt_tokens) {
    requests.push_back({recording.start(adapters), plain.start(adapters)});
    std::vector<std::int32_t> prompt;
    for (index_t k = 0; k < prompt_tokens; ++k) prompt.push_back(token());
    forward({requests.size() - 1}, {prompt});
    return requests.size() - 1;
  }
  /// One token each. Whether both contexts give the same is checked.
  void step(std::vector<std::size_t> const& who) {
    std::vector<std::vector<std::int32_t>> tokens;
    for (std::size_t k = 0; k < who.size(); ++k) tokens.push_back({token()});
    forward(who, tokens);
  }
  void forward(std::vector<std::size_t> const& who, std::vector<std::vector<std::int32_t>> const& tokens) {
    std::vector<SequenceInput<B>> first, second;
    for (std::size_t k = 0; k < who.size(); ++k) {
      first.push_back({&requests[who[k]].recorded, tokens[k]});
      second.push_back({&requests[who[k]].plain, tokens[k]});
    }
    auto const got = last(recording, first), expected = last(plain, second);
    REQUIRE(std::isfinite(got[0]));
#if defined(GRAFT_CUDA_EMULATION)
    REQUIRE(got == expected);
#else  // for the rows that a recorded batch is padded to, cuBLASLt may choose another order of sums
    auto const view = [](std::vector<float> const& v) {
      return matrix_view(v.data(), 1, static_cast<index_t>(v.size()));
    };
    REQUIRE(testing::relative_l2(view(got), view(expected)) <= 1e-4);
#endif
  }
  std::vector<float> last(Context<M>& context, std::vector<SequenceInput<B>> const& inputs) {
    index_t const width = model.ends().output_width();
    std::vector<float> logits(inputs.size() * static_cast<std::size_t>(width), std::nanf(""));
    context.forward_last(std::span<SequenceInput<B> const>(inputs),
                         matrix_view(logits.data(), static_cast<index_t>(inputs.size()), width));
    return logits;
  }
  std::int32_t token() { return static_cast<std::int32_t>(random.next() % 50); }

  Random random{3};
  B be;
  M model;
  Context<M> recording;
  Context<M> plain{model, be, {.page_tokens = 4, .decode_graphs = 0}};
  std::deque<Request> requests;
};

/// Graphs that f() makes ready; 0 where nobody counts.
std::size_t recorded_by(std::function<void()> const& f) {
#if defined(GRAFT_CUDA_EMULATION)
  auto const& calls = emulation::Device::get().calls;
  std::size_t const before = calls.recorded;
  f();
  return calls.recorded - before;
#else
  f();
  return 0;
#endif
}
void check_recorded(std::size_t count, std::size_t expected) {
#if defined(GRAFT_CUDA_EMULATION)
  CHECK(count == expected);
#else
  (void)count, (void)expected;
#endif
}

}  // namespace decode_graphs_test

namespace {

using namespace decode_graphs_test;

TEST_CASE("recorded decode steps: batches, adapters and contexts change between them") {
  Pair pair;
  pair.load("road", RoAdRotation{.group_size = 8});
  pair.load("road4", RoAdRotation{.variant = RoAdRotation::Variant::road_4, .group_size = 4});
  pair.load("ia3", IA3Scaling{});
  pair.load("lora", LoRADelta{.rank = 3});
  pair.load("pedro", PedroGenerator{.rank = 4});
  pair.load("rotated", PedroGenerator{.rank = 2, .q_scaling = PedroGenerator::QueryScaling::after_rope});
  std::vector<std::vector<AdapterUse>> const kinds{
      {}, {{"road"}}, {{"lora"}}, {{"ia3"}}, {{"pedro"}}, {{"road4"}, {"lora", 0.5}}, {{"rotated"}}, {{"lora"}}};
  for (std::size_t k = 0; k < kinds.size(); ++k) pair.start(kinds[k], 2 + static_cast<index_t>(k) % 4);

  SECTION("batches of other sizes, orders and mixtures") {
    // pages of 4 tokens fill up on the way
    for (auto const& who : std::vector<std::vector<std::size_t>>{{0},
                                                                 {0},
                                                                 {0, 1, 2},
                                                                 {2, 1, 0},
                                                                 {3, 4, 5},
                                                                 {1, 7},
                                                                 {7, 2},
                                                                 {0, 1, 2, 3, 4, 5, 6, 7},
                                                                 {6, 4},
                                                                 {5, 4, 3},
                                                                 {7, 6, 5, 4, 3, 2, 1, 0},
                                                                 {0},
                                                                 {4, 2, 3, 1, 6},
                                                                 {0, 1, 2, 3, 4, 5, 6, 7}})
      pair.step(who);
  }
  SECTION("modules loaded, replaced and unloaded; what was started goes on with what it had") {
    pair.step({1, 2, 4});
    pair.load("lora", LoRADelta{.rank = 5}, {"q_proj", "down_proj"});
    auto const second = pair.start({{"lora"}}, 3);
    pair.step({1, 2, 4, second});
    pair.step({second, 2});
    pair.model.bank().unload("lora");
    pair.model.bank().unload("road");
    pair.step({1, 2, 4, second});
    pair.requests[2] = {pair.recording.start(), pair.plain.start()};  // the last user of the first "lora"
    pair.forward({2}, {{1, 2, 3}});
    pair.step({1, 2, 4, second});
  }
  SECTION("between them prompts, larger batches, forks and truncated sequences") {
    pair.step({1, 2, 3});
    pair.start({{"road"}}, 240);  // scratch grows
    check_recorded(recorded_by([&] { pair.step({1, 2, 3}); }), 0);
    pair.recording.cache().reserve(4 * 128);  // 129 pages: its table moves
    check_recorded(recorded_by([&] { pair.step({1, 2, 3}); }), 1);
    pair.requests.push_back({pair.requests[4].recorded.fork(), pair.requests[4].plain.fork()});
    pair.step({4, pair.requests.size() - 1});
    pair.requests[4].recorded.truncate(3), pair.requests[4].plain.truncate(3);
    pair.step({4, pair.requests.size() - 1, 8});
    pair.forward({1, 2, 3}, {{5}, {6, 7}, {8}});  // one brings two tokens
    pair.step({1, 2, 3});
  }
  CHECK(graft_test::finish() == "");
}

TEST_CASE("weights that read one input lie one behind the other, so that they are one product") {
  Pair pair;
  for (auto const& layer : pair.model.layers()) {
    auto const& block = layer.block();
    CHECK(joined_weight(std::array{&block.q, &block.k, &block.v}).rows == 64);
    CHECK(joined_weight(std::array{&block.gate, &block.up}).rows == 96);
    CHECK(joined_weight(std::array{&block.gate, &block.down}).empty());
  }
}

TEST_CASE("recorded decode steps serve adapters that are kept in bf16") {
  Pair pair(1, 32, AdapterStorage::bf16);
  pair.load("road", RoAdRotation{.group_size = 8});
  pair.load("lora", LoRADelta{.rank = 3});
  pair.load("pedro", PedroGenerator{.rank = 4});
  for (auto const* name : {"road", "lora", "pedro"}) pair.start({{name}}, 2);
  for (int round = 0; round < 2; ++round) pair.step({0, 1, 2});
  CHECK(graft_test::finish() == "");
}

TEST_CASE("a decode step is recorded once for its size, its mechanisms, its length and its ranks") {
  Pair pair(1);
  for (index_t k = 0; k < 4; ++k) {
    pair.load(text("lora", k), LoRADelta{.rank = 1 + k});
    pair.load(text("road", k), RoAdRotation{.group_size = 2 << k});
  }
  pair.load("high", LoRADelta{.rank = 60});
  pair.load("higher", LoRADelta{.rank = 70});
  for (index_t k = 0; k < 4; ++k) pair.start({{text("lora", k)}}, 3);  // 0 to 3
  for (index_t k = 0; k < 4; ++k) pair.start({{text("road", k)}}, 3);  // 4 to 7
  for (index_t k = 0; k < 4; ++k) pair.start({}, 3);                   // 8 to 11
  auto const high = pair.start({{"high"}, {"lora3"}}, 3);
  auto const higher = pair.start({{"higher"}}, 3);
  auto const recorded = [&](std::vector<std::size_t> const& who) { return recorded_by([&] { pair.step(who); }); };

  check_recorded(recorded({0, 8, 9}), 1);       // one module in the batch
  check_recorded(recorded({0, 1, 2, 3}), 0);    // more modules than when it was recorded
  check_recorded(recorded({high, 1, 2}), 0);    // ranks that sum to 64
  check_recorded(recorded({higher, 1, 2}), 1);  // to 70
  check_recorded(recorded({8, 9, 10, 11}), 1);  // none
  check_recorded(recorded({8, 9, 10}), 0);
  check_recorded(recorded({8, 9}), 1);  // a smaller batch
  check_recorded(recorded({4, 5, 6, 7}), 1);
  check_recorded(recorded({4, 5, 8, 7}), 0);
  check_recorded(recorded({4, 5, 0, 1}), 1);  // both kinds
  check_recorded(recorded({0, 1, 7, 6}), 0);
  check_recorded(recorded({0, 8, 1}), 0);
  CHECK(graft_test::finish() == "");
}

TEST_CASE("many combinations of mechanisms share one recorded step") {
  Pair pair(1);
  for (auto const* module : {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}) {
    pair.load(module, LoRADelta{.rank = 2}, {module});
    pair.start({{module}}, 2);
  }
  // four of their own, the fifth has all five, the sixth and the seventh one of all before them
  std::size_t const counts[] = {1, 1, 1, 1, 1, 1, 1};
  for (std::size_t k = 0; k < 7; ++k) check_recorded(recorded_by([&] { pair.step({k}); }), counts[k]);
  for (std::size_t k = 0; k < 7; ++k) check_recorded(recorded_by([&] { pair.step({k}); }), 0);
  check_recorded(recorded_by([&] { pair.step({1, 2}); }), 1);  // another size
  CHECK(graft_test::finish() == "");
}

TEST_CASE("recorded steps are forgotten, the one used longest ago first, where only so many are kept") {
  Pair pair(1, 2);
  for (int k = 0; k < 4; ++k) pair.start({}, 2);
  auto const recorded = [&](std::vector<std::size_t> const& who) { return recorded_by([&] { pair.step(who); }); };
  check_recorded(recorded({0}), 1);
  check_recorded(recorded({0, 1}), 1);
  check_recorded(recorded({1}), 0);
  check_recorded(recorded({0, 1, 2}), 1);  // instead of that of two rows
  check_recorded(recorded({2}), 0);
  check_recorded(recorded({2, 3}), 1);
  CHECK(graft_test::finish() == "");
}

TEST_CASE("a context grows past the tokens its step was recorded for") {
  Pair pair(1);
  pair.load("road", RoAdRotation{.group_size = 8});
  pair.load("lora", LoRADelta{.rank = 2});
  auto const a = pair.start({{"road"}}, 509), b = pair.start({{"lora"}}, 5);
  auto const steps = [&] {
    for (int k = 0; k < 5; ++k) pair.step({a, b});  // 512 tokens, then 513
  };
  check_recorded(recorded_by(steps), 2);
  CHECK(graft_test::finish() == "");
}

#if defined(GRAFT_CUDA_EMULATION)
TEST_CASE("a recorded decode step is one copy and one launch, and takes no memory") {
  Pair pair;
  pair.load("road", RoAdRotation{.group_size = 8});
  pair.load("lora", LoRADelta{.rank = 4});
  pair.load("ia3", IA3Scaling{});
  pair.load("pedro", PedroGenerator{.rank = 4});
  for (auto const* name : {"road", "lora", "pedro"}) pair.start({{name}}, 3);
  for (int k = 0; k < 3; ++k) pair.start({}, 3);
  for (int k = 0; k < 3; ++k) pair.start({{"ia3"}}, 3);
  auto& device = emulation::Device::get();
  index_t const width = pair.model.ends().output_width();
  DeviceArray<float> const logits(3 * width);
  auto const step = [&](Context<M>& context, std::vector<std::size_t> const& who) {
    std::vector<SequenceInput<B>> inputs;
    static std::int32_t const token[] = {9};
    for (auto const k : who)
      inputs.push_back({&context == &pair.plain ? &pair.requests[k].plain : &pair.requests[k].recorded, token});
    device.calls = {};
    std::size_t const allocated = emulation::Memory::get().allocations + device.pinned_allocations,
                      waits = device.synchronizations;
    context.forward_last(std::span<SequenceInput<B> const>(inputs), matrix_view<DeviceSpace>(logits.data(), 3, width));
    CHECK(emulation::Memory::get().allocations + device.pinned_allocations == allocated);
    CHECK(device.synchronizations == waits);
    return device.calls;
  };
  for (auto* context : {&pair.recording, &pair.plain}) context->cache().reserve(64, 9);
  struct Row {
    char const* name;
    std::vector<std::size_t> who;
  };
  for (auto const& row :
       {Row{"without adapters", {3, 4, 5}}, Row{"IA3", {6, 7, 8}}, Row{"RoAd, LoRA, PEDRO", {0, 1, 2}}}) {
    pair.step(row.who);  // recorded here, and the memory taken that each way needs
    auto const replayed = step(pair.recording, row.who), plain = step(pair.plain, row.who);
    std::printf("a decode step of 2 layers, %s: %zu copies and %zu launches; recorded %zu copy and %zu launch\n",
                row.name, plain.copies, plain.kernels, replayed.copies, replayed.graphs + replayed.kernels);
    CHECK(replayed.graphs == 1);
    CHECK(replayed.kernels == 0);
    CHECK(replayed.copies == 1);
    CHECK(replayed.recorded == 0);
    CHECK(plain.kernels > 20);
  }
  CHECK(graft_test::finish() == "");
}
#endif

}  // namespace
