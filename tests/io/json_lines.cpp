// SPDX-License-Identifier: Apache-2.0
// Lines of JSON: a value is taken as it stands or refused with its line.
#include <tests/catch.hpp>
#include <tests/io/files.hpp>

#include <graft/io/json_lines.hpp>

#include <cstdint>
#include <string>
#include <vector>

namespace {

using namespace graft;

/// What asking the line {"k": value} for a T says; nothing when it gives one.
template <class T>
std::string refusal(std::string const& value) {
  graft_test::TemporaryFolder const folder;
  graft_test::write_bytes(folder / "r.jsonl", "\n{\"k\": " + value + "}\n");
  try {
    read_json_lines(folder / "r.jsonl", {"k"}).front().get<T>("k");
  } catch (FormatError const& error) {
    return std::string(error.what()).substr(folder.path().string().size() + 1);
  }
  return "";
}

TEST_CASE("a value that would have to be changed to fit is refused with its line") {
  using Tokens = std::vector<std::int32_t>;
  CHECK(refusal<Tokens>("[1, 2147483647, -1]") == "");
  for (auto const* wrong : {"[1.5]", "[1.0]", "[true]", "[4294967298]", "[2147483648]", "[\"1\"]", "[[1]]", "5"})
    CHECK(refusal<Tokens>(wrong) ==
          "r.jsonl:2: key \"k\" has the unexpected value " + nlohmann::json::parse(wrong).dump());
  CHECK(refusal<std::vector<std::string>>("[\"a\", \"\"]") == "");
  CHECK(refusal<std::vector<std::string>>("[\"a\", 3]") != "");
  CHECK(refusal<index_t>("9223372036854775807") == "");
  CHECK(refusal<index_t>("9223372036854775808") != "");
  CHECK(refusal<std::uint64_t>("18446744073709551615") == "");
  CHECK(refusal<std::uint64_t>("-1") != "");
  CHECK(refusal<bool>("1") != "");
  CHECK(refusal<double>("1") == "");
}

TEST_CASE("a file that cannot be read is not an empty one") {
  graft_test::TemporaryFolder const folder;
  CHECK_THROWS_WITH(read_json_lines(folder.path(), {}), folder.path().string() + ": cannot be read");
  CHECK_THROWS_WITH(read_json_lines(folder / "none", {}), (folder / "none").string() + ": cannot be opened");
}

}  // namespace
