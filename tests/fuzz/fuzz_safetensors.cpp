// SPDX-License-Identifier: Apache-2.0
// Any bytes as a safetensors file: read and used, or refused.
#include <tests/fuzz/fuzz.hpp>

#include <graft/io/safetensors.hpp>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {
void read(const std::uint8_t* data, std::size_t size) {
  graft_fuzz::InputFile const input(data, size);
  graft_fuzz::accept_or_refuse([&] { graft_fuzz::use(graft::read_safetensors(input.path())); });
}
}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  read(data, size);
  if (size <= 8) return 0;
  // Once more with a length that fits the header, which a mutation that inserts or removes bytes leaves wrong.
  std::vector<std::uint8_t> repaired(data, data + size);
  auto const brace = std::find(repaired.rbegin(), repaired.rend() - 8, '}');
  auto const length = static_cast<std::uint64_t>(repaired.rend() - 8 - brace);
  std::memcpy(repaired.data(), &length, sizeof length);
  read(repaired.data(), repaired.size());
  return 0;
}
