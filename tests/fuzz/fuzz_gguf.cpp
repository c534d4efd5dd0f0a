// SPDX-License-Identifier: Apache-2.0
// Any bytes as a GGUF file: read and used, or refused.
#include <tests/fuzz/fuzz.hpp>

#include <graft/io/gguf.hpp>

#include <cstdint>
#include <string_view>

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  graft_fuzz::InputFile const input(data, size);
  graft_fuzz::accept_or_refuse([&] {
    auto const file = graft::read_gguf(input.path());
    graft_fuzz::use(file.tensors);
    for (auto const& entry : file.metadata.entries()) {
      auto const ask = [&](auto type) {
        using T = decltype(type);
        graft_fuzz::accept_or_refuse([&] {
          if (entry.array) {
            file.metadata.get_array<T>(entry.key);
          } else {
            file.metadata.get<T>(entry.key);
          }
        });
      };
      ask(std::int8_t{}), ask(std::uint64_t{}), ask(0.0f), ask(false), ask(std::string_view{});
    }
  });
  return 0;
}
