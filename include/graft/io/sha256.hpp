// SPDX-License-Identifier: Apache-2.0
// SHA-256 (FIPS 180-4): what `sha256sum` prints, for saying which file something was made from.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace graft {

class Sha256 {
 public:
  void update(void const* data, std::size_t bytes) {
    auto const* from = static_cast<unsigned char const*>(data);
    total_ += bytes;
    while (bytes > 0) {
      if (filled_ == 0 && bytes >= 64) {
        block(from);
        from += 64, bytes -= 64;
        continue;
      }
      std::size_t const part = bytes < 64 - filled_ ? bytes : 64 - filled_;
      std::memcpy(buffer_.data() + filled_, from, part);
      filled_ += part, from += part, bytes -= part;
      if (filled_ == 64) block(buffer_.data()), filled_ = 0;
    }
  }
  void update(std::string_view characters) { update(characters.data(), characters.size()); }

  /// 64 hexadecimal digits of all that came so far; the object is spent.
  std::string hex() {
    std::uint64_t const bits = total_ * 8;
    unsigned char const one = 0x80, zero = 0;
    update(&one, 1);
    while (filled_ != 56) update(&zero, 1);
    unsigned char length[8];
    for (int k = 0; k < 8; ++k) length[k] = static_cast<unsigned char>(bits >> (56 - 8 * k));
    update(length, 8);
    std::string digits;
    for (auto const word : state_)
      for (int shift = 28; shift >= 0; shift -= 4) digits += "0123456789abcdef"[(word >> shift) & 15];
    return digits;
  }

 private:
  void block(unsigned char const* from) {
    static constexpr std::array<std::uint32_t, 64> k = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    std::array<std::uint32_t, 64> w;
    for (std::size_t t = 0; t < 16; ++t)
      w[t] = std::uint32_t{from[4 * t]} << 24 | std::uint32_t{from[4 * t + 1]} << 16 |
             std::uint32_t{from[4 * t + 2]} << 8 | std::uint32_t{from[4 * t + 3]};
    for (std::size_t t = 16; t < 64; ++t) {
      std::uint32_t const x = w[t - 15], y = w[t - 2];
      w[t] = w[t - 16] + (std::rotr(x, 7) ^ std::rotr(x, 18) ^ (x >> 3)) + w[t - 7] +
             (std::rotr(y, 17) ^ std::rotr(y, 19) ^ (y >> 10));
    }
    auto [a, b, c, d, e, f, g, h] = state_;
    for (std::size_t t = 0; t < 64; ++t) {
      std::uint32_t const first =
          h + (std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25)) + ((e & f) ^ (~e & g)) + k[t] + w[t];
      std::uint32_t const second =
          (std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + second;
    }
    std::array<std::uint32_t, 8> const added = {a, b, c, d, e, f, g, h};
    for (std::size_t t = 0; t < 8; ++t) state_[t] += added[t];
  }

  std::array<std::uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<unsigned char, 64> buffer_{};
  std::size_t filled_ = 0;
  std::uint64_t total_ = 0;
};

inline std::string sha256(std::string_view characters) {
  Sha256 hash;
  hash.update(characters);
  return hash.hex();
}

}  // namespace graft
