// SPDX-License-Identifier: Apache-2.0
// A merged model answers without adapters what the original answers with them, and unmerged it is the original again.
#include <tests/catch.hpp>
#include <tests/io/files.hpp>
#include <tests/model/model_under_test.hpp>

#include <graft/io/merge_files.hpp>
#include <graft/io/peft.hpp>
#include <graft/testing/close.hpp>
#include <graft/testing/reference.hpp>

#include <cstdio>
#include <set>
#include <string>
#include <vector>

using namespace graft_test;
using graft::testing::relative_l2;

namespace {

using B = CpuBackend<float>;

/// A golden model with its adapters in a bank of our own, ready to be merged.
struct Merging {
  Case const& from;
  ModelFiles files;
  std::unique_ptr<AnyModel<float>> model;
  B be;
  Bank<AllAdapters, B> bank;
  SerialExecutor executor;

  Merging(Case const& c, std::filesystem::path const& path)
      : from(c), files(open_model(path)), model(open<float>(path)), bank(model->sites()) {
    for (auto const& entry : std::filesystem::directory_iterator(c.folder)) {
      auto const name = entry.path().filename().string();
      if (!name.starts_with("adapter_")) continue;
      model->load(name.substr(8), entry.path());
      load_adapter(be, bank, name.substr(8), entry.path());
    }
  }

  MergeOutcome merge(AdapterSet<B> const& set, std::filesystem::path const& out, std::filesystem::path const& undo,
                     bool inward = true, std::optional<Format> type = {}) {
    MergeRequest<B> const request{set,      bank.sites(), files.config, files.weights,
                                  executor, inward,       type,         MergeRecord{"base", {{"a", "hash", 1}}, ""},
                                  undo};
    if (files.gguf) return merge_gguf(request, *files.gguf, out);
    OutputFolder folder(out);
    auto outcome = merge_hf(request, read_json<nlohmann::ordered_json>(files.folder / "config.json"),
                            read_sharded_safetensors(files.folder), folder);
    folder.commit();
    return outcome;
  }
};

/// Whether a request's adapters are of kinds and at places that can be merged.
bool mergeable(Merging& merging, Request const& request) {
  if (request.adapters.empty()) return false;
  try {
    check_mergeable(*merging.bank.resolve(request.adapters), merging.bank.sites());
    return true;
  } catch (ContractError const&) {
    return false;
  }
}

Answer<float> answer_alone(AnyModel<float>& model, Request request, bool with_adapters) {
  if (!with_adapters) request.adapters.clear();
  return answer(model, std::span<Request const>(&request, 1))[0];
}

void check_same_tensors(TensorFile const& a, TensorFile const& b) {
  REQUIRE(a.tensors().size() == b.tensors().size());
  for (auto const& tensor : a.tensors()) {
    auto const& other = b.at(tensor.name, tensor.shape);
    INFO(tensor.name);
    CHECK(tensor.format == other.format);
    CHECK(std::string_view(reinterpret_cast<char const*>(tensor.data), tensor.bytes) ==
          std::string_view(reinterpret_cast<char const*>(other.data), other.bytes));
  }
}

std::filesystem::path as_gguf(Case const& c, std::filesystem::path const& out, Format type) {
  auto const files = open_model(c.folder);
  auto const tensors = read_sharded_safetensors(c.folder);
  auto model = gguf_model(files.config, tensors, type);
  model.metadata.set("tokenizer.ggml.model", "none");
  SerialExecutor executor;
  write_gguf(out, model.metadata, model.tensors, executor);
  return out;
}

}  // namespace

TEST_CASE("a merged folder answers what the adapters made the original answer, and comes back bit for bit") {
  for (auto const& c : cases()) DYNAMIC_SECTION(c.name) {
      Merging merging(c, c.folder);
      TemporaryFolder work;
      double worst = 0;
      for (std::size_t k = 0; k < c.requests.size(); ++k) {
        auto const& request = c.requests[k];
        if (!mergeable(merging, request)) continue;
        INFO("request " << k);
        auto const out = work / std::to_string(k), undo = work / (std::to_string(k) + ".undo");
        auto const set = merging.bank.resolve(request.adapters);
        try {
          auto const outcome = merging.merge(*set, out, undo, true, Format::f32);  // some cases are stored as bf16
          CHECK(!outcome.tensors.empty());
          CHECK(outcome.undo_bytes == std::filesystem::file_size(undo));
        } catch (ContractError const& error) {  // a bias where the folder has no place for one
          REQUIRE_THAT(error.what(), Catch::Contains("which has no bias"));
          continue;
        }
        auto const model = open<float>(out);
        auto const expected = answer_alone(*merging.model, request, true), found = answer_alone(*model, request, false);
        double const error = relative_l2(found.view(), expected.view());
        CHECK(error <= 1e-5);  // what graft promises between two ways to compute one row
        worst = std::max(worst, error);
        CHECK(relative_l2(answer_alone(*merging.model, request, false).view(), expected.view()) > 1e-3);

        auto const file = read_safetensors(out / "model.safetensors");
        auto const back = read_undo(undo);
        CHECK(back.record_sha256 == sha256(file.metadata().at(merge_key)));
        auto const tensors = unmerged_tensors(file, back);
        write_safetensors(work / "back.safetensors", tensors, {{"format", "pt"}});
        check_same_tensors(read_safetensors(work / "back.safetensors"), read_sharded_safetensors(c.folder));
      }
      if (worst > 0) std::printf("%-30s merged, worst request %.1e\n", c.name.c_str(), worst);
    }
}

TEST_CASE("merged GGUF files of every kind of format come back bit for bit, the whole file") {
  struct One {
    char const* name;
    Format type;
    double bound;  // of the answers: f32 is exact, of the others the bound is what rounding all weights costs here
  };
  for (auto const& one :
       {One{"llama_road", Format::f32, 1e-5}, One{"llama_lora", Format::f32, 1e-5}, One{"llama_ia3", Format::f32, 1e-5},
        One{"llama_biased", Format::f32, 1e-5}, One{"llama_lora_embedding", Format::f32, 1e-5},
        One{"llama_saved_ends", Format::f32, 1e-5}, One{"llama_lora_embedding", Format::q8_0, 0.05},
        One{"qwen2", Format::f32, 1e-5}, One{"gpt2", Format::f32, 1e-5}, One{"llama_road", Format::bf16, 0.03},
        One{"llama_road", Format::f16, 0.005}, One{"llama_road", Format::q8_0, 0.05}, One{"qwen2", Format::q4_1, 0.5}})
    DYNAMIC_SECTION(one.name << format_info(one.type).name) {
      auto const& c = case_of(one.name);
      TemporaryFolder work;
      auto const original = as_gguf(c, work / "model.gguf", one.type);
      Merging merging(c, original);
      index_t count = 0;
      for (auto const& request : c.requests) {
        if (!mergeable(merging, request)) continue;
        auto const out = work / "merged.gguf", undo = work / "undo";
        auto const set = merging.bank.resolve(request.adapters);
        auto const outcome = merging.merge(*set, out, undo);
        ++count;
        auto const model = open<float>(out);
        auto const expected = answer_alone(*merging.model, request, true), found = answer_alone(*model, request, false);
        CHECK(relative_l2(found.view(), expected.view()) <= one.bound);
        for (auto const& tensor : outcome.tensors) {
          CHECK(tensor.change > 0);
          bool const exact = one.type == Format::f32 || tensor.name.ends_with(".bias");  // vectors are F32 in GGUF
          CHECK((tensor.requantisation == 0) == exact);
        }
        auto const file = read_gguf(out);
        auto const back = read_undo(undo);
        CHECK(back.record_sha256 == sha256(std::string(file.metadata.get<std::string_view>(merge_key))));
        write_gguf(work / "back.gguf", unmerged_metadata(file.metadata, back), unmerged_tensors(file.tensors, back));
        CHECK(read_bytes(work / "back.gguf") == read_bytes(original));
      }
      CHECK(count > 0);
    }
}

TEST_CASE("a lora_bias gets a bias of its own in a llama GGUF file") {
  auto const& c = case_of("llama_lora");
  TemporaryFolder work;
  Merging merging(c, as_gguf(c, work / "model.gguf", Format::f32));
  auto const set = merging.bank.resolve({{"lora_bias", 0.5}});
  merging.merge(*set, work / "merged.gguf", work / "undo");
  auto const file = read_gguf(work / "merged.gguf");
  CHECK(!read_undo(work / "undo").created.empty());
  auto const model = open<float>(work / "merged.gguf");
  Request request = c.requests[0];
  request.adapters = {{"lora_bias", 0.5}};
  CHECK(relative_l2(answer_alone(*model, request, false).view(), answer_alone(*merging.model, request, true).view()) <=
        1e-5);
  // a folder says in config.json which layers have one, all alike
  Merging folder(c, c.folder);
  auto const same = folder.bank.resolve({{"lora_bias", 0.5}});
  CHECK_THROWS_WITH(folder.merge(*same, work / "folder", {}),
                    Catch::Contains("which has no bias, and a llama model's file has no place for one"));
  CHECK(!std::filesystem::exists(work / "folder"));
}

TEST_CASE("a head that was the embedding gets a tensor of its own when an adapter changes one of the two") {
  auto const& c = case_of("llama_lora_embedding");
  TemporaryFolder work;
  auto const bytes = [](TensorFile const& file, char const* name) {
    auto const* const tensor = file.find(name);
    REQUIRE(tensor != nullptr);
    return std::string(reinterpret_cast<char const*>(tensor->data), tensor->bytes);
  };
  for (auto const type : {Format::f32, Format::q8_0}) {
    Merging gguf(c, as_gguf(c, work / "model.gguf", type));
    REQUIRE(gguf.files.config.tied);
    auto const embedding = bytes(gguf.files.gguf->tensors, "token_embd.weight");
    auto const merged = [&](std::string const& adapter) {
      gguf.merge(*gguf.bank.resolve({{adapter, 1}}), work / "merged.gguf", work / "undo");
      CHECK(read_undo(work / "undo").created == std::set<std::string>{"output.weight"});
      CHECK_FALSE(open_model(work / "merged.gguf").config.tied);
      return read_gguf(work / "merged.gguf").tensors;
    };
    auto const by_embed = merged("embed");
    CHECK(bytes(by_embed, "output.weight") == embedding);  // not even quantised again
    CHECK(bytes(by_embed, "token_embd.weight") != embedding);
    auto const by_head = merged("head");
    CHECK(bytes(by_head, "token_embd.weight") == embedding);
    CHECK(bytes(by_head, "output.weight") != embedding);
    // another format of the matrices, other bytes
    auto const set = gguf.bank.resolve({{"head", 1}});
    gguf.merge(*set, work / "typed.gguf", work / "undo", true, Format::f16);
    auto const model = open<float>(work / "typed.gguf");
    for (auto const& request : c.requests)
      if (request.adapters.size() == 1 && request.adapters[0].name == "head")
        CHECK(relative_l2(answer_alone(*model, request, false).view(),
                          answer_alone(*gguf.model, request, true).view()) <= 0.005);  // of halves
  }

  Merging folder(c, c.folder);
  auto const set = folder.bank.resolve({{"head", 1}});
  folder.merge(*set, work / "folder", work / "undo");
  CHECK(read_json<nlohmann::ordered_json>(work / "folder/config.json").at("tie_word_embeddings") == false);
  CHECK(nlohmann::json::parse(read_undo(work / "undo").config).at("tie_word_embeddings") == true);
  auto const file = read_safetensors(work / "folder/model.safetensors");
  CHECK(file.find("lm_head.weight") != nullptr);
  // without the undo file: an untied model that answers nearly as the original did
  Merging again(c, work / "folder");
  again.merge(*again.bank.resolve({{"head", 1}}), work / "back", {}, false);
  auto const back = open<float>(work / "back");
  CHECK(relative_l2(answer_alone(*back, c.requests[0], false).view(),
                    answer_alone(*folder.model, c.requests[0], false).view()) <= 1e-5);
  // the adapter elsewhere: still one tensor
  auto const& road = case_of("llama_road");
  Merging plain(road, as_gguf(road, work / "road.gguf", Format::f32));
  plain.merge(*plain.bank.resolve(road.requests[1].adapters), work / "merged.gguf", {});
  CHECK(open_model(work / "merged.gguf").config.tied == plain.files.config.tied);
}

TEST_CASE("a masked language model's head that is its embedding is not merged into") {
  auto const& c = case_of("bert_masked");
  Merging merging(c, c.folder);
  REQUIRE(merging.files.config.tied);
  TemporaryFolder work;
  index_t const site = merging.bank.sites().find("cls.predictions.decoder");
  REQUIRE(site >= 0);
  auto module = make_module<LoRADelta, B>("head", LoRADelta{.rank = 2}, merging.bank.sites(), {site});
  merging.bank.load(merging.be, std::move(module));
  CHECK_THROWS_WITH(
      merging.merge(*merging.bank.resolve({{"head", 1}}), work / "out", {}),
      "graft: an adapter changes cls.predictions.decoder.weight, and this bert model's head and embedding "
      "are one tensor; merging would change both");
}

TEST_CASE("a decoder's bias that a folder keeps beside the decoder is merged into there") {
  auto const& c = case_of("roberta_masked");
  TemporaryFolder work;
  std::filesystem::copy(c.folder, work / "model", std::filesystem::copy_options::recursive);
  auto const original = read_sharded_safetensors(c.folder);
  std::vector<TensorInfo> tensors;
  for (auto tensor : original.tensors()) {  // the decoder's bias under its other name alone
    if (tensor.name == "lm_head.bias") continue;
    if (tensor.name == "lm_head.decoder.bias") tensor.name = "lm_head.bias";
    tensors.push_back(tensor);
  }
  write_safetensors(work / "model/model.safetensors", tensors, {{"format", "pt"}});

  Merging merging(c, work / "model");
  REQUIRE_FALSE(merging.files.config.tied);
  index_t const site = merging.bank.sites().find("lm_head.decoder");
  REQUIRE(site >= 0);
  auto module = make_module<IA3Scaling, B>("scale", {}, merging.bank.sites(), {site});
  for (index_t k = 0; k < module.parameters().size; ++k) module.parameters()[k] = 1 + 0.1f * static_cast<float>(k % 7);
  write_peft(work / "scale", module, merging.bank.sites());
  merging.model->load("scale", work / "scale");
  merging.bank.load(merging.be, std::move(module));
  merging.merge(*merging.bank.resolve({{"scale", 1}}), work / "merged", work / "undo");

  CHECK(read_safetensors(work / "merged/model.safetensors").find("lm_head.decoder.bias") == nullptr);
  Request request = c.requests[0];
  request.adapters = {{"scale", 1}};
  auto const model = open<float>(work / "merged");
  CHECK(relative_l2(answer_alone(*model, request, false).view(), answer_alone(*merging.model, request, true).view()) <=
        1e-5);
}

TEST_CASE("unmerging by formula comes close and says how close") {
  auto const& c = case_of("llama_road");
  for (auto const type : {Format::f32, Format::bf16}) {
    bool const rounded = type == Format::bf16;
    TemporaryFolder work;
    auto const original = as_gguf(c, work / "model.gguf", type);
    Merging merging(c, original);
    for (auto const& request : c.requests)
      if (mergeable(merging, request)) {
        auto const set = merging.bank.resolve(request.adapters);
        merging.merge(*set, work / "merged.gguf", {});
        Merging again(c, work / "merged.gguf");
        auto const outcome = again.merge(*again.bank.resolve(request.adapters), work / "back.gguf", {}, false);
        CHECK_FALSE(read_gguf(work / "back.gguf").metadata.contains(merge_key));
        for (auto const& tensor : outcome.tensors) {
          CHECK(tensor.mismatch <= (rounded ? 0.02 : 1e-5) * tensor.size);  // 2^-8 or 2^-24 times the maps' condition
          if (rounded) CHECK(tensor.mismatch > 0);
        }
        auto const back = open_model(work / "back.gguf");
        std::string const name = "model.layers.0.self_attn.q_proj.weight";
        auto const &was = merging.files.weights.tensors.at(name), &is = back.weights.tensors.at(name);
        CHECK(relative_l2(testing::dense(is), testing::dense(was)) <= (rounded ? 0.02 : 1e-5));
        break;
      }
  }
}

TEST_CASE("what cannot be merged leaves no file") {
  auto const& c = case_of("llama_pedro");
  TemporaryFolder work;
  Merging merging(c, c.folder);
  auto const set = merging.bank.resolve({{merging.bank.names().front(), 1}});
  CHECK_THROWS_WITH(merging.merge(*set, work / "out", work / "undo"), Catch::Contains("cannot be merged"));
  CHECK(!std::filesystem::exists(work / "out"));
  CHECK(!std::filesystem::exists(work / "undo"));
}
