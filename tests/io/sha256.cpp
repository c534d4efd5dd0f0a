// SPDX-License-Identifier: Apache-2.0
// SHA-256: the examples of FIPS 180-4 and of NIST, in one piece and in pieces.
#include <graft/io/sha256.hpp>
#include <tests/catch.hpp>

#include <string>

using namespace graft;

TEST_CASE("the standard's examples") {
  CHECK(sha256("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(sha256("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK(sha256(std::string(1000000, 'a')) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST_CASE("pieces of any length give what the whole gives") {
  std::string const all(1000, 'x');
  for (std::size_t const length : {1u, 7u, 63u, 64u, 65u, 130u}) {
    Sha256 hash;
    for (std::size_t at = 0; at < all.size(); at += length) hash.update(std::string_view(all).substr(at, length));
    CHECK(hash.hex() == sha256(all));
  }
}
