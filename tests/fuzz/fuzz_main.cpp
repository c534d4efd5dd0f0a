// SPDX-License-Identifier: Apache-2.0
// Drives a fuzz target without libFuzzer: replays files, then tries deterministic random mutations of them.
//
//   fuzz_gguf [--mutations N] [--seed S] FILE|FOLDER...
//
// A finding ends the program as the sanitizer, the uncaught exception or the signal does; the input that caused it is
// then in ./fuzz-finding.
#include <tests/fuzz/fuzz.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace {

using Input = std::vector<std::uint8_t>;
constexpr std::size_t longest = 1 << 16;  // seeds above it are replayed, not mutated

class Mutator {
 public:
  Mutator(const std::vector<Input>& seeds, std::uint64_t seed) : seeds_(seeds), random_(seed) {}

  Input next() {
    Input input = any_seed();
    for (std::size_t changes = 1 + below(4); changes > 0; --changes) change(input);
    return input;
  }

 private:
  // not std::uniform_int_distribution, whose numbers differ between standard libraries
  std::size_t below(std::size_t count) { return static_cast<std::size_t>(random_() % count); }
  const Input& any_seed() { return seeds_[below(seeds_.size())]; }

  void change(Input& input) {
    if (input.empty()) input.push_back(0);
    auto const at = input.begin() + static_cast<std::ptrdiff_t>(below(input.size()));
    auto const left = static_cast<std::size_t>(input.end() - at);
    auto const part = [&](std::size_t most) {
      return static_cast<std::ptrdiff_t>(1 + below(std::min<std::size_t>(most, left)));
    };
    switch (below(9)) {
      case 0:
        *at = static_cast<std::uint8_t>(*at ^ (1u << below(8)));
        break;
      case 1:
        *at = static_cast<std::uint8_t>(random_());
        break;
      case 2: {  // a number that lengths and counts find hard
        std::uint64_t const hard[] = {0,
                                      1,
                                      ~std::uint64_t{0},
                                      std::uint64_t{1} << below(64),
                                      input.size(),
                                      static_cast<std::uint64_t>(input.end() - at),
                                      below(64)};
        std::uint64_t const number = hard[below(std::size(hard))] + below(3) - 1;
        std::size_t const width = std::size_t{1} << below(4);
        std::memcpy(&*at, &number, std::min(width, left));
        break;
      }
      case 3: {  // text numbers and structure
        constexpr std::string_view tokens[] = {"0", "9",  "-", "18446744073709551615", "{", "}", "[", "]",
                                               ",", "\"", ":"};
        auto const token = tokens[below(std::size(tokens))];
        input.insert(at, token.begin(), token.end());
        break;
      }
      case 4:
        if (*at >= '0' && *at <= '9') *at = static_cast<std::uint8_t>('0' + below(10));
        break;
      case 5:
        input.erase(at, at + part(64));
        break;
      case 6: {  // a piece of itself, once more
        Input const piece(at, at + part(64));
        auto const to = static_cast<std::ptrdiff_t>(below(input.size()));
        input.insert(input.begin() + to, piece.begin(), piece.end());
        break;
      }
      case 7:
        if (below(4) == 0) input.resize(static_cast<std::size_t>(at - input.begin()));
        break;
      default: {  // the rest of another seed
        if (below(8) != 0) break;
        Input const other = any_seed();
        std::size_t const from = other.empty() ? 0 : below(other.size());
        input.erase(at, input.end());
        input.insert(input.end(), other.begin() + static_cast<std::ptrdiff_t>(from), other.end());
      }
    }
  }

  const std::vector<Input>& seeds_;
  std::mt19937_64 random_;
};

Input current;
bool running = false;
void save_finding() {
  if (!running) return;
  running = false;
  std::ofstream("fuzz-finding", std::ios::binary)
      .write(reinterpret_cast<const char*>(current.data()), static_cast<std::streamsize>(current.size()));
  std::fprintf(stderr, "the input is in ./fuzz-finding\n");
}

void run(Input input) {
  current = std::move(input);
  running = true;
  LLVMFuzzerTestOneInput(current.data(), current.size());
  running = false;
}

Input read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    std::fprintf(stderr, "%s: cannot be read\n", path.c_str());
    std::exit(2);
  }
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

#if defined(__SANITIZE_ADDRESS__)
extern "C" void __asan_on_error() { save_finding(); }
#endif

int main(int argc, char** argv) {
  std::uint64_t mutations = 0, seed = 1;
  std::vector<std::filesystem::path> paths;
  for (int k = 1; k < argc; ++k) {
    std::string_view const argument = argv[k];
    if ((argument == "--mutations" || argument == "--seed") && k + 1 < argc) {
      (argument == "--seed" ? seed : mutations) = std::strtoull(argv[++k], nullptr, 10);
    } else if (std::filesystem::is_directory(argument)) {
      for (auto const& entry : std::filesystem::directory_iterator(argument)) {
        if (entry.is_regular_file()) paths.push_back(entry.path());
      }
    } else {
      paths.emplace_back(argument);
    }
  }
  if (paths.empty()) {
    std::fprintf(stderr, "usage: %s [--mutations N] [--seed S] FILE|FOLDER...\n", argv[0]);
    return 2;
  }
  std::set_terminate([] {
    save_finding();
    std::abort();
  });
  std::sort(paths.begin(), paths.end());
  std::vector<Input> seeds;
  for (auto const& path : paths) {
    Input input = read_file(path);
    run(input);
    if (input.size() <= longest) seeds.push_back(std::move(input));
  }
  Mutator mutator(seeds, seed);
  for (std::uint64_t k = 0; k < mutations && !seeds.empty(); ++k) run(mutator.next());
  std::printf("%zu files, %llu mutations of %zu\n", paths.size(), static_cast<unsigned long long>(mutations),
              seeds.size());
}
