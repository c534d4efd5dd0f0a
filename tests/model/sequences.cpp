// SPDX-License-Identifier: Apache-2.0
// Sequences that grow: prefill and decode in one call, forks, truncation, appended turns.
#include <tests/catch.hpp>
#include <tests/model/session.hpp>

#include <graft/io/peft.hpp>
#include <graft/testing/close.hpp>
#include <tests/io/files.hpp>

#include <algorithm>
#include <string>

using namespace graft_test;
using graft::testing::alone_bound;
using graft::testing::relative_l2;
using graft::testing::same_bits;

namespace {

using B = CpuBackend<float>;

std::vector<std::int32_t> part(std::vector<std::int32_t> const& tokens, std::size_t first, std::size_t count) {
  return {tokens.begin() + static_cast<std::ptrdiff_t>(first),
          tokens.begin() + static_cast<std::ptrdiff_t>(first + count)};
}

}  // namespace

TEST_CASE("requests that arrive one after another and decode together answer as in one go") {
  for (auto const& c : cases()) {
    if (!is_decoder(c)) continue;
    INFO(c.name);
    auto const model = open<float>(c);
    auto const expected = answer(*model, c.requests);
    SerialExecutor executor;
    auto const context = model->context(executor, {4});
    index_t const width = model->output_width();

    std::vector<Sequence<B>> sequences;
    for (auto const& request : c.requests) sequences.push_back(context->start(request.adapters));
    double worst = 0;
    bool busy = true;
    for (std::size_t time = 0; busy; ++time) {  // request q prefills in step q and then decodes token by token
      std::vector<SequenceInput<B>> inputs;
      std::vector<index_t> wanted;
      std::vector<std::pair<std::size_t, index_t>> place;  // request and token of each wanted row
      index_t rows = 0;
      busy = time < c.requests.size();
      for (std::size_t q = 0; q < std::min(time + 1, c.requests.size()); ++q) {
        std::span<std::int32_t const> const all(c.requests[q].tokens);
        auto const done = static_cast<std::size_t>(sequences[q].length());
        if (done == all.size()) continue;
        std::size_t count = 1;
        if (done == 0) {
          count = std::max<std::size_t>(1, all.size() / 2);
          if (c.requests[q].prompt_tokens > 0)
            count = static_cast<std::size_t>(c.requests[q].prompt_tokens);
          else if (sequences[q].state().generates())
            count = all.size();  // a prompt cannot be split
        }
        inputs.push_back({&sequences[q], all.subspan(done, count), c.requests[q].prompt_tokens});
        for (std::size_t k = 0; k < count; ++k) {
          wanted.push_back(rows++);
          place.emplace_back(q, static_cast<index_t>(done + k));
        }
        busy = true;
      }
      if (inputs.empty()) continue;
      std::vector<float> out(wanted.size() * static_cast<std::size_t>(width));
      auto const view = matrix_view(out.data(), static_cast<index_t>(wanted.size()), width);
      context->forward(inputs, wanted, view);
      for (std::size_t k = 0; k < place.size(); ++k)
        worst = std::max(worst, relative_l2(view.row_range(static_cast<index_t>(k), 1),
                                            row(expected[place[k].first], place[k].second)));
    }
    CHECK(worst <= alone_bound);
    for (std::size_t q = 0; q < sequences.size(); ++q)
      CHECK(sequences[q].length() == static_cast<index_t>(c.requests[q].tokens.size()));
  }
}

TEST_CASE("listed positions are the sequence's, whatever calls and chunks its tokens come in") {
  Session s("llama_lora");
  auto const& sites = s.model->sites();
  TemporaryFolder folder;
  Random random(3);
  auto const load = [&](std::string const& name, Positions positions) {
    auto module = make_module<RoAdRotation, B>(name, RoAdRotation{.group_size = 2, .positions = std::move(positions)},
                                               sites, {sites.find("model.layers.0")});
    for (float& value : module.parameters()) value += static_cast<float>(random.uniform(-0.5, 0.5));
    write_peft(folder / name, module, sites);
    s.model->load(name, folder / name);
  };
  load("some", {{1, 7, -1, -3}});  // of 9 tokens with a prompt of 6: 1, 3, 5 and 7
  std::vector<std::int32_t> const tokens{5, 9, 2, 7, 11, 3, 8, 4, 6};
  std::vector<AdapterUse> const uses{{"some", 1}};
  auto whole = s.start(uses), bare = s.start();
  auto const expected = s.all({&whole, tokens, 6}), without = s.all({&bare, tokens, 6});
  // causal: the first token is not touched, all others are or see one that is
  CHECK(same_bits(row(expected, 0), row(without, 0)));
  for (index_t n = 1; n < 9; ++n) CHECK(relative_l2(row(expected, n), row(without, n)) > 1e-3);
  for (index_t const chunk : {1, 2, 4, 512}) {
    auto const context = s.model->context(s.executor, {4, chunk});
    for (std::size_t const first : {1, 3, 6, 8}) {
      auto sequence = context->start(uses);
      for (auto const& [from, count] : {std::pair<std::size_t, std::size_t>{0, first}, {first, 9 - first}}) {
        auto const now = part(tokens, from, count);
        SequenceInput<B> const input{&sequence, now, 6};
        std::vector<float> logits(static_cast<std::size_t>(s.model->output_width()));
        context->forward_last(std::span(&input, 1), matrix_view(logits.data(), 1, s.model->output_width()));
        CHECK(relative_l2(row(logits), row(expected, static_cast<index_t>(from + count) - 1)) <= alone_bound);
      }
    }
  }
}

TEST_CASE("a fork goes its own way") {
  auto const storage = GENERATE(KvStorage::full, KvStorage::bf16);
  for (auto const* name : {"llama_lora", "llama_pedro", "gpt2", "mistral"}) {
    Session s(name, {.page_tokens = 4, .kv_storage = storage});
    for (auto const& request : case_of(name).requests) {
      if (request.tokens.size() < 7) continue;
      auto const prompt = part(request.tokens, 0, 5);  // the second page is half full
      auto const ours = part(request.tokens, 5, 2);
      std::vector<std::int32_t> const theirs{request.tokens[1], request.tokens[0]};

      // token by token, so that the second step reads what the first one wrote
      auto const steps = [&](Sequence<B>& sequence, Sequence<B>* other) {
        s.step(sequence, {ours[0]});
        if (other != nullptr) s.step(*other, {theirs[0]});
        auto const logits = s.step(sequence, {ours[1]});
        if (other != nullptr) s.step(*other, {theirs[1]});
        return logits;
      };
      auto lone = s.start(request.adapters), lone_other = s.start(request.adapters);
      s.step(lone, prompt), s.step(lone_other, prompt);
      auto const alone = steps(lone, nullptr);
      s.step(lone_other, {theirs[0]});
      auto const other_alone = s.step(lone_other, {theirs[1]});

      auto first = s.start(request.adapters);
      s.step(first, prompt);
      auto second = first.fork();
      CHECK(same_bits(row(steps(first, &second)), row(alone)));
      second.truncate(6);
      CHECK(same_bits(row(s.step(second, {theirs[1]})), row(other_alone)));
      second.truncate(5);
      CHECK(same_bits(row(steps(second, nullptr)), row(alone)));
      CHECK(relative_l2(row(other_alone), row(alone)) > 0.01);

      auto third = first.fork();  // outlives the sequence it came from
      { auto const gone = std::move(first); }
      CHECK(third.length() == 7);
      third.truncate(5);
      CHECK(same_bits(row(steps(third, nullptr)), row(alone)));
    }
  }
}

TEST_CASE("truncated tokens leave nothing behind") {
  for (auto const* name : {"llama_lora", "llama_pedro", "gpt2"}) {
    Session s(name, {3});
    for (auto const& request : case_of(name).requests) {
      if (request.tokens.size() < 6) continue;
      auto straight = s.start(request.adapters);
      s.step(straight, part(request.tokens, 0, 4));
      auto const expected = s.step(straight, part(request.tokens, 4, 2));
      auto back = s.start(request.adapters);
      s.step(back, part(request.tokens, 0, 4));
      s.step(back, {1, 2, 3, 4, 5});
      back.truncate(4);
      CHECK(same_bits(row(s.step(back, part(request.tokens, 4, 2))), row(expected)));
      back.truncate(0);  // PEDRO's vectors are made again, from another prompt
      auto fresh = s.start(request.adapters);
      CHECK(same_bits(row(s.step(back, {5, 4, 3})), row(s.step(fresh, {5, 4, 3}))));
      back.truncate(0);
      s.step(back, part(request.tokens, 0, 4));
      CHECK(same_bits(row(s.step(back, part(request.tokens, 4, 2))), row(expected)));
    }
  }
}

TEST_CASE("pages are given back and used again") {
  Session s("llama_lora", {2}), narrow("llama_lora", {.page_tokens = 2, .kv_storage = KvStorage::bf16});
  s.context->cache().reserve(8);
  auto const bytes = s.context->cache().bytes();
  narrow.context->cache().reserve(8);
  CHECK(2 * narrow.context->cache().bytes() == bytes);
  for (int round = 0; round < 20; ++round) {
    auto sequence = s.start();
    s.step(sequence, {1, 2, 3, 4, 5});
    auto fork = sequence.fork();
    s.step(fork, {6});
    sequence = std::move(fork);
  }
  CHECK(s.context->cache().bytes() == bytes);
}

TEST_CASE("a turn appended to a PEDRO prompt keeps the vectors unless asked for new ones") {
  Session s("llama_pedro");
  std::vector<std::int32_t> const prompt{3, 9, 27, 10, 30}, turn{20, 60, 40};
  std::vector<AdapterUse> const use{{"mean", 1.0}};
  std::vector<std::int32_t> both = prompt;
  both.insert(both.end(), turn.begin(), turn.end());

  auto in_one_go = s.start(use);
  auto const expected = s.step(in_one_go, both, 5);  // the prompt is the first five tokens
  auto kept = s.start(use);
  s.step(kept, prompt);
  CHECK(relative_l2(row(s.step(kept, turn)), row(expected)) <= alone_bound);

  auto renewed = s.start(use);
  s.step(renewed, prompt);
  auto const with_new = s.step(renewed, turn, -1, true);
  CHECK(relative_l2(row(with_new), row(expected)) > 0.01);
  // the new ones stay too
  auto const next = s.step(renewed, {7});
  auto again = s.start(use);
  s.step(again, prompt);
  s.step(again, {20, 60, 40}, -1, true);
  CHECK(same_bits(row(s.step(again, {7})), row(next)));
  CHECK(relative_l2(row(s.step(kept, {7})), row(next)) > 0.01);

  auto fresh = s.start(use), asked = s.start(use);
  CHECK(same_bits(row(s.step(fresh, prompt)), row(s.step(asked, prompt, -1, true))));
}

TEST_CASE("a request keeps the adapters it started with") {
  Session s("llama_lora");
  auto const& c = case_of("llama_lora");
  std::vector<AdapterUse> const use{{"a", 1.0}};
  auto before = s.start(use), alone = s.start(use);
  s.step(alone, {3, 4, 5});
  auto const expected = s.step(alone, {6});
  s.step(before, {3, 4, 5});
  s.model->load("a", c.folder / "adapter_b");
  CHECK(same_bits(row(s.step(before, {6})), row(expected)));
  auto after = s.start(use);
  s.step(after, {3, 4, 5});
  CHECK(relative_l2(row(s.step(after, {6})), row(expected)) > 0.01);
}
