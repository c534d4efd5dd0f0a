// SPDX-License-Identifier: Apache-2.0
// A model cut into several GGUF files is read as one, whichever part is named; parts that do not fit are refused by
// name.
#include <tests/catch.hpp>
#include <tests/io/files.hpp>

#include <graft/io/gguf.hpp>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

namespace {

using namespace graft;
constexpr auto whole_file = GRAFT_TEST_DATA "/tiny.gguf";

/// tiny.gguf in three parts, as llama.cpp and the Python package cut: all metadata in the first, none but the
/// numbering in the others. A part without tensors is legal.
struct Parts {
  Parts() : whole(read_gguf(whole_file)) {
    auto const& all = whole.tensors.tensors();
    REQUIRE(all.size() >= 3);
    write(0, whole.metadata, {});
    write(1, {}, {all.begin(), all.begin() + 2});
    write(2, {}, {all.begin() + 2, all.end()});
  }

  std::filesystem::path path(int part) const { return folder / name(part); }
  static std::string name(int part) { return text("tiny-0000", part + 1, "-of-00003.gguf"); }

  struct Numbers {
    std::uint16_t no, count = 3;
    std::int32_t tensors = -1;  ///< all of the model's
  };
  void write(int part, GgufMetadata metadata, std::vector<TensorInfo> const& tensors, Numbers numbers) const {
    auto const all = static_cast<std::int32_t>(whole.tensors.tensors().size());
    metadata.set("split.no", numbers.no);
    metadata.set("split.count", numbers.count);
    metadata.set("split.tensors.count", numbers.tensors < 0 ? all : numbers.tensors);
    write_gguf(path(part), metadata, tensors);
  }
  void write(int part, GgufMetadata metadata, std::vector<TensorInfo> const& tensors) const {
    write(part, std::move(metadata), tensors, {static_cast<std::uint16_t>(part)});
  }
  std::vector<TensorInfo> last() const {
    auto const& all = whole.tensors.tensors();
    return {all.begin() + 2, all.end()};
  }

  /// The sentence with which the part is refused, the folder's path left out.
  std::string refusal(int part) const {
    try {
      read_gguf(path(part));
    } catch (FormatError const& error) {
      std::string sentence = error.what();
      auto const at = sentence.find(folder.path().string() + "/");
      REQUIRE(at == 0);
      return sentence.substr(folder.path().string().size() + 1);
    }
    return "";
  }

  graft_test::TemporaryFolder folder;
  Gguf whole;
};

TEST_CASE("any part of a split GGUF model stands for all") {
  Parts const parts;
  for (int part = 0; part < 3; ++part) {
    auto const joined = read_gguf(parts.path(part));
    auto const &tensors = joined.tensors.tensors(), &expected = parts.whole.tensors.tensors();
    REQUIRE(tensors.size() == expected.size());
    for (std::size_t k = 0; k < tensors.size(); ++k) {
      CHECK(tensors[k].name == expected[k].name);
      CHECK(tensors[k].format == expected[k].format);
      CHECK(tensors[k].shape == expected[k].shape);
      REQUIRE(tensors[k].bytes == expected[k].bytes);
      CHECK(std::memcmp(tensors[k].data, expected[k].data, tensors[k].bytes) == 0);
    }
    auto const &entries = joined.metadata.entries(), &all = parts.whole.metadata.entries();
    CHECK(std::equal(entries.begin(), entries.end(), all.begin(), all.end(),
                     [](auto const& a, auto const& b) { return a.key == b.key && a.values == b.values; }));
    // what was split is written whole
    write_gguf(parts.folder / "again.gguf", joined.metadata, tensors);
    CHECK(graft_test::read_bytes(parts.folder / "again.gguf") == graft_test::read_bytes(whole_file));
  }
}

TEST_CASE("the tensors of a split model outlive the file object") {
  Parts const parts;
  std::shared_ptr<void const> storage;
  std::vector<TensorInfo> tensors;
  {
    auto const joined = read_gguf(parts.path(0));
    storage = joined.tensors.storage(), tensors = joined.tensors.tensors();
  }
  auto const& expected = parts.whole.tensors.tensors();
  for (std::size_t k = 0; k < tensors.size(); ++k)
    CHECK(std::memcmp(tensors[k].data, expected[k].data, tensors[k].bytes) == 0);
}

TEST_CASE("parts that are missing, renamed or of another model are refused by name") {
  Parts const parts;
  auto const& all = parts.whole.tensors.tensors();
  REQUIRE(parts.refusal(0) == "");

  std::filesystem::rename(parts.path(1), parts.folder / "elsewhere.gguf");
  CHECK(parts.refusal(2) == "tiny-00002-of-00003.gguf: is missing: part 2 of 3 of a model");
  CHECK_THROWS_WITH(
      read_gguf(parts.folder / "elsewhere.gguf"),
      (parts.folder / "elsewhere.gguf").string() +
          ": is part 2 of 3 of a model; its name must end with '-00002-of-00003.gguf' for the others to be "
          "found");
  std::filesystem::rename(parts.folder / "elsewhere.gguf", parts.path(1));
  REQUIRE(parts.refusal(2) == "");

  parts.write(2, {}, parts.last(), {.no = 1});
  CHECK(parts.refusal(0) ==
        "tiny-00003-of-00003.gguf: metadata key 'split.no' is 1, expected 2 as in 'tiny-00001-of-00003.gguf'");
  parts.write(2, {}, parts.last(), {.no = 2, .count = 4});
  CHECK(parts.refusal(0) ==
        "tiny-00003-of-00003.gguf: metadata key 'split.count' is 4, expected 3 as in 'tiny-00001-of-00003.gguf'");
  parts.write(2, {}, parts.last(), {.no = 5, .count = 4});
  CHECK(parts.refusal(2) == "tiny-00003-of-00003.gguf: claims to be part 6 of 4");
  parts.write(2, {}, parts.last(), {.no = 2, .count = 3, .tensors = 1});
  CHECK(parts.refusal(0) == text("tiny-00003-of-00003.gguf: metadata key 'split.tensors.count' is 1, expected ",
                                 all.size(), " as in 'tiny-00001-of-00003.gguf'"));
  parts.write(2, {}, {all.begin() + 3, all.end()});
  CHECK(parts.refusal(0) == text("tiny-00001-of-00003.gguf: the 3 parts hold ", all.size() - 1,
                                 " tensors, but metadata key 'split.tensors.count' is ", all.size()));
  parts.write(2, {}, {all.begin() + 1, all.end() - 1});
  CHECK(parts.refusal(0) == text("tiny-00001-of-00003.gguf: tensor '", all[1].name, "' occurs twice"));
  parts.write(2, {}, parts.last(), {.no = 2, .count = 3, .tensors = -1});
  REQUIRE(parts.refusal(0) == "");

  auto const bytes = graft_test::read_bytes(parts.path(2));
  graft_test::write_bytes(parts.path(2), bytes.substr(0, bytes.size() / 2));
  CHECK(parts.refusal(0).starts_with("tiny-00003-of-00003.gguf: the file "));
}

TEST_CASE("a part that does not say its number is refused") {
  Parts const parts;
  GgufMetadata metadata;
  metadata.set("split.count", std::uint16_t{3});
  write_gguf(parts.path(1), metadata, {});
  CHECK(parts.refusal(1) == "tiny-00002-of-00003.gguf: metadata key 'split.no' is missing");
  metadata = {};
  metadata.set("split.count", std::uint16_t{1});  // one part is a whole file, whatever its name
  write_gguf(parts.path(1), metadata, parts.last());
  CHECK(parts.refusal(1) == "");
}

}  // namespace
