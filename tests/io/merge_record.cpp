// SPDX-License-Identifier: Apache-2.0
// Records of merges and undo files: written, read back, and refused when they are not what they say.
#include <graft/io/merge_record.hpp>
#include <tests/catch.hpp>
#include <tests/io/files.hpp>

#include <string>
#include <vector>

using namespace graft;
using graft_test::TemporaryFolder;

TEST_CASE("a record says what went in, and is read back") {
  MergeRecord const record{"abc", {{"chat", "123", 0.5}, {"style", "456", -1}}, "before"};
  auto const back = parse_merge_record("m.gguf", record.json());
  CHECK(back.json() == record.json());
  CHECK((back.adapters.size() == 2 && back.adapters[0].name == "chat" && back.adapters[1].weight == -1));
  for (char const* wrong : {"", "[]", "{}", R"({"base_sha256": 3, "adapters": []})",
                            R"({"base_sha256": "a", "adapters": [{"name": "x", "sha256": "y"}]})"})
    CHECK_THROWS_WITH(parse_merge_record("m.gguf", wrong), "m.gguf: its metadata graft.merge is no record of a merge");
}

TEST_CASE("the hash of a model covers all of its files") {
  TemporaryFolder const work;
  auto const whole = read_gguf(GRAFT_TEST_DATA "/tiny.gguf");
  auto const& all = whole.tensors.tensors();
  auto const path = [&](int part) { return work / text("m-0000", part + 1, "-of-00002.gguf"); };
  auto const write = [&](int part, GgufMetadata metadata, std::vector<TensorInfo> const& tensors) {
    metadata.set("split.no", static_cast<std::uint16_t>(part));
    metadata.set("split.count", std::uint16_t{2});
    metadata.set("split.tensors.count", static_cast<std::int32_t>(all.size()));
    write_gguf(path(part), metadata, tensors);
  };
  write(0, whole.metadata, {});
  write(1, {}, all);
  auto const hash = content_sha256(path(0));
  CHECK(hash == sha256(graft_test::read_bytes(path(0)) + graft_test::read_bytes(path(1))));
  CHECK(hash == content_sha256(path(1)));
  auto last = graft_test::read_bytes(path(1));
  last.back() = static_cast<char>(last.back() + 1);
  graft_test::write_bytes(path(1), last);
  CHECK(content_sha256(path(0)) != hash);

  graft_test::write_bytes(work / "config.json", "{}");
  graft_test::write_bytes(work / "a.safetensors", "a");
  graft_test::write_bytes(work / "b.safetensors", "b");
  graft_test::write_bytes(work / "model.safetensors.index.json", "i");
  CHECK(content_sha256(work.path()) == sha256("ab{}"));  // by name
  CHECK(content_sha256(work / "model.safetensors.index.json") == content_sha256(work.path()));
}

TEST_CASE("an undo file keeps stored bytes, formats and shapes") {
  TemporaryFolder const work;
  std::vector<std::byte> block(34 * 2), numbers(12);
  for (std::size_t k = 0; k < block.size(); ++k) block[k] = static_cast<std::byte>(7 * k);
  Undo undo;
  undo.record_sha256 = "id";
  undo.previous = "before";
  undo.created = {"blk.0.attn_q.bias"};
  undo.added_keys = {"general.quantization_version"};
  undo.has_file_type = true;
  undo.file_type = 7;
  undo.originals["q"] = {"q", Format::q8_0, {2, 32}, block.data(), block.size()};
  undo.originals["n"] = {"n", Format::f32, {3}, numbers.data(), numbers.size()};
  auto const bytes = write_undo(work / "undo", undo);
  CHECK(bytes == std::filesystem::file_size(work / "undo"));
  auto const back = read_undo(work / "undo");
  CHECK((back.record_sha256 == "id" && back.previous == "before" && back.has_file_type && back.file_type == 7));
  CHECK((back.created == undo.created && back.added_keys == undo.added_keys));
  REQUIRE(back.originals.size() == 2);
  auto const& q = back.originals.at("q");
  CHECK((q.format == Format::q8_0 && q.shape == std::vector<index_t>{2, 32} && q.bytes == 68));
  CHECK(std::equal(block.begin(), block.end(), q.data));
}

TEST_CASE("files that are no undo files are refused with the reason") {
  TemporaryFolder const work;
  std::vector<std::uint8_t> const bytes(8);
  auto const write = [&](std::map<std::string, std::string> const& metadata) {
    write_safetensors(work / "undo", {tensor_info("t", {8}, bytes.data())}, metadata);
  };
  write({});
  CHECK_THROWS_WITH(read_undo(work / "undo"), Catch::Contains("is not an undo file; it has no metadata graft.undo"));
  write({{"graft.undo", "id"}});
  CHECK_THROWS_WITH(read_undo(work / "undo"), Catch::Contains("has no metadata saying its format and shape"));
  for (char const* wrong : {"F32 3", "F32 -2", "F32 x", "Q8_0 8", "XX 8", "F32 4611686018427387904 4"}) {
    write({{"graft.undo", "id"}, {"tensor.t", wrong}});
    INFO(wrong);
    CHECK_THROWS_AS(read_undo(work / "undo"), FormatError);
  }
  write({{"graft.undo", "id"}, {"tensor.t", "F32 2"}, {"general.file_type", "seven"}});
  CHECK_THROWS_WITH(read_undo(work / "undo"), Catch::Contains("general.file_type"));
}
