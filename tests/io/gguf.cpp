// SPDX-License-Identifier: Apache-2.0
// GGUF: what the Python package writes is read and written again to the byte; what is broken is refused.
#include <tests/catch.hpp>
#include <tests/io/files.hpp>

#include <graft/io/gguf.hpp>

#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

using graft::Format;
using graft::GgufMetadata;
using graft::index_t;
using graft::TensorInfo;
using graft_test::read_bytes;

namespace {

using Shape = std::vector<index_t>;
constexpr auto tiny = GRAFT_TEST_DATA "/tiny.gguf";

// Builds files number by number, right or wrong.
struct Bytes {
  std::string value;
  template <class T>
  Bytes& put(T number) {
    value.append(reinterpret_cast<const char*>(&number), sizeof number);
    return *this;
  }
  Bytes& u32(std::uint32_t number) { return put(number); }
  Bytes& u64(std::uint64_t number) { return put(number); }
  Bytes& string(std::string_view s) { return u64(s.size()), value += s, *this; }
  Bytes& header(std::uint64_t tensors, std::uint64_t pairs, std::uint32_t version = 3) {
    value += "GGUF";
    return u32(version).u64(tensors).u64(pairs);
  }
  Bytes& tensor(std::string_view name, std::vector<std::uint64_t> const& sizes, std::uint32_t type,
                std::uint64_t offset) {
    string(name).u32(static_cast<std::uint32_t>(sizes.size()));
    for (auto const size : sizes) u64(size);
    return u32(type).u64(offset);
  }
  std::string data(std::size_t bytes, std::size_t alignment = 32) {
    value.resize((value.size() + alignment - 1) / alignment * alignment);
    return value + std::string(bytes, 'x');
  }
};

// Everything a user can ask of a file, each question answered or refused.
void read_all(const std::filesystem::path& path) {
  auto const file = graft::read_gguf(path);
  graft_test::touch(file.tensors);
  for (auto const& entry : file.metadata.entries()) {
    auto const ask = [&](auto type) {
      using T = decltype(type);
      try {
        if (entry.array) {
          file.metadata.get_array<T>(entry.key);
        } else {
          file.metadata.get<T>(entry.key);
        }
      } catch (const graft::FormatError&) {
      }
    };
    ask(std::int8_t{}), ask(std::uint64_t{}), ask(0.0f), ask(false), ask(std::string_view{});
  }
}

struct Refusals {
  graft_test::TemporaryFolder folder;
  std::string of(const std::string& bytes) { return graft_test::refusal(folder / "x.gguf", bytes, read_all); }
};

}  // namespace

TEST_CASE("a GGUF file written by the Python package is read as it was meant") {
  auto const file = graft::read_gguf(tiny);
  auto const& metadata = file.metadata;
  CHECK(metadata.get<std::string_view>("general.architecture") == "llama");
  CHECK(metadata.get<std::string>("test.string") == "grüße, 世界");
  CHECK(metadata.get<std::uint8_t>("test.u8") == 200);
  CHECK(metadata.get<index_t>("test.u8") == 200);
  CHECK(metadata.get<std::int8_t>("test.i8") == -100);
  CHECK(metadata.get<int>("test.u16") == 60000);
  CHECK(metadata.get<int>("test.i16") == -30000);
  CHECK(metadata.get<std::uint32_t>("test.u32") == 4000000000u);
  CHECK(metadata.get<index_t>("test.i32") == -2000000000);
  CHECK(metadata.get<float>("test.f32") == 0.1f);
  CHECK(metadata.get<double>("test.f32") == static_cast<double>(0.1f));
  CHECK(metadata.get<bool>("test.true"));
  CHECK_FALSE(metadata.get<bool>("test.false"));
  CHECK(metadata.get<std::uint64_t>("test.u64") == std::uint64_t{1} << 63);
  CHECK(metadata.get<std::int64_t>("test.i64") == -(std::int64_t{1} << 62));
  CHECK(metadata.get<double>("test.f64") == 0.1);
  CHECK(metadata.get_array<std::string_view>("test.strings") == std::vector<std::string_view>{"a", "", "Ġthe", "\n"});
  CHECK(metadata.get_array<int>("test.numbers") == std::vector<int>{1, -2, 3});
  CHECK(metadata.get_array<float>("test.scores") == std::vector<float>{0.5f, -1.5f});
  CHECK(metadata.get_array<std::uint64_t>("test.bytes") == std::vector<std::uint64_t>{1, 2, 255});
  CHECK(metadata.get_array<bool>("test.flags") == std::vector<bool>{true, false, true});
  CHECK(metadata.get_or<index_t>("test.u8", 1) == 200);
  CHECK(metadata.get_or<index_t>("absent", 1) == 1);

  auto const refused = [](std::string const& sentence) { return std::string(tiny) + ": metadata key " + sentence; };
  CHECK_THROWS_WITH(metadata.get<int>("absent"), refused("'absent' is missing"));
  CHECK_THROWS_WITH(metadata.get<int>("test.string"), refused("'test.string' has type string, expected integer"));
  CHECK_THROWS_WITH(metadata.get<float>("test.u8"), refused("'test.u8' has type u8, expected float"));
  CHECK_THROWS_WITH(metadata.get<bool>("test.u8"), refused("'test.u8' has type u8, expected bool"));
  CHECK_THROWS_WITH(metadata.get<std::string_view>("test.f32"), refused("'test.f32' has type f32, expected string"));
  CHECK_THROWS_WITH(metadata.get<std::int8_t>("test.u8"), refused("'test.u8' is out of range: 200"));
  CHECK_THROWS_WITH(metadata.get<std::uint64_t>("test.i8"), refused("'test.i8' is out of range: -100"));
  CHECK_THROWS_WITH(metadata.get<index_t>("test.u64"), refused("'test.u64' is out of range: 9223372036854775808"));
  CHECK_THROWS_WITH(metadata.get<int>("test.numbers"),
                    refused("'test.numbers' has type array of i32, expected integer"));
  CHECK_THROWS_WITH(metadata.get_array<int>("test.u8"), refused("'test.u8' has type u8, expected array of integer"));
  CHECK_THROWS_WITH(metadata.get_array<int>("test.strings"),
                    refused("'test.strings' has type array of string, expected array of integer"));
  CHECK_THROWS_WITH(metadata.get_array<unsigned>("test.numbers"), refused("'test.numbers' is out of range: -2"));
  CHECK_THROWS_WITH(metadata.get_or<int>("test.string", 1), refused("'test.string' has type string, expected integer"));

  auto const& tensors = file.tensors;
  CHECK(tensors.tensors().size() == 5);
  CHECK(tensors.tensors()[0].name == "matrix");
  CHECK(tensors.at("matrix").shape == Shape{3, 4});
  CHECK(tensors.at("half").shape == Shape{2, 3, 5});
  CHECK(tensors.at("half").format == Format::f16);
  CHECK(tensors.at("integers").format == Format::i32);
  auto const& quantised = tensors.at("quantised");
  CHECK(quantised.shape == Shape{2, 64});
  CHECK(quantised.format == Format::q4_1);
  CHECK(quantised.bytes == 2 * 2 * 20);
  std::vector<float> values(12), row(64);
  std::memcpy(values.data(), tensors.at("matrix").data, 48);
  for (int k = 0; k < 12; ++k) CHECK(values[static_cast<std::size_t>(k)] == static_cast<float>(k - 5) / 8);
  graft::decode_row(quantised.format, quantised.data + 40, 0, 64, row.data());
  for (int k = 0; k < 64; ++k) {  // 32 steps of 1/8 in 16 levels: off by at most half a step of 31/15/8
    CHECK(row[static_cast<std::size_t>(k)] ==
          Approx(static_cast<float>(64 + k - 5) / 8).margin(31.0 / 15 / 8 / 2 + 0.01));
  }
  CHECK(graft::is_gguf(tiny));
  CHECK_FALSE(graft::is_gguf(GRAFT_TEST_DATA "/tiny.safetensors"));
  CHECK_FALSE(graft::is_gguf(GRAFT_TEST_DATA));
}

TEST_CASE("writing what was read gives the bytes of the Python package") {
  graft_test::TemporaryFolder const folder;
  auto const file = graft::read_gguf(tiny);
  graft::write_gguf(folder / "same", file.metadata, file.tensors.tensors());
  CHECK(read_bytes(folder / "same") == read_bytes(tiny));
  auto const again = graft::read_gguf(folder / "same");
  graft::write_gguf(folder / "same", again.metadata, again.tensors.tensors());  // over the file it is mapped from
  CHECK(read_bytes(folder / "same") == read_bytes(tiny));
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
}

TEST_CASE("metadata that were set are read as they were set") {
  graft_test::TemporaryFolder const folder;
  GgufMetadata metadata;
  metadata.set("general.type", "adapter");
  metadata.set("general.alignment", std::uint32_t{64});
  metadata.set("f", 1.5f);
  metadata.set("d", 2.5);
  metadata.set("b", true);
  metadata.set("i8", std::int8_t{-1});
  metadata.set("u16", std::uint16_t{65535});
  metadata.set("i64", std::int64_t{-1});
  metadata.set_array("tokens", std::vector<std::uint32_t>{1, 2, 3});
  metadata.set_array("names", std::vector<std::string>{"x", "yy"});
  metadata.set_array("flags", std::vector<bool>{true, false});
  metadata.set_array("none", std::vector<float>{});
  metadata.set("f", -1.5f);  // replaced in its place
  auto const copy = [&] {
    GgufMetadata const inner = metadata;
    return inner;
  }();
  float const values[] = {1, 2, 3, 4, 5, 6};
  graft::write_gguf(folder / "x", copy,
                    {graft::tensor_info("b.weight", {2, 3}, values), graft::tensor_info("a.weight", {1}, values + 4)});
  auto const file = graft::read_gguf(folder / "x");
  CHECK(file.metadata.entries().at(2).key == "f");
  CHECK(file.metadata.get<float>("f") == -1.5f);
  CHECK(file.metadata.get<double>("d") == 2.5);
  CHECK(file.metadata.get<bool>("b"));
  CHECK(file.metadata.get<std::int8_t>("i8") == -1);
  CHECK(file.metadata.get<index_t>("u16") == 65535);
  CHECK(file.metadata.get<index_t>("i64") == -1);
  CHECK(file.metadata.get<std::string_view>("general.type") == "adapter");
  CHECK(file.metadata.get_array<index_t>("tokens") == std::vector<index_t>{1, 2, 3});
  CHECK(file.metadata.get_array<std::string>("names") == std::vector<std::string>{"x", "yy"});
  CHECK(file.metadata.get_array<bool>("flags") == std::vector<bool>{true, false});
  CHECK(file.metadata.get_array<float>("none").empty());
  auto const& tensors = file.tensors.tensors();
  CHECK(tensors.at(0).name == "b.weight");
  CHECK(tensors.at(1).data - tensors.at(0).data == 64);
  CHECK(std::memcmp(tensors.at(0).data, values, 24) == 0);
  CHECK(*reinterpret_cast<const float*>(tensors.at(1).data) == 5);
  CHECK_THROWS_WITH(metadata.get<int>("absent"), "metadata key 'absent' is missing");
}

TEST_CASE("what a GGUF file cannot hold is refused before anything is written") {
  graft_test::TemporaryFolder const folder;
  float const values[32] = {};
  auto const good = graft::tensor_info("w", {1, 32}, values);
  GgufMetadata metadata;
  auto const refused = [&](auto change) {
    TensorInfo other = good;
    change(other);
    CHECK_THROWS_AS(graft::write_gguf(folder / "x", metadata, {other}), graft::ContractError);
  };
  refused([](TensorInfo& t) { t.format = Format::boolean, t.bytes = 32; });
  refused([](TensorInfo& t) { t.shape = {1, 1, 1, 1, 32}; });
  refused([](TensorInfo& t) { t.shape = {}; });
  refused([](TensorInfo& t) { t.shape = {0, 32}, t.bytes = 0; });
  refused([](TensorInfo& t) { t.shape = {1, 31}; });
  refused([](TensorInfo& t) { t.shape = {2, 16}, t.format = Format::q8_0, t.bytes = 34; });
  refused([](TensorInfo& t) { t.name = std::string(64, 'x'); });
  refused([](TensorInfo& t) { t.name = "\xed\xa0\x80"; });
  CHECK_THROWS_AS(graft::write_gguf(folder / "x", metadata, {good, good}), graft::ContractError);
  metadata.set("general.alignment", std::uint32_t{48});
  refused([](TensorInfo&) {});
  CHECK(std::filesystem::is_empty(folder.path()));
}

TEST_CASE("version 2, small alignments and cut padding are read") {
  Refusals refusal;
  CHECK(refusal.of(Bytes().header(0, 0, 2).value) == "");
  CHECK(refusal.of(Bytes().header(0, 0).value) == "");
  CHECK(refusal.of(Bytes().header(1, 0).tensor("t", {8}, 0, 0).data(32)) == "");
  CHECK(refusal.of(Bytes().header(2, 0).tensor("t", {4}, 0, 0).tensor("u", {4}, 0, 32).data(48)) == "");

  graft_test::TemporaryFolder const folder;
  graft_test::write_bytes(folder / "odd", Bytes()
                                              .header(2, 1)
                                              .string("general.alignment")
                                              .u32(4)
                                              .u32(1)
                                              .tensor("t", {3}, 24, 0)
                                              .tensor("u", {2}, 0, 3)
                                              .data(11, 1));
  auto const file = graft::read_gguf(folder / "odd");
  CHECK(reinterpret_cast<std::uintptr_t>(file.tensors.at("u").data) % alignof(float) == 0);
  CHECK(std::memcmp(file.tensors.at("u").data, "xxxxxxxx", 8) == 0);
}

TEST_CASE("a malformed GGUF file is refused in one sentence that names key or tensor") {
  Refusals refusal;
  auto const most = std::numeric_limits<std::uint64_t>::max();
  CHECK(refusal.of("") == "is not a GGUF file: it does not begin with \"GGUF\"");
  CHECK(refusal.of("GGU") == "is not a GGUF file: it does not begin with \"GGUF\"");
  CHECK(refusal.of("ggjt") == "is not a GGUF file: it does not begin with \"GGUF\"");
  CHECK(refusal.of("GGUF\3") == "the file ends inside the header: 4 bytes expected, 1 left");
  CHECK(refusal.of(Bytes().header(0, 0, 1).value) == "is GGUF version 1, expected 2 or 3");
  CHECK(refusal.of(Bytes().header(0, 0, 4).value) == "is GGUF version 4, expected 2 or 3");
  CHECK(refusal.of(Bytes().header(0, 0, 0x03000000).value) ==
        "is a big-endian GGUF file; only little-endian ones are supported");
  CHECK(refusal.of(Bytes().header(most, 0).value) ==
        "claims 18446744073709551615 tensors, more than its 24 bytes can hold");
  CHECK(refusal.of(Bytes().header(0, most / 13).value) ==
        "claims 1418980313362273201 metadata pairs, more than its 24 bytes can hold");

  auto const pair = [](std::string_view key) { return Bytes().header(0, 1).string(key); };
  CHECK(refusal.of(Bytes().header(0, 1).u64(most).data(32)) ==
        "the file ends inside a metadata key: 18446744073709551615 bytes expected, 32 left");
  CHECK(refusal.of(pair("\xff").u32(4).u32(1).value) == "metadata key '\\xff' is not UTF-8");
  CHECK(refusal.of(pair("k").u32(13).u32(1).value) == "metadata key 'k' has the unknown value type 13");
  CHECK(refusal.of(pair("k").u32(10).u32(1).value) ==
        "the file ends inside metadata key 'k': 8 bytes expected, 4 left");
  CHECK(refusal.of(pair("k").u32(8).u64(1).value) == "the file ends inside metadata key 'k': 1 bytes expected, 0 left");
  CHECK(refusal.of(pair("k").u32(9).u32(13).u64(0).value) == "metadata key 'k' has the unknown value type 13");
  CHECK(refusal.of(pair("k").u32(9).u32(9).u64(0).value) ==
        "metadata key 'k' is an array of arrays, which is not supported");
  CHECK(refusal.of(pair("k").u32(9).u32(10).u64(most / 8 + 2).value) ==
        "metadata key 'k' claims 2305843009213693953 elements of 8 bytes, 0 bytes are left in the file");
  CHECK(refusal.of(pair("k").u32(9).u32(8).u64(most).string("a").value) ==
        "the file ends inside metadata key 'k': 8 bytes expected, 0 left");
  CHECK(refusal.of(Bytes().header(0, 2).string("k").u32(4).u32(1).string("k").u32(4).u32(1).value) ==
        "metadata key 'k' occurs twice");
  auto const aligned = [&](std::uint32_t type, std::uint32_t value) {
    return refusal.of(pair("general.alignment").u32(type).u32(value).value);
  };
  CHECK(aligned(4, 64) == "");
  CHECK(aligned(4, 48) == "metadata key 'general.alignment' is 48, expected a power of two up to 65536");
  CHECK(aligned(4, 0) == "metadata key 'general.alignment' is 0, expected a power of two up to 65536");
  CHECK(aligned(4, 1u << 31) == "metadata key 'general.alignment' is 2147483648, expected a power of two up to 65536");
  CHECK(aligned(6, 64) == "metadata key 'general.alignment' has type f32, expected integer");

  auto const tensor = [&](std::vector<std::uint64_t> const& sizes, std::uint32_t type = 0, std::uint64_t offset = 0,
                          std::size_t data = 128) {
    return refusal.of(Bytes().header(1, 0).tensor("t", sizes, type, offset).data(data));
  };
  REQUIRE(tensor({8, 4}) == "");
  CHECK(tensor({}) == "tensor 't' has 0 dimensions, expected 1 to 4");
  CHECK(tensor({1, 1, 1, 1, 1}) == "tensor 't' has 5 dimensions, expected 1 to 4");
  CHECK(refusal.of(Bytes().header(1, 0).string("t").u32(0xffffffff).data(128)) ==
        "tensor 't' has 4294967295 dimensions, expected 1 to 4");
  CHECK(tensor({8, 0}) == "tensor 't' has a dimension of 0");
  CHECK(tensor({most}) == "tensor 't' has a dimension of 18446744073709551615");
  CHECK(tensor({std::uint64_t{1} << 32, std::uint64_t{1} << 32}) ==
        "tensor 't' of shape [4294967296, 4294967296] cannot be stored as F32: rows are blocks of 1 and sizes fit 63 "
        "bits");
  CHECK(tensor({8, 4}, 3) ==
        "tensor 't' of shape [4, 8] cannot be stored as Q4_1: rows are blocks of 32 and sizes fit 63 bits");
  CHECK(tensor({128}, 14) ==
        "tensor 't' of shape [128] cannot be stored as Q6_K: rows are blocks of 256 and sizes fit 63 bits");
  CHECK(tensor({256}, 17) == "tensor 't' has type IQ2_XS, which is not supported");
  CHECK(tensor({256}, 39) == "tensor 't' has type MXFP4, which is not supported");
  CHECK(tensor({256}, 4) == "tensor 't' has type Q4_2, which is not supported");
  CHECK(tensor({256}, 0x80000000) == "tensor 't' has the unknown type 2147483648");
  CHECK(tensor({8}, 0, 1) == "tensor 't' has offset 1, not a multiple of the alignment 32");
  CHECK(tensor({8}, 0, 32) == "tensor 't' has offset 32, expected 0");
  CHECK(tensor({8}, 0, most - 31) == "tensor 't' has offset 18446744073709551584, expected 0");
  CHECK(tensor({8, 4}, 0, 0, 127) == "the file is cut off: tensor 't' takes bytes 0 to 128 of 127 bytes of data");
  CHECK(refusal.of(Bytes().header(1, 0).tensor("t", {1}, 24, 0).value) ==
        "the file is cut off: tensor 't' takes bytes 0 to 1 of 0 bytes of data");
  CHECK(tensor({std::uint64_t{1} << 60}, 0) ==
        "the file is cut off: tensor 't' takes bytes 0 to 4611686018427387904 of 128 bytes of data");
  CHECK(refusal.of(Bytes().header(1, 0).tensor("\xff\n", {8}, 0, 0).data(32)) ==
        "tensor name '\\xff\\x0a' is not UTF-8");
  CHECK(refusal.of(Bytes().header(1, 0).tensor("a\nb", {8}, 0, 4).data(32)) ==
        "tensor 'a\\x0ab' has offset 4, not a multiple of the alignment 32");

  auto const two = [&](char const* a, std::uint64_t offset_a, char const* b, std::uint64_t offset_b) {
    return refusal.of(Bytes().header(2, 0).tensor(a, {8}, 0, offset_a).tensor(b, {8}, 0, offset_b).data(64));
  };
  REQUIRE(two("a", 0, "b", 32) == "");
  CHECK(two("a", 0, "a", 32) == "tensor 'a' occurs twice");
  CHECK(two("a", 0, "b", 0) == "tensor 'b' has offset 0, expected 32");
  CHECK(two("a", 32, "b", 0) == "tensor 'a' has offset 32, expected 0");
}

TEST_CASE("a GGUF file cut off anywhere before its last padding is refused") {
  Refusals refusal;
  auto const bytes = read_bytes(tiny);
  auto const file = graft::read_gguf(tiny);
  auto const& last = file.tensors.tensors().back();
  auto const end = static_cast<std::size_t>(last.data - file.tensors.tensors().front().data) + last.bytes;
  auto const begin = bytes.size() - (end + 31) / 32 * 32;
  for (std::size_t length = 0; length < begin + end; ++length) {
    INFO(length);
    CHECK(refusal.of(bytes.substr(0, length)) != "");
  }
  CHECK(refusal.of(bytes.substr(0, begin + end)) == "");
}

TEST_CASE("a GGUF file with any byte changed is read or refused") {
  Refusals refusal;
  auto const bytes = read_bytes(tiny);
  int accepted = 0, refused = 0;
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    for (int const change : {0x01, 0x80, 0xff}) {
      auto mutated = bytes;
      mutated[at] = static_cast<char>(mutated[at] ^ change);
      ++(refusal.of(mutated).empty() ? accepted : refused);
    }
  }
  // bytes of names, values and data are free, those of lengths, types and offsets are not
  CHECK(accepted > 1000);
  CHECK(refused > 500);
}
