// SPDX-License-Identifier: Apache-2.0
// Explicit positions, masks and sliding windows.
#include <tests/catch.hpp>
#include <tests/io/files.hpp>
#include <tests/model/session.hpp>

#include <graft/io/json.hpp>
#include <graft/testing/close.hpp>

#include <algorithm>

using namespace graft_test;
using graft::testing::alone_bound;
using graft::testing::relative_l2;
using graft::testing::same_bits;

namespace {

using Mask = std::vector<std::uint8_t>;

/// [rows, keys], visible(row, key)
Mask mask_of(index_t rows, index_t keys, auto&& visible) {
  Mask mask;
  for (index_t i = 0; i < rows; ++i)
    for (index_t j = 0; j < keys; ++j) mask.push_back(visible(i, j) ? 1 : 0);
  return mask;
}

std::vector<index_t> counting(index_t first, index_t count) {
  std::vector<index_t> positions;
  for (index_t k = 0; k < count; ++k) positions.push_back(first + k);
  return positions;
}

std::vector<std::int32_t> const twelve{3, 41, 5, 9, 26, 53, 58, 9, 7, 32, 38, 46};
auto const length = static_cast<index_t>(twelve.size());

}  // namespace

TEST_CASE("the rule of the architecture, given explicitly, changes no bit") {
  for (auto const* name : {"llama_multi_head", "gpt2", "mistral", "bert"}) {
    INFO(name);
    Session s(name, {5, 7});  // the mask is cut with its chunk
    bool const causal = std::string(name) != "bert";
    auto const mask = mask_of(length, length, [&](index_t i, index_t j) { return !causal || j <= i; });
    auto const positions = counting(0, length);
    auto plain = s.start(), given = s.start();
    auto const expected = s.all({&plain, twelve});
    CHECK(same_bits(s.all({&given, twelve, -1, positions, mask}).view(), expected.view()));
  }
}

TEST_CASE("padding on the left, hidden and not counted, changes nothing") {
  for (auto const* name : {"llama_multi_head", "gpt2", "llama_yarn"}) {
    INFO(name);
    Session s(name);
    index_t const pads = 3, all = pads + length;
    std::vector<std::int32_t> padded(pads, 2);
    padded.insert(padded.end(), twelve.begin(), twelve.end());
    auto positions = counting(-pads, all);
    for (auto& position : positions) position = std::max<index_t>(position, 0);
    auto const mask = mask_of(all, all, [&](index_t, index_t j) { return j >= pads; });
    auto plain = s.start(), left = s.start();
    auto const expected = s.all({&plain, twelve});
    auto const found = s.all({&left, padded, -1, positions, mask});
    // the same keys lie elsewhere in their pages, so that sums round elsewhere
    CHECK(relative_l2(found.view().row_range(pads, length), expected.view()) <= alone_bound);
    for (float value : found.values) CHECK(std::isfinite(value));  // also of rows that see nothing

    // the next token, with a mask over all the keys
    auto const next_mask = mask_of(1, all + 1, [&](index_t, index_t j) { return j >= pads; });
    std::vector<std::int32_t> const next{11};
    auto const next_position = counting(length, 1);
    auto const decoded = s.step(Session::Input{&left, next, -1, next_position, next_mask});
    CHECK(relative_l2(row(decoded), row(s.step(plain, next))) <= alone_bound);
  }
}

TEST_CASE("padding of an encoder's input, hidden, changes nothing") {
  for (auto const* name : {"bert", "roberta"}) {
    Session s(name);
    auto padded = twelve;
    padded.insert(padded.end(), {4, 4, 4, 4});
    auto const mask = mask_of(length + 4, length + 4, [&](index_t, index_t j) { return j < length; });
    auto plain = s.start(), hidden = s.start(), seen = s.start();
    auto const expected = s.all({&plain, twelve});
    auto const found = s.all({&hidden, padded, -1, {}, mask});
    CHECK(relative_l2(found.view().row_range(0, length), expected.view()) <= alone_bound);
    CHECK(relative_l2(s.all({&seen, padded}).view().row_range(0, length), expected.view()) > 0.01);
  }
}

TEST_CASE("rotary positions are relative, learned ones are not") {
  for (auto const* name : {"llama_multi_head", "gpt2"}) {
    INFO(name);
    Session s(name);
    auto plain = s.start(), shifted = s.start();
    auto const expected = s.all({&plain, twelve});
    auto const positions = counting(20, length);
    double const distance = relative_l2(s.all({&shifted, twelve, -1, positions}).view(), expected.view());
    if (std::string(name) == "gpt2")
      CHECK(distance > 0.01);
    else
      CHECK(distance <= alone_bound);
  }
}

TEST_CASE("token types default to 0 and count") {
  Session s("bert");
  std::vector<std::int32_t> const zeros(twelve.size(), 0), ones(twelve.size(), 1);
  auto plain = s.start(), zero = s.start(), one = s.start();
  auto const expected = s.all({&plain, twelve});
  CHECK(same_bits(s.all({&zero, twelve, -1, {}, {}, zeros}).view(), expected.view()));
  CHECK(relative_l2(s.all({&one, twelve, -1, {}, {}, ones}).view(), expected.view()) > 0.01);
}

TEST_CASE("a sliding window is a mask, in the layers it holds for") {
  TemporaryFolder folder;
  auto const changed = [&](Case const& from, auto&& change) {
    auto config = read_json(from.folder / "config.json");
    change(config);
    write_bytes(folder / "config.json", config.dump());
    std::filesystem::copy_file(from.folder / "model.safetensors", folder / "model.safetensors",
                               std::filesystem::copy_options::overwrite_existing);
    return open<float>(folder.path());
  };
  auto const run = [&](AnyModel<float>& model, Mask const& mask) {
    SerialExecutor executor;
    auto const context = model.context(executor, {4});
    auto sequence = context->start();
    SequenceInput<CpuBackend<float>> const input{&sequence, twelve, -1, {}, mask};
    auto const wanted = counting(0, length);
    Answer<float> answer{length, model.output_width(), {}};
    answer.values.resize(static_cast<std::size_t>(length * answer.cols));
    context->forward(std::span(&input, 1), wanted, matrix_view(answer.values.data(), length, answer.cols));
    return answer;
  };
  auto const window = mask_of(length, length, [](index_t i, index_t j) { return i - j < 5; });
  auto const& mistral = case_of("mistral");  // window 5 in all layers
  auto const everywhere = [](auto& c) { c["sliding_window"] = nullptr; };
  auto const windowed = run(*open<float>(mistral.folder), {});
  CHECK(relative_l2(windowed.view(), run(*changed(mistral, everywhere), {}).view()) > 0.01);
  auto const masked = run(*changed(mistral, everywhere), window);
  CHECK(relative_l2(masked.view(), windowed.view()) <= alone_bound);

  auto const& qwen = case_of("qwen2_windows");  // three layers, whose types are listed
  using Types = std::vector<std::string>;
  auto const typed = [&](Types const& types) {
    return run(*changed(qwen, [&](auto& c) { c["layer_types"] = types; }), {});
  };
  auto const full = run(*changed(qwen, [](auto& c) { c["use_sliding_window"] = false, c.erase("layer_types"); }), {});
  CHECK(same_bits(typed({"full_attention", "full_attention", "full_attention"}).view(), full.view()));
  auto const mixed = typed({"full_attention", "sliding_attention", "sliding_attention"});
  CHECK(same_bits(mixed.view(), run(*open<float>(qwen.folder), {}).view()));  // max_window_layers is 1
  CHECK(relative_l2(mixed.view(), full.view()) > 0.01);
  CHECK(relative_l2(mixed.view(), typed({"sliding_attention", "full_attention", "full_attention"}).view()) > 0.01);
}
