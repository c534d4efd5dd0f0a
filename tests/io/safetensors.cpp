// SPDX-License-Identifier: Apache-2.0
// safetensors: what the Python package writes is read and written again to the byte; what is broken is refused.
#include <tests/catch.hpp>
#include <tests/io/files.hpp>

#include <graft/io/safetensors.hpp>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

using graft::Format;
using graft::index_t;
using graft::TensorInfo;
using graft_test::read_bytes;
using graft_test::write_bytes;

namespace {

using Shape = std::vector<index_t>;
constexpr auto tiny_file = GRAFT_TEST_DATA "/tiny.safetensors";

std::string file_of(const std::string& header, const std::string& data) {
  std::uint64_t const length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
}

void read_all(const std::filesystem::path& path) { graft_test::touch(graft::read_safetensors(path)); }

struct Refusals {
  graft_test::TemporaryFolder folder;
  std::string of(const std::string& bytes) { return graft_test::refusal(folder / "x.safetensors", bytes, read_all); }
  std::string of(const std::string& header, const std::string& data) { return of(file_of(header, data)); }
};

}  // namespace

TEST_CASE("a file written by the Python package is read as it was meant") {
  auto const file = graft::read_safetensors(tiny_file);
  CHECK(file.path() == tiny_file);
  CHECK(file.tensors().size() == 13);
  CHECK(file.metadata() == std::map<std::string, std::string>{{"format", "pt"}});
  auto const& weight = file.at("z.weight");
  CHECK(weight.format == Format::f32);
  CHECK(weight.shape == Shape{3, 4});
  CHECK(weight.bytes == 48);
  std::vector<float> values(12);
  std::memcpy(values.data(), weight.data, weight.bytes);
  for (int k = 0; k < 12; ++k) CHECK(values[static_cast<std::size_t>(k)] == static_cast<float>(k - 5) / 8);
  CHECK(file.at("scalar").shape.empty());
  CHECK(file.at("scalar").bytes == 4);
  CHECK(file.at("empty").shape == Shape{0, 4});
  CHECK(file.at("empty").bytes == 0);
  CHECK(file.at("flags").format == Format::boolean);
  CHECK(file.at("half").format == Format::f16);
  CHECK(file.at("long").format == Format::i64);
  CHECK(file.find("quote \" back \\ slash / tab \t grüße") != nullptr);
  CHECK(file.find("weight") == nullptr);
  CHECK_THROWS_WITH(file.at("w"), std::string(tiny_file) + ": tensor 'w' is missing");
  CHECK_THROWS_WITH(file.at("half", {6}), std::string(tiny_file) + ": tensor 'half' has shape [5], expected [6]");
}

TEST_CASE("writing what was read gives the bytes of the Python package, in whatever order") {
  graft_test::TemporaryFolder const folder;
  auto const file = graft::read_safetensors(tiny_file);
  graft::write_safetensors(folder / "same", file.tensors(), file.metadata());
  CHECK(read_bytes(folder / "same") == read_bytes(tiny_file));
  auto reversed = file.tensors();
  std::reverse(reversed.begin(), reversed.end());
  graft::write_safetensors(folder / "reversed", reversed, file.metadata());
  CHECK(read_bytes(folder / "reversed") == read_bytes(tiny_file));
  auto const again = graft::read_safetensors(folder / "same");
  graft::write_safetensors(folder / "same", again.tensors(), again.metadata());  // over the file it is mapped from
  CHECK(read_bytes(folder / "same") == read_bytes(tiny_file));
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 2);  // no temporary is left
}

TEST_CASE("a file without tensors is legal") {
  graft_test::TemporaryFolder const folder;
  graft::write_safetensors(folder / "none", {});
  CHECK(graft::read_safetensors(folder / "none").tensors().empty());
  CHECK(read_bytes(folder / "none") == file_of("{}      ", ""));
}

TEST_CASE("the tensors of an unpadded file are moved to where their numbers may lie") {
  graft_test::TemporaryFolder const folder;
  float const values[] = {1.5f, -2.5f};
  std::string const data(reinterpret_cast<const char*>(values), 8);
  write_bytes(
      folder / "odd",
      file_of(
          R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[1,9]},"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
          "\x07" + data));
  auto const storage_and_data = [&] {
    auto const file = graft::read_safetensors(folder / "odd");
    return std::pair(file.storage(), file.at("x").data);
  }();
  CHECK(reinterpret_cast<std::uintptr_t>(storage_and_data.second) % alignof(float) == 0);
  CHECK(std::memcmp(storage_and_data.second, values, 8) == 0);  // alive through the storage alone
}

TEST_CASE("an empty tensor has no elements, whatever its other sizes") {
  graft_test::TemporaryFolder const folder;
  std::string const most = "9223372036854775807";
  write_bytes(
      folder / "empty",
      file_of("{\"t\":{\"dtype\":\"F32\",\"shape\":[" + most + "," + most + ",0],\"data_offsets\":[0,0]}}", ""));
  CHECK(graft::read_safetensors(folder / "empty").at("t").elements() == 0);
}

TEST_CASE("what a safetensors file cannot hold is refused before anything is written") {
  graft_test::TemporaryFolder const folder;
  auto const path = folder / "x";
  float const one = 1;
  auto const write = [&](std::vector<TensorInfo> tensors, std::map<std::string, std::string> metadata = {}) {
    graft::write_safetensors(path, std::move(tensors), metadata);
  };
  auto good = graft::tensor_info("w", {1}, &one), other = good;
  CHECK_THROWS_AS(write({good, good}), graft::ContractError);
  other.format = Format::q4_1;
  CHECK_THROWS_AS(write({other}), graft::ContractError);
  other = good, other.name = "__metadata__";
  CHECK_THROWS_AS(write({other}), graft::ContractError);
  other = good, other.name = "\xff";
  CHECK_THROWS_AS(write({other}), graft::ContractError);
  CHECK_THROWS_AS(write({good}, {{"k", "\xc0\x80"}}), graft::ContractError);
  other = good, other.bytes = 8;
  CHECK_THROWS_AS(write({other}), graft::ContractError);
  other = good, other.shape = {-1};
  CHECK_THROWS_AS(write({other}), graft::ContractError);
  CHECK(std::filesystem::is_empty(folder.path()));
  CHECK_THROWS_AS(graft::write_safetensors(folder / "no/such/folder", {good}), graft::FormatError);
}

TEST_CASE("a pipe is written to and stays a pipe") {
  graft_test::TemporaryFolder const folder;
  std::vector<float> const values = {1, 2, 3};
  auto const write = [&](std::filesystem::path const& path) {
    graft::write_safetensors(path, {{"a", Format::f32, {3}, reinterpret_cast<std::byte const*>(values.data()), 12}});
  };
  write(folder / "file");
  auto const pipe = folder / "pipe";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  int const reader = ::open(pipe.c_str(), O_RDONLY | O_NONBLOCK);
  REQUIRE(reader >= 0);
  write(pipe);
  std::string read(4096, ' ');
  auto const bytes = ::read(reader, read.data(), read.size());
  ::close(reader);
  REQUIRE(bytes > 0);
  CHECK(read.substr(0, static_cast<std::size_t>(bytes)) == graft_test::read_bytes(folder / "file"));
  CHECK(std::filesystem::is_fifo(pipe));
}

TEST_CASE("what is not a readable file is refused by its path") {
  graft_test::TemporaryFolder const folder;
  auto const missing = (folder / "missing").string();
  CHECK_THROWS_WITH(graft::read_safetensors(missing), missing + ": cannot be opened: No such file or directory");
  CHECK_THROWS_WITH(graft::read_safetensors(folder.path()),
                    folder.path().string() + ": is a folder, a file was expected");
  CHECK_THROWS_AS(graft::read_safetensors("/dev/null"), graft::FormatError);
}

TEST_CASE("a malformed safetensors file is refused in one sentence that names the tensor") {
  Refusals refusal;
  std::string const data(16, 'x');
  auto const tensor = [](std::string const& fields) { return "{\"t\":{" + fields + "}}"; };
  auto const with = [&](std::string const& dtype, std::string const& shape, std::string const& offsets) {
    return tensor("\"dtype\":" + dtype + ",\"shape\":" + shape + ",\"data_offsets\":" + offsets);
  };
  REQUIRE(refusal.of(with("\"F32\"", "[2,2]", "[0,16]"), data) == "");

  CHECK(refusal.of("") == "0 bytes are too few for a safetensors file");
  CHECK(refusal.of("1234567") == "7 bytes are too few for a safetensors file");
  CHECK(refusal.of(std::string(8, '\0')) == "is not a safetensors file: its header does not begin with '{'");
  CHECK(refusal.of(std::string(8, '\xff') + "{}") ==
        "is not a safetensors file or is cut off: a header of 18446744073709551615 bytes in a file of 10");
  CHECK(refusal.of(file_of("{}", "").substr(0, 9)) ==
        "is not a safetensors file or is cut off: a header of 2 bytes in a file of 9");
  CHECK(refusal.of(" {}", "") == "is not a safetensors file: its header does not begin with '{'");
  CHECK(refusal.of("{}{}", "") == "the header is not valid JSON at its byte 3");
  CHECK(refusal.of("{\"a", "") == "the header is not valid JSON at its byte 4");
  CHECK(refusal.of("{\"\xff\":1}", "") == "the header is not valid JSON at its byte 3");
  CHECK(refusal.of("{\"t\":" + std::string(100000, '['), "") == "header entry 't' is an array");
  CHECK(refusal.of("{\"t\":null}", "") == "header entry 't' is null");
  CHECK(refusal.of("{\"t\\n\\u0007\":true}", "") == "header entry 't\\x0a\\x07' is a truth value");
  CHECK(refusal.of("{\"__metadata__\":[]}", "") == "header entry '__metadata__' is an array");
  CHECK(refusal.of("{\"__metadata__\":{\"k\":1}}", "") == "metadata key 'k' is a number");
  CHECK(refusal.of("{\"__metadata__\":{\"k\":{}}}", "") == "metadata key 'k' is an object");
  CHECK(refusal.of("{\"__metadata__\":{\"k\":\"\",\"k\":\"\"}}", "") == "metadata key 'k' occurs twice");
  CHECK(refusal.of("{\"__metadata__\":{},\"__metadata__\":{}}", "") ==
        "tensor '__metadata__' occurs twice in the header");

  CHECK(refusal.of("{\"t\":{}}", data) == "tensor 't' lacks dtype, shape or data_offsets");
  CHECK(refusal.of(tensor("\"dtype\":\"F32\",\"shape\":[4]"), data) == "tensor 't' lacks dtype, shape or data_offsets");
  CHECK(refusal.of(tensor("\"dtype\":\"F32\",\"dtype\":\"F32\""), data) == "tensor 't' has dtype twice");
  CHECK(refusal.of(tensor("\"colour\":1"), data) == "tensor 't' has the unknown key 'colour'");
  CHECK(refusal.of(with("1", "[4]", "[0,16]"), data) == "tensor 't' has in its dtype a number");
  CHECK(refusal.of(with("[]", "[4]", "[0,16]"), data) == "tensor 't' has in its dtype an array");
  CHECK(refusal.of(with("\"F8_E4M3\"", "[16]", "[0,16]"), data) ==
        "tensor 't' has dtype 'F8_E4M3', which is not supported");
  CHECK(refusal.of(with("\"Q4_1\"", "[32]", "[0,20]"), data) == "tensor 't' has dtype 'Q4_1', which is not supported");
  CHECK(refusal.of(with("\"F32\"", "4", "[0,16]"), data) == "tensor 't' has in its shape a number");
  CHECK(refusal.of(with("\"F32\"", "[-4]", "[0,16]"), data) == "tensor 't' has in its shape the negative number -4");
  CHECK(refusal.of(with("\"F32\"", "[4.0]", "[0,16]"), data) == "tensor 't' has in its shape the number 4.0");
  CHECK(refusal.of(with("\"F32\"", "[[4]]", "[0,16]"), data) == "tensor 't' has in its shape an array");
  CHECK(refusal.of(with("\"F32\"", "[\"4\"]", "[0,16]"), data) == "tensor 't' has in its shape a string");
  CHECK(refusal.of(with("\"F32\"", "[9223372036854775808]", "[0,16]"), data) ==
        "tensor 't' has a dimension of 9223372036854775808");
  CHECK(refusal.of(with("\"F32\"", "[4294967296,4294967296]", "[0,16]"), data) ==
        "tensor 't' has 16 bytes, but shape [4294967296, 4294967296] of F32 takes more than any file");
  CHECK(refusal.of(with("\"F32\"", "[4611686018427387905]", "[0,4]"), data.substr(0, 4)) ==
        "tensor 't' has 4 bytes, but shape [4611686018427387905] of F32 takes more than any file");
  CHECK(refusal.of(with("\"F32\"", "[5]", "[0,16]"), data) == "tensor 't' has 16 bytes, but shape [5] of F32 takes 20");
  CHECK(refusal.of(with("\"F16\"", "[4]", "[0,16]"), data) == "tensor 't' has 16 bytes, but shape [4] of F16 takes 8");
  std::string ones = "[1";
  for (int k = 0; k < 64; ++k) ones += ",1";
  CHECK(refusal.of(with("\"F32\"", ones + "]", "[0,4]"), data) == "tensor 't' has more than 64 dimensions");
  CHECK(refusal.of(with("\"F32\"", "[4]", "[0]"), data) == "tensor 't' has 1 data_offsets, expected 2");
  CHECK(refusal.of(with("\"F32\"", "[4]", "[0,8,16]"), data) == "tensor 't' has more than two data_offsets");
  CHECK(refusal.of(with("\"F32\"", "[4]", "[16,0]"), data) ==
        "tensor 't' has data_offsets [16, 0] in 16 bytes of data");
  CHECK(refusal.of(with("\"F32\"", "[4]", "[0,16]"), data.substr(1)) ==
        "tensor 't' has data_offsets [0, 16] in 15 bytes of data");
  CHECK(refusal.of(with("\"F32\"", "[4]", "[18446744073709551600,18446744073709551615]"), data) ==
        "tensor 't' has data_offsets [18446744073709551600, 18446744073709551615] in 16 bytes of data");
  CHECK(refusal.of(with("\"F32\"", "[3]", "[4,16]"), data) ==
        "tensor 't' begins at byte 4 of the data, expected 0: there is a hole before it");
  CHECK(refusal.of(with("\"F32\"", "[3]", "[0,12]"), data) == "the tensors end at byte 12 of 16 bytes of data");
  CHECK(refusal.of("{}", "x") == "the tensors end at byte 0 of 1 bytes of data");

  auto const two = [](std::string const& a, std::string const& offsets_a, std::string const& b,
                      std::string const& offsets_b) {
    return "{\"" + a + R"(":{"dtype":"U8","shape":[8],"data_offsets":)" + offsets_a + "},\"" + b +
           R"(":{"dtype":"U8","shape":[8],"data_offsets":)" + offsets_b + "}}";
  };
  REQUIRE(refusal.of(two("a", "[8,16]", "b", "[0,8]"), data) == "");
  CHECK(refusal.of(two("a", "[0,8]", "b", "[4,12]"), data.substr(4)) ==
        "tensor 'b' begins at byte 4 of the data, expected 8: it overlaps another");
  CHECK(refusal.of(two("a", "[0,8]", "b", "[0,8]"), data.substr(8)) ==
        "tensor 'b' begins at byte 0 of the data, expected 8: it overlaps another");
  CHECK(refusal.of(two("a", "[0,8]", "a", "[8,16]"), data) == "tensor 'a' occurs twice in the header");
}

TEST_CASE("a header over the limit is refused before it is read") {
  graft_test::TemporaryFolder const folder;
  auto const path = folder / "big.safetensors";
  std::uint64_t const length = 100'000'001;
  write_bytes(path, std::string(reinterpret_cast<const char*>(&length), 8) + "{");
  std::filesystem::resize_file(path, 8 + length);  // sparse
  CHECK_THROWS_WITH(graft::read_safetensors(path),
                    path.string() + ": has a header of 100000001 bytes, more than 100000000");
}

TEST_CASE("a safetensors file cut off anywhere is refused") {
  Refusals refusal;
  auto const bytes = read_bytes(tiny_file);
  for (std::size_t length = 0; length < bytes.size(); ++length) {
    INFO(length);
    CHECK(refusal.of(bytes.substr(0, length)) != "");
  }
  CHECK(refusal.of(bytes + '\0') != "");
}

TEST_CASE("a safetensors file with any byte changed is read or refused") {
  Refusals refusal;
  auto const bytes = read_bytes(tiny_file);
  int accepted = 0, refused = 0;
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    for (int const change : {0x01, 0x80, 0xff}) {
      auto mutated = bytes;
      mutated[at] = static_cast<char>(mutated[at] ^ change);
      ++(refusal.of(mutated).empty() ? accepted : refused);
    }
  }
  // bytes of names, metadata and data are free, those of lengths, keys, types and offsets are not
  CHECK(accepted > 100);
  CHECK(refused > 1000);
}

TEST_CASE("sharded checkpoints are one set of tensors") {
  graft_test::TemporaryFolder const folder;
  float const values[] = {1, 2, 3};
  auto const index_path = folder / "model.safetensors.index.json";
  auto const tensor = [&](const char* name, int k) { return graft::tensor_info(name, {1}, values + k); };
  auto const index = [&](std::string const& map) {
    write_bytes(index_path, "{\"metadata\":{\"total_size\":12},\"weight_map\":" + map + "}");
  };
  graft::write_safetensors(folder / "one.safetensors", {tensor("a", 0), tensor("b", 1)}, {{"format", "pt"}});
  graft::write_safetensors(folder / "two.safetensors", {tensor("c", 2)});
  index(R"({"a":"one.safetensors","b":"one.safetensors","c":"two.safetensors"})");
  for (auto const& path : {folder.path(), index_path}) {
    auto const file = graft::read_sharded_safetensors(path);
    CHECK(file.tensors().size() == 3);
    CHECK(*reinterpret_cast<const float*>(file.at("c").data) == 3);
    CHECK(file.metadata().at("format") == "pt");
  }

  auto const refusal = [&] {
    try {
      graft::read_sharded_safetensors(folder.path());
    } catch (const graft::FormatError& error) {
      return std::string(error.what()).substr(folder.path().string().size() + 1);
    }
    return std::string();
  };
  std::string const in_index = "model.safetensors.index.json: ";
  index(R"({"a":"one.safetensors","d":"two.safetensors"})");
  CHECK(refusal() == "two.safetensors: tensor 'd' is missing");
  index(R"({"a":"three.safetensors"})");
  CHECK(refusal() == "three.safetensors: cannot be opened: No such file or directory");
  index(R"({"a":"../one.safetensors"})");
  CHECK(refusal() ==
        in_index + "tensor 'a' is said to lie in '../one.safetensors', which is not a file of this folder");
  index(R"({"a":".."})");
  CHECK(refusal() == in_index + "tensor 'a' is said to lie in '..', which is not a file of this folder");
  index(R"({"a":1})");
  CHECK(refusal() == in_index + "tensor 'a' has no file name");
  index(R"({"a":"one.safetensors","a":"two.safetensors"})");
  CHECK(refusal() == in_index + "key 'a' occurs twice");
  index("[]");
  CHECK(refusal() == in_index + "has no object \"weight_map\"");
  write_bytes(index_path, std::string(1000, '['));
  CHECK(refusal() == in_index + "nests deeper than 100 levels");
  write_bytes(index_path, "{");
  CHECK(refusal() == in_index + "is not valid JSON");
  graft::write_safetensors(folder / "two.safetensors", {tensor("a", 2)});
  index(R"({"a":"one.safetensors","b":"two.safetensors"})");
  CHECK(refusal() == "two.safetensors: tensor 'b' is missing");
  index(R"({"b":"one.safetensors","a":"two.safetensors"})");
  CHECK(refusal() == in_index + "tensor 'a' occurs twice");

  graft::write_safetensors(folder / "model.safetensors", {tensor("single", 0)});
  CHECK(graft::read_sharded_safetensors(folder.path()).find("single") != nullptr);
  graft_test::TemporaryFolder const empty;
  CHECK_THROWS_WITH(graft::read_sharded_safetensors(empty.path()),
                    empty.path().string() + ": has neither model.safetensors nor model.safetensors.index.json");
}
