// SPDX-License-Identifier: Apache-2.0
// Any bytes as a tokenizer.json: refused, or a tokenizer that encodes and decodes.
#include <tests/fuzz/fuzz.hpp>

#include <graft/text/hf_tokenizer.hpp>
#include <graft/text/tokenizer.hpp>

#include <cstdint>

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  graft_fuzz::InputFile const input(data, size);
  graft_fuzz::accept_or_refuse([&] {
    graft::Tokenizer const tokenizer{graft::read_hf_tokenizer(input.path())};
    tokenizer.decode(tokenizer.encode("<s> Hello [MASK] w\xc3\xb6rld  123 <|eot_id|>\xf0\x9f\x99\x82\n\t\xff"));
    tokenizer.encode_pair("a", "");
  });
  return 0;
}
