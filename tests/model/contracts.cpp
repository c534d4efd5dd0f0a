// SPDX-License-Identifier: Apache-2.0
// Wrong calls are refused in words, before anything has changed.
#include <tests/catch.hpp>
#include <tests/model/session.hpp>

#include <graft/testing/close.hpp>

#include <limits>

using namespace graft_test;
using graft::testing::same_bits;

namespace {

using Input = Session::Input;
using Tokens = std::vector<std::int32_t>;
using Uses = std::vector<AdapterUse>;

/// The ContractError's sentence; "" when the call is accepted.
template <class F>
std::string refused(F&& call) {
  try {
    call();
  } catch (ContractError const& error) {
    return error.what();
  }
  return "";
}

/// What a forward of one input over `rows` wanted rows is refused with.
std::string refused(Session& s, Input const& input, std::vector<index_t> const& wanted = {}) {
  std::vector<float> out(wanted.size() * static_cast<std::size_t>(s.model->output_width()));
  return refused([&] {
    s.context->forward(std::span(&input, 1), wanted,
                       matrix_view(out.data(), static_cast<index_t>(wanted.size()), s.model->output_width()));
  });
}

}  // namespace

TEST_CASE("inputs that do not fit are refused") {
  Session s("llama_multi_head");
  auto q = s.start();
  s.step(q, {4, 5, 6});
  Tokens const two{1, 2}, bad{1, 71}, negative{-1};
  std::vector<index_t> const position{0};
  std::vector<std::uint8_t> const mask(4, 1);
  Tokens const types{0, 0};
  CHECK(refused(s, Input{nullptr, two}) == "graft: input 0 has no sequence or no tokens");
  CHECK(refused(s, Input{&q, {}}) == "graft: input 0 has no sequence or no tokens");
  CHECK(refused(s, Input{&q, bad}) == "graft: token 71 of input 0 is outside the vocabulary of 71");
  CHECK(refused(s, Input{&q, negative}) == "graft: token -1 of input 0 is outside the vocabulary of 71");
  CHECK(refused(s, Input{&q, two, -1, position}) == "graft: input 0 has 2 tokens but 1 positions");
  CHECK(refused(s, Input{&q, two, -1, {}, mask}) ==
        "graft: the mask of input 0 should have 10 entries, it has 4");  // 2 rows, 3 + 2 keys
  CHECK(refused(s, Input{&q, two, -1, {}, {}, types}) == "graft: token type 0 of input 0 is not one of the model's 0");
  CHECK(refused(s, Input{&q, two}, {2}) == "graft: wanted row 2 is out of order or outside the batch of 2");
  CHECK(refused(s, Input{&q, two}, {1, 0}) == "graft: wanted row 0 is out of order or outside the batch of 2");
  CHECK(refused(s, Input{&q, two}, {-1}) == "graft: wanted row -1 is out of order or outside the batch of 2");
  std::vector<float> out(71);
  std::vector<Input> const twice{{&q, two}, {&q, two}};
  CHECK(refused([&] { s.context->forward(twice, {}, {}); }) == "graft: inputs 0 and 1 are the same sequence");
  std::vector<index_t> const wanted{1};
  CHECK(refused([&] { s.context->forward(std::span(twice).first(1), wanted, matrix_view(out.data(), 1, 70)); }) ==
        "graft: logits should be [1, 71], they are [1, 70]");
  Session other("llama_multi_head");
  auto stranger = other.start();
  CHECK(refused(s, Input{&stranger, two}) == "graft: input 0 is a sequence that another context started");

  CHECK(q.length() == 3);
  auto fresh = s.start();
  s.step(fresh, {4, 5, 6});
  CHECK(same_bits(row(s.step(q, two)), row(s.step(fresh, two))));
  CHECK(refused([&] { q.truncate(6); }) == "graft: cannot truncate a sequence of 5 tokens to 6");
  CHECK(refused([&] { q.truncate(-1); }) == "graft: cannot truncate a sequence of 5 tokens to -1");
}

TEST_CASE("learned positions end") {
  Session s("gpt2");
  auto q = s.start();
  s.step(q, Tokens(47, 3));
  Tokens const two{1, 2}, one{1};
  CHECK(refused(s, Input{&q, two}) == "graft: input 0 reaches position 48, the model has 48");
  std::vector<index_t> const below{-1}, beyond{48}, last{47};
  CHECK(refused(s, Input{&q, one, -1, below}) == "graft: input 0 has a position of -1");
  CHECK(refused(s, Input{&q, one, -1, beyond}) == "graft: input 0 reaches position 48, the model has 48");
  CHECK(refused(s, Input{&q, one, -1, last}) == "");

  Session roberta("roberta");  // 40 positions, the first two of them for padding
  auto r = roberta.start(), full = roberta.start();
  CHECK(refused(roberta, Input{&r, Tokens(39, 3)}) == "graft: input 0 reaches position 38, the model has 38");
  CHECK(refused(roberta, Input{&full, Tokens(38, 3)}) == "");
}

TEST_CASE("an encoder sees the whole input at once") {
  Session s("bert");
  auto q = s.start();
  Tokens const some{4, 5, 6}, one{7}, types{0, 2, 1};
  CHECK(refused(s, Input{&q, some, -1, {}, {}, types}) == "graft: token type 2 of input 0 is not one of the model's 2");
  CHECK(refused(s, Input{&q, some, -1, {}, {}, one}) == "graft: input 0 has 3 tokens but 1 token types");
  CHECK(refused(s, Input{&q, some}) == "");
  CHECK(refused(s, Input{&q, one}) == "graft: input 0 continues a sequence; an encoder sees the whole input at once");
  q.truncate(0);
  CHECK(refused(s, Input{&q, one}) == "");
}

TEST_CASE("a classifier that is an encoder answers in first rows") {
  Session s("bert_classifier");
  auto a = s.start(), b = s.start();
  Tokens const three{4, 5, 6}, two{7, 8};
  std::vector<Input> const inputs{{&a, three}, {&b, two}};
  std::vector<float> out(6);
  auto const view = matrix_view(out.data(), 2, 3);
  for (std::vector<index_t> const& wanted : {std::vector<index_t>{0, 4}, {1, 3}, {0, 2}}) {
    index_t const wrong = wanted[0] == 0 ? wanted[1] : wanted[0];
    CHECK(refused([&] { s.context->forward(inputs, wanted, view); }) ==
          text("graft: a classifier answers in one row of each input (see answer_row); wanted row ", wrong,
               " is not one"));
  }
  s.context->classify(inputs, view);
  auto const first = out;
  a.truncate(0), b.truncate(0);
  std::vector<index_t> const wanted{3};
  s.context->forward(inputs, wanted, matrix_view(out.data(), 1, 3));
  CHECK(same_bits(out.data(), first.data() + 3, 3));
}

TEST_CASE("a classifier that is a decoder answers at the last token that is not padding") {
  Session s("llama_classifier");  // padding is 1
  auto a = s.start(), b = s.start(), c = s.start();
  Tokens const padded{4, 5, 6, 1, 1}, plain{7, 8}, nothing{1, 1};
  CHECK(s.context->answer_row(padded) == 2);
  CHECK(s.context->answer_row(plain) == 1);
  CHECK(s.context->answer_row(nothing) == 0);
  std::vector<Input> const inputs{{&a, padded}, {&b, plain}, {&c, nothing}};
  std::vector<float> out(9);
  std::vector<index_t> const last{4, 6, 7}, right{2, 6, 7};
  CHECK(refused([&] { s.context->forward(inputs, last, matrix_view(out.data(), 3, 3)); }) ==
        "graft: a classifier answers in one row of each input (see answer_row); wanted row 4 is not one");
  s.context->classify(inputs, matrix_view(out.data(), 3, 3));
  auto const all = out;
  for (auto* q : {&a, &b, &c}) q->truncate(0);
  s.context->forward(inputs, right, matrix_view(out.data(), 3, 3));
  CHECK(same_bits(out.data(), all.data(), 9));
}

TEST_CASE("a prompt that PEDRO reads comes in one piece") {
  Session s("llama_pedro");
  Uses const use{{"mean", 1.0}};
  auto q = s.start(use);
  Tokens const three{4, 5, 6}, one{7};
  CHECK(refused(s, Input{&q, three, 4}) ==
        "graft: the prompt of input 0 has 4 tokens but this step holds 0 to 3; a prompt PEDRO reads cannot be split "
        "over calls");
  CHECK(refused(s, Input{&q, three, 0}) ==
        "graft: the prompt of input 0 has 0 tokens but this step holds 0 to 3; a prompt PEDRO reads cannot be split "
        "over calls");
  CHECK(refused(s, Input{&q, three, 2}) == "");
  CHECK(refused(s, Input{&q, one, 2}) == "");
}

TEST_CASE("unknown adapters and weights that are no numbers are refused") {
  Session s("llama_lora");
  CHECK(refused([&] { s.start(Uses{{"a", 1.0}, {"nobody", 1.0}}); }) == "graft: no adapter is called nobody");
  CHECK(refused([&] {
          s.start(Uses{{"a", std::numeric_limits<double>::infinity()}});
        }) == "graft: the weight of adapter a is not finite");
}

TEST_CASE("a head that the model does not have is refused with the file's name") {
  auto const bare = open<float>(case_of("roberta"));
  auto const folder = case_of("roberta_classifier").folder / "adapter_road_1";
  CHECK_THROWS_WITH(bare->load("road", folder),
                    text(folder.string(),
                         ": adapter road brings the head of a classifier, classifier.dense.bias, and this model has "
                         "none; its base is the model saved as ForSequenceClassification"));
  std::vector<AdapterUse> const use{{"road", 1.0}};
  SerialExecutor executor;
  CHECK_THROWS_AS(bare->context(executor)->start(use), ContractError);  // nothing is half loaded
}

TEST_CASE("options out of range are refused") {
  auto const model = open<float>(case_of("llama_multi_head"));
  SerialExecutor executor;
  CHECK(refused([&] { model->context(executor, {0, 16}); }) == "graft: a KV page holds 1 to 64 tokens, not 0");
  CHECK(refused([&] { model->context(executor, {65, 16}); }) == "graft: a KV page holds 1 to 64 tokens, not 65");
  CHECK(refused([&] { model->context(executor, {32, -1}); }) == "graft: chunk_rows must not be negative");
}
