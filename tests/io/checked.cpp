// SPDX-License-Identifier: Apache-2.0
// The checks all readers share.
#include <tests/catch.hpp>

#include <graft/io/checked.hpp>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

TEST_CASE("UTF-8 is told from what is not, at every boundary") {
  auto const encode = [](std::uint32_t c, int length) {  // also overlong, also beyond the end
    std::string out;
    auto const tail = [&](int shift) { out += static_cast<char>(0x80 | ((c >> shift) & 0x3f)); };
    if (length == 1) out += static_cast<char>(c);
    if (length == 2) out += static_cast<char>(0xc0 | (c >> 6)), tail(0);
    if (length == 3) out += static_cast<char>(0xe0 | (c >> 12)), tail(6), tail(0);
    if (length == 4) out += static_cast<char>(0xf0 | (c >> 18)), tail(12), tail(6), tail(0);
    return out;
  };
  for (std::uint32_t const c : {0u, 0x7fu, 0x80u, 0x7ffu, 0x800u, 0xd7ffu, 0xd800u, 0xdfffu, 0xe000u, 0xffffu, 0x10000u,
                                0x10ffffu, 0x110000u, 0x13ffffu}) {
    int const right = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    bool const scalar = c <= 0x10ffff && (c < 0xd800 || c > 0xdfff);
    for (int length = right; length <= 4; ++length) {
      INFO(c << " in " << length << " bytes");
      auto const bytes = encode(c, length);
      CHECK(graft::valid_utf8(bytes) == (length == right && scalar));
      CHECK(graft::valid_utf8("a" + bytes + "b") == (length == right && scalar));
      if (length > 1) CHECK_FALSE(graft::valid_utf8(bytes.substr(0, bytes.size() - 1)));
      if (length > 1) CHECK_FALSE(graft::valid_utf8(bytes.substr(1)));
    }
  }
  for (int byte = 0x80; byte < 0x100; ++byte) CHECK_FALSE(graft::valid_utf8(std::string(1, static_cast<char>(byte))));
  CHECK(graft::valid_utf8(""));
}

TEST_CASE("names are shown on one line and not at any length") {
  CHECK(graft::in_quotes("blk.0.attn_q.weight") == "'blk.0.attn_q.weight'");
  CHECK(graft::in_quotes("grüße") == "'grüße'");
  CHECK(graft::in_quotes(std::string_view("a\0\n\x7f", 4)) == "'a\\x00\\x0a\\x7f'");
  CHECK(graft::in_quotes("ü\xff") == "'\\xc3\\xbc\\xff'");
  CHECK(graft::in_quotes(std::string(96, 'x')) == "'" + std::string(96, 'x') + "'");
  CHECK(graft::in_quotes(std::string(97, 'x')) == "'" + std::string(96, 'x') + "...'");
  CHECK(graft::in_quotes(std::string(95, 'x') + "üy") == "'" + std::string(95, 'x') + "...'");
}

TEST_CASE("the size of a tensor is known or refused, never wrapped") {
  using graft::Format;
  using Shape = std::vector<graft::index_t>;
  auto const bytes = [](Format format, Shape const& shape) { return graft::stored_bytes(format, shape); };
  graft::index_t const most = std::numeric_limits<graft::index_t>::max();
  CHECK(bytes(Format::f32, {}) == 4);
  CHECK(bytes(Format::f32, {3, 5}) == 60);
  CHECK(bytes(Format::q4_1, {3, 64}) == 120);
  CHECK(bytes(Format::q6_k, {512}) == 420);
  CHECK(bytes(Format::u8, {most}) == static_cast<std::size_t>(most));
  CHECK(bytes(Format::f32, {0, most}) == std::nullopt);  // the row alone does not fit
  CHECK(bytes(Format::u8, {0, most}) == 0);
  CHECK(bytes(Format::f16, {most}) == std::nullopt);
  CHECK(bytes(Format::u8, {most, 2}) == std::nullopt);
  CHECK(bytes(Format::u8, {std::int64_t{1} << 32, std::int64_t{1} << 32}) == std::nullopt);
  CHECK(bytes(Format::u8, {-1}) == std::nullopt);
  CHECK(bytes(Format::u8, {-1, -1}) == std::nullopt);
  CHECK(bytes(Format::q4_1, {64, 16}) == std::nullopt);
}
