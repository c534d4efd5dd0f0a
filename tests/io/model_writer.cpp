// SPDX-License-Identifier: Apache-2.0
// Models between GGUF files and Hugging Face folders: formats chosen, rows put in order, what each side cannot say.
#include <tests/catch.hpp>
#include <tests/io/files.hpp>

#include <graft/io/gguf_model.hpp>
#include <graft/io/hf_config.hpp>
#include <graft/io/hf_model.hpp>
#include <graft/io/output_folder.hpp>
#include <graft/testing/random.hpp>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <optional>
#include <string>
#include <vector>

using namespace graft;
using graft_test::TemporaryFolder;
namespace fs = std::filesystem;

namespace {

fs::path const models = fs::path(GRAFT_TEST_DATA) / "models";

std::vector<float> values_of(TensorInfo const& tensor) {
  std::vector<float> values(static_cast<std::size_t>(tensor.elements()));
  decode_row(tensor.format, tensor.data, 0, tensor.elements(), values.data());
  return values;
}

std::vector<float> random_values(index_t count) {
  std::vector<float> values(static_cast<std::size_t>(count));
  Random random(1);
  testing::fill_normal(vector_view(values.data(), count), random);
  return values;
}

/// A golden model's folder as a GGUF file.
GgufModel gguf_of(fs::path const& folder, std::optional<Format> type, TensorFile& file) {
  file = read_sharded_safetensors(folder);
  return gguf_model(read_hf_config(folder / "config.json"), file, type);
}
void write_gguf_of(fs::path const& folder, fs::path const& to, std::optional<Format> type = std::nullopt) {
  TensorFile file;
  SerialExecutor executor;
  auto const model = gguf_of(folder, type, file);
  write_gguf(to, model.metadata, model.tensors, executor);
}
void write_hf_of(Gguf const& file, fs::path const& to, std::optional<Format> type = std::nullopt) {
  SerialExecutor executor;
  auto const model = hf_model(file, type);
  fs::create_directory(to);
  graft_test::write_bytes(to / "config.json", model.config.dump());
  write_safetensors(to / "model.safetensors", model.tensors, executor);
}

/// The sentence of the Error that `call` raises, "" when it does not.
template <class E, class F>
std::string sentence(F&& call) {
  try {
    call();
  } catch (E const& error) {
    return error.what();
  }
  return "";
}

/// The folder's config.json with some keys changed and no weights.
nlohmann::json model_config_of(std::string const& name) { return read_json(models / name / "config.json"); }
std::string metadata_refusal(nlohmann::json const& config) {
  TemporaryFolder const folder;
  graft_test::write_bytes(folder / "config.json", config.dump());
  return sentence<FormatError>([&] { detail::gguf_model_metadata(read_hf_config(folder / "config.json"), "model"); });
}

}  // namespace

TEST_CASE("formats are those llama-quantize chooses, and every other one is said") {
  struct Case {
    std::vector<index_t> shape;
    Format stored;
    TensorRole role;
    std::optional<Format> type;
    bool gguf;
    Format chosen;
    std::string note;
  };
  auto const matrix = TensorRole::matrix, head = TensorRole::head;
  std::vector<Case> const cases = {
      {{64, 512}, Format::f32, matrix, Format::q4_k, true, Format::q4_k, ""},
      {{64, 576}, Format::f32, matrix, Format::q4_k, true, Format::q5_0, "Q5_0, not Q4_K, because rows have 576"},
      {{64, 576}, Format::f32, matrix, Format::q5_k, true, Format::q5_1, "Q5_1, not Q5_K, because rows have 576"},
      {{64, 576}, Format::f32, matrix, Format::q6_k, true, Format::q8_0, "Q8_0, not Q6_K, because rows have 576"},
      {{64, 40}, Format::f32, matrix, Format::q4_k, true, Format::f16, "F16, not Q4_K, because rows have 40"},
      {{64, 40}, Format::bf16, matrix, Format::q8_0, true, Format::f16, "F16, not Q8_0, because rows have 40"},
      {{64, 40}, Format::bf16, matrix, Format::f16, true, Format::f16, ""},
      {{64, 512}, Format::f32, head, Format::q4_0, true, Format::q6_k, "Q6_K, not Q4_0, because it makes the logits"},
      {{64, 576}, Format::f32, head, Format::q4_k, true, Format::q8_0, "Q8_0, not Q4_K, because it makes the logits"},
      {{64, 512}, Format::f32, head, Format::q8_0, true, Format::q8_0, ""},
      {{64, 512}, Format::f32, head, Format::bf16, true, Format::bf16, ""},
      {{64, 512}, Format::q4_1, matrix, Format::q5_0, true, Format::q5_0, "a second time, Q5_0 from Q4_1"},
      {{64, 512}, Format::q4_1, matrix, Format::q4_1, true, Format::q4_1, ""},
      {{64, 512}, Format::q4_1, matrix, Format::bf16, true, Format::bf16, ""},
      {{64, 512}, Format::f32, TensorRole::learned_positions, Format::q8_0, true, Format::f32, ""},
      {{512}, Format::bf16, matrix, Format::q8_0, true, Format::f32, ""},
      {{512}, Format::bf16, matrix, std::nullopt, true, Format::f32, ""},
      {{512}, Format::bf16, matrix, std::nullopt, false, Format::bf16, ""},
      {{64, 512}, Format::q4_1, matrix, std::nullopt, true, Format::q4_1, ""},
      {{64, 512}, Format::q4_1, matrix, std::nullopt, false, Format::f32, ""},
      {{64, 512}, Format::f16, matrix, std::nullopt, false, Format::f16, ""},
      {{64, 512}, Format::f64, matrix, std::nullopt, true, Format::f32, ""},
      {{1, 512}, Format::i64, matrix, Format::f16, false, Format::i64, ""},
  };
  for (auto const& c : cases) {
    FormatChoice choose(c.type, c.gguf);
    TensorInfo tensor{"t", c.stored, c.shape, nullptr, 0};
    INFO(format_info(c.stored).name << ' ' << shape_text(c.shape));
    CHECK(format_info(choose(tensor, c.role)).name == std::string(format_info(c.chosen).name));
    CHECK(choose.notes().size() == (c.note.empty() ? 0 : 1));
    if (!c.note.empty()) CHECK_THAT(choose.notes().at(0), Catch::Contains(c.note));
  }
  CHECK_THAT(sentence<ContractError>([] { FormatChoice(Format::q8_0, false); }), Catch::Contains("cannot hold Q8_0"));
}

TEST_CASE("rows reach the file as encode_row makes them, in their order, from any number of threads") {
  TemporaryFolder const folder;
  index_t const rows = 300, cols = 512;
  auto const values = random_values(rows * cols);
  TensorInfo const stored = tensor_info("w", {rows, cols}, values.data());
  for (Format const format : {Format::f32, Format::f16, Format::bf16, Format::q8_0, Format::q4_0, Format::q4_1,
                              Format::q5_0, Format::q5_1, Format::q4_k, Format::q5_k, Format::q6_k}) {
    auto one = conversion(stored, "in order", format), other = conversion(stored, "reversed", format);
    for (index_t k = rows; k-- > 0;) other.row_order.push_back(static_cast<std::int32_t>(k));
    ThreadPool pool(3);
    SerialExecutor serial;
    write_gguf(folder / "a.gguf", {}, {one, other}, pool);
    write_gguf(folder / "b.gguf", {}, {one, other}, serial);
    CHECK(graft_test::read_bytes(folder / "a.gguf") == graft_test::read_bytes(folder / "b.gguf"));
    auto const file = read_gguf(folder / "a.gguf");
    auto const &a = file.tensors.at("in order", {rows, cols}), &b = file.tensors.at("reversed", {rows, cols});
    REQUIRE(a.format == format);
    auto const bytes = static_cast<std::size_t>(row_bytes(format, cols));
    std::vector<std::byte> expected(bytes);
    index_t wrong = 0;
    for (index_t k = 0; k < rows; ++k) {
      encode_row(format, values.data() + k * cols, cols, expected.data());
      auto const at = [&](index_t row) { return static_cast<std::size_t>(row) * bytes; };
      wrong += std::equal(expected.begin(), expected.end(), a.data + at(k)) ? 0 : 1;
      wrong += std::equal(expected.begin(), expected.end(), b.data + at(rows - 1 - k)) ? 0 : 1;
    }
    INFO(format_info(format).name);
    CHECK(wrong == 0);
  }
}

TEST_CASE("a matrix is turned from every format, and the elements of a vector are put in order") {
  TemporaryFolder const folder;
  SerialExecutor serial;
  index_t const rows = 70, cols = 256;  // more than a band of rows, not a multiple of one
  auto const values = random_values(rows * cols);
  for (Format const format : {Format::f32, Format::bf16, Format::q4_1, Format::q6_k}) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(rows * row_bytes(format, cols)));
    encode_row(format, values.data(), rows * cols, bytes.data());
    TensorInfo const stored{"w", format, {rows, cols}, bytes.data(), bytes.size()};
    write_safetensors(folder / "turned.safetensors", {transposed_conversion(stored, "turned", Format::f32)}, serial);
    auto const file = read_safetensors(folder / "turned.safetensors");
    auto const turned = values_of(file.at("turned", {cols, rows})), straight = values_of(stored);
    index_t wrong = 0;
    for (index_t r = 0; r < rows; ++r)
      for (index_t c = 0; c < cols; ++c)
        wrong += turned[static_cast<std::size_t>(c * rows + r)] != straight[static_cast<std::size_t>(r * cols + c)];
    INFO(format_info(format).name);
    CHECK(wrong == 0);
  }
  std::vector<bf16> const vector = {bf16(1.f), bf16(2.f), bf16(3.f)};
  auto ordered = conversion(tensor_info("v", {3}, vector.data()), "v", Format::f32);
  ordered.row_order = {2, 0, 1};
  write_safetensors(folder / "vector.safetensors", {ordered}, serial);
  CHECK(values_of(read_safetensors(folder / "vector.safetensors").at("v", {3})) == std::vector<float>{3, 1, 2});
}

TEST_CASE("a value that the format cannot hold is refused, and no file appears") {
  TemporaryFolder const folder;
  SerialExecutor serial;
  float const infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  auto const refusal = [&](float value, Format format) {
    auto values = random_values(64);
    values[40] = value;
    return sentence<FormatError>([&] {
      write_gguf(folder / "x.gguf", {}, {conversion(tensor_info("w", {2, 32}, values.data()), "w", format)}, serial);
    });
  };
  CHECK_THAT(refusal(70000, Format::f16), Catch::Contains("x.gguf: tensor 'w' holds a value that F16 cannot"));
  CHECK_THAT(refusal(infinity, Format::q4_0), Catch::Contains("Q4_0 cannot"));
  CHECK_THAT(refusal(nan, Format::q8_0), Catch::Contains("Q8_0 cannot"));
  CHECK(fs::is_empty(folder.path()));
  CHECK(refusal(65519, Format::f16).empty());  // rounds down to the largest half
  CHECK(refusal(70000, Format::bf16).empty());
  CHECK(refusal(infinity, Format::f16).empty());  // was infinite already
}

TEST_CASE("a folder's model goes to GGUF and back without a changed value") {
  for (std::string const name :
       {"llama_multi_head", "llama_grouped_3_linear", "llama_grouped_8_llama3", "llama_yarn", "llama_yarn_defaults",
        "llama_biased", "llama_sharded", "mistral", "qwen2", "qwen3", "gpt2", "gpt2_hub"})
    DYNAMIC_SECTION(name) {
      TemporaryFolder const folder;
      write_gguf_of(models / name, folder / "model.gguf");
      auto const gguf = read_gguf(folder / "model.gguf");
      write_hf_of(gguf, folder / "back");

      auto const before = open_model(models / name), after = open_model(folder / "back");
      ModelConfig const &a = before.config, &b = after.config;
      CHECK(a.architecture == b.architecture);
      CHECK(a.width == b.width);
      CHECK(a.layers == b.layers);
      CHECK(a.heads == b.heads);
      CHECK(a.kv_heads == b.kv_heads);
      CHECK(a.head_dim == b.head_dim);
      CHECK(a.ffn == b.ffn);
      CHECK(a.vocabulary == b.vocabulary);
      CHECK(a.positions == b.positions);
      CHECK(a.norm_eps == b.norm_eps);
      CHECK(a.window == b.window);
      CHECK(a.tied == b.tied);
      CHECK(a.activation == b.activation);
      CHECK(a.rope.dimensions == b.rope.dimensions);
      if (a.architecture != "gpt2") {  // exact: a float's shortest decimal is the number it came from
        CHECK(rope_frequencies(a.rope) == rope_frequencies(b.rope));
        CHECK(rope_magnitude(a.rope) == rope_magnitude(b.rope));
      }
      REQUIRE(a.layers > 0);
      CHECK(before.weights.tensors.size() == after.weights.tensors.size());
      for (auto const& [tensor, weight] : before.weights.tensors) {
        INFO(tensor);
        auto const other = after.weights.matrix(tensor, weight.rows, weight.cols);
        std::vector<float> x(static_cast<std::size_t>(weight.cols)), y = x;
        index_t wrong = 0;
        for (index_t k = 0; k < weight.rows; ++k) {
          weight.row(k, x.data());
          other.row(k, y.data());
          wrong += x != y;
        }
        CHECK(wrong == 0);
      }
    }
}

TEST_CASE("a GGUF file in another format keeps its order, names and metadata") {
  TemporaryFolder const folder;
  SerialExecutor serial;
  write_gguf_of(models / "llama_multi_head", folder / "a.gguf");
  auto const a = read_gguf(folder / "a.gguf");
  auto const model = gguf_model(a, Format::q8_0);
  write_gguf(folder / "b.gguf", model.metadata, model.tensors, serial);
  auto const b = read_gguf(folder / "b.gguf");
  CHECK(b.metadata.get<int>("general.file_type") == 7);
  CHECK(b.metadata.get<int>("general.quantization_version") == 2);
  for (auto const& entry : a.metadata.entries()) {
    if (entry.key == "general.file_type") continue;
    INFO(entry.key);
    REQUIRE(b.metadata.contains(entry.key));
    CHECK(b.metadata.find(entry.key)->values == entry.values);
  }
  REQUIRE(a.tensors.tensors().size() == b.tensors.tensors().size());
  bool quantised = false;
  for (std::size_t k = 0; k < a.tensors.tensors().size(); ++k) {
    auto const &x = a.tensors.tensors()[k], &y = b.tensors.tensors()[k];
    CHECK(x.name == y.name);
    CHECK(x.shape == y.shape);
    quantised = quantised || y.format == Format::q8_0;
  }
  CHECK(quantised);
}

TEST_CASE("what a GGUF file cannot say of a folder's model is refused by name") {
  for (std::string const name : {"bert", "roberta_classifier"})
    CHECK_THAT(metadata_refusal(model_config_of(name)),
               Catch::Contains("cannot be converted to GGUF (llama, mistral, "));
  CHECK(metadata_refusal(model_config_of("llama_yarn")).empty());
  auto config = model_config_of("llama_yarn");
  config["rope_parameters"]["truncate"] = false;
  CHECK_THAT(metadata_refusal(config), Catch::Contains("truncate"));
  auto partly = read_hf_config(models / "llama_yarn" / "config.json");
  partly.rope.dimensions = 8;
  CHECK_THAT(sentence<FormatError>([&] { detail::gguf_model_metadata(partly, "model"); }),
             Catch::Contains("RoPE over 8 of 16 columns"));
  config = model_config_of("qwen2");
  config["use_sliding_window"] = true;
  config["sliding_window"] = 4;
  config["max_window_layers"] = 1;
  config["layer_types"] = {"full_attention", "sliding_attention"};
  CHECK_THAT(metadata_refusal(config), Catch::Contains("window in 1 of 2 layers"));
  config = model_config_of("gpt2");
  config["activation_function"] = "relu";
  CHECK_THAT(metadata_refusal(config), Catch::Contains("activation"));
}

TEST_CASE("what no class of transformers can be is refused by name") {
  TemporaryFolder const folder;
  write_gguf_of(models / "llama_biased", folder / "a.gguf");
  auto const a = read_gguf(folder / "a.gguf");
  auto const without = [&](std::string const& end) {
    std::vector<TensorInfo> tensors;
    for (auto const& tensor : a.tensors.tensors())
      if (!tensor.name.ends_with(end)) tensors.push_back(tensor);
    write_gguf(folder / "b.gguf", a.metadata, tensors);
    return sentence<FormatError>([&] { hf_model(read_gguf(folder / "b.gguf"), std::nullopt); });
  };
  CHECK(without("nothing").empty());
  CHECK_THAT(without("attn_k.bias"), Catch::Contains("only some of the modules like 'attn_q' have a bias"));
  CHECK_THAT(without("0.ffn_up.bias"), Catch::Contains("only some of the modules like 'ffn_gate' have a bias"));
  CHECK_THAT(without("attn_output.bias"), Catch::Contains("are not those of transformers' LlamaForCausalLM"));

  std::vector<float> divisors(6, 1.f);  // half of a head of 12 columns
  divisors[5] = 3;
  auto tensors = a.tensors.tensors();
  tensors.push_back(tensor_info("rope_freqs.weight", {6}, divisors.data()));
  write_gguf(folder / "c.gguf", a.metadata, tensors);
  CHECK_THAT(sentence<FormatError>([&] { hf_model(read_gguf(folder / "c.gguf"), std::nullopt); }),
             Catch::Contains("'rope_freqs.weight' are not those of Llama 3"));
}

TEST_CASE("a tensor without a place is refused") {
  TemporaryFolder const folder;
  auto const file = read_sharded_safetensors(models / "llama_multi_head");
  auto const config = read_hf_config(models / "llama_multi_head" / "config.json");
  std::vector<float> const one(4);
  auto const with = [&](std::string const& name) {
    auto tensors = file.tensors();
    tensors.push_back(tensor_info(name, {2, 2}, one.data()));
    write_safetensors(folder / "m.safetensors", tensors);
    return sentence<FormatError>([&] { gguf_model(config, read_safetensors(folder / "m.safetensors"), std::nullopt); });
  };
  CHECK_THAT(with("model.layers.0.self_attn.rotary.weight"), Catch::Contains("has no place in a GGUF file"));
  CHECK_THAT(with("model.layers.7.self_attn.q_proj.weight"), Catch::Contains("belongs to no layer of 2"));
  CHECK(with("model.layers.0.self_attn.rotary_emb.inv_freq").empty());  // a buffer of old checkpoints
}

TEST_CASE("llama.cpp's own ways are noted") {
  TensorFile file;
  CHECK_THAT(gguf_of(models / "mistral", std::nullopt, file).notes.at(0), Catch::Contains("sliding window"));
  CHECK_THAT(gguf_of(models / "llama_yarn", std::nullopt, file).notes.at(0), Catch::Contains("--yarn-beta-fast 4"));
  CHECK(gguf_of(models / "llama_yarn_defaults", std::nullopt, file).notes.empty());
}

TEST_CASE("a folder appears whole or not at all") {
  TemporaryFolder const folder;
  auto const files = [](fs::path const& path) {
    return std::distance(fs::directory_iterator(path), fs::directory_iterator());
  };
  {
    OutputFolder out(folder / "new");
    graft_test::write_bytes(out / "a", "1");
    CHECK_FALSE(fs::exists(folder / "new"));
  }
  CHECK(fs::is_empty(folder.path()));
  for (std::string const content : {"1", "2"}) {  // made, then replaced
    OutputFolder out(folder.path() / "new" / "");
    graft_test::write_bytes(out / "a", content);
    out.commit();
    CHECK(graft_test::read_bytes(folder.path() / "new" / "a") == content);
    graft_test::write_bytes(folder.path() / "new" / "mine", "kept");
  }
  CHECK(files(folder / "new") == 2);
  CHECK(files(folder.path()) == 1);
  graft_test::write_bytes(folder / "file", "");
  CHECK_THAT(sentence<FormatError>([&] { OutputFolder{folder / "file"}; }), Catch::Contains("is not a folder"));
  CHECK_THAT(sentence<FormatError>([&] { OutputFolder{folder / "no/where"}; }), Catch::Contains("cannot be created"));
}
