// SPDX-License-Identifier: Apache-2.0
// Errors carry one sentence, put together from its parts.
#include <graft/core/error.hpp>
#include <tests/catch.hpp>

namespace {

TEST_CASE("text joins words and numbers") {
  CHECK(graft::text("expected ", 3, " rows, found ", 4.5) == "expected 3 rows, found 4.5");
  CHECK(graft::text("").empty());
}

TEST_CASE("expects raises a ContractError with the numbers, and only when it must") {
  CHECK_NOTHROW(graft::expects(true, "never seen"));
  CHECK_THROWS_AS(graft::expects(false, "x"), graft::ContractError);
  CHECK_THROWS_WITH(graft::expects(false, "batch of ", 8, " rows, plan of ", 7), "batch of 8 rows, plan of 7");
}

TEST_CASE("a bad file and a wrong call can be told apart, and both are graft's") {
  CHECK_THROWS_AS(graft::raise<graft::FormatError>("bad magic"), graft::FormatError);
  CHECK_THROWS_AS(graft::raise<graft::FormatError>("bad magic"), graft::Error);
  CHECK_THROWS_WITH(graft::raise<graft::FormatError>("a.bin", ": has ", 3, " bytes"), "a.bin: has 3 bytes");
  STATIC_REQUIRE_FALSE(std::is_base_of_v<graft::FormatError, graft::ContractError>);
  STATIC_REQUIRE(std::is_base_of_v<std::runtime_error, graft::Error>);
}

}  // namespace
