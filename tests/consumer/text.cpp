// SPDX-License-Identifier: Apache-2.0
// What a user of graft::text does not need to know: that JSON and PCRE2 are behind it.
#include <graft/graft.hpp>
#include <graft/text/hf_tokenizer.hpp>
#include <graft/text/tokenizer.hpp>

#include <cstdio>

int main() {
  try {
    graft::Tokenizer const tokenizer{graft::read_hf_tokenizer("no/such/tokenizer.json")};
  } catch (graft::FormatError const& error) {
    std::puts(error.what());
    return 0;
  }
  return 1;
}
