// SPDX-License-Identifier: Apache-2.0
// Tokenises lines for comparison with other implementations (tests/text/compare_hf.py):
//   tokenize_lines TOKENIZER [--plain] < texts.jsonl > results.jsonl
// TOKENIZER is a GGUF file, a tokenizer.json or the folder of one. A text is one JSON string per line, a result {"ids":
// [...], "decoded": "..."}; the speed goes to stderr.
#include <graft/text/model_tokenizer.hpp>
#include <graft/text/tokenizer.hpp>

#include <nlohmann/json.hpp>

#include <chrono>
#include <cstdio>
#include <exception>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

int main(int argc, char** argv) try {
  if (argc < 2) return std::fputs("usage: tokenize_lines TOKENIZER [--plain]\n", stderr), 2;
  bool const plain = argc > 2 && std::string_view(argv[2]) == "--plain";
  graft::Tokenizer const tokenizer{graft::read_tokenizer(argv[1])};
  double seconds = 0, bytes = 0;
  for (std::string line; std::getline(std::cin, line);) {
    auto const input = nlohmann::json::parse(line).get<std::string>();
    auto const start = std::chrono::steady_clock::now();
    std::vector<std::int32_t> const ids = tokenizer.encode(input, true, !plain);
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    bytes += static_cast<double>(input.size());
    std::cout << nlohmann::json{{"ids", ids}, {"decoded", tokenizer.decode(ids)}}.dump() << '\n';
  }
  std::fprintf(stderr, "%.2f MB at %.1f MB/s\n", bytes * 1e-6, bytes * 1e-6 / seconds);
} catch (std::exception const& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
