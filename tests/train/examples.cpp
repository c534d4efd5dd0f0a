// SPDX-License-Identifier: Apache-2.0
// Training data: which tokens a line becomes, what is refused where, the order of epochs, the validation split.
#include <graft/text/model_tokenizer.hpp>
#include <graft/train/examples.hpp>
#include <tests/catch.hpp>
#include <tests/io/files.hpp>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

namespace {

using namespace graft;
using namespace graft_test;
using Ids = std::vector<std::int32_t>;

Tokenizer golden(std::string const& name, std::string const& chat_template = "") {
  auto spec = read_tokenizer(std::string(GRAFT_TEST_DATA) + "/text_" + name);
  spec.chat_template = chat_template;
  return Tokenizer(std::move(spec));
}
Ids joined(std::initializer_list<Ids> parts) {
  Ids all;
  for (auto const& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

TEST_CASE("a line becomes prompt, completion and EOS, with the loss on the last two") {
  TemporaryFolder folder;
  write_bytes(folder / "d.jsonl",
              "{\"prompt\": \"the cat\", \"completion\": \" sat down\"}\n\n"
              "{\"prompt\":\"\",\"completion\":\"a\",\"part\":2}\n");
  auto const tokenizer = golden("llama2");
  auto const examples = read_completions(folder / "d.jsonl", tokenizer, {.max_length = 64, .parts = 3});
  REQUIRE(examples.size() == 2);
  auto const prompt = tokenizer.encode("the cat"), completion = tokenizer.encode(" sat down", false);
  REQUIRE(prompt[0] == tokenizer.bos());
  CHECK(examples[0].tokens == joined({prompt, completion, {tokenizer.eos()}}));
  CHECK(examples[0].prompt == static_cast<index_t>(prompt.size()));
  CHECK(examples[0].first_loss == examples[0].prompt);
  CHECK(examples[0].loss_rows() == static_cast<index_t>(completion.size()) + 1);
  CHECK(examples[1].tokens == joined({{tokenizer.bos()}, tokenizer.encode("a", false), {tokenizer.eos()}}));

  CHECK(examples[0].part == -1);
  CHECK(examples[1].part == 2);

  auto const whole = read_completions(folder / "d.jsonl", tokenizer, {.max_length = 64, .whole = true, .parts = 3});
  CHECK(whole[0].tokens == examples[0].tokens);
  CHECK(whole[0].prompt == examples[0].prompt);
  CHECK(whole[0].loss_rows() == static_cast<index_t>(whole[0].tokens.size()) - 1);
}

TEST_CASE("a prompt that is too long is cut on the left and keeps its BOS") {
  TemporaryFolder folder;
  write_bytes(folder / "d.jsonl", "{\"prompt\": \"one two three four five\", \"completion\": \" six\"}\n");
  auto const bos = golden("llama2"), none = golden("gpt2");
  for (auto const* tokenizer : {&bos, &none}) {
    auto const prompt = tokenizer->encode("one two three four five"), completion = tokenizer->encode(" six", false);
    auto const room = static_cast<index_t>(prompt.size()) - 3;
    auto const longest = room + static_cast<index_t>(completion.size()) + 1;
    auto const cut = read_completions(folder / "d.jsonl", *tokenizer, {.max_length = longest});
    bool const keeps = tokenizer->adds_bos();
    Ids const kept(prompt.end() - room + (keeps ? 1 : 0), prompt.end());
    CHECK(cut[0].tokens == joined({keeps ? Ids{tokenizer->bos()} : Ids{}, kept, completion, {tokenizer->eos()}}));
    CHECK(cut[0].prompt == room);
    // room for one token of the prompt: the last one, which the completion follows
    auto const least = read_completions(folder / "d.jsonl", *tokenizer, {.max_length = longest - room + 1});
    CHECK(least[0].tokens == joined({{prompt.back()}, completion, {tokenizer->eos()}}));
    CHECK_THROWS_WITH(read_completions(folder / "d.jsonl", *tokenizer, {.max_length = longest - room}),
                      Catch::Contains("d.jsonl:1: a completion of") && Catch::Contains("does not fit"));
  }
}

TEST_CASE("with --chat the prompt is a user's turn") {
  TemporaryFolder folder;
  write_bytes(folder / "d.jsonl", "{\"prompt\": \"hello\", \"completion\": \"hi\"}\n");
  auto const tokenizer = golden("smollm",
                                "{% for m in messages %}<|im_start|>{{ m['role'] }}: {{ m['content'] }}<|im_end|>"
                                "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}");
  auto const examples = read_completions(folder / "d.jsonl", tokenizer, {.max_length = 99, .chat = true});
  auto const prompt = tokenizer.encode("<|im_start|>user: hello<|im_end|><|im_start|>assistant: ", false);
  CHECK(examples[0].tokens == joined({prompt, tokenizer.encode("hi", false), {tokenizer.token_id("<|im_end|>")}}));
  CHECK(examples[0].prompt == static_cast<index_t>(prompt.size()));
}

TEST_CASE("a bad line is named, and nothing is read") {
  TemporaryFolder folder;
  auto const tokenizer = golden("gpt2");
  std::string const good = "{\"prompt\": \"a\", \"completion\": \"b\"}\n";
  auto const complains = [&](std::string const& line, std::string const& reason) {
    write_bytes(folder / "d.jsonl", good + "\n" + line + "\n" + good);
    CHECK_THROWS_WITH(read_completions(folder / "d.jsonl", tokenizer, {.max_length = 16}),
                      Catch::Contains("d.jsonl:3: ") && Catch::Contains(reason));
  };
  complains("{\"prompt\": \"a\"}", "needs a \"completion\"");
  complains("{\"prompt\": \"a\", \"completion\": null}", "needs a \"completion\"");
  complains("{\"prompt\": 3, \"completion\": \"b\"}", "\"prompt\" has the unexpected value 3");
  complains("{\"prompt\": \"a\", \"completion\": \"b\", \"lable\": 1}", "unknown key \"lable\"");
  complains("{\"prompt\": \"a\", \"completion\": \"\"}", "completion is empty");
  complains("{\"prompt\": \"a\", \"completion\": \"b\", \"part\": -1}", "\"part\" has the unexpected value -1");
  complains("{\"prompt\": \"a\", \"completion\": \"b\", \"part\": 0.5}", "\"part\" has the unexpected value 0.5");
  complains("{\"prompt\": \"a\", \"completion\": \"b\", \"part\": 0}",
            "is for part 0 of the module, which has 0 parts");
  complains("{\"prompt\": \"\", \"completion\": \"b\"} x", "is not a JSON object");
  complains("[1]", "is not a JSON object");
  complains("{\"prompt\": \"a\", \"completion\": \"b b b b b b b b b b b b b b b b b b\"}", "does not fit into 16");
  write_bytes(folder / "d.jsonl", "\n");
  CHECK_THROWS_AS(read_completions(folder / "d.jsonl", tokenizer, {.max_length = 16}), FormatError);
  CHECK_THROWS_WITH(read_completions(folder / "none", tokenizer, {.max_length = 16}), Catch::Contains("none"));
}

TEST_CASE("classified texts keep what stands around them, and labels go by name or number") {
  TemporaryFolder folder;
  auto const tokenizer = golden("bert");
  std::vector<std::string> const labels{"negative", "positive"};
  write_bytes(folder / "d.jsonl",
              "{\"prompt\": \"one two three\", \"label\": \"positive\"}\n{\"prompt\": \"one\", \"label\": 0}\n");
  auto const examples = read_classified(folder / "d.jsonl", tokenizer, labels, {.max_length = 64});
  REQUIRE(examples.size() == 2);
  CHECK(examples[0].tokens == tokenizer.encode("one two three"));
  CHECK(examples[0].label == 1);
  CHECK(examples[1].label == 0);
  CHECK(examples[0].loss_rows() == 1);
  auto const bare = tokenizer.encode("one two three", false), full = tokenizer.encode("one two three");
  auto const cut =
      read_classified(folder / "d.jsonl", tokenizer, labels, {.max_length = static_cast<index_t>(full.size()) - 1});
  CHECK(cut[0].tokens == joined({{full.front()}, Ids(bare.begin(), bare.end() - 1), {full.back()}}));

  for (auto const* wrong : {"\"neutral\"", "2", "-1", "1.5", "true"}) {
    write_bytes(folder / "d.jsonl", std::string("{\"prompt\": \"a\", \"label\": ") + wrong + "}\n");
    CHECK_THROWS_WITH(read_classified(folder / "d.jsonl", tokenizer, labels, {.max_length = 64}),
                      Catch::Contains("d.jsonl:1: "));
  }
  write_bytes(folder / "d.jsonl", "{\"prompt\": \"a\", \"label\": 2.5}\n");
  auto const regression = read_classified(folder / "d.jsonl", tokenizer, {"score"}, {.max_length = 64});
  CHECK(regression[0].target == 2.5);
}

TEST_CASE("the order of an epoch is a permutation that seed and epoch decide") {
  auto const order = epoch_order(100, 7, 0);
  CHECK(std::set<index_t>(order.begin(), order.end()).size() == 100);
  CHECK(*std::max_element(order.begin(), order.end()) == 99);
  CHECK(order == epoch_order(100, 7, 0));
  CHECK(order != epoch_order(100, 7, 1));
  CHECK(order != epoch_order(100, 8, 0));
  // place 0 is any element with the same chance: 4000 epochs of 10, each expected 400 +- 19
  std::vector<int> counts(10);
  for (index_t epoch = 0; epoch < 4000; ++epoch) ++counts[static_cast<std::size_t>(epoch_order(10, 1, epoch)[0])];
  for (int const count : counts) CHECK(std::abs(count - 400) < 100);
}

TEST_CASE("a split takes its share and loses nothing") {
  std::vector<Example> examples(10);
  for (std::size_t k = 0; k < 10; ++k) examples[k].label = static_cast<std::int32_t>(k);
  auto rest = examples;
  auto const split = split_off(rest, 0.25, 3);
  CHECK(split.size() == 3);
  CHECK(rest.size() == 7);
  std::vector<std::int32_t> all;
  auto const add = [&](std::vector<Example> const& part) {
    CHECK(std::is_sorted(part.begin(), part.end(), [](auto const& a, auto const& b) { return a.label < b.label; }));
    for (auto const& example : part) all.push_back(example.label);
  };
  add(split), add(rest);
  std::sort(all.begin(), all.end());
  CHECK(all == std::vector<std::int32_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9});
  CHECK_THROWS_AS(split_off(rest, 0.99, 3), ContractError);
  CHECK_THROWS_AS(split_off(rest, 0, 3), ContractError);
}

}  // namespace
